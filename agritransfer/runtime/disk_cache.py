"""How are large cache files written safely and kept within a size limit?

They are in the cache folder of `datasets`, shared by all runs and processes of a machine, and can be rebuilt.
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

import numpy as np

from agritransfer.errors import StorageError

UNFINISHED = "unfinished-"
# Files used within this time may still be read by another run and are not deleted.
IN_USE_SECONDS = 24 * 3600
# Disk space that is kept free for the run itself.
SPARE_BYTES = 2 * 10**9
BLOCK = 1 << 24


def cache_folder(kind: str) -> Path:
    """The cache folder for files of one kind, inside the cache folder of `datasets`."""
    # As in datasets.config, which is not imported because that takes longer than auditing a small folder.
    default_home = os.path.join(os.getenv("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    home = os.path.expanduser(os.getenv("HF_HOME", default_home))
    return Path(os.getenv("HF_DATASETS_CACHE", os.path.join(home, "datasets"))) / f"agritransfer-{kind}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to; it is renamed at the end, or removed after a failure.

    If another run has finished the same folder first, that one is kept.
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
    """Flush a file and wait until its content is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def mark_as_used(path: Path) -> None:
    """Protect a file or folder from being deleted by `make_room` for a day."""
    # In a shared cache it may belong to another user.
    with suppress(PermissionError):
        os.utime(path)


def make_room(folder: Path, needed: int, limit: int) -> bool:
    """Delete the least recently used files until `needed` bytes fit the limit and the disk; True if they fit."""
    folder.mkdir(parents=True, exist_ok=True)
    if needed > limit:
        return False
    ages = {path: time.time() - path.stat().st_mtime for path in folder.iterdir()}
    # Another run may still be writing an unfinished file; after a day, the run that wrote it was killed.
    ages = {path: age for path, age in ages.items() if not path.name.startswith(UNFINISHED) or age > IN_USE_SECONDS}
    taken = {path: _size(path) for path in ages}
    idle = sorted((path for path in ages if ages[path] > IN_USE_SECONDS), key=ages.get)
    while not (fits := sum(taken.values()) + needed <= limit and free_bytes(folder) >= needed + SPARE_BYTES) and idle:
        longest_unused = idle.pop()
        _remove(longest_unused)
        del taken[longest_unused]
    return fits


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder."""
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

    The page cache of the operating system shares the data among processes. A memory-mapped file would do the same but
    would count towards the memory of each process. Raises `StorageError` if the file is missing or too short.
    """
    remedy = "rerun the same command, which rebuilds the file and resumes"
    # Opened on every call: loader workers would share the position of an inherited file object.
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            read = file.readinto(target.reshape(-1).view(np.uint8))
    except OSError as error:
        raise StorageError(f"{path} is missing ({error}); {remedy}") from error
    if read != target.nbytes:
        raise StorageError(f"{path} is truncated; {remedy}")


def checksum_of(file: BinaryIO, size: int) -> int:
    """The CRC-32 of the next bytes of a file, read in blocks."""
    checksum = 0
    while block := file.read(min(size, BLOCK)):
        checksum, size = zlib.crc32(block, checksum), size - len(block)
    return checksum
