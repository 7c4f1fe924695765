"""Are these photos fit to train on? Broken files, copies, wrong folders, small classes, other notes.

`dataset.py` splits the photos by what is found here.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agritransfer.data.deduplication import SIDE, find_duplicates
from agritransfer.data.file_checks import Inspection, inspect
from agritransfer.data.readers.source import SPLIT_NAMES, Photo, Source
from agritransfer.wording import counted

# With fewer photos of a class than this, three splits are too small for meaningful scores.
FEW_PHOTOS = 10
# Words that `datasets` takes for a split wherever they occur in a path.
SPLIT_WORDS = {*SPLIT_NAMES, "eval", "evaluation"}
# Entries of a kind that are printed; audit.json has all.
SHOWN = 10


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


def class_faults(source: Source) -> list[str]:
    """Faults of the classes themselves: names that look the same, folders without photos, a single class."""
    spellings = defaultdict(list)
    for label in source.labels:
        spellings[unicodedata.normalize("NFC", label).casefold()].append(label)
    faults = [
        f"class names that differ only by case or Unicode form: {names}; rename or merge them"
        for names in spellings.values()
        if len(names) > 1
    ]
    if source.empty_classes:
        faults.append(f"class folders without photos: {list(source.empty_classes)}; add photos or remove the folders")
    if len(source.labels) < 2:
        faults.append(f"only one class was found: {source.labels}; a classifier needs at least two")
    return faults


def photo_warnings(examination: Examination) -> list[str]:
    """What to know before training, one line of each kind; nothing here stops a run."""
    photos = examination.photos
    count = Counter(photo.label for photo in photos)
    splits = sorted({photo.split for photo in photos} - {""})
    in_split = {(photo.split, photo.label) for photo in photos}
    warnings = []
    if few := {label: n for label, n in sorted(count.items()) if n < FEW_PHOTOS}:
        warnings.append(f"classes with fewer than {FEW_PHOTOS} photos, whose scores will be unreliable: {few}")
    for split in splits:
        if absent := [label for label in sorted(count) if (split, label) not in in_split]:
            warnings.append(f"classes without photos in {split}: {absent}")
    if named := sorted({part for photo in photos for part in _parts_with_split_words(photo)}):
        warnings.append(
            f"{counted(len(named), 'name')} with a word that `datasets` takes for a split, such as '{named[0]}'; "
            "here only a top folder of exactly that name is a split"
        )
    notes = defaultdict(list)
    for photo, inspection in zip(photos, examination.inspections, strict=True):
        for note in inspection.notes:
            notes[note].append(photo.file)
    warnings += [
        f"{counted(len(files), 'photo')} with {note}, such as {files[0]}" for note, files in sorted(notes.items())
    ]
    return warnings


def _parts_with_split_words(photo: Photo) -> list[str]:
    parts = photo.file.split("/")
    # A top folder that is a split was meant as one.
    parts = parts[1:] if photo.split and parts[0].lower() in SPLIT_NAMES else parts
    return [part for part in parts if SPLIT_WORDS & set(re.split(r"[\W_]+", part.lower()))]


def faults_of(source: Source, examination: Examination) -> list[str]:
    """What must be fixed before training, one line of each kind; with any, the audit ends with exit code 3."""
    faults = class_faults(source)
    if examination.broken:
        faults.append(f"{counted(len(examination.broken), 'broken photo')} (replace or remove)")
    if conflicts := examination.groups_where("label"):
        faults.append(f"{counted(len(conflicts), 'group')} of copies with different labels; choose one label for each")
    if leaks := examination.groups_where("split"):
        faults.append(f"{counted(len(leaks), 'group')} of copies in more than one split; keep each in one")
    return faults


def audit_report(name: str, source: Source, examination: Examination) -> dict:
    """The content of `audit.json`; the entries that need a model are empty at first."""

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
        "warnings": [*source.notes, *photo_warnings(examination)],
        "duplicates": {
            "groups": [[examination.photos[place].file for place in group] for group in examination.duplicates],
            "across_splits": files(examination.groups_where("split")),
            "conflicting_labels": files(examination.groups_where("label")),
        },
        "near": [],
        "suspected_mislabels": [],
    }


def audit_table(report: dict) -> str:
    """The report as text: what was found, what to check, what to know, what must be fixed."""
    groups = report["duplicates"]["groups"]
    sizes = Counter(len(group) for group in groups)
    of_sizes = ", ".join(f"{counted(n, 'group')} of {size}" for size, n in sorted(sizes.items()))
    lines = [
        f"{report['dataset']}: {counted(report['files_found'], 'photo')} found, {report['files_used']} usable",
        f"copies: {counted(sum(map(len, groups)), 'photo')} in {counted(len(groups), 'group')}"
        + (f" ({of_sizes})" if groups else ""),
    ]
    lines += _listing("broken", [f"{entry['file']}: {entry['reason']}" for entry in report["broken"]])
    for kind, title in (
        ("across_splits", "copies in more than one split"),
        ("conflicting_labels", "copies with different labels"),
    ):
        lines += _listing(title, [" = ".join(group) for group in report["duplicates"][kind]])
    near = [f"{pair['files'][0]} ~ {pair['files'][1]} ({pair['similarity']:.3f})" for pair in report["near"]]
    lines += _listing("similar according to the model, perhaps the same leaf", near)
    suspects = [
        "{file}: {label}, perhaps {suggested} (probability of {label}: {score:.3f})".format(**suspect)
        for suspect in report["suspected_mislabels"]
    ]
    lines += _listing("labels to check", suspects)
    lines += [f"left out: {reason}" for reason in report["left_out"][:SHOWN]]
    lines += [f"note: {warning}" for warning in report["warnings"]]
    lines += [f"must be fixed: {fault}" for fault in report["faults"]]
    return "\n".join(lines)


def _listing(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  ... and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return [f"{title}: {len(entries)}", *(f"  {entry}" for entry in entries[:SHOWN]), *more]
