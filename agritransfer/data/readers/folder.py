"""Which photos and labels does a folder hold?

Folders are listed and labelled here rather than by `datasets.load_dataset("imagefolder")`, which guesses splits from
any word in a path and merges `Tomato/healthy` with `Corn/healthy`.
"""

from pathlib import Path

from agritransfer.data.readers.label_files import labels_beside, left_out_of
from agritransfer.data.readers.metadata import Columns
from agritransfer.data.readers.source import SPLIT_NAMES, Photo, PhotoFiles, Source, TableLabels
from agritransfer.data.readers.walk import find_files
from agritransfer.errors import DataError, UsageError


def read_folder(folder: Path, columns: Columns) -> Source:
    """The photos of a folder, labelled by its class folders or by tables; raises `DataError` if it has none.

    `columns` are those of the tables that the user named.
    """
    found = find_files(folder)
    if not found.photos:
        raise DataError(f"'{folder}' contains no photos; add class folders such as {folder}/healthy/leaf.jpg")
    beside = labels_beside(folder, found, columns)
    if beside is not None:
        labels, tables = beside
        rows, empty, left_out = labels.rows, [], left_out_of(labels, found, tables)
    elif columns.group is not None:
        raise UsageError(f"'{folder}' has no metadata.csv for --group_column_name; use --group_pattern")
    else:
        rows, empty = _rows_of_folders(folder, found.photos), found.empty_folders
        left_out = left_out_of(TableLabels(rows), found, [])
    return Source(
        PhotoFiles([str(found.photos[row["file"]]) for row in rows]),
        [Photo(row=i, **row) for i, row in enumerate(rows)],
        sorted({row["label"] for row in rows}),
        left_out=tuple(left_out),
        empty_classes=_classes_without_photos(empty, {row["label"] for row in rows}),
        notes=beside[0].notes if beside else (),
    )


def _classes_without_photos(empty_folders: list[str], labels: set[str]) -> tuple[str, ...]:
    # A class counts as empty only if no split has photos of it; a split folder is not a class.
    classes = {name.split("/", 1)[-1] if name.split("/")[0].lower() in SPLIT_NAMES else name for name in empty_folders}
    return tuple(sorted(name for name in classes - labels if name.lower() not in SPLIT_NAMES))


def _rows_of_folders(folder: Path, pictures: dict[str, Path]) -> list[dict[str, str]]:
    tops = {name.split("/")[0] for name in pictures if "/" in name}
    split_of = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    # A class may be named `test`: split names count as splits only if every top folder is one.
    others = sorted(tops - set(split_of))
    if others and len(set(split_of.values())) > 1:
        raise DataError(f"'{folder}' has other folders beside the splits {sorted(split_of)}: {others}; move those out")
    if others:
        split_of = {}
    if len(set(split_of.values())) < len(split_of):
        raise DataError(f"'{folder}' has several folders for one split: {sorted(split_of)}; merge or rename them")
    rows = []
    for name in pictures:
        parts = name.split("/")
        split = split_of.get(parts[0], "")
        label = "/".join(parts[1:-1] if split else parts[:-1])
        if not label:
            raise DataError(f"'{name}' is not in a class folder; move it to {folder}/CLASS/")
        rows.append({"file": name, "label": label, "split": split})
    return rows
