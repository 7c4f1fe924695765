"""How are missing splits made? Stratified, seeded, with groups kept whole."""

import random
from collections import Counter, defaultdict
from dataclasses import replace

from agritransfer.data.readers.source import Photo
from agritransfer.errors import DataError, UsageError
from agritransfer.wording import counted, listed


def cut_splits(photos: list[Photo], fractions: dict[str, float], seed: int) -> list[Photo]:
    """Move a stratified, seeded share of the train photos to each split that the dataset lacks."""
    if any(fraction <= 0 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        named = " and ".join(f"--{split}_fraction {fraction}" for split, fraction in fractions.items())
        raise UsageError(f"{named} cannot be used; each must be above 0, and their sum below 1")
    photos = [replace(photo, split=photo.split or "train") for photo in photos]
    if all(photo.split != "train" for photo in photos):
        raise DataError("the train split contains no photos; add some, or remove all splits")
    count, least = Counter(photo.label for photo in photos if photo.split == "train"), 1 + len(fractions)
    if small := {label: n for label, n in sorted(count.items()) if n < least}:
        raise DataError(
            f"too few photos for {listed(['train', *fractions])}: {small}; each class needs {least}; add photos, or "
            "leave these classes out with --classes"
        )
    for split, fraction in fractions.items():
        # The fraction refers to all photos to be split, not to what an earlier split left over.
        train = [i for i, photo in enumerate(photos) if photo.split == "train"]
        pool = sum(photo.split == "train" or photo.split in fractions for photo in photos)
        for i in _cut(photos, train, fraction * pool / len(train), seed, split):
            photos[i] = replace(photos[i], split=split)
    return photos


def _cut(photos: list[Photo], train: list[int], share: float, seed: int, split: str) -> list[int]:
    """Choose about this share of each class in whole groups, at least one photo of each class if that leaves some."""
    count = Counter(photos[i].label for i in train)
    # An earlier split may have taken all but one of them, as one group.
    if small := {label: n for label, n in sorted(count.items()) if n < 2}:
        raise DataError(f"too few photos left for a {split} split: {small}; add photos or remove these classes")
    target = {label: max(1, min(n - 1, round(share * n))) for label, n in count.items()}
    taken, cut = Counter(), []
    units = _units(photos, train, seed, split)

    def gain(unit: list[int]) -> float:
        """How much closer the unit brings the counts to their targets; -inf if a class would have no photo left."""
        added = Counter(photos[i].label for i in unit)
        if any(taken[label] + n >= count[label] for label, n in added.items()):
            return float("-inf")
        misses = ((taken[label] - target[label], n, count[label]) for label, n in added.items())
        return sum((miss**2 - (miss + n) ** 2) / of_class for miss, n, of_class in misses)

    for unit in units:
        if gain(unit) > 0:
            taken.update(photos[i].label for i in unit)
            cut += unit
    if not cut and gain(best := max(units, key=gain)) > float("-inf"):
        cut = best
    if not cut:
        raise DataError(
            f"{counted(len(units), 'group')} of {counted(len(train), 'photo')} cannot be divided into train and "
            f"{split}; add groups, or a split column to metadata.csv"
        )
    return cut


def _units(photos: list[Photo], train: list[int], seed: int, split: str) -> list[list[int]]:
    """The train photos by group in random order, large groups first because they are hard to place later."""
    members = defaultdict(list)
    for i in train:
        # A photo without a group is its own group.
        members[photos[i].group or f"photo {i}"].append(i)
    of_class = defaultdict(list)
    for unit in members.values():
        of_class[photos[unit[0]].label].append(unit)
    shuffle = random.Random(f"{seed} {split}")
    units = [unit for label in sorted(of_class) for unit in shuffle.sample(of_class[label], len(of_class[label]))]
    return sorted(units, key=len, reverse=True)


def draw_samples(photos: list[Photo], limits: dict[str, int | None], seed: int) -> list[Photo]:
    """At most this many photos of each split, drawn with the seed; None means no limit."""
    kept = set()
    for split in {photo.split for photo in photos}:
        members = [photo.row for photo in photos if photo.split == split]
        limit = limits[split]
        if limit is not None and limit < 1:
            raise UsageError(f"--max_train_samples and --max_eval_samples must be at least 1; found {limit}")
        kept |= set(members if limit is None else random.Random(seed).sample(members, min(limit, len(members))))
    return [photo for photo in photos if photo.row in kept]
