"""Which photos, which labels, which split?

Splits that the data lacks are cut stratified, seeded and without dividing a group; every photo is decoded once.
"""

import csv
import hashlib
import random
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import datasets
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm
from transformers import BaseImageProcessor

from agritransfer.arguments import available_cores
from agritransfer.errors import DataError, UsageError
from agritransfer.pixels import PhotoDataset, decode_photo
from agritransfer.sources import Photo, in_one_line, read_source, read_table

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Splits:
    """The photos of a run, every one decoded once; `found` counts what the data set holds, `photos` is what is used."""

    name: str
    revision: str | None
    fingerprint: str
    labels: list[str]
    images: datasets.Dataset
    photos: list[Photo]
    found: list[Photo]
    method: Literal["official", "stratified", "group"]
    seed: int | None
    broken: dict[str, str]
    left_out: tuple[str, ...]

    def of(self, split: str) -> list[Photo]:
        """The photos of one split."""
        return [photo for photo in self.photos if photo.split == split]

    def label_indices(self, split: str) -> list[int]:
        """The label of each photo of one split, as its place in `labels`."""
        return [self.labels.index(photo.label) for photo in self.of(split)]

    def dataset(self, split: str, processor: BaseImageProcessor) -> PhotoDataset:
        """The photos of one split as items for Trainer."""
        rows = [photo.row for photo in self.of(split)]
        return PhotoDataset(self.images, rows, self.label_indices(split), processor)


def load_splits(
    dataset_name: str,
    *,
    revision: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.15,
    split_seed: int = 0,
    splits_file: str | None = None,
    on_broken: Literal["stop", "skip"] = "stop",
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> Splits:
    """Find the photos, give each a label and a split, and decode every one of them once.

    Raises `UsageError` when there is no such data set and `DataError` when it cannot be trained on.
    """
    source = read_source(dataset_name, revision, image_column_name, label_column_name)
    found, left_out = source.photos, source.left_out
    method, seed = "official", None
    present = {photo.split for photo in found}
    if splits_file is not None:
        found, without_split = _apply_splits_file(found, Path(splits_file))
        left_out += without_split
    elif missing := [split for split in SPLITS if split not in present]:
        fractions = {"validation": validation_fraction, "test": test_fraction}
        found = _cut_splits(found, {split: fractions[split] for split in missing if split in fractions}, split_seed)
        method, seed = ("group" if any(photo.group for photo in found) else "stratified"), split_seed
    limits = {"train": max_train_samples, "validation": max_eval_samples, "test": max_eval_samples}
    photos = _draw_samples(found, limits, split_seed)
    photos, broken, fingerprint = _decode_all(source.images, photos, on_broken)
    _check_classes(photos, source.labels)
    return Splits(
        name=dataset_name,
        revision=source.revision,
        fingerprint=fingerprint,
        labels=source.labels,
        images=source.images,
        photos=photos,
        found=found,
        method=method,
        seed=seed,
        broken=broken,
        left_out=left_out,
    )


def load_shift_photos(
    dataset_name: str,
    labels: list[str],
    *,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    on_broken: Literal["stop", "skip"] = "stop",
    max_eval_samples: int | None = None,
) -> Splits:
    """A second test set, its labels aligned by name with the trained ones; a split set gives its test only."""
    source = read_source(dataset_name, None, image_column_name, label_column_name)
    if unknown := sorted(set(source.labels) - set(labels)):
        raise DataError(f"'{dataset_name}' has labels that are not trained: {unknown}; trained are {labels}")
    has_test = any(photo.split == "test" for photo in source.photos)
    found = [replace(photo, split="shift") for photo in source.photos if photo.split == "test" or not has_test]
    photos = _draw_samples(found, {"shift": max_eval_samples}, seed=0)
    photos, broken, fingerprint = _decode_all(source.images, photos, on_broken)
    if not photos:
        raise DataError(f"'{dataset_name}' holds no photos that can be decoded")
    return Splits(
        name=dataset_name,
        revision=source.revision,
        fingerprint=fingerprint,
        labels=labels,
        images=source.images,
        photos=photos,
        found=found,
        method="official",
        seed=None,
        broken=broken,
        left_out=source.left_out,
    )


def write_splits_file(path: Path, splits: Splits) -> None:
    """Write which file went where; `--splits_file` takes it back."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split", "group"])
        writer.writerows([photo.file, photo.label, photo.split, photo.group] for photo in splits.photos)


def counts_table(splits: Splits) -> str:
    """Files found and used per split and class, and every file that is not used, by name."""
    used = Counter((photo.split, photo.label) for photo in splits.photos)
    found = Counter((photo.split, photo.label) for photo in splits.found)
    names = [split for split in (*SPLITS, "shift") if any(photo.split == split for photo in splits.found)]
    width = max(len(label) for label in [*splits.labels, "class"])
    lines = [f"{splits.name}: photos used / found", " " * width + "".join(f"{name:>14}" for name in names)]
    for label in splits.labels:
        cells = (f"{used[name, label]} / {found[name, label]}" for name in names)
        lines.append(label.ljust(width) + "".join(f"{cell:>14}" for cell in cells))
    lines += [f"left out, broken: {file} ({reason})" for file, reason in splits.broken.items()]
    lines += [f"left out: {reason}" for reason in splits.left_out]
    if drawn := len(splits.found) - len(splits.photos) - len(splits.broken):
        lines.append(f"left out: {drawn} photos over --max_train_samples or --max_eval_samples")
    return "\n".join(lines)


def _cut_splits(photos: list[Photo], fractions: dict[str, float], seed: int) -> list[Photo]:
    """Move a stratified, seeded share of the train photos to each split that the data lacks."""
    if any(fraction <= 0 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        named = " and ".join(f"--{split}_fraction {fraction}" for split, fraction in fractions.items())
        raise UsageError(f"{named} cannot be cut; each is above 0, together they are below 1")
    photos = [replace(photo, split=photo.split or "train") for photo in photos]
    if all(photo.split != "train" for photo in photos):
        raise DataError("the train split holds no photos; add some, or give the photos without any split")
    for split, fraction in fractions.items():
        # A share of all the photos that are to be cut, not of what an earlier cut left over.
        train = [i for i, photo in enumerate(photos) if photo.split == "train"]
        pool = sum(photo.split == "train" or photo.split in fractions for photo in photos)
        share = fraction * pool / len(train)
        grouped = any(photos[i].group for i in train)
        cut = _cut_groups(photos, train, share, seed) if grouped else _cut_classes(photos, train, share, seed, split)
        for i in cut:
            photos[i] = replace(photos[i], split=split)
    return photos


def _cut_classes(photos: list[Photo], train: list[int], share: float, seed: int, split: str) -> list[int]:
    # scikit-learn's stratified cut may leave a small class without a photo; here each class gives at least one.
    of_class = defaultdict(list)
    for i in train:
        of_class[photos[i].label].append(i)
    if small := {label: len(members) for label, members in of_class.items() if len(members) < 2}:
        raise DataError(f"too few photos to cut a {split} split from: {small}; add photos or remove these classes")
    shuffle = random.Random(f"{seed} {split}")
    cut = []
    for label in sorted(of_class):
        members = shuffle.sample(of_class[label], len(of_class[label]))
        cut += members[: max(1, min(len(members) - 1, round(share * len(members))))]
    return cut


def _cut_groups(photos: list[Photo], train: list[int], share: float, seed: int) -> list[int]:
    folds = StratifiedGroupKFold(n_splits=max(2, round(1 / share)), shuffle=True, random_state=seed)
    # A photo without a group is a group of its own.
    groups = [photos[i].group or f"photo {i}" for i in train]
    labels = [photos[i].label for i in train]
    if min(len(set(groups)), max(Counter(labels).values())) < folds.n_splits:
        raise DataError(
            f"{len(set(groups))} groups of {len(train)} photos are too few to cut {folds.n_splits} parts from; "
            "give a split column"
        )
    _, cut = next(folds.split(train, labels, groups))
    return [train[i] for i in cut]


def _apply_splits_file(photos: list[Photo], path: Path) -> tuple[list[Photo], tuple[str, ...]]:
    if not path.is_file():
        raise UsageError(f"no splits file at '{path}'; a finished run has one, such as runs/NAME/splits.csv")
    split_of = {row["file"]: row["split"] for row in read_table(path, ["file", "split"])}
    if unknown := sorted(set(split_of.values()) - set(SPLITS), key=str):
        raise DataError(f"'{path}' has the splits {unknown}; allowed are train, validation and test")
    known = {photo.file for photo in photos}
    if absent := [file for file in split_of if file not in known]:
        raise DataError(f"'{path}' names {len(absent)} photos that the data set lacks, such as '{absent[0]}'")
    kept = [replace(photo, split=split_of[photo.file]) for photo in photos if photo.file in split_of]
    return kept, tuple(f"{photo.file} (not in {path.name})" for photo in photos if photo.file not in split_of)


def _draw_samples(photos: list[Photo], limits: dict[str, int | None], seed: int) -> list[Photo]:
    kept = set()
    for split in {photo.split for photo in photos}:
        members = [photo.row for photo in photos if photo.split == split]
        limit = limits[split]
        if limit is not None and limit < 1:
            raise UsageError(f"--max_train_samples and --max_eval_samples begin at 1; found {limit}")
        kept |= set(members if limit is None else random.Random(seed).sample(members, min(limit, len(members))))
    return [photo for photo in photos if photo.row in kept]


def _decode_all(
    images: datasets.Dataset, photos: list[Photo], on_broken: Literal["stop", "skip"]
) -> tuple[list[Photo], dict[str, str], str]:
    """Decode every photo once; returns those that can be, why the others cannot, and the fingerprint of the first."""

    def check(photo: Photo) -> tuple[str, str]:
        try:
            # A row of a Hub data set may hold no image at all.
            image = images[photo.row]["image"] or {"bytes": b"", "path": None}
            content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
            if not content:
                return "", "the file is empty"
            decode_photo(content)
        except (OSError, ValueError) as error:
            return "", in_one_line(error)
        return hashlib.sha256(content).hexdigest(), ""

    with ThreadPoolExecutor(available_cores()) as pool:
        bar = tqdm(
            pool.map(check, photos), total=len(photos), desc="checking photos", delay=2, leave=False, disable=None
        )
        checked = list(zip(photos, bar, strict=True))
    broken = {photo.file: reason for photo, (_, reason) in checked if reason}
    if broken and on_broken == "stop":
        named = "; ".join(f"{file} ({reason})" for file, reason in list(broken.items())[:10])
        raise DataError(f"{len(broken)} photos cannot be decoded: {named}; mend them or add --on_broken skip")
    lines = sorted(f"{photo.label} {digest}" for photo, (digest, reason) in checked if not reason)
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return [photo for photo, (_, reason) in checked if not reason], broken, fingerprint


def _check_classes(photos: list[Photo], labels: list[str]) -> None:
    count = Counter((photo.split, photo.label) for photo in photos)
    for split in SPLITS:
        if not any(count[split, label] for label in labels):
            raise DataError(f"the {split} split holds no photos; add some or leave the split out, so that it is cut")
    if untrained := [label for label in labels if not count["train", label]]:
        raise DataError(
            f"classes without a train photo: {untrained}; add photos, remove these classes or raise --max_train_samples"
        )
    if len(labels) < 2:
        raise DataError(f"only one class was found: {labels}; a classifier needs at least two class folders")
