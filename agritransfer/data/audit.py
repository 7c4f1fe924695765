"""Are these photos fit to train on? Broken files, copies, wrong folders, small classes, other notes.

Whatever stops a training run is found here by the same functions, so that an audit has the same words for it.
"""

import unicodedata
from collections import Counter, defaultdict

from agritransfer.data.assignment import assign_splits, stop_if_broken
from agritransfer.data.examination import Examination
from agritransfer.data.readers.source import Photo, Source
from agritransfer.errors import DataError
from agritransfer.wording import counted

# With fewer photos of a class than this, three splits are too small for meaningful scores.
FEW_PHOTOS = 10
# Entries of a kind that are printed; audit.json has all.
SHOWN = 10


def class_faults(source: Source) -> list[str]:
    """Faults of the classes themselves: names that look the same, folders without photos, a single class."""
    spellings = defaultdict(list)
    for label in source.labels:
        spellings["".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    faults = [
        f"class names that differ only by case, spaces or Unicode form: {names}; rename or merge them"
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
    # A class without train photos is a fault.
    splits = sorted({photo.split for photo in photos} - {"", "train"})
    in_split = {(photo.split, photo.label) for photo in photos}
    warnings = []
    if few := {label: n for label, n in sorted(count.items()) if n < FEW_PHOTOS}:
        warnings.append(f"classes with fewer than {FEW_PHOTOS} photos, whose scores will be unreliable: {few}")
    for split in splits:
        if absent := [label for label in sorted(count) if (split, label) not in in_split]:
            warnings.append(f"classes without photos in {split}: {absent}")
    notes = defaultdict(list)
    for photo, inspection in zip(photos, examination.inspections, strict=True):
        for note in inspection.notes:
            notes[note].append(photo.file)
    warnings += [
        f"{counted(len(files), 'photo')} with {note}, such as {files[0]}" for note, files in sorted(notes.items())
    ]
    return warnings


def faults_of(source: Source, examination: Examination) -> list[str]:
    """What must be fixed, one line of each kind; with any, the audit ends with exit code 3."""
    faults = [*class_faults(source), *_refusals(source, examination)]
    if conflicts := examination.groups_where("label"):
        groups = counted(len(conflicts), "group")
        faults.append(f"{groups} of copies with different labels; choose one label for each (training only notes them)")
    if leaks := examination.groups_where("split"):
        groups = counted(len(leaks), "group")
        faults.append(
            f"{groups} of copies in more than one split; keep each in one (training uses the copy in test, "
            "or else in validation; see --on_leakage)"
        )
    return faults


def _refusals(source: Source, examination: Examination) -> list[str]:
    """Why training with its default flags would stop at these photos or splits."""
    refusals = []
    steps = [
        lambda: stop_if_broken(examination, "stop"),
        lambda: assign_splits(examination, source.labels),
    ]
    for step in steps if len(examination.broken) < len(examination.photos) else steps[:1]:
        try:
            step()
        except DataError as error:
            refusals.append(str(error))
    return refusals


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
    if more := report["left_out"][SHOWN:]:
        lines.append(f"left out: {len(more):,} more, listed in the report")
    lines += [f"note: {warning}" for warning in report["warnings"]]
    lines += [f"must be fixed: {fault}" for fault in report["faults"]]
    return "\n".join(lines)


def _listing(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  ... and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return [f"{title}: {len(entries)}", *(f"  {entry}" for entry in entries[:SHOWN]), *more]
