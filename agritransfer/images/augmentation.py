"""How is a training batch changed, on the device that trains?"""

from collections.abc import Callable, Iterator

import torch
from torchvision.transforms import v2


def build_augmentation(
    augmentation: str, image_size: int, num_labels: int
) -> Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]:
    """A function from a batch of `collate` to float pixels (batch, 3, side, side) from 0 to 255, and its labels.

    `strong` mixes photos, so its labels are shares of shape (batch, num_labels).
    """
    if augmentation == "none":
        return lambda batch: (batch["pixel_values"].float(), batch["labels"])
    if augmentation == "crop":
        crop = v2.RandomCrop(image_size)
        return lambda batch: (_crops(batch, crop).float(), batch["labels"])
    if augmentation == "light":
        crop = v2.RandomResizedCrop(image_size, scale=(0.6, 1.0))
        return lambda batch: (_crops(batch, crop).float(), batch["labels"])

    crop = v2.RandomResizedCrop(image_size, scale=(0.25, 1.0))
    change = v2.Compose([v2.TrivialAugmentWide(), v2.RandomErasing(p=0.25)])
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=num_labels), v2.CutMix(num_classes=num_labels)])

    def strong(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        # A torchvision transform draws once for all that it is given; every photo needs a draw of its own.
        changed = torch.stack([change(photo) for photo in _crops(batch, crop)])
        return mix(changed.float(), batch["labels"])

    return strong


def _crops(batch: dict[str, torch.Tensor], crop: v2.Transform) -> torch.Tensor:
    """A crop out of each photo, flipped or not, either way: uint8 (batch, 3, side, side)."""
    # Drawn at once, since a leaf on a table has no up and down.
    flips = (torch.rand(len(batch["labels"]), 2) < 0.5).tolist()
    crops = []
    for photo, (down, across) in zip(_photos_of(batch), flips, strict=True):
        crops.append(crop(photo).flip([-2] * down + [-1] * across))
    return torch.stack(crops).contiguous()


def _photos_of(batch: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """The whole photos of a batch, each uint8 (3, height, width)."""
    start = 0
    for height, width in batch["shapes"].tolist():
        end = start + height * width * 3
        yield batch["pixel_values"][start:end].view(height, width, 3).permute(2, 0, 1)
        start = end
