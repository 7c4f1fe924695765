"""Which photos, which labels, which split?

Copies of a photo form a group, and a group is never divided between splits. In a dataset that has its own splits, a
train photo that is also in validation or test is dropped, kept or stops the run.
"""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agritransfer.arguments import DataArguments
from agritransfer.data.assignment import SPLITS, assign_splits, check_classes, merge_groups, stop_if_broken
from agritransfer.data.audit import class_faults, photo_warnings
from agritransfer.data.examination import Examination, examine, same_photos
from agritransfer.data.file_checks import Inspection
from agritransfer.data.leakage import stop_if_leaked
from agritransfer.data.readers.source import Photo, PhotoFiles, Source
from agritransfer.data.readers.table import read_table
from agritransfer.data.selection import Selection, matches, select_classes
from agritransfer.data.shards import TrainStream, open_stream
from agritransfer.data.sources import read_source
from agritransfer.data.splitting import draw_samples
from agritransfer.data.streaming import StreamedPhotos
from agritransfer.errors import DataError, UsageError
from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset, WholePhotos, training_pixels
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.images.preprocessing import PhotoProcessor
from agritransfer.runtime.process import say
from agritransfer.wording import counted, listed

if TYPE_CHECKING:
    import datasets

# Leaked photos that are listed by name; all are counted.
SHOWN = 10


@dataclass(frozen=True)
class Splits:
    """The photos of a run, all of them checked; `found` has all photos of the dataset, `photos` those that are used.

    `inspections` has the result of the audit for each of `photos`. `leaked` says, for each photo that is also in a
    split that is scored later, where that copy is, and `shift_leaks` how many of these copies are in the second test
    set; `leaks_dropped` says whether those photos were left out. `notes` say how the dataset was read where there was a
    choice; they are published, unlike `warnings`, which may name photos. With a `stream`, the train photos come from
    there and are not among these.
    """

    name: str
    revision: str | None
    config: str | None
    fingerprint: str
    labels: list[str]
    images: "PhotoFiles | datasets.Dataset"
    photos: list[Photo]
    inspections: list[Inspection]
    found: list[Photo]
    method: Literal["official", "stratified", "group"]
    seed: int | None
    broken: dict[str, str]
    left_out: tuple[str, ...]
    leaked: dict[str, str]
    leaks_dropped: bool
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    selection: Selection = Selection()
    stream: TrainStream | None = None
    shift_leaks: int = 0

    @property
    def over_limits(self) -> int:
        """The number of photos that `--max_photos_per_class` and the `--max_..._samples` flags left out."""
        unfit = set(self.broken) | (set(self.leaked) if self.leaks_dropped else set())
        return len(self.found) - len(self.photos) - len(unfit)

    def of(self, split: str) -> list[Photo]:
        """The photos of one split."""
        return [photo for photo in self.photos if photo.split == split]

    def label_indices(self, split: str) -> list[int]:
        """The label of each photo of one split, as an index into `labels`."""
        return [self.labels.index(photo.label) for photo in self.of(split)]

    def label_counts(self, split: str) -> dict[str, int] | None:
        """The number of photos of each label in a split; None for train shards without that information."""
        if split == "train" and self.stream:
            return self.stream.counts
        count = Counter(photo.label for photo in self.of(split))
        return {label: count[label] for label in self.labels}

    def dataset(
        self, split: str, processor: PhotoProcessor, store: PixelStore | None = None
    ) -> PhotoDataset | StreamedPhotos:
        """The photos of one split as they are scored, their pixels cached if a store is given."""
        return self._items(split, EvaluationPixels(processor), store)

    def training_photos(
        self, processor: PhotoProcessor, augmentation: str, store: PixelStore
    ) -> PhotoDataset | StreamedPhotos:
        """The photos to train on, in the form that this augmentation needs."""
        return self._items("train", training_pixels(processor, augmentation), store)

    def _items(
        self, split: str, pixels: EvaluationPixels | WholePhotos, store: PixelStore | None
    ) -> PhotoDataset | StreamedPhotos:
        if split == "train" and self.stream:
            # Never cached: a streamed dataset may be larger than the disk.
            return StreamedPhotos(self.stream, pixels)
        photos = self.of(split)
        rows, files = [photo.row for photo in photos], [photo.file for photo in photos]
        groups = [photo.group for photo in photos]
        items = PhotoDataset(self.images, rows, self.label_indices(split), files, pixels, groups=groups)
        if store is None:
            return items
        seen = [
            inspection for photo, inspection in zip(self.photos, self.inspections, strict=True) if photo.split == split
        ]
        return store.keep(items, [each.digest for each in seen], [each.size for each in seen])


def load_photos(data_args: DataArguments) -> tuple[Splits, Splits | None]:
    """Load the splits that these flags ask for, and the second test set or None; prints the numbers of photos.

    Raises `UsageError` if there is no such dataset and `DataError` if it cannot be trained on.
    """
    splits = load_splits(data_args.dataset_name, **data_args.split_options())
    splits, shift = load_shift_photos(data_args.shift_dataset_name, splits, **data_args.shift_options())
    say(*map(counts_table, filter(None, [splits, shift])))
    return splits, shift


def load_splits(
    dataset_name: str,
    *,
    revision: str | None = None,
    config_name: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    group_column_name: str | None = None,
    group_pattern: str | None = None,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.15,
    split_seed: int = 0,
    splits_file: str | None = None,
    classes: Sequence[str] | None = None,
    on_broken: Literal["stop", "skip"] = "stop",
    on_leakage: Literal["drop", "keep", "stop"] = "drop",
    max_photos_per_class: int | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    streaming: bool = False,
    shuffle_buffer: int = 1000,
) -> Splits:
    """Find the photos, check each of them, and give each a label and a split.

    `config_name` chooses one of several configurations. With `streaming`, only validation and test are loaded;
    the train photos stay in their shards.
    Raises `UsageError` if there is no such dataset and `DataError` if it cannot be trained on.
    """
    where = {"revision": revision, "config": config_name}
    where |= {"image_column": image_column_name, "label_column": label_column_name}
    if streaming:
        source, stream = open_stream(dataset_name, **where, on_broken=on_broken, shuffle_buffer=shuffle_buffer)
    else:
        groups = {"group_column": group_column_name, "group_pattern": group_pattern}
        source, stream = read_source(dataset_name, **where, **groups), None
    if splits_file is not None:
        source = _with_splits_of_file(source, Path(splits_file))
    source, classes_left_out = select_classes(source, classes)
    selection = Selection(classes and tuple(classes), classes_left_out, max_photos_per_class)
    if faults := class_faults(source):
        raise DataError(faults[0])
    examination = examine(source.images, source.photos, dataset_name)
    stop_if_broken(examination, on_broken)
    assigned = assign_splits(
        examination,
        source.labels,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=split_seed,
        on_leakage=on_leakage,
        max_photos_per_class=max_photos_per_class,
        max_train_samples=max_train_samples,
        max_eval_samples=max_eval_samples,
        streamed=stream and _streamed_counts(stream, source.labels),
    )
    inspections = _inspections_of(assigned.photos, examination)
    return Splits(
        name=dataset_name,
        revision=source.revision,
        config=config_name,
        fingerprint=_fingerprint(assigned.photos, inspections, stream),
        labels=source.labels,
        images=source.images,
        photos=assigned.photos,
        inspections=inspections,
        found=assigned.found,
        method=assigned.method,
        seed=split_seed if assigned.missing else None,
        broken=examination.broken,
        left_out=source.left_out,
        selection=selection,
        leaked=assigned.leaked,
        leaks_dropped=on_leakage == "drop",
        warnings=(*photo_warnings(examination), *_group_warnings(examination, assigned.missing)),
        notes=source.notes,
        stream=stream,
    )


def load_shift_photos(
    dataset_name: str | None,
    splits: Splits,
    *,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    classes: Sequence[str] | None = None,
    on_broken: Literal["stop", "skip"] = "stop",
    on_leakage: Literal["drop", "keep", "stop"] = "drop",
    max_eval_samples: int | None = None,
) -> tuple[Splits, Splits | None]:
    """Load a second test set, its labels matched by name; of a dataset with splits, only the test split is used.

    Returns `splits` without the train and validation photos that are also in the second set, as the same bytes or as a
    copy by its looks, and that set; without a name, returns `splits` unchanged and None.
    """
    if dataset_name is None:
        return splits, None
    source = read_source(dataset_name, image_column=image_column_name, label_column=label_column_name)
    if classes is not None:
        # The second set may lack a class that the first one has.
        classes = [pattern for pattern in classes if any(matches(label, [pattern]) for label in source.labels)]
        if not classes:
            raise DataError(f"'{dataset_name}' has none of the --classes; it has {listed(source.labels)}")
    source, classes_left_out = select_classes(source, classes)
    source = _named_as_trained(source, splits.labels)
    if unknown := sorted(set(source.labels) - set(splits.labels)):
        raise DataError(f"'{dataset_name}' has labels that the training set lacks: {unknown}; use only {splits.labels}")
    has_test = any(photo.split == "test" for photo in source.photos)
    found = [replace(photo, split="shift") for photo in source.photos if photo.split == "test" or not has_test]
    examination = examine(source.images, found, dataset_name)
    stop_if_broken(examination, on_broken)
    found = merge_groups(examination)
    photos = [photo for photo in found if photo.file not in examination.broken]
    photos = draw_samples(photos, {"shift": max_eval_samples}, seed=0)
    inspections = _inspections_of(photos, examination)
    shift = Splits(
        name=dataset_name,
        revision=source.revision,
        config=None,
        fingerprint=_fingerprint(photos, inspections),
        labels=splits.labels,
        images=source.images,
        photos=photos,
        inspections=inspections,
        found=found,
        method="official",
        seed=None,
        broken=examination.broken,
        left_out=source.left_out,
        selection=Selection(classes and tuple(classes), classes_left_out),
        leaked={},
        leaks_dropped=False,
        warnings=tuple(photo_warnings(examination)),
        notes=source.notes,
    )
    return _without_shift_leaks(splits, shift, on_leakage), shift


def _streamed_counts(stream: TrainStream, labels: list[str]) -> dict[str, int]:
    # Without counts in the shards, the labels are those of validation and test.
    return stream.counts or dict.fromkeys(labels, 1)


def _named_as_trained(source: Source, labels: list[str]) -> Source:
    """The source with `Tomato/rust` for `rust` if it was read inside `Tomato` and the training set has that label."""
    parts = source.inside.split("/") if source.inside else []
    for prefix in ("/".join(parts[start:]) for start in range(len(parts))):
        renamed = {label: f"{prefix}/{label}" for label in source.labels}
        if not set(source.labels) <= set(labels) and set(renamed.values()) <= set(labels):
            photos = [replace(photo, label=renamed[photo.label]) for photo in source.photos]
            return replace(source, photos=photos, labels=sorted(renamed.values()))
    return source


def _without_shift_leaks(splits: Splits, shift: Splits, on_leakage: Literal["drop", "keep", "stop"]) -> Splits:
    leaked = {}
    first_of_shift = len(splits.photos)
    for group in same_photos([*splits.inspections, *shift.inspections]):
        if group[-1] >= first_of_shift:
            twin = shift.photos[group[-1] - first_of_shift]
            early = [splits.photos[place] for place in group if place < first_of_shift]
            where = f"is also in {shift.name} as {twin.file}"
            leaked |= {photo.file: where for photo in early if photo.split != "test"}
    if not leaked:
        return splits
    stop_if_leaked(leaked, on_leakage)
    kept = [place for place, photo in enumerate(splits.photos) if photo.file not in leaked or on_leakage == "keep"]
    photos, inspections = [splits.photos[place] for place in kept], [splits.inspections[place] for place in kept]
    if not splits.stream and not any(photo.split == "train" for photo in photos):
        raise DataError(f"all train photos are also in '{shift.name}'; use other photos for --shift_dataset_name")
    check_classes(photos, splits.labels, splits.stream and _streamed_counts(splits.stream, splits.labels))
    return replace(
        splits,
        photos=photos,
        inspections=inspections,
        fingerprint=_fingerprint(photos, inspections, splits.stream),
        leaked=splits.leaked | leaked,
        shift_leaks=len(leaked),
    )


def _group_warnings(examination: Examination, missing: Sequence[str]) -> list[str]:
    warnings = []
    if copies := examination.duplicates:
        photos, groups = sum(map(len, copies)), len(copies)
        groups_of_copies = f"{counted(groups, 'group')} of copies with {photos} photos"
        warnings.append(f"{groups_of_copies}; each group is kept in one split and counts as one case")
    if conflicts := examination.groups_where("label"):
        named = " and ".join(f"{photo.file}" for photo in conflicts[0][:2])
        warnings.append(f"{counted(len(conflicts), 'group')} of copies with different labels, such as {named}")
    splits_of = defaultdict(set)
    for photo in examination.photos:
        if photo.group and photo.split:
            splits_of[photo.group].add(photo.split)
    if divided := sorted(group for group, splits in splits_of.items() if len(splits) > 1):
        warnings.append(
            f"{counted(len(divided), 'group')} divided between the dataset's own splits, such as '{divided[0]}'; "
            "scores may be too high"
        )
    return warnings


def _inspections_of(photos: list[Photo], examination: Examination) -> list[Inspection]:
    of_file = dict(zip((photo.file for photo in examination.photos), examination.inspections, strict=True))
    return [of_file[photo.file] for photo in photos]


def _fingerprint(photos: list[Photo], inspections: list[Inspection], stream: TrainStream | None = None) -> str:
    seen = zip(photos, inspections, strict=True)
    lines = sorted(f"{photo.label} {inspection.digest}" for photo, inspection in seen)
    lines += [stream.fingerprint] if stream else []
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_splits_file(path: Path, splits: Splits) -> None:
    """Write the split of each file; the texts are exact, without guards for spreadsheets: `--splits_file` reads it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split", "group"])
        writer.writerows([photo.file, photo.label, photo.split, photo.group] for photo in splits.photos)


def counts_table(splits: Splits) -> str:
    """The numbers of photos found and used per split and class, and the name of every file that is not used."""
    used = Counter((photo.split, photo.label) for photo in splits.photos)
    found = Counter((photo.split, photo.label) for photo in splits.found)
    names = [split for split in (*SPLITS, "shift") if any(photo.split == split for photo in splits.found)]
    if splits.stream:
        names.insert(0, "train")
    streamed = splits.stream and splits.stream.counts
    width = max(len(label) for label in [*splits.labels, "class"])
    lines = [f"{splits.name}: photos used / found", " " * width + "".join(f"{name:>14}" for name in names)]
    for label in splits.labels:
        cells = [f"{used[name, label]} / {found[name, label]}" for name in names]
        if splits.stream:
            # WebDataset shards have no counts.
            cells[0] = f"{streamed[label]}" if streamed else "?"
        lines.append(label.ljust(width) + "".join(f"{cell:>14}" for cell in cells))
    lines += [f"left out, broken: {file} ({reason})" for file, reason in splits.broken.items()]
    lines += [f"left out: {reason}" for reason in splits.left_out]
    verb = "left out, leaked" if splits.leaks_dropped else "kept although leaked"
    lines += [f"{verb}: {file} {where}" for file, where in list(splits.leaked.items())[:SHOWN]]
    if more := len(splits.leaked) - SHOWN:
        lines += [f"... and {counted(more, 'more leaked photo')}"] if more > 0 else []
    if drawn := splits.over_limits:
        flags = "--max_photos_per_class, --max_train_samples or --max_eval_samples"
        lines.append(f"left out: {counted(drawn, 'photo')} over {flags}")
    lines += [f"note: {warning}" for warning in (*splits.notes, *splits.warnings)]
    if splits.stream:
        lines.append(
            "note: the train photos are streamed; they are not checked for copies in validation or test (leakage) "
            "or in --shift_dataset_name, and broken photos are found only during training"
        )
    return "\n".join(lines)


def _with_splits_of_file(source: Source, path: Path) -> Source:
    """The photos that a splits file lists, with its splits; the others are left out."""
    if not path.is_file():
        raise UsageError(f"there is no splits file '{path}'; use that of a finished run, such as runs/NAME/splits.csv")
    rows = read_table(path, ["file", "split"])
    split_of = {row["file"]: row["split"] for row in rows}
    if repeated := [file for file, times in Counter(row["file"] for row in rows).items() if times > 1]:
        raise DataError(
            f"'{path}' lists {counted(len(repeated), 'photo')} more than once, such as '{repeated[0]}'; keep one row"
        )
    if unknown := sorted(set(split_of.values()) - set(SPLITS), key=str):
        raise DataError(f"'{path}' has the splits {unknown}; use train, validation and test")
    known = {photo.file for photo in source.photos}
    if absent := [file for file in split_of if file not in known]:
        raise DataError(
            f"'{path}' lists {counted(len(absent), 'photo')} missing from the dataset, such as '{absent[0]}'; restore "
            "the photos or leave --splits_file out"
        )
    kept = [replace(photo, split=split_of[photo.file]) for photo in source.photos if photo.file in split_of]
    others = [f"{photo.file} (not in {path.name})" for photo in source.photos if photo.file not in split_of]
    return replace(source, photos=kept, left_out=(*source.left_out, *others))
