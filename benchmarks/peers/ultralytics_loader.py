"""The peer of the input pipeline from ultralytics: the data set and the loader of its `classify train`.

It keeps nothing of what it decoded, as by default. Its mean 0 and deviation 1 stay: the arithmetic is the same.
"""

import os
from collections.abc import Iterable
from pathlib import Path

# Without it the import asks whether there is a network.
os.environ.setdefault("YOLO_OFFLINE", "true")

from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.data.build import build_dataloader  # noqa: E402
from ultralytics.data.dataset import ClassificationDataset  # noqa: E402


def batches(folder: Path, side: int, batch_size: int, workers: int, mean: list, std: list) -> Iterable[dict]:
    """A loader over the photos below `folder`: float32 pixels as `img`; one epoch each time it is iterated."""
    plain = {"auto_augment": None, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "erasing": 0.0, "flipud": 0.5}
    options = get_cfg(overrides={"task": "classify", "imgsz": side, "scale": 0.92, **plain})
    photos = ClassificationDataset(str(folder / "train"), options, augment=True)
    return build_dataloader(photos, batch_size, workers, device="cpu")
