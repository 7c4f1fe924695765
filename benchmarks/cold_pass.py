"""How many photos per second are decoded and stored in the first pass?

    python -m benchmarks.cold_pass --cores 1
    python -m benchmarks.cold_pass --cores 2

Ours: the pixel store, from JPEG files to one file of pixels with a checksum, flushed to the disk. Peers: `map` of
`datasets`, which decodes and resizes to the same size with Pillow and stores an array (faster) or an image (the usual
way); on two cores with two processes. All start with empty caches and with the JPEG files in the page cache.
"""

import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from agritransfer.data.dataset import load_splits
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.models.loading import load_processor
from benchmarks.input_pipeline import SIDE, use_cores
from benchmarks.peers.recipe import load_photos
from benchmarks.photos import SIZES, generated
from benchmarks.timing import ROOT, Ratio, compare, machine, parser, report, take_turns

AIMS = {"500px": 1.5, "12mpx": 2.0}
# In gray levels: Pillow and torch round differently, and phone photos are first decoded at half their size.
SAME_PIXELS = 4.0


def main() -> None:
    """Compare the pixel store with both variants of `map` on each kind of photo."""
    flags = parser(__doc__, turns=5)
    flags.add_argument("--cores", type=int, choices=[1, 2], default=1)
    flags.add_argument(
        "--photos", type=int, default=256, help="Photos of 500 x 500 pixels; 1/16 as many of 12 million."
    )
    args = flags.parse_args()
    use_cores(args.cores)
    datasets.disable_progress_bars()
    facts, ratios, notes = machine(), [], []
    for size in SIZES:
        count = args.photos if size == "500px" else max(16, args.photos // 16)
        counts = {"train": 4 if args.quick else count, "validation": 4, "test": 4}
        more, note = on_photos(generated(args.output.absolute(), size, counts), size, args)
        ratios += more
        notes.append(note)
    report(args.output, f"cold_pass-{args.cores}", ratios, facts, notes)


def on_photos(folder: Path, size: str, args: Any) -> tuple[list[Ratio], str]:
    """The ratios on one folder, and a note on the first pass of each."""
    splits = load_splits(str(folder))
    # With its own processor, which squashes photos, the store would not keep their aspect ratio as the peers do.
    processor = load_processor(str(ROOT / "sample/vit"), None, SIDE, "crop")
    photos = load_photos(folder)["train"]
    # The size of a photo in the store, where the shorter side is 8/7 of the model's input.
    width, height = (round(side * round(SIDE * 8 / 7) / min(SIZES[size])) for side in SIZES[size])
    processes = None if args.cores == 1 else args.cores
    array = partial(_mapped, photos, (width, height), True, processes)
    picture = partial(_mapped, photos, (width, height), False, processes)
    contestants = {"ours": partial(_stored, splits, processor), "map, array": array, "map, picture": picture}
    kept = {name: contestant(keep=True)[1] for name, contestant in contestants.items()}
    speeds = {name: lambda contestant=contestant: contestant()[0] for name, contestant in contestants.items()}
    values, first = take_turns(speeds, 1 if args.quick else args.turns)
    ratios = []
    for peer in ("map, array", "map, picture"):
        apart = np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(kept["ours"], kept[peer], strict=True)])
        question = f"first pass, {size} JPEG to {width} x {height}, {args.cores} core{'s' * (args.cores > 1)}"
        guard = f"{len(photos)} photos each, pixels {apart:.1f} gray levels apart"
        more = {"target": AIMS[size], "guard": guard, "guarded": bool(apart < SAME_PIXELS)}
        sides = ("pixel store", values["ours"]), (peer, values[peer])
        ratios.append(compare(question, *sides, "speed", "photos/s", **more))
    return ratios, f"{size}: warm-up, not counted: " + ", ".join(f"{name} {took:.1f} s" for name, took in first.items())


def _stored(splits: Any, processor: Any, keep: bool = False) -> tuple[float, list[np.ndarray]]:
    """Photos per second into an empty store, or the pixels if requested."""
    folder = Path(tempfile.mkdtemp())
    store = PixelStore("auto", 16)
    store.folder = folder
    started = time.perf_counter()
    photos = splits.training_photos(processor, "light", store)
    speed = len(photos) / (time.perf_counter() - started)
    # In the order of the peers, which is that of the names.
    order = sorted(range(len(photos)), key=lambda place: photos.files[place])
    pixels = [photos.stored[place].numpy().copy() for place in order] if keep else []
    shutil.rmtree(folder)
    return speed, pixels


def _mapped(
    photos: datasets.Dataset, size: tuple[int, int], as_array: bool, processes: int | None, keep: bool = False
) -> tuple[float, list[np.ndarray]]:
    """The same for `map`, which writes into a new cache file."""
    folder = Path(tempfile.mkdtemp())
    features = photos.features.copy()
    if as_array:
        features["image"] = datasets.Array3D((size[1], size[0], 3), "uint8")
    started = time.perf_counter()
    mapped = photos.map(
        partial(_resized, size=size, as_array=as_array),
        num_proc=processes,
        features=features,
        cache_file_name=str(folder / "mapped.arrow"),
        load_from_cache_file=False,
    )
    speed = len(mapped) / (time.perf_counter() - started)
    if keep and as_array:
        pixels = list(mapped.with_format("numpy")["image"])
    else:
        pixels = [np.asarray(picture) for picture in mapped["image"]] if keep else []
    shutil.rmtree(folder)
    return speed, pixels


def _resized(row: dict, size: tuple[int, int], as_array: bool) -> dict:
    picture = row["image"].convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return {"image": np.asarray(picture) if as_array else picture}


if __name__ == "__main__":
    main()
