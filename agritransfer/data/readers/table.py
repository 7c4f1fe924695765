"""Which labels, splits and groups does a table beside the photos give?"""

import csv
from collections import Counter
from pathlib import Path

from agritransfer.data.readers.source import SPLIT_NAMES
from agritransfer.errors import DataError, UsageError


def rows_of_metadata(
    path: Path, pictures: dict[str, Path], group_column: str | None
) -> tuple[list[dict[str, str]], list[str]]:
    """A row (file, label, split, group) for each photo that metadata.csv names, and the pictures that it does not."""
    table = read_table(path, ["file_name", "label"])
    if group_column is not None and group_column not in table[0]:
        raise UsageError(f"'{path}' has no column '{group_column}' for --group_column_name; it has {list(table[0])}")
    group_column = group_column or "group"
    if absent := [row["file_name"] for row in table if row["file_name"] not in pictures]:
        raise DataError(f"'{path}' names {len(absent)} photos that are not there, such as '{absent[0]}'")
    if unlabelled := [row["file_name"] for row in table if not row["label"]]:
        raise DataError(f"'{path}' gives no label to {len(unlabelled)} photos, such as '{unlabelled[0]}'")
    if repeated := [name for name, times in Counter(row["file_name"] for row in table).items() if times > 1]:
        raise DataError(f"'{path}' names {len(repeated)} photos more than once, such as '{repeated[0]}'")
    rows = []
    for row in table:
        split = (row.get("split") or "").strip().lower()
        if split and split not in SPLIT_NAMES:
            raise DataError(f"'{path}' has the split '{row['split']}'; allowed are train, validation and test")
        split = SPLIT_NAMES.get(split, "")
        rows.append(
            {"file": row["file_name"], "label": row["label"], "split": split, "group": row.get(group_column) or ""}
        )
    if len({row["split"] for row in rows}) > 1 and any(not row["split"] for row in rows):
        raise DataError(f"'{path}' gives a split to some photos only; give one to every photo or to none")
    return rows, sorted(set(pictures) - {row["file"] for row in rows})


def read_table(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least these columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8; save it again as CSV UTF-8") from error
    if not table or not set(columns) <= set(table[0]):
        raise DataError(f"'{path}' needs the columns {','.join(columns)}; others may be there too, such as split,group")
    return table
