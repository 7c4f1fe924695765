"""Which split does each checked photo get, and are there enough photos in each?

Copies of a photo form a group, and a group is never divided between splits. Training and the audit both ask here.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Literal

from agritransfer.data.deduplication import connect
from agritransfer.data.examination import Examination
from agritransfer.data.leakage import find_leaks
from agritransfer.data.readers.source import Photo
from agritransfer.data.selection import limit_train_photos
from agritransfer.data.splitting import cut_splits, draw_samples
from agritransfer.errors import DataError
from agritransfer.wording import counted

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Assignment:
    """All photos with their splits and groups (`found`), those that are used, and how they were split.

    `missing` are the splits that the dataset lacked; `leaked` says where the later copy of a leaked photo is.
    """

    found: list[Photo]
    photos: list[Photo]
    missing: tuple[str, ...]
    method: Literal["official", "stratified", "group"]
    leaked: dict[str, str]


def assign_splits(
    examination: Examination,
    labels: list[str],
    *,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    on_leakage: Literal["drop", "keep", "stop"] = "drop",
    max_photos_per_class: int | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    streamed: dict[str, int] | None = None,
) -> Assignment:
    """Make the splits that are missing and leave out broken and leaked photos and those over the limits.

    `streamed` are the numbers of train photos by label if these are read from shards. Raises `DataError` if a split or
    a class would have too few photos.
    """
    found, leaked = merge_groups(examination), find_leaks(examination, on_leakage)
    present, method = {photo.split for photo in found}, "official"
    missing = tuple(split for split in SPLITS if split not in present and streamed is None)
    if missing:
        fractions = {"validation": validation_fraction, "test": test_fraction}
        found = cut_splits(found, {split: fractions[split] for split in missing if split in fractions}, seed)
        method = "group" if any(photo.group for photo in found) else "stratified"
    unfit = set(examination.broken) | (set(leaked) if on_leakage == "drop" else set())
    photos = [photo for photo in found if photo.file not in unfit]
    photos = limit_train_photos(photos, max_photos_per_class, seed)
    limits = {"train": max_train_samples, "validation": max_eval_samples, "test": max_eval_samples}
    photos = draw_samples(photos, limits, seed)
    check_classes(photos, labels, streamed)
    return Assignment(found, photos, missing, method, leaked)


def check_classes(photos: list[Photo], labels: list[str], streamed: dict[str, int] | None) -> None:
    """Raise `DataError` if a split has no photos, or a class has none to train on.

    `streamed` are the numbers of train photos that are read from shards and not among `photos`.
    """
    count = Counter((photo.split, photo.label) for photo in photos)
    count.update({("train", label): number for label, number in (streamed or {}).items()})
    for split in SPLITS:
        if not any(count[split, label] for label in labels):
            raise DataError(f"the {split} split contains no photos; add some, or remove that split to have it made")
    if untrained := [label for label in labels if not count["train", label]]:
        raise DataError(
            f"classes without train photos: {untrained}; add photos, remove these classes or raise --max_train_samples"
        )


def stop_if_broken(examination: Examination, on_broken: Literal["stop", "skip"]) -> None:
    """Raise `DataError` if a photo is broken and `on_broken` is "stop", or if all of them are."""
    broken = examination.broken
    if len(broken) == len(examination.photos):
        raise DataError(
            f"{counted(len(broken), 'photo')} found, none of which can be decoded, such as {_named(broken, 1)}; "
            "replace the files"
        )
    if broken and on_broken == "stop":
        raise DataError(
            f"{counted(len(broken), 'broken photo')}: {_named(broken, 10)}; replace the files or add --on_broken skip"
        )


def _named(broken: dict[str, str], most: int) -> str:
    return "; ".join(f"{file} ({reason})" for file, reason in list(broken.items())[:most])


def merge_groups(examination: Examination) -> list[Photo]:
    """The photos, each with its group: photos of one given group and copies of a photo belong together."""
    photos = examination.photos
    given = defaultdict(list)
    for place, photo in enumerate(photos):
        if photo.group:
            given[photo.group].append(place)
    pairs = [(group[0], place) for group in [*given.values(), *examination.duplicates] for place in group[1:]]
    merged = list(photos)
    for group in connect(len(photos), pairs):
        names = sorted({photos[place].group for place in group} - {""})
        name = " + ".join(names) or f"same as {photos[group[0]].file}"
        for place in group:
            merged[place] = replace(photos[place], group=name)
    return merged
