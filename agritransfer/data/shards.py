"""Which photos do the shards of a streamed dataset hold?

Validation and test photos are loaded, since they are few; of the train photos only the labels are read, where the
shards (parquet) keep them apart from the photos.
"""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets
import fsspec
import huggingface_hub
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from agritransfer.data.readers.data_files import files_by_split, look_at_each, open_builder, refuse_missing_shards
from agritransfer.data.readers.hub import refuse_code
from agritransfer.data.readers.image_table import (
    Table,
    labels_in_order,
    pick_columns,
    refuse_several_names,
    require_column,
    source_of_tables,
)
from agritransfer.data.readers.kind import refuse_address
from agritransfer.data.readers.labels import class_of, classes_of, names_of, refuse_label_column
from agritransfer.data.readers.parquet import images_of_parquet, parquet_tables, shown
from agritransfer.data.readers.reading_errors import hub_errors, table_errors
from agritransfer.data.readers.saved import source_of_datasets
from agritransfer.data.readers.source import HUB_ID, SPLIT_NAMES, Columns, Source
from agritransfer.errors import DataError, UsageError, in_one_line
from agritransfer.wording import counted

KINDS = {Parquet: "parquet", WebDataset: "webdataset"}


@dataclass(frozen=True)
class Shard:
    """One file of train photos: a mark that identifies its content, and its photos per label (None: not known).

    The label None counts the photos without a label.
    """

    mark: str
    count: Counter | None


@dataclass(frozen=True)
class TrainStream:
    """The train photos of a dataset as rows of bytes; `labels` are the possible names."""

    rows: datasets.IterableDataset
    shards: list[Shard]
    image_column: str
    label_column: str
    names: list[str] | None
    labels: list[str]
    on_broken: Literal["stop", "skip"]
    shuffle_buffer: int

    @property
    def counts(self) -> dict[str, int] | None:
        """The number of photos of each label; None for shards without that information."""
        if any(shard.count is None for shard in self.shards):
            return None
        total = sum((shard.count for shard in self.shards), Counter())
        return {label: total[label] for label in self.labels}

    @property
    def fingerprint(self) -> str:
        """A digest of the content of all shards, in order."""
        return hashlib.sha256("\n".join(shard.mark for shard in self.shards).encode()).hexdigest()

    def label_of(self, row: dict[str, Any]) -> str | None:
        """The label name of a row, or None if it has none; raises `ValueError` for a value that names no class."""
        value = row
        for part in self.label_column.split("."):
            if value is not None and not isinstance(value, dict):
                raise ValueError(f"the {part} of {value!r}, which is no record")
            value = (value or {}).get(part)
        return class_of(value, self.names)

    def has_label(self, row: dict[str, Any]) -> bool:
        """Whether a row has a label, be it one that cannot be used."""
        try:
            return self.label_of(row) is not None
        except ValueError:
            return True


@dataclass(frozen=True)
class _Files:
    """What is known of a dataset before its shards are read; `root` is the folder or address of all its files."""

    name: str
    kind: str
    of_split: dict[str, list[str]]
    features: datasets.Features | None
    commit: str | None
    root: str

    def errors(self) -> Any:
        """The context in which its files are read."""
        return table_errors(self.name) if self.commit is None else hub_errors(self.name, self.commit)


def open_stream(
    name: str,
    *,
    revision: str | None = None,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    on_broken: Literal["stop", "skip"] = "stop",
    shuffle_buffer: int = 1000,
) -> tuple[Source, TrainStream]:
    """The validation and test photos of a dataset, and its train photos as a stream.

    Raises `UsageError` if there is no such dataset, and `DataError` if it lacks a split or its labels cannot be read.
    """
    if shuffle_buffer < 1:
        raise UsageError(f"--shuffle_buffer must be at least 1; found {shuffle_buffer}")
    files, left_out = _with_three_splits(_find_files(name, revision, config))
    columns = (image_column, label_column)
    with files.errors():
        if files.kind == "parquet":
            source, stream = _open_parquet(files, *columns, on_broken, shuffle_buffer)
        else:
            source, stream = _open_webdataset(files, *columns, on_broken, shuffle_buffer)
    in_train = sum((shard.count or Counter() for shard in stream.shards), Counter())
    if unlabelled := in_train[None]:
        left_out.append(f"{counted(unlabelled, 'photo')} without a label in the split 'train'")
        stream = replace(stream, rows=stream.rows.filter(stream.has_label))
    return replace(source, labels=stream.labels, revision=files.commit, left_out=(*source.left_out, *left_out)), stream


def _find_files(name: str, revision: str | None, config: str | None) -> _Files:
    is_folder, commit, place = Path(name).is_dir(), None, name
    refuse_address(name)
    if not is_folder and not HUB_ID.fullmatch(name):
        raise UsageError(
            f"'{name}' is neither a folder nor a Hub id such as user/photos; use a dataset that can be streamed"
        )
    if not is_folder and huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"the Hub dataset '{name}' cannot be streamed with HF_HUB_OFFLINE=1; unset it or stream a local folder"
        )
    if is_folder:
        place = root = str(Path(name).resolve())
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            raise UsageError(f"'{name}' was written by save_to_disk and cannot be streamed; leave --streaming out")
    with table_errors(name) if is_folder else hub_errors(name, revision):
        if not is_folder:
            info = huggingface_hub.HfApi().dataset_info(name, revision=revision)
            refuse_code(name, [file.rfilename for file in info.siblings])
            commit = info.sha
            root = f"hf://datasets/{name}@{commit}"
        builder = open_builder(name, place, config, commit)
    for parent, kind in KINDS.items():
        if isinstance(builder, parent):
            return _Files(name, kind, files_by_split(builder), builder.info.features, commit, root)
    raise UsageError(
        f"'{name}' contains neither parquet nor WebDataset files, the only ones that can be streamed; leave "
        "--streaming out, or convert the dataset to parquet: agritransfer publish-dataset"
    )


def _with_three_splits(files: _Files) -> tuple[_Files, list[str]]:
    """The files under the names train, validation and test, and the splits that are left out."""
    split_of = {key: SPLIT_NAMES[key.lower()] for key in files.of_split if key.lower() in SPLIT_NAMES}
    refuse_several_names(files.name, split_of)
    left_out = [
        f"the split '{key}' ({counted(len(of), 'file')})" for key, of in files.of_split.items() if key not in split_of
    ]
    for split in ("train", "validation", "test"):
        if split not in split_of.values():
            raise DataError(
                f"'{files.name}' has no {split} split (found: {sorted(files.of_split)}), and a streamed dataset cannot "
                "be split; add one, as `agritransfer publish-dataset` does, or leave --streaming out"
            )
    of_split = {split: files.of_split[key] for key, split in split_of.items()}
    refuse_missing_shards(files.name, [shown(file, files.root) for of in of_split.values() for file in of])
    return replace(files, of_split=of_split), left_out


def _open_parquet(
    files: _Files,
    image_column: str | None,
    label_column: str | None,
    on_broken: Literal["stop", "skip"],
    shuffle_buffer: int,
) -> tuple[Source, TrainStream]:
    tables = parquet_tables(files.name, files.of_split, files.root, files.features)
    train = [table for table in tables if table.split == "train"]
    scored = [table for table in tables if table.split != "train"]
    image_column, label_column = pick_columns(files.name, train[0].features, image_column, label_column)
    for column in (image_column, label_column):
        require_column(files.name, tables, column)
    refuse_label_column(files.name, label_column, {table.file: table.features[label_column] for table in tables})
    names = _names_of_all(files.name, train, label_column)
    source = source_of_tables(
        files.name, scored, partial(images_of_parquet, files.root), Columns(image_column, label_column)
    )
    shards = [
        Shard(table.mark, Counter(classes_of(table.column(label_column), table.features[label_column], table.file)))
        for table in train
    ]
    used = {*source.labels, *(label for shard in shards for label in shard.count)} - {None}
    columns = [column for column in (image_column, label_column, "file") if column in train[0].features]
    features = {column: train[0].features[column] for column in columns}
    features[image_column] = datasets.Image(decode=False)
    rows = datasets.load_dataset(
        "parquet",
        data_files={"train": files.of_split["train"]},
        split="train",
        columns=columns,
        features=datasets.Features(features),
        streaming=True,
    )
    labels = labels_in_order(files.name, [names, *(names_of(table.features[label_column]) for table in scored)], used)
    return source, TrainStream(rows, shards, image_column, label_column, names, labels, on_broken, shuffle_buffer)


def _names_of_all(name: str, train: Sequence[Table], label_column: str) -> list[str] | None:
    """The class names of the train shards, which a stream reads as one; raises `DataError` if they differ."""
    names = names_of(train[0].features[label_column])
    for table in train:
        if (others := names_of(table.features[label_column])) != names:
            raise DataError(
                f"the train shards of '{name}' name their classes differently ({names} in {train[0].file}, {others} in "
                f"{table.file}); leave --streaming out, which aligns them by name, or write them again"
            )
    return names


def _open_webdataset(
    files: _Files,
    image_column: str | None,
    label_column: str | None,
    on_broken: Literal["stop", "skip"],
    shuffle_buffer: int,
) -> tuple[Source, TrainStream]:
    kinds = {"path": "webdataset", "features": files.features}
    every = [file for of in files.of_split.values() for file in of]
    shards = dict(zip(every, look_at_each(partial(_look_at_tar, files), every), strict=True))
    scored = datasets.load_dataset(
        **kinds, data_files={split: files.of_split[split] for split in ("validation", "test")}
    )
    rows = datasets.load_dataset(**kinds, data_files={"train": files.of_split["train"]}, split="train", streaming=True)
    scored = datasets.DatasetDict({split: _with_label_of_json(table) for split, table in scored.items()})
    if label_column is None:
        found = [column for column in ("cls", "json.label") if column in scored["test"].features]
        if len(found) > 1:
            raise UsageError(f"'{files.name}' has {found} label columns; name one with --label_column_name")
        label_column = found[0] if found else None
    image_column, label_column = pick_columns(files.name, scored["test"].features, image_column, label_column)
    source = source_of_datasets(files.name, scored, Columns(image_column, label_column))
    wanted = (image_column, label_column.split(".")[0], "__key__")
    rows = rows.select_columns([column for column in wanted if column in rows.features])
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    of_train = [shards[file] for file in files.of_split["train"]]
    names = names_of(rows.features.get(label_column))
    return source, TrainStream(
        rows, of_train, image_column, label_column, names, source.labels, on_broken, shuffle_buffer
    )


def _with_label_of_json(table: datasets.Dataset) -> datasets.Dataset:
    """The table with a label column if the WebDataset keeps its labels in a JSON file beside each photo."""
    if not isinstance(table.features.get("json"), dict) or "label" not in table.features["json"]:
        return table
    return table.add_column("json.label", [(value or {}).get("label") for value in table["json"]])


def _look_at_tar(files: _Files, file: str) -> Shard:
    filesystem, path = fsspec.url_to_fs(file)
    try:
        with filesystem.open(path, "rb", cache_type="none") as opened:
            tarfile.TarInfo.frombuf(opened.read(tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError as error:
        found = f"{shown(file, files.root)} of '{files.name}'"
        raise DataError(f"{found} is no tar file with photos ({in_one_line(error)}); replace it") from error
    return Shard(f"{Path(path).name} {filesystem.size(path)}", None)
