"""Data sets of shards, with their own train, validation and test, as people publish them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from conftest import COLOURS
from PIL import Image

LABELS = list(COLOURS)
SCORED = 12


def photo(random: np.random.Generator, label: str) -> bytes:
    pixels = np.clip(random.normal(COLOURS[label], 40, size=(30, 40, 3)), 0, 255).astype(np.uint8)
    opened = io.BytesIO()
    Image.fromarray(pixels).save(opened, "JPEG")
    return opened.getvalue()


def rows_of(split: str, sizes: Sequence[int], seed: int) -> list[list[dict]]:
    """The rows of each shard: named SPLIT-SHARD-ROW, the labels in turns."""
    random = np.random.default_rng(seed)
    return [
        [
            {"file": f"{split}-{shard}-{row}", "label": (label := LABELS[row % 3]), "photo": photo(random, label)}
            for row in range(size)
        ]
        for shard, size in enumerate(sizes)
    ]


def put_parquet(folder: Path, sizes: Sequence[int], change=lambda row: row, names: list[str] | None = LABELS) -> Path:
    """Parquet shards of so many train photos each; `change` may alter a train row, without `names` labels are text."""
    label = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    features = {"image": datasets.Image(), "label": label, "file": datasets.Value("string")}
    (folder / "data").mkdir(parents=True)
    for split, of in {"train": sizes, "validation": [SCORED], "test": [SCORED]}.items():
        for shard, rows in enumerate(rows_of(split, of, len(split))):
            rows = [change(row) for row in rows] if split == "train" else rows
            columns = {
                "image": [{"bytes": row["photo"], "path": None} for row in rows],
                "label": [row["label"] for row in rows],
                "file": [row["file"] for row in rows],
            }
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            table.to_parquet(folder / "data" / f"{split}-{shard:05d}-of-{len(of):05d}.parquet")
    return folder


def put_tars(folder: Path, sizes: Sequence[int], label_file: str = "json", change=lambda row: row) -> Path:
    """WebDataset shards; the label lies in `json` or, as its number, in `cls`."""
    for split, of in {"train": sizes, "validation": [SCORED], "test": [SCORED]}.items():
        (folder / split).mkdir(parents=True)
        for shard, rows in enumerate(rows_of(split, of, len(split))):
            with tarfile.open(folder / split / f"{shard:05d}.tar", "w") as tar:
                for row in rows:
                    row = change(row) if split == "train" else row
                    number = LABELS.index(row["label"]) if row["label"] in LABELS else 7
                    label = json.dumps({"label": row["label"]}) if label_file == "json" else str(number)
                    for suffix, content in (("jpg", row["photo"]), (label_file, label.encode())):
                        entry = tarfile.TarInfo(f"{row['file']}.{suffix}")
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
    return folder
