"""How do photos become batches for the Trainer?

An item consists of uint8 pixels and a label. Evaluation photos have the pixels of the image processor; training photos
are downscaled but not cropped, so that random crops can come from the whole photo. Where the image processor squashes
or pads photos to a square, training photos are squashed or padded too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from agritransfer.errors import DataError
from agritransfer.images.broken_photos import BrokenPhoto
from agritransfer.images.decoding import decode_photo
from agritransfer.images.preprocessing import PhotoProcessor, settings_text

# Ratio of the shorter side of a training photo to the model's input size, which leaves room for random crops.
CROP_MARGIN = 8 / 7
# The largest aspect ratio: panoramas are squeezed to it, so that no photo takes the memory of many.
LONGEST_STRIP = 4


@dataclass(frozen=True)
class EvaluationPixels:
    """The pixels used for evaluation and inference: those of the model's image processor."""

    processor: PhotoProcessor

    def read(self, photo: str | bytes) -> torch.Tensor:
        """Decode one photo: uint8, of shape (side, side, 3)."""
        return self.processor.pixels(decode_photo(photo)).permute(1, 2, 0)

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of a photo of this size after decoding."""
        side = self.processor.image_size
        return side, side

    def mark(self) -> str:
        """Everything that the result of `read` depends on, as text."""
        return settings_text(self.processor)


@dataclass(frozen=True)
class WholePhotos:
    """The pixels that random crops are taken from: the whole photo, downscaled and shaped as for evaluation."""

    # Of the shorter side of a photo; of both sides where it is squashed or padded to a square.
    side: int
    # The order that the model takes, as in evaluation: `rgb` or `bgr`.
    channels: str = "rgb"
    squash: bool = False
    # The color around a photo that is padded to a square.
    pad: tuple[int, ...] | None = None

    def read(self, photo: str | bytes) -> torch.Tensor:
        """Decode one photo: uint8, of shape (height, width, 3)."""
        # Reduced decoding halves the work for phone photos; at twice the final size, crops show no difference.
        image = decode_photo(photo, least_side=2 * self.side)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if self.channels == "bgr":
            pixels = pixels.flip(0)
        if self.pad is None:
            return v2.functional.resize(pixels, list(self.shape(*image.size))).permute(1, 2, 0)
        height, width = (max(1, round(self.side * length / max(image.size))) for length in pixels.shape[1:])
        square = torch.tensor(self.pad, dtype=torch.uint8).expand(self.side, self.side, 3).clone()
        top, left = (self.side - height) // 2, (self.side - width) // 2
        shrunk = v2.functional.resize(pixels, [height, width]).permute(1, 2, 0)
        square[top : top + height, left : left + width] = shrunk
        return square

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of a photo of this size after decoding; the aspect ratio is at most 4."""
        if self.squash or self.pad is not None:
            return self.side, self.side
        scale = self.side / min(width, height)
        longest = LONGEST_STRIP * self.side
        return min(round(height * scale), longest), min(round(width * scale), longest)

    def mark(self) -> str:
        """Everything that the result of `read` depends on, as text."""
        shape = f" squashed {self.squash} padded {self.pad}" if self.squash or self.pad is not None else ""
        return f"whole photos {self.side} {self.channels}{shape}"


class PhotoDataset(torch.utils.data.Dataset):
    """Photos as items for the Trainer: uint8 pixels (see `photo_item`), `labels` and `files`.

    `images` has the column `image` (path or bytes); `rows`, `labels` and `files` give the row, the label and the name
    of each item; `pixels` says how it is decoded. If `stored` is given, the pixels are taken from it without decoding.
    `groups` has the group of each item, "" for none.
    """

    def __init__(
        self,
        images: Sequence[dict[str, Any]],
        rows: Sequence[int],
        labels: Sequence[int],
        files: Sequence[str],
        pixels: EvaluationPixels | WholePhotos,
        stored: Sequence[torch.Tensor] | None = None,
        groups: Sequence[str] | None = None,
    ):
        self.images, self.rows, self.labels, self.files, self.pixels = images, rows, labels, files, pixels
        self.stored, self.groups = stored, groups or [""] * len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.decode(index) if self.stored is None else self.stored[index]
        return photo_item(self.pixels, pixels, self.labels[index], self.files[index])

    def decode(self, index: int) -> torch.Tensor:
        """The pixels of one item from its file: uint8, of shape (height, width, 3).

        Raises `DataError` with the name of a photo that was damaged or lost since it was checked.
        """
        image = self.images[self.rows[index]]["image"]
        try:
            return self.pixels.read(image["bytes"] or image["path"])
        except BrokenPhoto as error:
            raise DataError(f"{self.files[index]}, whole when it was checked: {error}; restore it") from error


def photo_item(kind: EvaluationPixels | WholePhotos, pixels: torch.Tensor, label: int, file: str) -> dict[str, Any]:
    """An item for the Trainer from the pixels (height, width, 3) of a photo that was decoded as `kind` says."""
    if isinstance(kind, EvaluationPixels):
        return {"pixel_values": pixels.permute(2, 0, 1), "labels": label, "files": file}
    return {"photo": pixels, "labels": label, "files": file}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch: `pixel_values`, `labels` int64 (batch,) and the file names `files`.

    Evaluation pixels are uint8 (batch, 3, side, side). Whole photos differ in shape, so their pixels are concatenated
    to uint8 (bytes,), and `shapes` int64 (batch, 2) holds height and width.
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
    """How training photos are decoded: as for evaluation without augmentation, else whole, with a margin for crops."""
    if augmentation == "none":
        return EvaluationPixels(processor)
    geometry, side = processor.geometry, round(processor.image_size * CROP_MARGIN)
    # Scored photos that are squashed or padded are trained on in the same form.
    pad = None if geometry["pad"] is None else tuple(geometry["pad"])
    return WholePhotos(side, processor.channels, isinstance(geometry["resize"], list), pad)
