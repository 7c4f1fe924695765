"""What does the name of a folder say: a split, a version or a source of the photos, or a class?

Words decide only together with what `layout.py` sees of the tree: a class may well be named `test`.
"""

import re

from agritransfer.data.readers.source import SPLIT_NAMES

# Words of a split that no one can tell the meaning of: for some, `eval` is validation; for others, it is the test.
UNCLEAR = ("eval", "evaluation", "evaluate", "holdout", "unseen")
# Words for a part or a version of all photos, and words that name any folder of photos.
VERSIONS = (
    *("fold", "folds", "cv", "split", "part", "batch", "chunk", "shard", "subset", "unlabeled", "unlabelled"),
    *(
        "original",
        "originals",
        "orig",
        "raw",
        "full",
        "processed",
        "preprocessed",
        "unprocessed",
        "resized",
        "enhanced",
    ),
    *("augmented", "augmentation", "augmentations", "aug", "unaugmented", "synthetic", "cropped", "crops", "uncropped"),
    *("color", "colour", "gray", "grey", "grayscale", "greyscale", "rgb", "nir", "ndvi", "depth"),
    *("segmented", "segmentation", "segmentations", "mask", "masks", "masked", "annotated", "annotations"),
    *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pics", "jpg", "jpeg", "png"),
    *("data", "dataset", "datasets", "set", "sets", "folder", "version", "all", "copy"),
)
# Of several versions, the one that was taken with a camera.
ORIGINALS = {"original", "originals", "orig", "raw", "full", "color", "colour", "rgb", "unaugmented", "uncropped"}
# Where or how photos were taken. The first need no number; `plant` without a number may be part of a class.
SOURCES = ("lab", "laboratory", "field", "wild", "indoor", "outdoor", "greenhouse", "drone", "uav", "mobile", "dslr")
SOURCES += ("camera", "cam", "phone", "smartphone", "iphone", "android", "canon", "nikon")
NUMBERED = ("session", "day", "week", "month", "year", "season", "date", "visit", "trip", "round", "site", "plot")
NUMBERED += ("location", "farm", "plant", "tree", "video", "clip", "sequence", "seq", "device", "sensor", "user")
MARKED = {*SPLIT_NAMES, *UNCLEAR, *VERSIONS}
# `trainset` and `testimages` are two words.
PIECE = "|".join(sorted(MARKED, key=len, reverse=True))
YEAR_OR_DATE = re.compile(r"(?:19|20)\d\d(?:\D?\d\d?){0,2}|\d\d?\D\d\d?\D(?:19|20)?\d\d")


def split_named(name: str) -> str | None:
    """The split of a folder with exactly the name of one, in any case and with spaces around it; None of others."""
    return SPLIT_NAMES.get(name.strip().lower())


def splits_meant(name: str) -> list[str]:
    """The splits that the words of a name may mean, such as validation for `val_set` and two for `eval`."""
    words = _words(name)
    meant = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if any(word in UNCLEAR for word in words):
        meant |= {"validation", "test"}
    return sorted(meant, key=("train", "validation", "test").index)


def without_marks(name: str) -> tuple[str, ...]:
    """The words of a name but those for a split or a version and their numbers: () for `fold0` or `train_images`."""
    rest, previous = [], ""
    for word in _words(name):
        if word not in MARKED and not (_is_number(word) and previous in MARKED):
            rest.append(word)
        previous = word
    return () if is_marked(name) and all(map(_is_number, rest)) else tuple(rest)


def is_marked(name: str) -> bool:
    """Whether a name has words for a split or a version."""
    return any(word in MARKED for word in _words(name))


def is_original(name: str) -> bool:
    """Whether a name is that of the photos of which others are versions."""
    return bool(ORIGINALS & set(_words(name)))


def is_source(name: str) -> bool:
    """Whether a name says where, when or with what photos were taken, such as `camera1`, `field` or `2021-05-03`."""
    if YEAR_OR_DATE.fullmatch(name.strip()):
        return True
    words = _words(name)
    numbers = [word for word in words if _is_number(word)]
    named = [word for word in words if word in SOURCES or (word in NUMBERED and numbers)]
    return bool(named) and len(named) + len(numbers) == len(words)


def _is_number(word: str) -> bool:
    return word.isdigit() or len(word) == 1


def _words(name: str) -> list[str]:
    # `TestImages` is two words, and so is `fold0`.
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = re.findall(r"[^\W\d_]+|\d+", apart)
    return [
        piece
        for word in words
        for piece in (re.findall(PIECE, word) if re.fullmatch(f"(?:{PIECE})+", word) else [word])
    ]
