"""Where do decoded pixels lie, so that no photo is decoded twice?

A store holds the pixels of one set of photos, made in one way, in one file, for all processes of a run and for later
runs. It lies in the cache of `datasets`.
"""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from agritransfer.arguments import available_cores
from agritransfer.errors import StorageError
from agritransfer.pixels import PhotoDataset

# Raised by whoever changes how pixels are made or how they lie in the file.
VERSION = 1
# These decode and resize, each release a little in its own way.
DECODERS = ("pillow", "pillow-heif", "torch", "torchvision", "transformers")
PIXELS, INDEX, UNFINISHED = "pixels.bin", "index.json", "unfinished-"
MADE_ANEW = "run the same command again, which makes it anew and goes on"
CHECKING = {"desc": "checking stored pixels", "delay": 2, "leave": False, "disable": None}
# So many photos are decoded before their pixels are written, in their order.
CHUNK = 256
# A store that another run may still read is not taken away.
IN_USE_SECONDS = 24 * 3600
# Left free on the disk for the run itself.
SPARE_BYTES = 2 * 10**9
# The share of a GPU's free memory that pixels may take.
GPU_SHARE = 0.25


class StoredPixels(Sequence[torch.Tensor]):
    """The pixels of a set of photos in their order, each uint8 (height, width, 3), read from the file when used.

    The system keeps what was read in memory that it can take back, once for all processes. A mapped file would do the
    same, but would be told as the memory of each of them.
    """

    def __init__(self, folder: Path):
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
        # Opened each time, since a file that is shared with a loader worker would share its place too.
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.starts[index])
                read = file.readinto(pixels.numpy())
        except OSError as error:
            raise StorageError(f"{self.file} is gone ({error}); {MADE_ANEW}") from error
        if read != pixels.numel():
            raise StorageError(f"{self.file} is cut off; {MADE_ANEW}")
        return pixels

    def fault(self) -> str | None:
        """Why these bytes cannot be trusted, or None."""
        size = self.file.stat().st_size
        if size != self.starts[-1]:
            return f"has {size:,} of {self.starts[-1]:,} bytes"
        checksum = 0
        with self.file.open("rb") as file, tqdm(total=size, unit="B", unit_scale=True, **CHECKING) as bar:
            while block := file.read(1 << 24):
                checksum = zlib.crc32(block, checksum)
                bar.update(len(block))
        return None if checksum == self.checksum else "has other bytes than were written"

    def move_to_gpu(self, device: torch.device) -> bool:
        """Hold all pixels on the GPU where they take little of it, and say so; then a step waits for no disk."""
        if self.starts[-1] > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            return False
        self.on_gpu = torch.from_numpy(np.fromfile(self.file, np.uint8)).to(device)
        return True


class PixelStore:
    """The stores of a machine, at most `gigabytes` of them (10^9 bytes); those unused for a day make room."""

    def __init__(self, mode: Literal["auto", "off"], gigabytes: float):
        self.mode, self.limit = mode, int(gigabytes * 10**9)
        self.folder = Path(datasets.config.HF_DATASETS_CACHE) / "agritransfer-pixels"
        self.notes: list[str] = []

    def keep(self, dataset: PhotoDataset, digests: Sequence[str], sizes: Sequence[tuple[int, int]]) -> PhotoDataset:
        """The same items, decoded at most once: read from their store, which is built where there is none.

        `digests` are sha256 of the files, `sizes` (width, height) of the upright photos. Where the store is off or has
        no room, the dataset is given back as it is.
        """
        if self.mode == "off":
            return dataset
        store = self.folder / _name(dataset, digests)
        needed = sum(height * width * 3 for height, width in itertools.starmap(dataset.pixels.shape, sizes))
        # One process of a machine builds, the others wait and read the same file.
        with PartialState().local_main_process_first():
            if PartialState().is_local_main_process:
                self._prepare(store, dataset, needed)
        if not store.is_dir():
            return dataset
        os.utime(store)
        dataset.stored = StoredPixels(store)
        return dataset

    def line(self) -> str:
        """What was stored, in one line."""
        if self.mode == "off":
            return "pixel store: off, photos are decoded as they are used"
        return "pixel store: " + "; ".join(self.notes)

    def _prepare(self, store: Path, dataset: PhotoDataset, needed: int) -> None:
        told = f"{len(dataset):,} photos, {needed / 1e6:,.0f} MB"
        if store.is_dir():
            fault = StoredPixels(store).fault()
            if fault is None:
                self.notes.append(f"{told} found")
                return
            self.notes.append(f"{store.name} {fault} and is made anew")
            shutil.rmtree(store)
        try:
            if not self._make_room(needed):
                self.notes.append(f"{told} have no room (--pixel_store_gb, free disk) and are decoded as they are used")
                return
            _build(store, dataset)
        except OSError as error:
            self.notes.append(f"{told} cannot be stored ({error}) and are decoded as they are used")
        else:
            self.notes.append(f"{told} decoded")

    def _make_room(self, needed: int) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        if needed > self.limit:
            return False
        ages = {store: time.time() - store.stat().st_mtime for store in self._stores()}
        taken = {store: sum(file.stat().st_size for file in store.iterdir()) for store in ages}
        idle = sorted((store for store in ages if ages[store] > IN_USE_SECONDS), key=ages.get)

        def fits() -> bool:
            return sum(taken.values()) + needed <= self.limit and self._free() >= needed + SPARE_BYTES

        while not fits() and idle:
            longest_unused = idle.pop()
            shutil.rmtree(longest_unused, ignore_errors=True)
            del taken[longest_unused]
        return fits()

    def _stores(self) -> list[Path]:
        # What another run is building at this moment gets its name under way, so it is looked at when it is a day old.
        return [
            path
            for path in self.folder.iterdir()
            if not path.name.startswith(UNFINISHED) or time.time() - path.stat().st_mtime > IN_USE_SECONDS
        ]

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free


def _name(dataset: PhotoDataset, digests: Sequence[str]) -> str:
    """The name of the store of these photos in this order, decoded in this way by these libraries."""
    libraries = [f"{package} {version(package)}" for package in DECODERS]
    lines = [str(VERSION), *libraries, dataset.pixels.mark(), *digests]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def _build(store: Path, dataset: PhotoDataset) -> None:
    """Decode every photo on all cores into a folder that gets its name when it is whole."""
    begun = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=store.parent))
    shapes, checksum = [], 0
    try:
        with _one_thread_each() as pool, (begun / PIXELS).open("wb") as file:
            bar = tqdm(total=len(dataset), desc="decoding photos once", delay=2, leave=False, disable=None)
            for pixels in _decoded(dataset, pool):
                shapes.append(list(pixels.shape[:2]))
                content = pixels.contiguous().numpy()
                checksum = zlib.crc32(content, checksum)
                file.write(content)
                bar.update()
            bar.close()
            file.flush()
            os.fsync(file.fileno())
        index = {"shapes": shapes, "crc32": checksum}
        (begun / INDEX).write_text(json.dumps(index), encoding="utf-8")
        if not store.is_dir():
            begun.rename(store)
    finally:
        # Gone after the renaming; still there where something failed, or another run was faster.
        shutil.rmtree(begun, ignore_errors=True)


def _decoded(dataset: PhotoDataset, pool: ThreadPoolExecutor) -> Iterator[torch.Tensor]:
    for start in range(0, len(dataset), CHUNK):
        yield from pool.map(dataset.decode, range(start, min(start + CHUNK, len(dataset))))


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many threads as cores, and torch within each of them on its own."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
