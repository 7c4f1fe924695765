"""What does the name of a folder say: a split, a version or a source of the photos, or a class?

Words decide only together with what `doubts.py` sees of the tree: a class may well be named `test`.
"""

import re

from agritransfer.data.readers.source import SPLIT_NAMES


def _set(text: str) -> set[str]:
    return set(text.split())


# Words of a split whose meaning is not certain, or that are not English; such a folder must be renamed.
UNCLEAR = {
    **dict.fromkeys(("eval", "evaluation", "evaluate", "holdout", "unseen"), ("validation", "test")),
    **dict.fromkeys(("trn", "entrenamiento", "treino", "treinamento", "entrainement", "apprentissage"), ("train",)),
    **dict.fromkeys(("vld", "validacion", "validación", "validacao", "validação", "validierung"), ("validation",)),
    **dict.fromkeys(("tst", "prueba", "pruebas", "teste", "testes"), ("test",)),
}
# Words for a part or a version of all photos, in whatever name they are.
VERSIONS = _set(
    "fold folds batch chunk shard subset labeled labelled unlabeled unlabelled backup copy original originals orig "
    "augmented augmentation augmentations aug unaugmented synthetic preprocessed resized enhanced cropped uncropped "
    "segmented segmentation segmentations grayscale greyscale flipped rotated mirrored blurred"
)
# Words that mean the same, or nothing, if a name has no others: `gray` is a version, but `gray_mold` is a class.
WEAK = _set(
    "raw full processed color colour gray grey rgb nir ndvi depth mask masks masked annotated annotations part split "
    "cv support query gallery image images img imgs photo photos picture pictures pics jpg jpeg png data dataset "
    "datasets set sets folder version all"
)
# Of several versions, the one that was taken with a camera.
ORIGINALS = {"original", "originals", "orig", "raw", "full", "color", "colour", "rgb", "unaugmented", "uncropped"}
# Where, when or with what photos were taken.
SOURCES = _set(
    "lab laboratory field wild indoor outdoor greenhouse drone uav mobile dslr camera cam phone smartphone iphone "
    "android canon nikon january february march april may june july august september october november december "
    "spring summer autumn winter"
)
# The same, but only with a number: `plant` may be part of a class.
NUMBERED = _set(
    "session day days week weeks month year season date visit trip round site plot location farm plant tree video clip "
    "sequence seq device sensor user h hours hpi dpi dai das v px"
)
STRONG = {*SPLIT_NAMES, *UNCLEAR, *VERSIONS}
# `trainset` and `testimages` are two words.
PIECE = "|".join(sorted(STRONG | WEAK, key=len, reverse=True))
YEAR = r"(?:19|20)\d\d"
DATE = rf"{YEAR}(?:\D?\d\d?){{0,2}}|\d\d?\D\d\d?\D(?:{YEAR}|\d\d)"
SIZE = r"\d{2,4} ?x ?\d{2,4}"


def split_named(name: str) -> str | None:
    """The split of a folder with exactly the name of one, in any case and with spaces around it; None of others."""
    return SPLIT_NAMES.get(name.strip().lower())


def splits_meant(name: str) -> list[str]:
    """The splits that the words of a name may mean, such as validation for `val_set` and two for `eval`."""
    meant = set()
    for word in _words(name):
        meant |= {SPLIT_NAMES[word]} if word in SPLIT_NAMES else set(UNCLEAR.get(word, ()))
    return sorted(meant, key=("train", "validation", "test").index)


def is_marked(name: str) -> bool:
    """Whether a name has words for a split or a version."""
    words = _words(name)
    only_weak = all(word in WEAK or _is_number(word) for word in words) and any(word in WEAK for word in words)
    return only_weak or any(word in STRONG for word in words)


def without_marks(name: str) -> tuple[str, ...]:
    """The words of a name but those for a split or a version and their numbers: () for `fold0` or `train_images`."""
    words = _words(name)
    if not is_marked(name):
        return tuple(words)
    rest, previous = [], ""
    for word in words:
        is_mark = word in STRONG or word in WEAK
        if not is_mark and not (_is_number(word) and (previous in STRONG or previous in WEAK)):
            rest.append(word)
        previous = word
    return () if all(map(_is_number, rest)) else tuple(rest)


def is_original(name: str) -> bool:
    """Whether a name is that of the photos of which others are versions."""
    return bool(ORIGINALS & set(_words(name)))


def is_source(name: str) -> bool:
    """Whether a name says where, when or with what photos were taken: `camera1`, `field`, `2021-05-03`, `256x256`."""
    if re.fullmatch(f"{DATE}|{SIZE}", name.strip()):
        return True
    words = _words(name)
    number = any(word.isdigit() or (len(word) == 1 and word not in NUMBERED) for word in words)
    named = [word for word in words if word in SOURCES or (word in NUMBERED and number)]
    return bool(named) and all(word in named or _is_number(word) for word in words)


def _is_number(word: str) -> bool:
    return word.isdigit() or len(word) == 1


def _words(name: str) -> list[str]:
    # `TestImages` is two words, and so is `fold0`.
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = []
    for word in re.findall(r"[^\W\d_]+|\d+", apart):
        words += re.findall(PIECE, word) if re.fullmatch(f"(?:{PIECE})+", word) else [word]
    return words
