"""Which labels, splits and groups does a metadata table give?

One row for each photo, with its path in `file_name` and its label in `label`; `split` and `group` may be added.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from agritransfer.data.readers.photo_names import PhotoNames, refuse_missing, refuse_repeated
from agritransfer.data.readers.source import SPLIT_NAMES, Columns, TableLabels
from agritransfer.data.readers.table import Row, read_rows
from agritransfer.errors import DataError, UsageError
from agritransfer.wording import counted

# Texts that some programs write for a missing value. A class may have such a name, so the photos stay and are noted.
MISSING_VALUES = {"na", "n/a", "nan", "none", "null", "<na>"}


@dataclass(frozen=True)
class Metadata:
    """The rows of a metadata table, and its columns of paths, labels, splits and groups; "" for one it lacks."""

    path: Path
    rows: list[Row]
    file: str
    label: str
    split: str
    group: str

    def files(self) -> list[str]:
        """The path in each row."""
        return [row.text(self.file) for row in self.rows]


def read_metadata(path: Path, chosen: Columns) -> Metadata:
    """Read a metadata table and find its columns; raises `UsageError` if the user must name one."""
    columns, rows = read_rows(path)
    by_name = {column.casefold().replace(" ", "_"): column for column in reversed(columns)}
    for flag, column in (("image", chosen.image), ("label", chosen.label), ("group", chosen.group)):
        if column is not None and column not in columns:
            raise UsageError(f"'{path}' has no column '{column}' for --{flag}_column_name; it has {columns}")
    file, split = chosen.image or by_name.get("file_name", ""), by_name.get("split", "")
    group = chosen.group or by_name.get("group", "")
    # pandas writes the index of a table as a column of this name.
    others = [each for each in columns if each not in ("", file, split, group, "__index_level_0__")]
    label = chosen.label or by_name.get("label") or (others[0] if len(others) == 1 else "")
    if file and not label and others:
        raise UsageError(f"'{path}' has no column 'label'; name one of {others} with --label_column_name")
    if not file or not label:
        raise DataError(
            f"'{path}' needs rows with the columns file_name,label; it has {columns}; rename them, name them with "
            "--image_column_name and --label_column_name, or move the file away if it gives no labels; others, such as "
            "split,group, may be added"
        )
    return Metadata(path, rows, file, label, split, group)


def labels_of_metadata(table: Metadata, base: str, names: PhotoNames) -> TableLabels:
    """The label, split and group of each photo that a metadata table in the folder `base` lists."""
    rows, places, absent, unlabelled, unread, stripped = [], [], [], [], {}, 0
    for row in table.rows:
        path, label = row.text(table.file), row.line(table.label)
        stripped += label != row.text(table.label)
        if not row.line(table.file):
            raise DataError(f"{row.where}: the column '{table.file}' is empty; add the path of the photo")
        if label.startswith("[") and label.endswith("]"):
            raise DataError(
                f"{row.where}: the label {label!r:.60} is a list (multi-label); a classifier needs one label for each "
                "photo"
            )
        name = names.find(path, base)
        if name is None:
            absent.append((row.place, path))
        elif not label:
            unlabelled.append((row.place, path))
        elif name in names.unread:
            unread[name] = names.unread[name]
        else:
            group = row.line(table.group) if table.group else ""
            rows.append({"file": name, "label": label, "split": _split(row, table.split), "group": group})
            places.append(row.place)
    refuse_missing(table.path, absent, names)
    if unlabelled:
        place, path = unlabelled[0]
        raise DataError(
            f"'{table.path}' has {counted(len(unlabelled), 'row')} without a label, such as '{path}' ({place}); "
            "add the labels, or remove these rows"
        )
    refuse_repeated(table.path, [(row["file"], row["label"], place) for row, place in zip(rows, places, strict=True)])
    if (without := [row["file"] for row in rows if not row["split"]]) and len(without) < len(rows):
        raise DataError(
            f"'{table.path}' gives a split to only some of the photos, not to {len(without):,} such as '{without[0]}'; "
            "give one to every photo or to none"
        )
    return TableLabels(rows, unread, _notes(table, rows, stripped))


def _split(row: Row, column: str) -> str:
    split = row.line(column) if column else ""
    if split and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{row.where} has the split '{split}'; use train, validation or test")
    return SPLIT_NAMES.get(split.lower(), "")


def _notes(table: Metadata, rows: list[dict[str, str]], stripped: int) -> tuple[str, ...]:
    notes = []
    if table.label.casefold() != "label":
        notes.append(f"the labels are the column '{table.label}' of {table.path.name}")
    if stripped:
        notes.append(f"blanks around {counted(stripped, 'label')} of {table.path.name} were removed")
    count = Counter(row["label"] for row in rows if row["label"].lower() in MISSING_VALUES)
    for label, photos in sorted(count.items()):
        notes.append(f"the class '{label}' of {table.path.name} ({counted(photos, 'photo')}) may be a missing value")
    return tuple(notes)
