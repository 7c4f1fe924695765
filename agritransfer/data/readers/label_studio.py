"""Which labels does a Label Studio export give?

The choices are read from its exports as JSON, JSON-MIN, CSV and TSV. Label Studio names photos by the addresses that it
serves them from; a photo is found by the file part of its address.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agritransfer.data.readers.photo_names import PhotoNames, file_part, refuse_missing
from agritransfer.data.readers.source import PHOTO_SUFFIXES, TableLabels
from agritransfer.data.readers.table import Row, read_rows
from agritransfer.data.readers.walk import unread_format
from agritransfer.errors import DataError, UsageError
from agritransfer.wording import counted, listed

# Fields of an export that are about the task, not about the photo.
TASK_FIELDS = {"annotation_id", "annotator", "created_at", "id", "lead_time", "updated_at"}


@dataclass(frozen=True)
class Answer:
    """What one annotation says about a photo: its place in the export, the path of the photo, the choices."""

    place: str
    path: str
    choices: tuple[str, ...]


def is_label_studio(document: object) -> bool:
    """Whether a JSON document is a list of Label Studio's tasks, in full or as JSON-MIN."""
    if not isinstance(document, list) or not document or not all(isinstance(task, dict) for task in document):
        return False
    full = all(isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list) for task in document)
    return full or all(is_flat_export(task) for task in document)


def is_flat_export(columns: Sequence[str] | dict) -> bool:
    """Whether these are the columns of an export as CSV, TSV or JSON-MIN."""
    return {"annotation_id", "annotator"} <= set(columns)


def labels_of_tasks(
    path: Path, document: list[dict], image: str | None, control: str | None, names: PhotoNames
) -> TableLabels:
    """The choice for each photo of an export as JSON or JSON-MIN; raises `DataError` if annotators disagree."""
    if is_flat_export(document[0]):
        rows = [Row(path, f"task {number}", task) for number, task in enumerate(document, start=1)]
        return _labels_of_rows(path, rows, image, control, names)
    try:
        answers = list(_answers(path, document, image, control))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{path}' is no complete export of Label Studio: {type(error).__name__} at {error}; export it again"
        ) from error
    return _labels_of_answers(path, answers, names)


def labels_of_export(path: Path, image: str | None, control: str | None, names: PhotoNames) -> TableLabels:
    """The choice for each photo of an export as CSV or TSV; raises `DataError` if annotators disagree."""
    return _labels_of_rows(path, read_rows(path)[1], image, control, names)


def _answers(path: Path, tasks: list[dict], image: str | None, control: str | None) -> Iterator[Answer]:
    controls = {}
    for number, task in enumerate(tasks, start=1):
        row = Row(path, f"task {number}", task["data"])
        if image is not None and image not in row.cells:
            raise UsageError(f"{row.where} has no field '{image}' for --image_column_name; it has {list(row.cells)}")
        address = row.text(image or _only_photo(row))
        # A cancelled annotation is a task that its annotator skipped.
        results = [each["result"] for each in task["annotations"] if not each.get("was_cancelled")]
        if not results:
            yield Answer(row.place, address, ())
        for result in results:
            chosen = [each for each in result if each.get("type") == "choices"]
            controls.update(dict.fromkeys(each.get("from_name") for each in chosen))
            chosen = [each for each in chosen if control in (None, each.get("from_name"))]
            yield Answer(row.place, address, tuple(str(text) for each in chosen for text in each["value"]["choices"]))
    if not controls:
        raise DataError(f"'{path}' has no choices, which are the labels of photos; export boxes as COCO")
    if control is None and len(controls) > 1:
        raise UsageError(f"'{path}' has the choices {list(controls)}; name one with --label_column_name")
    if control is not None and control not in controls:
        raise UsageError(f"'{path}' has no choices '{control}' for --label_column_name; it has {list(controls)}")


def _labels_of_rows(
    path: Path, rows: list[Row], image: str | None, control: str | None, names: PhotoNames
) -> TableLabels:
    columns = list(dict.fromkeys(column for row in rows for column in row.cells if column not in TASK_FIELDS))
    for flag, column in (("image", image), ("label", control)):
        if column is not None and column not in columns:
            raise UsageError(f"'{path}' has no column '{column}' for --{flag}_column_name; it has {columns}")
    control = control or ("choice" if "choice" in columns else None)
    if control is None:
        raise UsageError(f"'{path}' has no column 'choice'; name one of {columns} with --label_column_name")
    answers = [Answer(row.place, row.text(image or _only_photo(row)), _choices(row, control)) for row in rows]
    return _labels_of_answers(path, answers, names)


def _only_photo(row: Row) -> str:
    fields = [field for field, value in row.cells.items() if isinstance(value, str) and _is_photo(value)]
    if len(fields) > 1 and "image" in fields:
        return "image"
    if len(fields) != 1:
        raise UsageError(
            f"{row.where}: {len(fields)} of {list(row.cells)} name a photo; choose with --image_column_name"
        )
    return fields[0]


def _is_photo(address: str) -> bool:
    path = PurePosixPath(file_part(address))
    return path.suffix.lower() in PHOTO_SUFFIXES or unread_format(path) is not None


def _choices(row: Row, control: str) -> tuple[str, ...]:
    value = row.cells.get(control)
    # Several choices are an object; in a CSV, its text.
    if isinstance(value, str) and value.startswith('{"choices":'):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{row.where}: the choices {value!r:.60} are cut off; export them again") from error
    if isinstance(value, dict) and isinstance(value.get("choices"), list):
        return tuple(map(str, value["choices"]))
    return (row.text(control),)


def _labels_of_answers(path: Path, answers: list[Answer], names: PhotoNames) -> TableLabels:
    labels_of, absent, several = defaultdict(set), [], []
    for answer in answers:
        found = names.find_by_file(answer.path)
        if len(found) > 1:
            raise DataError(f"'{path}', {answer.place}: '{answer.path}' may be {listed(found)}; rename those photos")
        if not found:
            absent.append((answer.place, answer.path))
            continue
        choices = sorted({choice.strip() for choice in answer.choices} - {""})
        if len(choices) > 1:
            several.append(f"'{answer.path}' ({answer.place}: {', '.join(choices)})")
        labels_of[found[0]].update(choices)
    refuse_missing(path, absent, names)
    if several:
        raise DataError(
            f"'{path}' gives {counted(len(several), 'photo')} several choices (multi-label), such as {several[0]}; a "
            "classifier needs one for each photo: correct them in Label Studio and export again"
        )
    if disputed := [f"'{name}' ({', '.join(sorted(labels))})" for name, labels in labels_of.items() if len(labels) > 1]:
        raise DataError(
            f"'{path}': the annotators disagree about {counted(len(disputed), 'photo')}, such as {disputed[0]}; settle "
            "them in Label Studio and export again"
        )
    rows, unlabelled = [], {}
    for name, labels in labels_of.items():
        if name in names.unread or not labels:
            unlabelled[name] = names.unread.get(name, f"without a choice in {path.name}")
        else:
            rows.append({"file": name, "label": min(labels), "split": ""})
    return TableLabels(rows, unlabelled)
