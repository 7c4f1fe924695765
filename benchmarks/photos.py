"""On which photos is speed measured without a dataset?

Drawn leaves of sample/, enlarged, with noise at several scales, so that a JPEG is as large and as slow to decode as one
from a camera: about 75 kB at 500 x 500 pixels, about 3.4 MB at 4000 x 3000. They are made once and kept.
"""

import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from agritransfer.runtime.process import available_cores
from benchmarks.timing import ROOT

SIZES = {"500px": (500, 500), "12mpx": (4000, 3000)}
QUALITY = 90
# Gray levels of noise, finest scale first: each octave is twice as large and a little stronger.
OCTAVES = (5, 6, 7, 8)
SPLITS = ("train", "validation", "test")


def generated(parent: Path, size: str, counts: dict[str, int]) -> Path:
    """A folder `train/ validation/ test/` of class folders with these numbers of photos, made if missing.

    `size` is one of `SIZES`. A photo of a split comes from a leaf of the same split of sample/leaves.
    """
    name = "-".join(str(counts.get(split, 0)) for split in SPLITS)
    folder = parent / f"photos-{size}-{name}"
    if folder.exists():
        return folder
    unfinished = parent / f"unfinished-{folder.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    jobs = []
    for split, count in counts.items():
        leaves = sorted((ROOT / "sample/leaves" / split).rglob("*.jpg"), key=lambda path: (path.name, path.parent))
        for number in range(count):
            leaf = leaves[number % len(leaves)]
            jobs.append((leaf, unfinished / split / leaf.parent.name / f"{number:05d}.jpg", SIZES[size]))
    with ProcessPoolExecutor(available_cores()) as pool:
        list(pool.map(_enlarge, jobs, chunksize=8))
    unfinished.rename(folder)
    return folder


def _enlarge(job: tuple[Path, Path, tuple[int, int]]) -> None:
    leaf, path, size = job
    random = np.random.default_rng([int(path.stem), *map(ord, path.parent.name)])
    with Image.open(leaf) as picture:
        # A random crop of the leaf, so that two photos of one leaf differ.
        left, top = (random.uniform(0, 0.15) * side for side in picture.size)
        right, bottom = (random.uniform(0.85, 1) * side for side in picture.size)
        large = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom))
    large = large.filter(ImageFilter.GaussianBlur(1))
    pixels = np.asarray(large, dtype=np.float32)
    for octave, strength in enumerate(OCTAVES):
        side = [max(1, length // 2**octave) for length in size]
        noise = Image.fromarray(random.normal(0, strength, (side[1], side[0])).astype(np.float32))
        pixels = pixels + np.asarray(noise.resize(size, Image.Resampling.BILINEAR))[..., None]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, "JPEG", quality=QUALITY)


def photos_below(folder: Path) -> list[Path]:
    """Every photo below a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
