"""Which photos and labels does a folder hold?

Folders are listed and labelled here rather than by `datasets.load_dataset("imagefolder")`, which guesses splits from
any word in a path and merges `Tomato/healthy` with `Corn/healthy`.
"""

from pathlib import Path

from agritransfer.data.readers.layout import Layout, rows_of_folders
from agritransfer.data.readers.source import Photo, PhotoFiles, Source
from agritransfer.data.readers.table import TABLES
from agritransfer.data.readers.walk import find_files
from agritransfer.errors import DataError, UsageError


def read_folder(folder: Path, group_column: str | None) -> Source:
    """The photos of a folder, labelled by its class folders or a table; raises `DataError` if it has none."""
    found = find_files(folder)
    if not found.photos:
        unread = next((f"; {name} in it: {reason}" for name, reason in found.unread.items()), "")
        raise DataError(f"'{folder}' contains no photos; add class folders such as {folder}/healthy/leaf.jpg{unread}")
    table = next((name for name in TABLES if name in found.others), None)
    if table is not None:
        rows, without_row = TABLES[table](found.others[table], found.photos, group_column)
        layout = Layout(rows, (), ())
    elif group_column is not None:
        raise UsageError(f"'{folder}' has no {' or '.join(TABLES)} for --group_column_name; use --group_pattern")
    else:
        layout, without_row = rows_of_folders(folder, found), []
    left_out = [f"{name} (not in {table})" for name in without_row]
    left_out += [f"{name} ({reason})" for name, reason in found.unread.items()]
    left_out += [f"{name} (not a photo)" for name in found.others if name != table]
    return Source(
        PhotoFiles([str(found.photos[row["file"]]) for row in layout.rows]),
        [Photo(row=i, **row) for i, row in enumerate(layout.rows)],
        sorted({row["label"] for row in layout.rows}),
        left_out=(*left_out, *found.passed_over),
        empty_classes=layout.empty_classes,
        notes=layout.notes,
        inside=layout.inside,
    )
