"""Which classes, and how many train photos of each, are used?"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from agritransfer.data.readers.source import Photo, Source
from agritransfer.errors import UsageError
from agritransfer.wording import counted, listed


@dataclass(frozen=True)
class Selection:
    """What `--classes` and `--max_photos_per_class` asked for, and the photos found of each class left out."""

    classes: tuple[str, ...] | None = None
    classes_left_out: dict[str, int] | None = None
    max_photos_per_class: int | None = None

    def __post_init__(self):
        if self.max_photos_per_class is not None and self.max_photos_per_class < 1:
            raise UsageError(f"--max_photos_per_class must be at least 1; found {self.max_photos_per_class}")


def select_classes(source: Source, patterns: Sequence[str] | None) -> tuple[Source, dict[str, int]]:
    """The photos of the labels that match any pattern, such as `Tomato*`, and how many photos the others have.

    A pattern is matched against the whole label, with `*`, `?` and `[...]`, and case counts. Raises `UsageError` for
    a pattern that matches no label.
    """
    if patterns is None:
        return source, {}
    known = [*source.labels, *source.empty_classes]
    for pattern in patterns:
        if not any(fnmatchcase(label, pattern) for label in known):
            raise UsageError(f"--classes '{pattern}' matches no label; the labels are {listed(sorted(known))}")
    kept = [label for label in source.labels if matches(label, patterns)]
    left_out = Counter(photo.label for photo in source.photos if photo.label not in kept)
    lines = [f"{counted(sum(left_out.values()), 'photo')} of {counted(len(left_out), 'class', 'classes')} by --classes"]
    selected = replace(
        source,
        photos=[photo for photo in source.photos if photo.label in kept],
        labels=kept,
        left_out=(*source.left_out, *(lines if left_out else [])),
        empty_classes=tuple(label for label in source.empty_classes if matches(label, patterns)),
    )
    return selected, dict(sorted(left_out.items()))


def matches(label: str, patterns: Sequence[str]) -> bool:
    """Whether a label matches any of these patterns."""
    return any(fnmatchcase(label, pattern) for pattern in patterns)


def limit_train_photos(photos: list[Photo], limit: int | None, seed: int) -> list[Photo]:
    """At most `limit` train photos of each class, drawn with the seed, and all other photos, in their order.

    A smaller limit keeps a part of the photos that a larger one keeps, so that learning curves compare like with like.
    """
    if limit is None:
        return photos
    of_class = defaultdict(list)
    for photo in photos:
        if photo.split == "train":
            of_class[photo.label].append(photo.row)
    kept = set()
    for label, rows in of_class.items():
        kept.update(random.Random(f"{seed} {label}").sample(rows, len(rows))[:limit])
    return [photo for photo in photos if photo.split != "train" or photo.row in kept]
