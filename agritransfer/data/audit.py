"""Are these photos fit to train on? Broken, copied, mis-foldered, too few, and what else their files tell.

`data.py` cuts the splits by what is found here.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from agritransfer.data.deduplication import SIDE, find_duplicates
from agritransfer.data.file_checks import Inspection, inspect
from agritransfer.data.readers.source import SPLIT_NAMES, Photo, Source

# Fewer photos of a class than this cannot fill three splits with anything to count.
FEW_PHOTOS = 10
# Words that `datasets` takes for a split wherever they stand in a path.
SPLIT_WORDS = {*SPLIT_NAMES, "eval", "evaluation"}
# So many of a kind are named on the screen; audit.json has all.
SHOWN = 10


@dataclass(frozen=True)
class Examination:
    """What all photos of a data set tell together; `duplicates` are groups of places in `photos`."""

    photos: list[Photo]
    inspections: list[Inspection]
    duplicates: list[list[int]]

    @property
    def broken(self) -> dict[str, str]:
        """Why each photo that cannot be decoded cannot."""
        seen = zip(self.photos, self.inspections, strict=True)
        return {photo.file: inspection.reason for photo, inspection in seen if inspection.reason}

    def groups_where(self, differ: str) -> list[list[Photo]]:
        """The groups of equal photos whose members differ in `label` or in `split`."""
        groups = [[self.photos[place] for place in group] for group in self.duplicates]
        return [group for group in groups if len({getattr(photo, differ) for photo in group}) > 1]


def examine(images: datasets.Dataset, photos: Sequence[Photo], name: str) -> Examination:
    """Look at every photo of a data set of this name, on all cores, and find those that are the same."""
    inspections = inspect(images, photos, name)
    return Examination(list(photos), inspections, same_photos(inspections))


def same_photos(inspections: Sequence[Inspection]) -> list[list[int]]:
    """Groups of places whose photos are the same; broken ones are in none."""
    whole = [place for place, inspection in enumerate(inspections) if not inspection.reason]
    looks = np.array([inspections[place].look for place in whole], np.uint8).reshape(-1, SIDE, SIDE)
    groups = find_duplicates([inspections[place].digest for place in whole], looks)
    return [[whole[place] for place in group] for group in groups]


def class_faults(source: Source) -> list[str]:
    """What makes the classes themselves unfit: names that are one to a reader, folders without a photo, one class."""
    spellings = defaultdict(list)
    for label in source.labels:
        spellings[unicodedata.normalize("NFC", label).casefold()].append(label)
    faults = [
        f"class names that differ only by case or Unicode form: {names}; rename or merge them"
        for names in spellings.values()
        if len(names) > 1
    ]
    if source.empty_classes:
        faults.append(f"class folders without a photo: {list(source.empty_classes)}; add photos or remove the folders")
    if len(source.labels) < 2:
        faults.append(f"only one class was found: {source.labels}; a classifier needs at least two class folders")
    return faults


def photo_warnings(examination: Examination) -> list[str]:
    """What a reader should know before training, one line a kind; nothing here stops a run."""
    photos = examination.photos
    count = Counter(photo.label for photo in photos)
    splits = sorted({photo.split for photo in photos} - {""})
    in_split = {(photo.split, photo.label) for photo in photos}
    warnings = []
    if few := {label: n for label, n in sorted(count.items()) if n < FEW_PHOTOS}:
        warnings.append(f"classes with fewer than {FEW_PHOTOS} photos, whose scores will say little: {few}")
    for split in splits:
        if absent := [label for label in sorted(count) if (split, label) not in in_split]:
            warnings.append(f"classes without a photo in {split}: {absent}")
    if named := sorted({part for photo in photos for part in _parts_with_split_words(photo)}):
        warnings.append(
            f"{len(named)} names hold a word that `datasets` takes for a split, such as '{named[0]}'; "
            "here only a folder that is the whole word at the top is one"
        )
    notes = defaultdict(list)
    for photo, inspection in zip(photos, examination.inspections, strict=True):
        for note in inspection.notes:
            notes[note].append(photo.file)
    warnings += [f"{len(files)} photos {note}, such as {files[0]}" for note, files in sorted(notes.items())]
    return warnings


def _parts_with_split_words(photo: Photo) -> list[str]:
    parts = photo.file.split("/")
    # A top folder that is a split is meant to be one.
    parts = parts[1:] if photo.split and parts[0].lower() in SPLIT_NAMES else parts
    return [part for part in parts if SPLIT_WORDS & set(re.split(r"[\W_]+", part.lower()))]


def faults_of(source: Source, examination: Examination) -> list[str]:
    """What must be mended before these photos can be trusted, one line a kind; then the audit ends with 3."""
    faults = class_faults(source)
    if examination.broken:
        faults.append(f"{len(examination.broken)} photos cannot be decoded; mend or remove them")
    if conflicts := examination.groups_where("label"):
        faults.append(f"{len(conflicts)} groups of equal photos have different labels; decide for one label")
    if leaks := examination.groups_where("split"):
        faults.append(f"{len(leaks)} groups of equal photos lie in several splits; keep each in one")
    return faults


def audit_report(name: str, source: Source, examination: Examination) -> dict:
    """What `audit.json` holds; the parts that need a model are empty until it has looked."""

    def files(groups: list[list[Photo]]) -> list[list[str]]:
        return [[photo.file for photo in group] for group in groups]

    return {
        "schema": 1,
        "dataset": name,
        "files_found": len(examination.photos),
        "files_used": len(examination.photos) - len(examination.broken),
        "broken": [{"file": file, "reason": reason} for file, reason in examination.broken.items()],
        "left_out": list(source.left_out),
        "faults": faults_of(source, examination),
        "warnings": photo_warnings(examination),
        "duplicates": {
            "groups": [[examination.photos[place].file for place in group] for group in examination.duplicates],
            "across_splits": files(examination.groups_where("split")),
            "conflicting_labels": files(examination.groups_where("label")),
        },
        "near": [],
        "suspected_mislabels": [],
    }


def audit_table(report: dict) -> str:
    """The report as people read it: what was found, what must be mended, what to know, what to look at."""
    groups = report["duplicates"]["groups"]
    sizes = Counter(len(group) for group in groups)
    of_sizes = ", ".join(f"{n} of {size}" for size, n in sorted(sizes.items()))
    lines = [
        f"{report['dataset']}: {report['files_found']} photos found, {report['files_used']} can be used",
        f"equal photos: {sum(map(len, groups))} in {len(groups)} groups" + (f" ({of_sizes})" if groups else ""),
    ]
    lines += _listing("broken", [f"{entry['file']}: {entry['reason']}" for entry in report["broken"]])
    for kind, title in (("across_splits", "equal, in several splits"), ("conflicting_labels", "equal, other labels")):
        lines += _listing(title, [" = ".join(group) for group in report["duplicates"][kind]])
    near = [f"{pair['files'][0]} ~ {pair['files'][1]} ({pair['similarity']:.3f})" for pair in report["near"]]
    lines += _listing("alike to the model, perhaps the same leaf", near)
    suspects = [
        "{file}: {label}, or {suggested}? ({score:.3f} for {label})".format(**suspect)
        for suspect in report["suspected_mislabels"]
    ]
    lines += _listing("labels to look at", suspects)
    lines += [f"left out: {reason}" for reason in report["left_out"][:SHOWN]]
    lines += [f"note: {warning}" for warning in report["warnings"]]
    lines += [f"to mend: {fault}" for fault in report["faults"]]
    return "\n".join(lines)


def _listing(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  ... and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return [f"{title}: {len(entries)}", *(f"  {entry}" for entry in entries[:SHOWN]), *more]
