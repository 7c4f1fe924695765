"""How are datasets streamed that are larger than the disk?

In every epoch, `datasets` reads the shards (parquet or WebDataset) again, as bytes, and each photo is decoded on
arrival. Only train photos are streamed: validation and test are small enough to be loaded and checked.
"""

import hashlib
import io
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import datasets
import fsspec
import huggingface_hub
import pyarrow.parquet
import torch
from datasets.distributed import split_dataset_by_node
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from PIL import Image
from tqdm import tqdm
from transformers import TrainingArguments

from agritransfer.data.readers.hub import hub_errors, pick_columns, refuse_code, source_of_tables
from agritransfer.data.readers.source import HUB_ID, SPLIT_NAMES, Source
from agritransfer.errors import DataError, UsageError
from agritransfer.images.broken_photos import BrokenPhoto
from agritransfer.images.photo_dataset import EvaluationPixels, WholePhotos, collate, photo_item
from agritransfer.wording import counted

KINDS = {Parquet: "parquet", WebDataset: "webdataset"}
# Threads that read the footers of shards and mostly wait for the network.
READERS = 8
# Photos that are decoded in parallel while the next ones are read.
CHUNK = 16
# If sharing out whole shards would leave more than this share of the photos out, each process reads all shards.
MOST_LEFT_OUT = 0.01


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
        """The label name of a row, or None if it has none."""
        value = row
        for part in self.label_column.split("."):
            value = (value or {}).get(part)
        return _label_name(value, self.names)

    def has_label(self, row: dict[str, Any]) -> bool:
        """Whether a row has a label."""
        return self.label_of(row) is not None


def open_stream(
    name: str,
    *,
    revision: str | None = None,
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
    kind, files, features, commit = _find_shards(name, revision)
    left_out = [
        f"the split '{key}' ({counted(len(of), 'file')})" for key, of in files.items() if key not in SPLIT_NAMES
    ]
    files = {SPLIT_NAMES[key]: of for key, of in files.items() if key in SPLIT_NAMES}
    for split in ("train", "validation", "test"):
        if split not in files:
            raise DataError(
                f"'{name}' has no {split} split (found: {sorted(files)}), and a streamed dataset cannot be split; add "
                "one, as `agritransfer publish-dataset` does, or leave --streaming out"
            )
    with hub_errors(f"'{name}'"):
        scored = datasets.load_dataset(
            kind, data_files={split: files[split] for split in ("validation", "test")}, features=features
        )
        rows = datasets.load_dataset(
            kind, data_files={"train": files["train"]}, split="train", features=features, streaming=True
        )
    scored = datasets.DatasetDict({split: _with_label_of_json(table) for split, table in scored.items()})
    if kind == "webdataset" and label_column is None:
        found = [column for column in ("cls", "json.label") if column in scored["test"].features]
        label_column = found[0] if len(found) == 1 else None
    image_column, label_column = pick_columns(name, scored["test"].features, image_column, label_column)
    source = source_of_tables(name, scored, image_column, label_column, None)
    names = _names_of(rows.features, label_column)
    shards = _look_at_shards(name, kind, files["train"], label_column, names)
    in_train = sum((shard.count or Counter() for shard in shards), Counter())
    used = {*source.labels, *in_train} - {None}
    labels = [label for label in names or sorted(used) if label in used]
    wanted = (image_column, label_column.split(".")[0], "file", "__key__")
    rows = rows.select_columns([column for column in wanted if column in rows.features])
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    stream = TrainStream(rows, shards, image_column, label_column, names, labels, on_broken, shuffle_buffer)
    if unlabelled := in_train[None]:
        left_out.append(f"{counted(unlabelled, 'photo')} without a label in the split 'train'")
        stream = replace(stream, rows=rows.filter(stream.has_label))
    return replace(source, labels=labels, revision=commit, left_out=(*source.left_out, *left_out)), stream


def _find_shards(
    name: str, revision: str | None
) -> tuple[str, dict[str, list[str]], datasets.Features | None, str | None]:
    """The kind of a dataset's files, its files by split as `datasets` finds them, its features, its commit."""
    is_folder, commit = Path(name).is_dir(), None
    if not is_folder and not HUB_ID.fullmatch(name):
        raise UsageError(
            f"'{name}' is neither a folder nor a Hub id such as user/photos; use a dataset that can be streamed"
        )
    what = f"'{name}'" if is_folder else f"the Hub dataset '{name}'"
    if not is_folder and huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UsageError(f"{what} cannot be streamed with HF_HUB_OFFLINE=1; unset it or stream a local folder")
    with hub_errors(what):
        if not is_folder:
            info = huggingface_hub.HfApi().dataset_info(name, revision=revision)
            refuse_code(name, [file.rfilename for file in info.siblings])
            commit = info.sha
        builder = datasets.load_dataset_builder(name, revision=commit)
    for parent, kind in KINDS.items():
        if isinstance(builder, parent):
            files = {str(split).lower(): list(files) for split, files in builder.config.data_files.items()}
            return kind, files, builder.info.features, commit
    raise UsageError(
        f"{what} contains neither parquet nor WebDataset files, the only ones that can be streamed; leave --streaming "
        "out, or convert the dataset to parquet: agritransfer publish-dataset"
    )


def _names_of(features: datasets.Features, label_column: str) -> list[str] | None:
    feature = features.get(label_column)
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def _label_name(value: Any, names: list[str] | None) -> str | None:
    # The Hub marks a hidden label with -1, which Python would take for the last class.
    if value is None or value == -1:
        return None
    return names[value] if names else str(value)


def _with_label_of_json(table: datasets.Dataset) -> datasets.Dataset:
    """The table with a label column if the WebDataset keeps its labels in a JSON file beside each photo."""
    if not isinstance(table.features.get("json"), dict) or "label" not in table.features["json"]:
        return table
    return table.add_column("json.label", [value["label"] for value in table["json"]])


def _look_at_shards(name: str, kind: str, files: list[str], label_column: str, names: list[str] | None) -> list[Shard]:
    look = partial(_look_at_parquet, label_column=label_column, names=names) if kind == "parquet" else _look_at_tar
    with hub_errors(f"'{name}'"), ThreadPoolExecutor(READERS) as pool:
        bar = tqdm(
            pool.map(look, files), total=len(files), desc="reading shard footers", delay=2, leave=False, disable=None
        )
        return list(bar)


def _look_at_parquet(file: str, label_column: str, names: list[str] | None) -> Shard:
    """The labels, and a digest of the footer, which has the position, size and range of every column chunk."""
    filesystem, path = fsspec.url_to_fs(file)
    # Without a cache, since only a few bytes are read at several positions.
    with filesystem.open(path, "rb", cache_type="none") as opened:
        opened.seek(-8, 2)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-8 - length, 2)
        digest = hashlib.sha256(opened.read(length)).hexdigest()
        labels = pyarrow.parquet.ParquetFile(opened).read(columns=[label_column]).column(0)
    found = Counter()
    for part in labels.value_counts().to_pylist():
        found[_label_name(part["values"], names)] += part["counts"]
    return Shard(f"{Path(path).name} {digest}", found)


def _look_at_tar(file: str) -> Shard:
    filesystem, path = fsspec.url_to_fs(file)
    return Shard(f"{Path(path).name} {filesystem.size(path)}", None)


class StreamedPhotos(torch.utils.data.IterableDataset):
    """The train photos of one process as items for Trainer, in a different order in every epoch.

    Each item is that of `PhotoDataset`, with `faults` that describe broken photos before it, or in its place. An epoch
    has the same number of items in every process, so that none waits for another at its end.
    """

    def __init__(self, stream: TrainStream, pixels: EvaluationPixels | WholePhotos):
        self.stream, self.pixels = stream, pixels
        self.epoch, self.passed, self.length = 0, (0, 0), 0

    def share_out(self, args: TrainingArguments) -> str:
        """Take this process's share of the photos, and say in one line how they are shared out; called once.

        Raises `UsageError` if the shards have no counts and --max_steps is not given.
        """
        process, processes, shards = args.process_index, args.world_size, self.stream.shards
        counts = [sum(shard.count.values()) - shard.count[None] for shard in shards if shard.count is not None]
        if not counts and args.max_steps <= 0:
            raise UsageError("the number of photos in these shards is not known in advance; add --max_steps N")
        strategy, how, self.length = _shares(len(shards), counts, processes)
        if not counts:
            self.length = args.max_steps * args.gradient_accumulation_steps * args.train_batch_size
        if self.length < 1:
            raise UsageError(f"fewer train photos ({sum(counts)}) than processes ({processes}); start fewer processes")
        self.threads = args.dataloader_num_workers
        mixed = self.stream.rows.shuffle(seed=args.seed, buffer_size=self.stream.shuffle_buffer)
        self.rows = split_dataset_by_node(mixed, process, processes, strategy=strategy)
        found = counted(sum(counts), "photo") if counts else "photos"
        buffer = f"shuffled in a buffer of {counted(self.stream.shuffle_buffer, 'photo')}"
        return f"streaming {found} from {counted(len(shards), 'shard')}, {buffer}{how}"

    def first(self, number: int) -> list[dict[str, Any]]:
        """The first items in the order of the shards, for any process."""
        self.rows, self.threads = self.stream.rows, 0
        return list(islice(self._items(), number))

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch."""
        self.epoch = epoch

    def pass_over(self, epoch: int, items: int) -> None:
        """Skip decoding for the first items of an epoch, which a resumed run discards."""
        self.passed = (epoch, items)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return islice(self._items(), self.length)

    def _items(self) -> Iterator[dict[str, Any]]:
        epoch, passed = self.passed
        # With --on_broken skip, only decoding shows which photos count as items.
        undecoded = passed if epoch == self.epoch and self.stream.on_broken == "stop" else 0
        faults: list[str] = []
        # A further pass begins only if photos were left out or the number of photos is not known.
        for number in count(self.epoch):
            self.rows.set_epoch(number)
            given = 0
            for item in self._decoded(undecoded):
                if item["fault"] is not None:
                    faults.append(item["fault"])
                if item["fault"] is None or self.stream.on_broken == "stop":
                    yield {name: item[name] for name in item if name != "fault"} | {"faults": faults}
                    faults, given = [], given + 1
            undecoded = max(0, undecoded - given)
            if not given:
                raise DataError(f"none of the train photos can be used, such as {faults[:1]}; replace the shards")

    def _decoded(self, undecoded: int) -> Iterator[dict[str, Any]]:
        """One pass over the photos, decoded by as many threads as there are loader workers."""
        rows = enumerate(self._rows())
        if not self.threads:
            yield from (self._item(row, place >= undecoded) for place, row in rows)
            return
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            ahead = deque()
            for place, row in rows:
                ahead.append(pool.submit(self._item, row, place >= undecoded))
                if len(ahead) > CHUNK * 2:
                    yield ahead.popleft().result()
            yield from (item.result() for item in ahead)

    def _rows(self) -> Iterator[dict[str, Any]]:
        # Not `iter(rows)`, whose order differs in a loader worker.
        for chunk in self.rows.iter(CHUNK):
            yield from (dict(zip(chunk, values, strict=True)) for values in zip(*chunk.values(), strict=True))

    def _item(self, row: dict[str, Any], decoded: bool) -> dict[str, Any]:
        image = row[self.stream.image_column] or {"bytes": None, "path": None}
        content = image["bytes"] or b""
        file = row.get("file") or row.get("__key__") or image["path"] or hashlib.sha256(content).hexdigest()[:12]
        if not decoded:
            return photo_item(self.pixels, torch.zeros(1, 1, 3, dtype=torch.uint8), 0, file) | {"fault": None}
        label, fault = self.stream.label_of(row), None
        if label not in self.stream.labels:
            fault = f"{file} (its label, {label}, is not in validation or test)"
        try:
            if fault is None:
                pixels = self.pixels.read(content)
                return photo_item(self.pixels, pixels, self.stream.labels.index(label), file) | {"fault": None}
        except BrokenPhoto as error:
            fault = f"{file} ({error})"
        return photo_item(self.pixels, self.pixels.read(_black_photo()), 0, file) | {"fault": fault}


def _shares(shards: int, counts: list[int], processes: int) -> tuple[str, str, int]:
    """How photos are shared out: a strategy of `split_dataset_by_node`, its description, the photos per process."""
    if processes == 1:
        return "auto", "", sum(counts)
    by_photo = sum(counts) // processes
    # The shards of a process are drawn again in every epoch: at worst the smallest ones.
    by_shard = sum(sorted(counts)[: shards // processes])
    if shards % processes == 0 and by_shard >= by_photo * (1 - MOST_LEFT_OUT):
        left_out = sum(counts) - processes * by_shard
        return (
            "shards",
            f"; each of {processes} processes reads {counted(shards // processes, 'shard')}" + _told(left_out),
            by_shard,
        )
    why = f"not divisible by {processes} processes" if shards % processes else "too unequal in size"
    told = f"; {why}, so each process reads all shards and keeps one photo in {processes}"
    return "examples", told + _told(sum(counts) - processes * by_photo), by_photo


def _told(left_out: int) -> str:
    return f"; {counted(left_out, 'photo')} left out of each epoch, not always the same ones" if left_out else ""


def _black_photo() -> bytes:
    """A placeholder for a photo that cannot be decoded, until all processes have stopped."""
    opened = io.BytesIO()
    Image.new("RGB", (256, 256)).save(opened, "PNG")
    return opened.getvalue()


def collate_stream(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch of `collate` with the `faults` of all items."""
    return collate(items) | {"faults": [fault for item in items for fault in item["faults"]]}
