"""The peer of the input pipeline from timm: its ImageFolder and its create_loader, as its train.py builds them.

On a CPU timm's PrefetchLoader does not run, so photos are collated and normalized by its plain code path.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader


def batches(folder: Path, side: int, batch_size: int, workers: int, mean: list, std: list) -> Iterable[tuple]:
    """A loader over the photos below `folder`: normalized float32 pixels and labels; each iteration is one epoch."""
    return create_loader(
        create_dataset("", root=str(folder), split="train", is_training=True),
        input_size=(3, side, side),
        batch_size=batch_size,
        is_training=True,
        use_prefetcher=False,
        color_jitter=0.0,
        vflip=0.5,
        mean=tuple(mean),
        std=tuple(std),
        num_workers=workers,
        persistent_workers=workers > 0,
        device=torch.device("cpu"),
    )
