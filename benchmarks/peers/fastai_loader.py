"""The peer of the input pipeline from fastai: ImageDataLoaders, with flips and normalization per batch."""

from collections.abc import Iterable
from pathlib import Path

import torch
from fastai.vision.all import Flip, ImageDataLoaders, Normalize, RandomResizedCrop


def batches(folder: Path, side: int, batch_size: int, workers: int, mean: list, std: list) -> Iterable[tuple]:
    """A loader over the photos below `folder`: normalized float32 pixels and labels; each iteration is one epoch."""
    loaders = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="validation",
        item_tfms=RandomResizedCrop(side),
        batch_tfms=[Flip(), Normalize.from_stats(mean, std, cuda=False)],
        bs=batch_size,
        num_workers=workers,
        device=torch.device("cpu"),
    )
    loaders.train.drop_last = False
    return loaders.train
