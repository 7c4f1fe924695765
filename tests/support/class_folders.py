"""Folders of photos as users have them."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from agritransfer.data.dataset import Splits


def put_photos(folder: Path, *names: str) -> None:
    """Write small photos, each of its own noise, the same for the same name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(os.fsencode(f"{folder.name}/{name}"))).integers(
            0, 256, size=(6, 8, 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(path, "PNG")


def put_classes(folder: Path, **counts: int) -> None:
    put_photos(folder, *(f"{label}/{i:02d}.png" for label, count in counts.items() for i in range(count)))


def put_table(folder: Path, header: str, rows: list[str]) -> None:
    (folder / "metadata.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def counts(splits: Splits, split: str) -> dict[str, int]:
    return dict(Counter(photo.label for photo in splits.of(split)))
