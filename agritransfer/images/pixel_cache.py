"""Where are decoded pixels kept, so that no photo is decoded twice?

A store is one file with the pixels of one set of photos, decoded in one way, for all processes of a run and for later
runs. It is kept in the cache folder of `datasets`.
"""

import hashlib
import itertools
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from agritransfer.images.photo_dataset import PhotoDataset
from agritransfer.runtime.disk_cache import (
    cache_folder,
    checksum_of,
    force_to_disk,
    make_room,
    mark_as_used,
    read_at,
    written_whole,
)
from agritransfer.runtime.process import available_cores, local_main_process_first
from agritransfer.wording import counted

# To be raised with every change to the decoding of pixels or to the layout of the file.
VERSION = 1
# Each release of these may decode and resize slightly differently.
DECODERS = ("pillow", "pillow-heif", "torch", "torchvision", "transformers")
PIXELS, INDEX = "pixels.bin", "index.json"
# Photos that are decoded in parallel before their pixels are written in order.
CHUNK = 256
# The share of a GPU's free memory that pixels may take.
GPU_SHARE = 0.25


class StoredPixels(Sequence[torch.Tensor]):
    """The pixels of a set of photos in order, each uint8 (height, width, 3), read from the file when used.

    `limit` is the most bytes that a cache of what is computed from them may take.
    """

    def __init__(self, folder: Path, limit: int = 0):
        self.limit = limit
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.file, self.shapes, self.checksum = folder / PIXELS, index["shapes"], index["crc32"]
        self.starts = [0, *itertools.accumulate(height * width * 3 for height, width in self.shapes)]
        self.on_gpu: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> torch.Tensor:
        height, width = self.shapes[index]
        if self.on_gpu is not None:
            return self.on_gpu[self.starts[index] : self.starts[index + 1]].view(height, width, 3)
        pixels = torch.empty((height, width, 3), dtype=torch.uint8)
        read_at(self.file, self.starts[index], pixels.numpy())
        return pixels

    def fault(self) -> str | None:
        """Why the file cannot be used, or None."""
        size = self.file.stat().st_size
        if size != self.starts[-1]:
            return f"has {size:,} of {self.starts[-1]:,} bytes"
        with self.file.open("rb") as file:
            intact = checksum_of(file, size) == self.checksum
        return None if intact else "does not match its checksum"

    def move_to_gpu(self, device: torch.device) -> bool:
        """Keep all pixels on the GPU if they fit into a quarter of its free memory; whether they do."""
        if self.starts[-1] > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            return False
        self.on_gpu = torch.from_numpy(np.fromfile(self.file, np.uint8)).to(device)
        return True


class PixelStore:
    """The stores of a machine, up to `gigabytes` (10^9 bytes) in total; those unused for a day make room for others."""

    def __init__(self, mode: Literal["auto", "off"], gigabytes: float):
        self.mode, self.limit = mode, int(gigabytes * 10**9)
        self.folder = cache_folder("pixels")
        self.notes: list[str] = []

    def keep(self, dataset: PhotoDataset, digests: Sequence[str], sizes: Sequence[tuple[int, int]]) -> PhotoDataset:
        """The dataset with its pixels read from their store, which is built if it does not exist.

        `digests` are the SHA-256 of the files, `sizes` the (width, height) of the upright photos. If the store is off
        or has no room, the dataset is returned unchanged.
        """
        if self.mode == "off":
            return dataset
        store = self.folder / _name(dataset, digests)
        needed = sum(height * width * 3 for height, width in itertools.starmap(dataset.pixels.shape, sizes))
        # One process of a machine builds the store, the others wait and read the same file.
        with local_main_process_first() as is_first:
            if is_first:
                self._prepare(store, dataset, needed)
        if not store.is_dir():
            return dataset
        mark_as_used(store)
        dataset.stored = StoredPixels(store, self.limit)
        return dataset

    def line(self) -> str:
        """What the store did, in one line."""
        if self.mode == "off":
            return "pixel store: off, photos are decoded each time they are used"
        return "pixel store: " + "; ".join(self.notes)

    def _prepare(self, store: Path, dataset: PhotoDataset, needed: int) -> None:
        told = f"{counted(len(dataset), 'photo')} ({needed / 1e6:,.0f} MB)"
        if store.is_dir():
            fault = StoredPixels(store).fault()
            if fault is None:
                self.notes.append(f"{told} found")
                return
            self.notes.append(f"{store.name} {fault} and is rebuilt")
            shutil.rmtree(store)
        try:
            if not make_room(self.folder, needed, self.limit):
                self.notes.append(
                    f"no room for {told} within --pixel_store_gb and the free disk space, decoded each time"
                )
                return
            _build(store, dataset)
        except OSError as error:
            self.notes.append(f"{told} not stored ({error}), decoded each time")
        else:
            self.notes.append(f"{told} decoded")


def _name(dataset: PhotoDataset, digests: Sequence[str]) -> str:
    """The name of the store for these photos in this order, decoded in this way by these libraries."""
    libraries = [f"{package} {version(package)}" for package in DECODERS]
    lines = [str(VERSION), *libraries, dataset.pixels.mark(), *digests]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def _build(store: Path, dataset: PhotoDataset) -> None:
    """Decode every photo on all cores into a folder that is renamed once it is complete."""
    shapes, checksum = [], 0
    bar = tqdm(total=len(dataset), desc="decoding photos once", delay=2, leave=False, disable=None)
    with written_whole(store) as begun, bar, _one_thread_each() as pool:
        begun.mkdir()
        with (begun / PIXELS).open("wb") as file:
            for pixels in _decoded(dataset, pool):
                shapes.append(list(pixels.shape[:2]))
                content = pixels.contiguous().numpy()
                checksum = zlib.crc32(content, checksum)
                file.write(content)
                bar.update()
            force_to_disk(file)
        (begun / INDEX).write_text(json.dumps({"shapes": shapes, "crc32": checksum}), encoding="utf-8")


def _decoded(dataset: PhotoDataset, pool: ThreadPoolExecutor) -> Iterator[torch.Tensor]:
    for start in range(0, len(dataset), CHUNK):
        yield from pool.map(dataset.decode, range(start, min(start + CHUNK, len(dataset))))


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A thread per core, with torch limited to one thread in each of them."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
