"""How are parquet files read as tables of photos?"""

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
import pyarrow.parquet
from datasets.packaged_modules.parquet.parquet import Parquet
from fsspec.implementations.local import LocalFileSystem

from agritransfer.data.readers.data_files import (
    files_by_split,
    left_out_files,
    look_at_each,
    open_builder,
    refuse_missing_shards,
    refuse_split_by_chance,
)
from agritransfer.data.readers.image_table import Table, image_candidates, source_of_tables
from agritransfer.data.readers.kind import files_in
from agritransfer.data.readers.labels import names_of
from agritransfer.data.readers.reading_errors import table_errors
from agritransfer.data.readers.source import Columns, Source
from agritransfer.errors import DataError, in_one_line


def read_parquet_folder(
    name: str,
    folder: Path,
    config: str | None,
    columns: Columns,
    files: Sequence[str] | None = None,
) -> Source:
    """The photos of a folder of parquet files; `files` are all files of its repository where not all are there."""
    root = str(folder.resolve())
    if glob.has_magic(root):
        raise DataError(f"`datasets` takes the characters *?[ in the path of '{name}' for a pattern; rename the folder")
    with table_errors(name):
        builder = open_builder(name, root, config)
    if not isinstance(builder, Parquet):
        raise DataError(
            f"'{name}' holds parquet files, but `datasets` reads it as {type(builder).__module__.split('.')[-1]}; move "
            "the other files out, or name the parquet files in its README (configs: data_files:)"
        )
    of_split = files_by_split(builder)
    tables = parquet_tables(name, of_split, root, builder.info.features)
    used = {table.file for table in tables}
    unused = [file for file in files_in(folder) if file.endswith(".parquet") and file not in used]
    refuse_missing_shards(name, [table.file for table in tables])
    refuse_split_by_chance(name, {split: [shown(file, root) for file in of] for split, of in of_split.items()}, unused)
    rows = _rows_of_readable(name, unused, root)
    source = source_of_tables(name, tables, partial(images_of_parquet, root), columns)
    not_read = "in no split" if config is None else f"in no split of '{config}'"
    left_out = left_out_files(sorted({*(files or files_in(folder))} - used), rows, not_read)
    return replace(source, left_out=(*source.left_out, *left_out))


def _rows_of_readable(name: str, files: Sequence[str], root: str) -> dict[str, int]:
    """The number of rows in each of these files that is not damaged; none of them is read further."""
    rows = {}
    for file in files:
        with suppress(DataError):
            rows[file] = parquet_tables(name, {"": [f"{root}/{file}"]}, root, None)[0].rows
    return rows


def read_parquet_file(path: Path, columns: Columns) -> Source:
    """The photos of a single parquet file."""
    root = str(path.resolve().parent)
    tables = parquet_tables(str(path), {"train": [f"{root}/{path.name}"]}, root, None)
    images_of = partial(images_of_parquet, root)
    return source_of_tables(str(path), tables, images_of, columns)


def holds_images(path: Path) -> bool:
    """Whether a parquet file has a column of photos; raises `DataError` if it is damaged."""
    (table,) = parquet_tables(path.parent.name, {"": [str(path)]}, str(path.parent), None)
    return bool(image_candidates(table.features))


def parquet_tables(name: str, of_split: dict[str, list[str]], root: str, card: datasets.Features | None) -> list[Table]:
    """The tables in these parquet files of each split, from their footers; `root` is the folder or address of all.

    `card` are the column types that the README gives; they name the classes of files that do not name them themselves.
    """
    files = [(split, file) for split, of in of_split.items() for file in of]
    return look_at_each(lambda pair: _look_at(name, *pair, root, card), files)


def images_of_parquet(root: str, tables: Sequence[Table], image_column: str) -> datasets.Dataset:
    """The encoded photos of these tables in the column `image`."""
    files = [f"{root}/{table.file}" for table in tables]
    try:
        with _quiet():
            images = datasets.load_dataset(
                "parquet",
                data_files={"train": [_without_magic(file) for file in files]},
                split="train",
                columns=[image_column],
                features=datasets.Features({image_column: datasets.Image(decode=False)}),
            )
    except datasets.exceptions.DatasetGenerationError as error:
        for table, file in zip(tables, files, strict=True):
            _read_through(file, table.file, image_column)
        raise DataError(f"the photos cannot be read: {in_one_line(error.__cause__ or error)}") from error
    # `datasets` refuses to rename a column to its own name.
    return images if image_column == "image" else images.rename_column(image_column, "image")


def shown(file: str, root: str) -> str:
    """The name of a file in messages: its path inside the folder or repository."""
    return file.removeprefix(root).lstrip("/")


def _look_at(name: str, split: str, file: str, root: str, card: datasets.Features | None) -> Table:
    """A file as its footer describes it; the footer has the position, size and range of every column chunk."""
    short = shown(file, root)
    try:
        with _opened(file) as opened:
            parquet = pyarrow.parquet.ParquetFile(opened)
            rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
            opened.seek(-8, 2)
            length = int.from_bytes(opened.read(4), "little")
            opened.seek(-8 - length, 2)
            digest = hashlib.sha256(opened.read(length)).hexdigest()
        features = _features_of(name, short, schema, card)
    except (OSError, pyarrow.ArrowException, ValueError, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{short} of '{name}' cannot be read as parquet ({in_one_line(error)}); replace it, or move it out"
        ) from error
    return Table(split, short, features, rows, partial(_column, file, short), f"{Path(short).name} {digest}")


def _features_of(name: str, file: str, schema: pyarrow.Schema, card: datasets.Features | None) -> datasets.Features:
    # pandas writes categories as a dictionary of text, which `datasets` does not know.
    for place, field in enumerate(schema):
        if pyarrow.types.is_dictionary(field.type):
            schema = schema.set(place, field.with_type(field.type.value_type))
    features = datasets.Features.from_arrow_schema(schema)
    if twice := [column for column, times in Counter(schema.names).items() if times > 1]:
        raise DataError(f"{file} of '{name}' has several columns '{twice[0]}'; rename all but one")
    for column, feature in features.items():
        named = names_of((card or {}).get(column))
        own = names_of(feature)
        if named is not None and own is not None and named != own:
            raise DataError(
                f"the README of '{name}' names the classes of '{column}' {named}, but {file} names them {own}; correct "
                "the README (dataset_info:)"
            )
        if named is not None and isinstance(feature, datasets.Value) and "int" in feature.dtype:
            features[column] = card[column]
    return features


def _column(file: str, short: str, column: str) -> list[Any]:
    try:
        with _opened(file) as opened:
            return pyarrow.parquet.ParquetFile(opened).read(columns=[column]).column(column).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"the column '{column}' of {short} cannot be read ({in_one_line(error)}); replace it"
        ) from error


def _read_through(file: str, short: str, column: str) -> None:
    try:
        with _opened(file) as opened:
            for _ in pyarrow.parquet.ParquetFile(opened).iter_batches(100, columns=[column]):
                pass
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{short} is damaged ({in_one_line(error)}); replace it") from error


def _opened(file: str) -> Any:
    filesystem, path = fsspec.url_to_fs(file)
    if isinstance(filesystem, LocalFileSystem):
        # A file of Python's own, still known to a thread of pyarrow when the process ends, would abort it.
        return pyarrow.memory_map(path)
    # Without a cache, since only a few bytes are read at several positions.
    return filesystem.open(path, "rb", cache_type="none")


@contextmanager
def _quiet() -> Iterator[None]:
    # `datasets` logs the error of a damaged file, beside the line that we print.
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)


def _without_magic(file: str) -> str:
    # `datasets` takes brackets and asterisks in a path for a pattern.
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in file)
