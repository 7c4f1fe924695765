"""Which photos and labels does a folder hold?

Folders are listed and labelled here rather than by `datasets.load_dataset("imagefolder")`, which guesses splits from
any word in a path and merges `Tomato/healthy` with `Corn/healthy`.
"""

from pathlib import Path

from agritransfer.data.readers.label_files import labels_beside, left_out_of
from agritransfer.data.readers.layout import Layout, rows_of_folders
from agritransfer.data.readers.source import Columns, Photo, PhotoFiles, Source, TableLabels
from agritransfer.data.readers.walk import FoundFiles
from agritransfer.errors import DataError, UsageError


def read_folder(folder: Path, found: FoundFiles, columns: Columns) -> Source:
    """The photos of a folder, labelled by its class folders or by tables; raises `DataError` if it has none.

    `found` are its files; `columns` are those of the tables that the user named.
    """
    if not found.photos:
        unread = next((f"; {name} in it: {reason}" for name, reason in found.unread.items()), "")
        raise DataError(f"'{folder}' contains no photos; add class folders such as {folder}/healthy/leaf.jpg{unread}")
    beside = labels_beside(folder, found, columns)
    if beside is not None:
        labels, tables = beside
        layout = Layout(labels.rows, empty_classes=(), notes=labels.notes)
        left_out = left_out_of(labels, found, tables)
    elif columns.group is not None:
        raise UsageError(f"'{folder}' has no metadata.csv for --group_column_name; use --group_pattern")
    else:
        layout = rows_of_folders(folder, found)
        left_out = left_out_of(TableLabels(layout.rows), found, [])
    return Source(
        PhotoFiles([str(found.photos[row["file"]]) for row in layout.rows]),
        [Photo(row=i, **row) for i, row in enumerate(layout.rows)],
        sorted({row["label"] for row in layout.rows}),
        left_out=tuple(left_out),
        empty_classes=layout.empty_classes,
        notes=layout.notes,
        inside=layout.inside,
    )
