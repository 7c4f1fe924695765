"""The peer of the input pipeline from timm: its ImageFolder and its create_loader, as its train.py builds them.

On a CPU its PrefetchLoader does not run, so collating and normalising are those of timm's plain path.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader


def batches(folder: Path, side: int, batch_size: int, workers: int, mean: list, std: list) -> Iterable[tuple]:
    """A loader over the photos below `folder`: normalised float32 pixels and labels; iterated, one epoch."""
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
