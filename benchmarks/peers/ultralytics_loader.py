"""The peer of the input pipeline from ultralytics: the dataset and the loader of its `classify train`.

Decoded photos are not cached, as by default. Its mean of 0 and deviation of 1 are kept: the arithmetic is the same.
"""

import os
from collections.abc import Iterable
from pathlib import Path

# Otherwise importing it checks the network.
os.environ.setdefault("YOLO_OFFLINE", "true")

from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.data.build import build_dataloader  # noqa: E402
from ultralytics.data.dataset import ClassificationDataset  # noqa: E402


def batches(folder: Path, side: int, batch_size: int, workers: int, mean: list, std: list) -> Iterable[dict]:
    """A loader over the photos below `folder`: float32 pixels as `img`; each iteration is one epoch."""
    plain = {"auto_augment": None, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "erasing": 0.0, "flipud": 0.5}
    options = get_cfg(overrides={"task": "classify", "imgsz": side, "scale": 0.92, **plain})
    photos = ClassificationDataset(str(folder / "train"), options, augment=True)
    return build_dataloader(photos, batch_size, workers, device="cpu")
