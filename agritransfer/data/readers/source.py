"""What is a photo, and what does a dataset hold before it is split?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "validate", "validating", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".mpo", ".heic", ".heif"}
PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Photo:
    """One photo: its row in the images, name in the dataset, label, split ("" before splitting), group ("" none)."""

    row: int
    file: str
    label: str
    split: str
    group: str = ""


@dataclass(frozen=True)
class Columns:
    """The columns of photos, labels and groups that the user named with flags; None where the usual one is meant."""

    image: str | None = None
    label: str | None = None
    group: str | None = None


class PhotoFiles(Sequence):
    """The image files of a folder, row by row as an undecoded `datasets.Dataset` gives them, without that library."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> dict[str, dict]:
        return {"image": {"path": self.paths[row], "bytes": None}}


@dataclass(frozen=True)
class Source:
    """What a dataset contains before it is split; each row of `images` is `{"image": {"path", "bytes"}}`, undecoded.

    `notes` say how it was read where the reader had a choice; `inside` are folders above all labels that are left out
    of them.
    """

    images: "PhotoFiles | datasets.Dataset"
    photos: list[Photo]
    labels: list[str]
    revision: str | None = None
    left_out: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    inside: str = ""


@dataclass(frozen=True)
class TableLabels:
    """What a table of labels says: a row (file, label, split, group) for each labelled photo.

    `unlabelled` are photos that it names without a label, with the reason.
    """

    rows: list[dict[str, str]]
    unlabelled: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
