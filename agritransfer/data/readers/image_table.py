"""Which photos and labels do tables with a column of images hold?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow.compute

from agritransfer.data.readers.labels import classes_of, names_of, refuse_label_column, refuse_odd_names
from agritransfer.data.readers.source import SPLIT_NAMES, Columns, Photo, Source
from agritransfer.errors import DataError, UsageError
from agritransfer.wording import counted, listed


@dataclass(frozen=True)
class Table:
    """The rows of one file: its split as the dataset names it, its name in messages, its columns.

    `column` reads all values of a column; `mark` identifies the content of the file.
    """

    split: str
    file: str
    features: datasets.Features
    rows: int
    column: Callable[[str], list[Any]]
    mark: str = ""


# Reads the images of these tables, in order: `images_of(tables, image_column)`.
ImageReader = Callable[[Sequence[Table], str], datasets.Dataset]


def source_of_tables(
    name: str,
    tables: Sequence[Table],
    images_of: ImageReader,
    columns: Columns,
) -> Source:
    """The photos of tables, their labels matched by name; raises `DataError` for labels that name no class."""
    split_of, left_out = splits_of_tables(name, tables)
    used = [table for table in tables if table.split in split_of and table.rows]
    if not used:
        found = f"; left out: {listed(left_out)}" if left_out else ""
        raise DataError(
            f"'{name}' has no rows in a train, validation or test split{found}; add photos or rename a split"
        )
    image_column, label_column = pick_columns(name, used[0].features, columns.image, columns.label)
    group_column = columns.group
    if group_column is not None:
        _pick_column(name, "group", group_column, [], list(used[0].features))
    for column in filter(None, (image_column, label_column, group_column)):
        require_column(name, used, column)
    refuse_label_column(name, label_column, {table.file: table.features[label_column] for table in used})
    photos: list[Photo] = []
    unlabelled = dict.fromkeys(split_of, 0)
    first_row, row_in_split = 0, dict.fromkeys(split_of, 0)
    for table in used:
        labels = classes_of(table.column(label_column), table.features[label_column], table.file)
        groups = table.column(group_column) if group_column else [None] * table.rows
        for row, (label, group) in enumerate(zip(labels, groups, strict=True)):
            file = f"{table.split}/{row_in_split[table.split] + row:06d}"
            if label is not None:
                group = "" if group is None else str(group)
                photos.append(Photo(first_row + row, file, label, split_of[table.split], group))
        unlabelled[table.split] += labels.count(None)
        first_row, row_in_split[table.split] = first_row + table.rows, row_in_split[table.split] + table.rows
    left_out += [
        f"{counted(number, 'photo')} without a label in the split '{key}'"
        for key, number in unlabelled.items()
        if number
    ]
    if not photos:
        raise DataError(f"'{name}' has no labeled photos; left out: {listed(left_out)}; add labels")
    images = images_of(used, image_column)
    _refuse_paths(images, used)
    names = [names_of(table.features[label_column]) for table in used]
    return Source(
        images, photos, labels_in_order(name, names, {photo.label for photo in photos}), left_out=tuple(left_out)
    )


def splits_of_tables(name: str, tables: Sequence[Table]) -> tuple[dict[str, str], list[str]]:
    """The split that each split name stands for ("" for a lone one), and the splits left out, with their photos."""
    rows: dict[str, int] = {}
    for table in tables:
        rows[table.split] = rows.get(table.split, 0) + table.rows
    if len(rows) == 1:
        return dict.fromkeys(rows, ""), []
    split_of = {key: SPLIT_NAMES[key.lower()] for key in rows if key.lower() in SPLIT_NAMES}
    refuse_several_names(name, split_of)
    left_out = [key for key, number in rows.items() if key not in split_of or not number]
    return split_of, [f"the split '{key}' ({counted(rows[key], 'photo')})" for key in left_out]


def refuse_several_names(name: str, split_of: dict[str, str]) -> None:
    """Raise `DataError` if two split names stand for one split."""
    for split in sorted(set(split_of.values())):
        if len(keys := [key for key in split_of if split_of[key] == split]) > 1:
            raise DataError(
                f"'{name}' has several splits for {split}: {listed(keys)}; merge them, or rename the ones to leave out"
            )


def labels_in_order(name: str, names: Sequence[list[str] | None], used: set[str]) -> list[str]:
    """The labels in use: in the order of the class names of the files, otherwise sorted."""
    known = dict.fromkeys(label for of_file in names for label in of_file or [])
    refuse_odd_names(name, [*known, *sorted(used)])
    return [label for label in known if label in used] or sorted(used)


def pick_columns(
    name: str, features: datasets.Features, image_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """The columns of the photos and the labels, found if there is only one candidate each."""
    class_labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    by_name = [column for column in features if column in ("label", "labels")]
    candidates = image_candidates(features)
    if image_column is None and not candidates:
        found = ", ".join(f"{column} ({_described(feature)})" for column, feature in features.items())
        raise DataError(
            f"'{name}' has no column of encoded images (bytes); it has {found}: convert one with datasets.Image()"
        )
    image_column = _pick_column(name, "image", image_column, candidates, list(features))
    if image_column not in _image_columns(features):
        raise DataError(
            f"the column '{image_column}' of '{name}' holds {_described(features[image_column])}; photos are read from "
            "columns of encoded images (bytes): convert it, for example with datasets.Image()"
        )
    return image_column, _pick_column(name, "label", label_column, class_labels or by_name, list(features))


def image_candidates(features: datasets.Features) -> list[str]:
    """The columns that hold photos: typed as images, otherwise records with bytes, otherwise bytes."""
    columns = _image_columns(features)
    for kind in (datasets.Image, dict, datasets.Value):
        if of_kind := [column for column in columns if isinstance(features[column], kind)]:
            return of_kind
    return []


def _image_columns(features: datasets.Features) -> list[str]:
    return [column for column, feature in features.items() if _may_be_image(feature)]


def _may_be_image(feature: Any) -> bool:
    if isinstance(feature, dict):
        # What other tools write of an image column.
        return "bytes" in feature and set(feature) <= {"bytes", "path"} and _may_be_image(feature["bytes"])
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, datasets.Image)


def _described(feature: Any) -> str:
    if isinstance(feature, datasets.Value):
        text = " (paths, addresses or base64)" if feature.dtype in ("string", "large_string") else ""
        return f"{feature.dtype} values{text}"
    if isinstance(feature, (list, datasets.List, datasets.LargeList)):
        return "lists"
    if isinstance(feature, datasets.ClassLabel):
        return "class numbers"
    return "records" if isinstance(feature, dict) else f"{type(feature).__name__} values"


def _pick_column(name: str, role: str, chosen: str | None, candidates: list[str], columns: list[str]) -> str:
    if chosen is None and len(candidates) == 1:
        return candidates[0]
    if chosen is None:
        raise UsageError(
            f"'{name}' has {candidates or 'no'} {role} columns; name one with --{role}_column_name (columns: {columns})"
        )
    if chosen not in columns:
        raise UsageError(f"'{name}' has no column '{chosen}' for --{role}_column_name; it has {columns}")
    return chosen


def require_column(name: str, tables: Sequence[Table], column: str) -> None:
    """Raise `DataError` if one of these tables lacks a column."""
    for table in tables:
        if column not in table.features:
            raise DataError(
                f"{table.file} in '{name}' has no column '{column}', as {tables[0].file} has; it has "
                f"{list(table.features)}: add the column, or move the file out"
            )


def _refuse_paths(images: datasets.Dataset, tables: Sequence[Table]) -> None:
    """Raise `DataError` for a row that names a file instead of holding a photo: it would be read from this machine."""
    column = images.data.column("image")
    no_bytes = pyarrow.compute.is_null(pyarrow.compute.struct_field(column, "bytes"))
    path = pyarrow.compute.struct_field(column, "path")
    row = pyarrow.compute.index(pyarrow.compute.and_(no_bytes, pyarrow.compute.is_valid(path)), True).as_py()
    if row < 0:
        return
    named = path[row].as_py()
    for table in tables:
        if row < table.rows:
            raise DataError(
                f"row {row} (counted from 0) of {table.file} holds only a path, '{named}', and no photo; save the "
                "dataset with its photos, as push_to_hub and to_parquet of datasets do"
            )
        row -= table.rows
