"""What does a check of every photo find? Broken files and copies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agritransfer.data.deduplication import SIDE, find_duplicates
from agritransfer.data.file_checks import Inspection, inspect
from agritransfer.data.readers.source import Photo


@dataclass(frozen=True)
class Examination:
    """The checked photos of a dataset; `duplicates` are groups of indices into `photos`."""

    photos: list[Photo]
    inspections: list[Inspection]
    duplicates: list[list[int]]

    @property
    def broken(self) -> dict[str, str]:
        """The reason for each photo that cannot be decoded."""
        seen = zip(self.photos, self.inspections, strict=True)
        return {photo.file: inspection.reason for photo, inspection in seen if inspection.reason}

    def groups_where(self, differ: str) -> list[list[Photo]]:
        """The groups of copies whose photos differ in `label` or in `split`."""
        groups = [[self.photos[place] for place in group] for group in self.duplicates]
        return [group for group in groups if len({getattr(photo, differ) for photo in group}) > 1]


def examine(images: Sequence[dict], photos: Sequence[Photo], name: str) -> Examination:
    """Check every photo of the dataset of this name on all cores, and find copies; `images` are a source's rows."""
    inspections = inspect(images, photos, name)
    return Examination(list(photos), inspections, same_photos(inspections))


def same_photos(inspections: Sequence[Inspection]) -> list[list[int]]:
    """Groups of indices whose photos are the same; broken ones are in none."""
    whole = [place for place, inspection in enumerate(inspections) if not inspection.reason]
    looks = np.array([inspections[place].look for place in whole], np.uint8).reshape(-1, SIDE, SIDE)
    groups = find_duplicates([inspections[place].digest for place in whole], looks)
    return [[whole[place] for place in group] for group in groups]
