"""Which files of a dataset does `datasets` read, and for which split?

The README of a dataset may say so (`configs`); otherwise `datasets` judges by the names of the files.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import datasets
from tqdm import tqdm

from agritransfer.data.readers.kind import contents_of
from agritransfer.data.readers.source import SPLIT_NAMES
from agritransfer.errors import DataError, UsageError
from agritransfer.wording import counted, listed

# A file of a set of shards, such as train-00000-of-00003.parquet.
SHARD = re.compile(r"(?P<set>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?!\d)")
# Files that are named one by one where they are left out; all are counted.
NAMED = 10
# Threads that look at files and mostly wait for the disk or the network.
LOOKERS = 8


def open_builder(name: str, place: str, config: str | None, revision: str | None = None) -> datasets.DatasetBuilder:
    """The builder of `datasets` for the chosen configuration of a folder or Hub dataset at `place`.

    Raises `UsageError` for a configuration that does not exist, and if there are several and none is chosen.
    """
    names = datasets.get_dataset_config_names(place, revision=revision)
    if config is not None and config not in names:
        raise UsageError(f"'{name}' has no configuration '{config}' for --dataset_config_name; it has {names}")
    if config is None and len(names) > 1:
        raise UsageError(f"'{name}' has several configurations; choose one with --dataset_config_name: {names}")
    return datasets.load_dataset_builder(place, name=names[0] if config is None else config, revision=revision)


def files_by_split(builder: datasets.DatasetBuilder) -> dict[str, list[str]]:
    """The paths or addresses of the files of each split."""
    return {str(split): list(files) for split, files in builder.config.data_files.items()}


def look_at_each(look: Callable[[Any], Any], files: Sequence[Any]) -> list[Any]:
    """What `look` finds in each of these files, in their order, a few files at a time."""
    with ThreadPoolExecutor(LOOKERS) as pool:
        looks = pool.map(look, files)
        return list(tqdm(looks, total=len(files), desc="looking at files", delay=2, leave=False, disable=None))


def refuse_missing_shards(name: str, files: Sequence[str]) -> None:
    """Raise `DataError` if a set of shards lacks one, or if there are several sets of one name."""
    numbers_of = defaultdict(lambda: defaultdict(set))
    for file in files:
        if found := SHARD.match(file):
            numbers_of[found["set"]][int(found["count"])].add(int(found["number"]))
    for shards, sets in numbers_of.items():
        if len(sets) > 1:
            counts = listed([f"{count:05d}" for count in sorted(sets)])
            raise DataError(f"'{name}' has several sets of {shards} shards, of {counts} files; delete the outdated one")
        ((count, numbers),) = sets.items()
        # Shards are counted from 0, by some tools from 1.
        first = 1 if count in numbers and 0 not in numbers else 0
        if missing := sorted(set(range(first, first + count)) - numbers):
            absent = listed([f"{number:05d}" for number in missing[:NAMED]])
            raise DataError(
                f"'{name}' lacks {counted(len(missing), 'shard')} of the {count} of {shards}: number {absent}; add the "
                f"missing files, or name those that are to be read in the README (configs: data_files:)"
            )


def refuse_split_by_chance(name: str, split_of: dict[str, Sequence[str]], unused: Sequence[str]) -> None:
    """Raise `DataError` if `datasets` finds no train split and leaves files out: their names misled it.

    A word such as `test` in `soil_test.parquet` is enough.
    """
    if unused and not any(SPLIT_NAMES.get(split.lower()) == "train" for split in split_of):
        taken = "; ".join(f"{listed(list(files[:NAMED]))} as {split}" for split, files in split_of.items())
        raise DataError(
            f"'{name}' has no train split: by their names, {taken}, and {listed(list(unused[:NAMED]))} is left out; "
            "rename the files (train-1.parquet), or name them in the README (configs: data_files:)"
        )


def left_out_files(files: Sequence[str], rows: dict[str, int], not_read: str) -> list[str]:
    """A line for each of the first parquet files that are not read, and a count of all others, photos apart.

    `rows` are the numbers of rows of those parquet files that are on this machine; `not_read` says why they are not
    read.
    """
    contents = contents_of(files)
    lines = [
        f"{file} ({counted(rows[file], 'row')}, {not_read})" if file in rows else f"{file} ({not_read})"
        for file in contents.tables[:NAMED]
    ]
    if more := contents.tables[NAMED:]:
        lines.append(f"{counted(len(more), 'more parquet file')} {not_read}, such as {more[0]}")
    if contents.photos:
        lines.append(f"{counted(len(contents.photos), 'photo')} beside the tables, such as {contents.photos[0]}")
    known = {*contents.tables, *contents.photos}
    if others := [file for file in files if file not in known and not _is_description(file)]:
        lines.append(f"{counted(len(others), 'other file')}, such as {others[0]}")
    return lines


def _is_description(file: str) -> bool:
    name = PurePosixPath(file)
    return name.name.startswith(".") or name.suffix in (".md", ".json", ".yaml") or name.name == "LICENSE"
