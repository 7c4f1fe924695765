"""How does the memory of training on streamed photos grow with the dataset?

    taskset -c 0 python -m benchmarks.streaming

Photos: images of noise in three colors, 224 x 224 pixels, in 16, 64 and 256 parquet shards of 64 photos. Model: a tiny
ViT from random weights, one epoch, one core (on a busy machine two threads wait for each other). Prints the size of the
train shards and the peaks that the run itself reports.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from benchmarks.memory import COLOURS, ROOT

TIMES = (1, 4, 16)
SHARDS, PHOTOS, SCORED = 16, 64, 96
LABELS = ["brown", "green", "orange"]


def main() -> None:
    """Print one line per dataset."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as parent:
        for times in TIMES:
            shards, run = Path(parent) / f"shards{times}", Path(parent) / f"run{times}"
            draw(shards, times)
            command = [sys.executable, "train_scratch.py", "--dataset_name", shards, "--output_dir", run, "--streaming"]
            command += ["--model_type", "vit", "--model_size", "nano", "--image_size", "32", "--num_train_epochs", "1"]
            command += ["--use_cpu", "--per_device_train_batch_size", "64"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            bytes_of_train = sum(path.stat().st_size for path in shards.glob("data/train-*"))
            photos = SHARDS * times * PHOTOS
            told = "; ".join(re.findall("peak memory.*|[0-9.]+ photos/s", said.stdout))
            print(f"{photos:,} train photos, {bytes_of_train / 1e6:,.0f} MB: {told}", flush=True)
            shutil.rmtree(shards)


def draw(folder: Path, times: int) -> None:
    """Write the shards; later ones repeat the photos of the first ones, which does not affect memory."""
    random = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    for split, count in (("validation", SCORED), ("test", SCORED)):
        shard(random, count).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    names = [folder / "data" / f"train-{n:05d}-of-{SHARDS * times:05d}.parquet" for n in range(SHARDS * times)]
    for number, name in enumerate(names):
        if number < SHARDS:
            shard(random, PHOTOS).to_parquet(name)
        else:
            shutil.copyfile(names[number % SHARDS], name)


def shard(random: np.random.Generator, count: int) -> datasets.Dataset:
    """A shard of `count` photos whose colors alternate."""
    labels = [number % 3 for number in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS)})
    images = [{"bytes": photo(random, COLOURS[label]), "path": None} for label in labels]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def photo(random: np.random.Generator, colour: tuple[int, int, int]) -> bytes:
    """A JPEG of coarse and fine noise; with fine noise alone, all thumbnails would look the same."""
    coarse = random.normal(colour, 40, size=(28, 28, 3)).repeat(8, axis=0).repeat(8, axis=1)
    pixels = np.clip(coarse + random.normal(0, 20, size=(224, 224, 3)), 0, 255).astype(np.uint8)
    opened = io.BytesIO()
    Image.fromarray(pixels).save(opened, "JPEG")
    return opened.getvalue()


if __name__ == "__main__":
    main()
