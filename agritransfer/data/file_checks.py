"""Can each file be decoded, what does it contain, and what is known from an earlier check?

A file is decoded when its bytes are first seen on this machine; later runs recognize it by its SHA-256.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agritransfer.data.deduplication import SIDE, thumbnail
from agritransfer.data.readers.source import Photo
from agritransfer.errors import in_one_line
from agritransfer.images.decoding import decode_photo, file_notes
from agritransfer.runtime.disk_cache import cache_folder, written_whole
from agritransfer.runtime.process import available_cores, local_main_process_first

# To be raised with every change to the content of an inspection or to the decoding of photos.
VERSION = 2


@dataclass(frozen=True)
class Inspection:
    """One checked file: why it cannot be used ("" if it can), its SHA-256, its thumbnail `look`, notes on the file.

    `size` is (width, height) of the upright photo in pixels.
    """

    reason: str
    digest: str
    look: np.ndarray
    notes: tuple[str, ...]
    size: tuple[int, int]


def inspect(images: Sequence[dict], photos: Sequence[Photo], name: str) -> list[Inspection]:
    """Check the files of the dataset of this name: each is read, and decoded unless its bytes are known.

    `images` are the rows of a `Source`.
    """
    # The first process of a machine decodes on all cores, and the others use its results.
    with local_main_process_first() as is_first:
        path = _memory_of(name)
        known = _recall(path)
        with ThreadPoolExecutor(available_cores()) as pool:
            looks = pool.map(lambda photo: _inspect(images[photo.row]["image"], photo.file, known), photos)
            bar = tqdm(looks, total=len(photos), desc="checking photos", delay=2, leave=False, disable=None)
            inspections = list(bar)
        found = zip(photos, inspections, strict=True)
        whole = {_known_as(seen.digest, photo.file): seen for photo, seen in found if not seen.reason}
        # Without a writable cache, the files are only checked again next time.
        if is_first and not whole.keys() <= known.keys():
            with suppress(OSError):
                _remember(path, whole)
    return inspections


def _known_as(digest: str, file: str) -> str:
    # The notes also say whether the suffix fits the content.
    return digest + Path(file).suffix.lower()


def _inspect(image: dict | None, file: str, known: dict[str, Inspection]) -> Inspection:
    nothing = np.zeros((SIDE, SIDE), np.uint8)
    try:
        # A row of a Hub dataset may lack its image.
        image = image or {"bytes": b"", "path": None}
        content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
        if not content:
            return Inspection("the file is empty", "", nothing, (), (0, 0))
        digest = hashlib.sha256(content).hexdigest()
        if (earlier := known.get(_known_as(digest, file))) is not None:
            return earlier
        picture = decode_photo(content)
        look, notes = thumbnail(picture), file_notes(content, file)
    except (OSError, ValueError) as error:
        return Inspection(in_one_line(error), "", nothing, (), (0, 0))
    return Inspection("", digest, look, notes, picture.size)


def _memory_of(name: str) -> Path:
    place = Path(name).resolve() if Path(name).is_dir() else name
    what = f"{VERSION} {version('pillow')} {version('pillow-heif')} {place}"
    return cache_folder("inspections") / f"{hashlib.sha256(os.fsencode(what)).hexdigest()[:24]}.npz"


def _recall(path: Path) -> dict[str, Inspection]:
    try:
        with path.open("rb") as file, np.load(file) as table:
            rows = zip(*(table[column] for column in ("key", "look", "notes", "size")), strict=True)
            return {
                str(key): Inspection("", str(key)[:64], look, tuple(json.loads(str(notes))), tuple(map(int, size)))
                for key, look, notes, size in rows
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        # Missing or damaged: then every photo is decoded.
        return {}


def _remember(path: Path, seen: dict[str, Inspection]) -> None:
    each = list(seen.values())
    with written_whole(path) as begun, begun.open("wb") as file:
        np.savez(
            file,
            key=np.array(list(seen), dtype=str),
            look=np.array([inspection.look for inspection in each]).reshape(-1, SIDE, SIDE),
            notes=np.array([json.dumps(inspection.notes) for inspection in each], dtype=str),
            size=np.array([inspection.size for inspection in each]).reshape(-1, 2),
        )
