"""Which files beside the photos give their labels, and do they agree?

Metadata tables, and the exports of Roboflow, COCO and Label Studio. A folder may have several of one kind, such as one
for each split; no photo may be in two of them.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from agritransfer.data.readers.coco import is_coco, labels_of_coco
from agritransfer.data.readers.folder_names import split_named, splits_meant
from agritransfer.data.readers.label_studio import (
    is_flat_export,
    is_label_studio,
    labels_of_export,
    labels_of_tasks,
)
from agritransfer.data.readers.metadata import labels_of_metadata, read_metadata
from agritransfer.data.readers.photo_names import PhotoNames, names_beside
from agritransfer.data.readers.roboflow import labels_of_roboflow
from agritransfer.data.readers.source import Columns, Photo, PhotoFiles, Source, TableLabels
from agritransfer.data.readers.table import TABLE_SUFFIXES, is_one_line, read_text
from agritransfer.data.readers.walk import FoundFiles, find_files
from agritransfer.errors import DataError, UsageError, in_one_line
from agritransfer.wording import counted, escaped, listed, unescaped

# How much of a file says what it is. A folder may hold one JSON file for each photo, of some other program.
HEAD = 4096
SPREADSHEETS = {".xlsx", ".xls", ".ods"}


@dataclass(frozen=True)
class LabelFile:
    """A file that gives labels: its kind, and what reads it for the photos of these names."""

    name: str
    kind: str
    read: Callable[[PhotoNames], TableLabels]


def labels_beside(root: Path, found: FoundFiles, chosen: Columns) -> tuple[TableLabels, list[str]] | None:
    """The labels that the files of a folder give its photos, and the names of those files; None if there are none."""
    files = [file for name, path in found.others.items() if (file := _label_file(path, name, chosen))]
    return (_labels_of(root, found, files, chosen), [file.name for file in files]) if files else None


def is_label_file(path: Path, image_column: str | None) -> bool:
    """Whether this is a file of paths and labels, rather than a parquet file with the photos inside."""
    if path.suffix.lower() in SPREADSHEETS:
        raise DataError(f"'{path}' is a spreadsheet; save it as CSV UTF-8")
    if path.suffix.lower() != ".parquet":
        return path.suffix.lower() in (*TABLE_SUFFIXES, ".json")
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' cannot be read as parquet ({in_one_line(error)}); write it again") from error
    column = image_column or "file_name"
    # `datasets` writes a photo as a struct of its bytes and its path.
    has_photos = any(pyarrow.types.is_struct(each.type) and each.type.get_field_index("bytes") >= 0 for each in schema)
    if has_photos or column not in schema.names:
        return False
    kind = schema.field(column).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view")


def read_label_file(path: Path, chosen: Columns) -> Source:
    """The photos that a file on this machine lists, with their labels; raises `DataError` if it cannot be read."""
    # The photos of annotations/instances_train.json are beside annotations/.
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    file = _label_file(path, escaped(path.relative_to(root).as_posix()), chosen)
    if file is None and path.suffix.lower() == ".json":
        raise DataError(f"'{path}' is neither a COCO file nor an export of Label Studio; use a CSV or a metadata.jsonl")
    if file is not None and file.kind != "metadata":
        found = find_files(root)
        labels, photos = _labels_of(root, found, [file], chosen), found.photos
        left_out = left_out_of(labels, found, [file.name])
    else:
        # The table is the user's own, so it may name photos anywhere on this machine.
        table = read_metadata(path, chosen)
        names, photos = names_beside(path, table.files())
        labels = _with_splits(labels_of_metadata(table, "", names), path)
        left_out = [f"{name} ({reason})" for name, reason in labels.unlabelled.items()]
        if others := sorted(set(photos) - {row["file"] for row in labels.rows}):
            left_out.append(f"{counted(len(others), 'photo')} beside those in {path.name}, such as {others[0]}")
    return Source(
        PhotoFiles([str(photos[row["file"]]) for row in labels.rows]),
        [Photo(row=i, **row) for i, row in enumerate(labels.rows)],
        sorted({row["label"] for row in labels.rows}),
        left_out=tuple(left_out),
        notes=labels.notes,
    )


def left_out_of(labels: TableLabels, found: FoundFiles, tables: list[str]) -> list[str]:
    """A line for each file of the folder that is no labelled photo: without a label or a row, or no photo at all."""
    named = {row["file"] for row in labels.rows} | set(labels.unlabelled)
    where = tables[0] if len(tables) == 1 else "any table of labels"
    return [
        *(f"{name} ({reason})" for name, reason in labels.unlabelled.items() if name in found.photos),
        *(f"{name} (not in {where})" for name in found.photos if name not in named),
        *(f"{name} ({reason})" for name, reason in found.unread.items()),
        *(f"{name} (not a photo)" for name in found.others if name not in tables),
        *found.passed_over,
    ]


def _label_file(path: Path, name: str, chosen: Columns) -> LabelFile | None:
    base, file = unescaped(name.rpartition("/")[0]), path.name.lower()
    if re.fullmatch(r"metadata\.(csv|tsv|jsonl|parquet)", file):
        return LabelFile(name, "metadata", lambda names: labels_of_metadata(read_metadata(path, chosen), base, names))
    if file == "_classes.csv":
        return LabelFile(name, "roboflow", lambda names: labels_of_roboflow(path, base, names))
    if path.suffix.lower() not in (".csv", ".tsv", ".json") or not path.is_file():
        return None
    head = _head(path)
    if path.suffix.lower() != ".json":
        if not is_flat_export(re.findall(r"\w+", head.partition("\n")[0])):
            return None
        read = partial(labels_of_export, path, chosen.image, chosen.label)
        return LabelFile(name, "label studio", read)
    if not re.match(r'\s*\{\s*"(info|licenses|images|annotations|categories|type)"', head) and not (
        re.match(r"\s*\[\s*\{", head) and re.search(r'"(data|annotations|annotation_id)"', head)
    ):
        return None
    document = _read_json(path)
    if is_coco(document):
        return LabelFile(name, "coco", partial(labels_of_coco, path, base, document))
    if is_label_studio(document):
        return LabelFile(name, "label studio", partial(labels_of_tasks, path, document, chosen.image, chosen.label))
    return None


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(HEAD).decode("utf-8-sig", "replace")
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}; correct its permissions") from error


def _read_json(path: Path) -> object:
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' cannot be read as JSON ({in_one_line(error)}); export it again") from error


def _labels_of(root: Path, found: FoundFiles, files: list[LabelFile], chosen: Columns) -> TableLabels:
    if len({file.kind for file in files}) > 1:
        names = listed([file.name for file in files])
        raise DataError(f"'{root}' has labels of several kinds: {names}; keep one kind and move the others out")
    if chosen.group is not None and files[0].kind != "metadata":
        raise UsageError(f"'{files[0].name}' has no groups for --group_column_name; use --group_pattern")
    names = PhotoNames(root, found.photos, found.unread)
    owner, parts = {}, []
    for file in files:
        part = file.read(names)
        for name in (*(row["file"] for row in part.rows), *part.unlabelled):
            if name in owner:
                raise DataError(f"'{root}': '{name}' is in both {owner[name]} and {file.name}; keep one of them")
            owner[name] = file.name
        parts.append(part)
    merged = TableLabels(
        [row for part in parts for row in part.rows],
        {name: reason for part in parts for name, reason in part.unlabelled.items()},
        tuple(note for part in parts for note in part.notes),
    )
    return _with_splits(merged, root)


def _with_splits(labels: TableLabels, where: Path) -> TableLabels:
    """The splits of the folders, unless the tables give splits; raises `DataError` if only some photos have one."""
    rows = labels.rows
    if not rows:
        raise DataError(f"'{where}' has a label for none of the photos; add the labels")
    for row in rows:
        if not is_one_line(row["label"]):
            raise DataError(f"'{where}' has the label {row['label']!r:.60} with a control character; rename it")
    splits = [row["split"] for row in rows]
    if not any(splits):
        splits = [_split_of_folder(row["file"]) for row in rows]
        # A single `test` or `train` among other folders may have another meaning.
        if not all(splits) and len(set(splits)) == 2:
            splits = [""] * len(rows)
    if not any(splits):
        _refuse_hidden_splits(rows, where)
    if any(splits) and not all(splits):
        without = rows[splits.index("")]["file"]
        raise DataError(
            f"'{where}' has {counted(splits.count(''), 'photo')} without a split beside the splits "
            f"{sorted(set(splits) - {''})}, such as '{without}'; add a column split, or move those photos out"
        )
    return replace(labels, rows=[{**row, "split": split} for row, split in zip(rows, splits, strict=True)])


def _refuse_hidden_splits(rows: list[dict[str, str]], where: Path) -> None:
    """Raise `DataError` for photos in folders such as `train_images` and `test_images`, which would be mixed."""
    folders = sorted({folder for row in rows for folder in row["file"].split("/")[:-1]})
    meant = {}
    for folder in folders:
        if splits := splits_meant(folder):
            meant.setdefault(splits[0], folder)
    if len(meant) > 1:
        raise DataError(
            f"'{where}' has photos in folders that look like splits, {listed(list(meant.values()))}, and no splits in "
            "its table; add a column split, or rename the folders"
        )


def _split_of_folder(name: str) -> str:
    return next(filter(None, map(split_named, name.split("/")[:-1])), "")
