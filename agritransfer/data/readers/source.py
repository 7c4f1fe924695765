"""What is a photo, and what does a dataset hold before it is split?"""

from dataclasses import dataclass

import datasets

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".mpo", ".heic", ".heif"}
PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth"}


@dataclass(frozen=True)
class Photo:
    """One photo: its row among the images, its name in the data set, label name, split ("" before the cut), group."""

    row: int
    file: str
    label: str
    split: str
    group: str = ""


@dataclass(frozen=True)
class Source:
    """What a data set holds before it is split: `images` has the column `image` (path or bytes, not decoded)."""

    images: datasets.Dataset
    photos: list[Photo]
    labels: list[str]
    revision: str | None = None
    left_out: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()
