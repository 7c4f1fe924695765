"""How are training batches augmented on the training device?"""

from collections.abc import Callable, Iterator

import torch
from torchvision.transforms import v2

from agritransfer.errors import UsageError

Batch = dict[str, torch.Tensor]
Augment = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]


def build_augmentation(augmentation: str, image_size: int, num_labels: int) -> Augment:
    """A function from a batch of `collate` to float pixels (batch, 3, side, side) from 0 to 255, and its labels.

    `strong` mixes photos, so its labels are soft, of shape (batch, num_labels).
    """
    return AUGMENTATIONS[augmentation](image_size, num_labels)


def check_augmentation(augmentation: str, cached_views: int | None) -> None:
    """Raise `UsageError` for an unknown augmentation, or one that cannot be combined with cached views."""
    if augmentation not in AUGMENTATIONS:
        raise UsageError(f"--augmentation {augmentation} does not exist; use one of {', '.join(AUGMENTATIONS)}")
    if cached_views is not None and augmentation in MIXES_PHOTOS:
        raise UsageError(
            f"--augmentation {augmentation} mixes photos, which --cached_views cannot do; use --augmentation light"
        )


def _none(image_size: int, num_labels: int) -> Augment:
    return lambda batch: (batch["pixel_values"].float(), batch["labels"])


def _crop(image_size: int, num_labels: int) -> Augment:
    crop = v2.RandomCrop(image_size)
    return lambda batch: (_crops(batch, crop).float(), batch["labels"])


def _light(image_size: int, num_labels: int) -> Augment:
    crop = v2.RandomResizedCrop(image_size, scale=(0.6, 1.0))
    return lambda batch: (_crops(batch, crop).float(), batch["labels"])


def _strong(image_size: int, num_labels: int) -> Augment:
    crop = v2.RandomResizedCrop(image_size, scale=(0.25, 1.0))
    change = v2.Compose([v2.TrivialAugmentWide(), v2.RandomErasing(p=0.25)])
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=num_labels), v2.CutMix(num_classes=num_labels)])

    def strong(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        # A torchvision transform draws its parameters once per call, so each photo is transformed on its own.
        changed = torch.stack([change(photo) for photo in _crops(batch, crop)])
        return mix(changed.float(), batch["labels"])

    return strong


# The values of --augmentation; only `none` does not crop.
AUGMENTATIONS = {"none": _none, "crop": _crop, "light": _light, "strong": _strong}
MIXES_PHOTOS = {"strong"}


def _crops(batch: Batch, crop: v2.Transform) -> torch.Tensor:
    """A random crop of each photo, randomly flipped in both directions: uint8 (batch, 3, side, side)."""
    # Leaves have no fixed orientation, so vertical flips are valid too.
    flips = (torch.rand(len(batch["labels"]), 2) < 0.5).tolist()
    crops = []
    for photo, (down, across) in zip(_photos_of(batch), flips, strict=True):
        crops.append(crop(photo).flip([-2] * down + [-1] * across))
    return torch.stack(crops).contiguous()


def _photos_of(batch: Batch) -> Iterator[torch.Tensor]:
    """The whole photos of a batch, each uint8 (3, height, width)."""
    start = 0
    for height, width in batch["shapes"].tolist():
        end = start + height * width * 3
        yield batch["pixel_values"][start:end].view(height, width, 3).permute(2, 0, 1)
        start = end
