"""How do large files in the cache stay whole and bounded?

They lie in the cache of `datasets`, serve the runs and processes of a machine, and can all be made again.
"""

import os
import platform
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import datasets
import numpy as np

from agritransfer.errors import StorageError

UNFINISHED = "unfinished-"
# What another run may still read is not taken away.
IN_USE_SECONDS = 24 * 3600
# Left free on the disk for the run itself.
SPARE_BYTES = 2 * 10**9
BLOCK = 1 << 24


def cache_folder(kind: str) -> Path:
    """Where what is cached of one kind lies."""
    return Path(datasets.config.HF_DATASETS_CACHE) / f"agritransfer-{kind}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives the place to write a file or folder to; it gets its name at the end, and nothing is left of a failure.

    Where another run was faster, its folder stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_name(f"{UNFINISHED}{path.name}-{platform.node()}-{os.getpid()}")
    try:
        yield begun
        if not path.is_dir():
            begun.replace(path)
    finally:
        _remove(begun)


def force_to_disk(file: BinaryIO) -> None:
    """Return once all that was written to a file lies on the disk."""
    file.flush()
    os.fsync(file.fileno())


def mark_as_used(path: Path) -> None:
    """Keep a file or folder from making room for another for a day."""
    # In a cache that several users share it may be another's.
    with suppress(PermissionError):
        os.utime(path)


def make_room(folder: Path, needed: int, limit: int) -> bool:
    """Delete what was used longest ago until so many bytes fit, within the limit and on the disk; whether they do."""
    folder.mkdir(parents=True, exist_ok=True)
    if needed > limit:
        return False
    ages = {path: time.time() - path.stat().st_mtime for path in folder.iterdir()}
    # What another run is making now gets its name under way; a day old, it was left by one that was killed.
    ages = {path: age for path, age in ages.items() if not path.name.startswith(UNFINISHED) or age > IN_USE_SECONDS}
    taken = {path: _size(path) for path in ages}
    idle = sorted((path for path in ages if ages[path] > IN_USE_SECONDS), key=ages.get)
    while not (fits := sum(taken.values()) + needed <= limit and free_bytes(folder) >= needed + SPARE_BYTES) and idle:
        longest_unused = idle.pop()
        _remove(longest_unused)
        del taken[longest_unused]
    return fits


def free_bytes(folder: Path) -> int:
    """Bytes that the disk of a folder still takes."""
    return shutil.disk_usage(folder).free


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_at(path: Path, start: int, target: np.ndarray) -> None:
    """Fill an array with the bytes of a file from `start` on.

    The system keeps what was read in memory that it can take back, once for all processes. A mapped file would do the
    same, but would be told as the memory of each of them. Raises `StorageError` where the file is gone or too short.
    """
    remedy = "run the same command again, which makes it anew and goes on"
    # Opened each time, since a file that is shared with a loader worker would share its place too.
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            read = file.readinto(target.reshape(-1).view(np.uint8))
    except OSError as error:
        raise StorageError(f"{path} is gone ({error}); {remedy}") from error
    if read != target.nbytes:
        raise StorageError(f"{path} is cut off; {remedy}")


def checksum_of(file: BinaryIO, size: int) -> int:
    """The CRC-32 of the next bytes of a file, read in blocks."""
    checksum = 0
    while block := file.read(min(size, BLOCK)):
        checksum, size = zlib.crc32(block, checksum), size - len(block)
    return checksum
