"""How does the memory of a training run grow with the dataset?

    python -m benchmarks.memory

Photos: 500, 2,000 and 8,000 images of noise in three colors, 96 x 96 pixels. Model: a tiny ViT from random weights, one
epoch, one thread. Prints the peaks that the run itself reports.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
COUNTS = (500, 2_000, 8_000)
COLOURS = ((150, 90, 40), (40, 140, 40), (200, 120, 30))


def main() -> None:
    """Print one line per dataset."""
    with tempfile.TemporaryDirectory() as parent:
        for count in COUNTS:
            photos, run = Path(parent) / f"photos{count}", Path(parent) / f"run{count}"
            draw(photos, count)
            command = [sys.executable, "train_scratch.py", "--dataset_name", photos, "--output_dir", run]
            command += ["--model_type", "vit", "--model_size", "nano", "--num_train_epochs", "1", "--use_cpu"]
            command += ["--per_device_train_batch_size", "64"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            print(f"{count:,} photos: {'; '.join(re.findall('peak memory.*', said.stdout))}", flush=True)


def draw(folder: Path, count: int) -> None:
    """Write `count` photos into three class folders."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(random.normal(COLOURS[number % 3], 40, size=(96, 96, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    main()
