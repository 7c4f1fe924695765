"""Which labels does a COCO file give?

COCO describes boxes and masks. It labels a photo if all of the photo's annotations are of one category.
"""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from agritransfer.data.readers.photo_names import PhotoNames, refuse_missing, refuse_repeated
from agritransfer.data.readers.source import SPLIT_NAMES, TableLabels
from agritransfer.errors import DataError
from agritransfer.wording import counted, listed


def is_coco(document: object) -> bool:
    """Whether a JSON document has the three lists of COCO."""
    lists = ("images", "annotations", "categories")
    return isinstance(document, dict) and all(isinstance(document.get(name), list) for name in lists)


def labels_of_coco(path: Path, base: str, document: dict, names: PhotoNames) -> TableLabels:
    """The category of each photo of a COCO file in the folder `base`; raises `DataError` if one has several."""
    try:
        categories = {each["id"]: str(each["name"]).strip() for each in document["categories"]}
        images = {each["id"]: str(each["file_name"]) for each in document["images"]}
        annotated = [(each["image_id"], each["category_id"]) for each in document["annotations"]]
        labels_of = defaultdict(set)
        for image, category in annotated:
            labels_of[image].add(categories[category])
        strangers = [image for image in labels_of if image not in images]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' is no complete COCO file: {type(error).__name__} at {error}; each category needs id and name, "
            "each image id and file_name, each annotation image_id and category_id of those listed"
        ) from error
    if strangers or len(images) < len(document["images"]) or len(categories) < len(document["categories"]):
        listing = counted(len(strangers), "annotated image that is", "annotated images that are")
        found = f"{listing} not listed" if strangers else "an id that occurs twice"
        raise DataError(f"'{path}' has {found}; export it again")
    tag = re.sub(r"^instances[_-]?", "", path.stem)
    split = SPLIT_NAMES.get(re.sub(r"[\d_.-]+$", "", tag).lower(), "")
    rows, unlabelled, absent, several = [], {}, [], []
    for image, file in images.items():
        name = _find(path, file, _folders(base, tag), names)
        labels = sorted(labels_of[image])
        if name is None:
            absent.append((f"image {image}", file))
        elif len(labels) > 1:
            several.append(f"'{file}' ({', '.join(labels)})")
        elif not labels:
            unlabelled[name] = f"without an annotation in {path.name}"
        elif not labels[0]:
            raise DataError(f"'{path}' has a category without a name, of '{file}'; name it")
        elif name in names.unread:
            unlabelled[name] = names.unread[name]
        else:
            rows.append({"file": name, "label": labels[0], "split": split})
    refuse_missing(path, absent, names)
    if several:
        raise DataError(
            f"'{path}': {counted(len(several), 'image')} with several categories (multi-label), such as {several[0]}; "
            "a classifier needs one category for each photo: crop the boxes, or remove these images"
        )
    refuse_repeated(path, [(row["file"], row["label"], "images") for row in rows])
    return TableLabels(rows, unlabelled)


def _folders(base: str, tag: str) -> list[str]:
    # Beside the file, in images/, or, for annotations/instances_train2017.json, in train2017/ beside annotations/.
    above = PurePosixPath(base)
    folders = [above, above / "images"]
    if above.name == "annotations":
        folders += [above.parent, above.parent / "images", above.parent / tag, above.parent / "images" / tag]
    return [str(folder) for folder in folders]


def _find(path: Path, file: str, folders: list[str], names: PhotoNames) -> str | None:
    found = sorted({name for folder in folders if (name := names.find(file, folder)) is not None})
    if len(found) > 1:
        raise DataError(f"'{path}': '{file}' may be {listed(found)}; keep one of them")
    return found[0] if found else None
