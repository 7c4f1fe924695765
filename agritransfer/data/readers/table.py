"""Which labels, splits and groups does a table beside the photos give?"""

import csv
from collections import Counter
from pathlib import Path

from agritransfer.data.readers.source import SPLIT_NAMES
from agritransfer.errors import DataError, UsageError
from agritransfer.wording import counted


def rows_of_metadata(
    path: Path, pictures: dict[str, Path], group_column: str | None
) -> tuple[list[dict[str, str]], list[str]]:
    """A row (file, label, split, group) for each photo in metadata.csv, and the photos that it does not list."""
    table = read_table(path, ["file_name", "label"])
    if group_column is not None and group_column not in table[0]:
        raise UsageError(f"'{path}' has no column '{group_column}' for --group_column_name; it has {list(table[0])}")
    group_column = group_column or "group"
    if absent := [row["file_name"] for row in table if row["file_name"] not in pictures]:
        raise DataError(
            f"'{path}' lists {counted(len(absent), 'missing photo')}, such as '{absent[0]}'; remove those rows"
        )
    if unlabelled := [row["file_name"] for row in table if not row["label"]]:
        raise DataError(
            f"'{path}' has {counted(len(unlabelled), 'row')} without a label, such as '{unlabelled[0]}'; add the labels"
        )
    if repeated := [name for name, times in Counter(row["file_name"] for row in table).items() if times > 1]:
        raise DataError(
            f"'{path}' lists {counted(len(repeated), 'photo')} more than once, such as '{repeated[0]}'; keep one row"
        )
    rows = []
    for row in table:
        split = (row.get("split") or "").strip().lower()
        if split and split not in SPLIT_NAMES:
            raise DataError(f"'{path}' has the split '{row['split']}'; use train, validation or test")
        split = SPLIT_NAMES.get(split, "")
        rows.append(
            {"file": row["file_name"], "label": row["label"], "split": split, "group": row.get(group_column) or ""}
        )
    if len({row["split"] for row in rows}) > 1 and any(not row["split"] for row in rows):
        raise DataError(f"'{path}' gives a split to only some of the photos; give one to every photo or to none")
    return rows, sorted(set(pictures) - {row["file"] for row in rows})


# The tables that a folder may have, and what reads each; the first one found counts.
TABLES = {"metadata.csv": rows_of_metadata}


def read_table(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """The rows of a CSV file; raises `DataError` if it is empty or one of these columns is missing."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8; save it as CSV UTF-8") from error
    if not table or not set(columns) <= set(table[0]):
        raise DataError(
            f"'{path}' needs rows with the columns {','.join(columns)}; others, such as split,group, may be added"
        )
    return table
