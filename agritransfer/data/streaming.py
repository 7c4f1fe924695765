"""How are datasets streamed that are larger than the disk?

In every epoch, `datasets` reads the shards (parquet or WebDataset) again, as bytes, and each photo is decoded on
arrival. Only train photos are streamed: validation and test are small enough to be loaded and checked.
"""

import hashlib
import io
import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import pyarrow
import torch
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetGenerationError
from PIL import Image
from transformers import TrainingArguments

from agritransfer.data.shards import TrainStream
from agritransfer.errors import DataError, UsageError, in_one_line
from agritransfer.images.photo_dataset import EvaluationPixels, WholePhotos, collate, photo_item
from agritransfer.wording import counted

# Photos that are decoded in parallel while the next ones are read.
CHUNK = 16
# If sharing out whole shards would leave more than this share of the photos out, each process reads all shards.
MOST_LEFT_OUT = 0.01


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
        try:
            # Not `iter(rows)`, whose order differs in a loader worker.
            for chunk in self.rows.iter(CHUNK):
                yield from (dict(zip(chunk, values, strict=True)) for values in zip(*chunk.values(), strict=True))
        except (ValueError, pyarrow.ArrowException, tarfile.TarError, DatasetGenerationError) as error:
            raise DataError(f"a train shard is damaged ({in_one_line(error)}); replace the shards") from error

    def _item(self, row: dict[str, Any], decoded: bool) -> dict[str, Any]:
        image = row[self.stream.image_column] or {"bytes": None, "path": None}
        content = image["bytes"] or b""
        file = row.get("file") or row.get("__key__") or image["path"] or hashlib.sha256(content).hexdigest()[:12]
        if not decoded:
            return photo_item(self.pixels, torch.zeros(1, 1, 3, dtype=torch.uint8), 0, file) | {"fault": None}
        fault = None
        try:
            label = self.stream.label_of(row)
            if label not in self.stream.labels:
                fault = f"{file} (its label, {label}, is not in validation or test)"
            elif not content and image["path"]:
                fault = f"{file} (only a path, '{image['path']}', and no photo)"
            else:
                pixels = self.pixels.read(content)
                return photo_item(self.pixels, pixels, self.stream.labels.index(label), file) | {"fault": None}
        except ValueError as error:
            # A broken photo, or a label that names no class.
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
