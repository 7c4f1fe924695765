"""How is a dataset read that `save_to_disk` of `datasets` wrote?"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from agritransfer.data.readers.data_files import left_out_files
from agritransfer.data.readers.image_table import Table, source_of_tables
from agritransfer.data.readers.kind import files_in
from agritransfer.data.readers.reading_errors import table_errors
from agritransfer.data.readers.source import Columns, Source
from agritransfer.errors import DataError, in_one_line

# What `save_to_disk` writes beside the tables.
DESCRIPTIONS = ("state.json", "dataset_info.json", "dataset_dict.json")


def read_saved(
    name: str,
    folder: Path,
    columns: Columns,
    files: Sequence[str] | None = None,
) -> Source:
    """The photos of a saved `Dataset` or `DatasetDict`; `files` are all files of its repository."""
    with table_errors(name):
        used = _files_of(folder)
        loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.Dataset):
        loaded = datasets.DatasetDict({"train": loaded})
    source = source_of_datasets(name, loaded, columns)
    others = [file for file in files or files_in(folder) if file not in used and Path(file).name not in DESCRIPTIONS]
    return replace(source, left_out=(*source.left_out, *left_out_files(others, {}, "not saved with it")))


def source_of_datasets(
    name: str,
    loaded: datasets.DatasetDict,
    columns: Columns,
) -> Source:
    """The photos of a loaded dataset with one table per split."""
    tables = [
        Table(split, f"the split '{split}'", table.features, len(table), partial(_column, table))
        for split, table in loaded.items()
    ]
    images_of = partial(_images_of, loaded)
    return source_of_tables(name, tables, images_of, columns)


def _column(table: datasets.Dataset, column: str) -> list[Any]:
    return table.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()


def _images_of(loaded: datasets.DatasetDict, tables: Sequence[Table], image_column: str) -> datasets.Dataset:
    chosen = [loaded[table.split].select_columns([image_column]) for table in tables]
    if image_column != "image":
        chosen = [table.rename_column(image_column, "image") for table in chosen]
    return datasets.concatenate_datasets([table.cast_column("image", datasets.Image(decode=False)) for table in chosen])


def _files_of(folder: Path) -> set[str]:
    """The arrow files of a saved dataset, each read from end to end; raises `DataError` for a damaged one."""
    splits = [""]
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    used = set()
    for split in splits:
        state = json.loads((folder / split / "state.json").read_text(encoding="utf-8"))
        for entry in state["_data_files"]:
            path = folder / split / entry["filename"]
            try:
                # Mapped into memory, so that the photos themselves are not read.
                with pyarrow.memory_map(str(path)) as opened, pyarrow.ipc.open_stream(opened) as batches:
                    for _ in batches:
                        pass
            except (OSError, pyarrow.ArrowException) as error:
                short = path.relative_to(folder).as_posix()
                raise DataError(
                    f"{short} in '{folder}' is missing or damaged ({in_one_line(error)}); save it again"
                ) from error
            used.add(path.relative_to(folder).as_posix())
    return used
