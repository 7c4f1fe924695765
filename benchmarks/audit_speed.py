"""How long does the check before training take, compared with only decoding the same files?

    python -m benchmarks.audit_speed ../shared/data/cardamom_lab

Both read and decode every photo on all cores, in turns; the audit also rotates, checks, compares and groups them.
"""

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from agritransfer.data.examination import examine
from agritransfer.data.sources import read_source
from agritransfer.runtime.process import available_cores

TURNS = 5


def plain_decode(path: Path) -> None:
    """Open, decode and convert to RGB with Pillow."""
    with Image.open(path) as photo:
        photo.convert("RGB")


def main() -> None:
    """Print the photos per second of both and their ratio."""
    folder = Path(sys.argv[1])
    source = read_source(str(folder))
    files = [folder / photo.file for photo in source.photos]
    speeds: dict[str, list[float]] = {"plain decode": [], "audit": []}
    for turn in range(TURNS):
        started = time.perf_counter()
        with ThreadPoolExecutor(available_cores()) as pool:
            list(pool.map(plain_decode, files))
        between = time.perf_counter()
        # A new name in each turn, so that no photo is known from an earlier check.
        examine(source.images, source.photos, f"{folder}, turn {turn}, {started}")
        speeds["plain decode"].append(len(files) / (between - started))
        speeds["audit"].append(len(files) / (time.perf_counter() - between))
    for name, of in speeds.items():
        print(f"{name}: {statistics.median(of):.0f} photos/s ({min(of):.0f} to {max(of):.0f}), {len(files)} photos")
    ratios = [audit / plain for plain, audit in zip(speeds["plain decode"], speeds["audit"], strict=True)]
    print(f"audit / plain decode: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
