"""How do photos become batches for the Trainer?

An item is uint8 pixels and a label. Photos to score have the processor's own pixels; photos to train on are whole,
made smaller, so that crops are drawn from all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from agritransfer.images.decoding import decode_photo
from agritransfer.images.preprocessing import PhotoProcessor, settings_text

# The shorter side of a training photo is this much longer than the model's input, so that a crop has room to move.
CROP_MARGIN = 8 / 7
# A panorama is squeezed to this shape, so that no photo takes the memory of many.
LONGEST_STRIP = 4


@dataclass(frozen=True)
class EvaluationPixels:
    """The pixels that a model is tested and served with: those of its processor."""

    processor: PhotoProcessor

    def read(self, photo: str | bytes) -> torch.Tensor:
        """Decode one photo: uint8, of shape (side, side, 3)."""
        return self.processor.pixels(decode_photo(photo)).permute(1, 2, 0)

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Height and width that a photo of this size will have."""
        side = self.processor.image_size
        return side, side

    def mark(self) -> str:
        """All that decides what `read` gives."""
        return settings_text(self.processor)


@dataclass(frozen=True)
class WholePhotos:
    """The pixels that crops are drawn from: the whole photo in its own shape, made so small as crops allow."""

    shorter_side: int

    def read(self, photo: str | bytes) -> torch.Tensor:
        """Decode one photo: uint8, of shape (height, width, 3)."""
        # Half the work for photos of phones; at twice the size, no crop will show it.
        image = decode_photo(photo, least_side=2 * self.shorter_side)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return v2.functional.resize(pixels, list(self.shape(*image.size))).permute(1, 2, 0)

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Height and width that a photo of this size will have; no side is over 4 times the other."""
        scale = self.shorter_side / min(width, height)
        longest = LONGEST_STRIP * self.shorter_side
        return min(round(height * scale), longest), min(round(width * scale), longest)

    def mark(self) -> str:
        """All that decides what `read` gives."""
        return f"whole photos {self.shorter_side}"


class PhotoDataset(torch.utils.data.Dataset):
    """Photos as items for Trainer, their `pixel_values` uint8, with `labels` and `files`.

    `images` has the column `image` (path or bytes); `rows`, `labels` and `files` give the place, the label and the name
    of each item, `pixels` says how it is decoded. Where `stored` has the pixels already, none is.
    """

    def __init__(
        self,
        images: Sequence[dict[str, Any]],
        rows: Sequence[int],
        labels: Sequence[int],
        files: Sequence[str],
        pixels: EvaluationPixels | WholePhotos,
        stored: Sequence[torch.Tensor] | None = None,
    ):
        self.images, self.rows, self.labels, self.files, self.pixels = images, rows, labels, files, pixels
        self.stored = stored

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.decode(index) if self.stored is None else self.stored[index]
        return photo_item(self.pixels, pixels, self.labels[index], self.files[index])

    def decode(self, index: int) -> torch.Tensor:
        """The pixels of one item from its file: uint8, of shape (height, width, 3)."""
        image = self.images[self.rows[index]]["image"]
        return self.pixels.read(image["bytes"] or image["path"])


def photo_item(kind: EvaluationPixels | WholePhotos, pixels: torch.Tensor, label: int, file: str) -> dict[str, Any]:
    """An item for Trainer of the pixels (height, width, 3) of a photo that was decoded in this way."""
    if isinstance(kind, EvaluationPixels):
        return {"pixel_values": pixels.permute(2, 0, 1), "labels": label, "files": file}
    return {"photo": pixels, "labels": label, "files": file}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch: `pixel_values`, `labels` int64 (batch,) and `files`, the names.

    Pixels to score are uint8 (batch, 3, side, side). Whole photos differ in shape, so theirs are uint8 (bytes,), one
    after the other, and `shapes` int64 (batch, 2) tells height and width.
    """
    if "photo" in items[0]:
        pixels = {
            "pixel_values": torch.cat([item["photo"].flatten() for item in items]),
            "shapes": torch.tensor([item["photo"].shape[:2] for item in items]),
        }
    else:
        pixels = {"pixel_values": torch.stack([item["pixel_values"] for item in items]).contiguous()}
    return {
        **pixels,
        "labels": torch.tensor([item["labels"] for item in items]),
        "files": [item["files"] for item in items],
    }


def training_pixels(processor: PhotoProcessor, augmentation: str) -> EvaluationPixels | WholePhotos:
    """How training photos are decoded: as they are scored, or whole, with room to crop, where there is augmentation."""
    if augmentation == "none":
        return EvaluationPixels(processor)
    return WholePhotos(round(processor.image_size * CROP_MARGIN))
