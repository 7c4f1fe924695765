"""What happens to one photo, and to one batch?

An item of a dataset is uint8 pixels and a label. Evaluation pixels are those of the model's own image processor,
training pixels the whole photo, made smaller; augmentation and normalisation run on batches, on the device that trains.
"""

import copy
import io
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pillow_heif
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import v2
from transformers import BaseImageProcessor, TimmWrapperImageProcessor

from agritransfer.errors import UsageError

pillow_heif.register_heif_opener()

# Pillow opens MPO, which phones write, as JPEG, and knows no opener of that name.
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF")
FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif"), "HEIF"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
# Checked in the header: a small file can unpack to gigabytes.
MAX_PIXELS = 40_000_000
# A ConvNeXt's processor cuts a centre out of smaller photos, and squashes larger ones.
CONVNEXT_SQUASHES_FROM = 384
# The shorter side of a training photo is this much longer than the model's input, so that a crop has room to move.
CROP_MARGIN = 8 / 7
# A panorama is squeezed to this shape, so that no photo takes the memory of many.
LONGEST_STRIP = 4


def decode_photo(photo: str | Path | bytes, least_side: int | None = None) -> Image.Image:
    """Decode a file or its bytes to an upright RGB image.

    With `least_side`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size while both sides keep so many pixels. 16-bit
    photos are scaled, transparent ones laid on white, of several frames the first is taken.
    Raises `OSError` or `ValueError`, with the reason, for what is not a whole photo.
    """
    source = io.BytesIO(photo) if isinstance(photo, bytes) else photo
    limit = f"over {MAX_PIXELS // 10**6} million pixels; shrink it"
    try:
        with Image.open(source, formats=PHOTO_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} is {limit}")
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        # Pillow's own words name an address in memory.
        raise ValueError(f"no photo in any of the formats {', '.join(PHOTO_FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(limit) from error
    except (SyntaxError, struct.error, EOFError) as error:
        # Raised for a broken part of a PNG, for broken EXIF, and for HEIC that ends too early.
        raise ValueError(str(error)) from error


def file_notes(content: bytes, name: str) -> tuple[str, ...]:
    """What the header of a photo tells that its pixels do not, each to be read after "5 photos ..."."""
    with Image.open(io.BytesIO(content), formats=PHOTO_FORMATS) as image:
        notes = []
        expected = FORMAT_OF_SUFFIX.get(Path(name).suffix.lower(), image.format)
        if image.format not in (expected, "MPO"):
            notes.append(f"are {image.format} but named {Path(name).suffix}")
        if image.mode.startswith("I;16"):
            notes.append("have 16 bits a colour and are scaled to 8")
        if image.mode == "CMYK":
            notes.append("have printer's colours (CMYK) and are made RGB")
        if image.getexif().get_ifd(ExifTags.IFD.GPSInfo):
            notes.append("say where they were taken (GPS in EXIF); remove it before you share them")
        return tuple(notes)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow clips 16 bits to 8, which turns most of a photo white.
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers without a known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def processor_image_size(processor: BaseImageProcessor) -> int:
    """Side, in pixels, of the square that the processor hands to the model."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return processor.data_config["input_size"][-1]
    size = processor.to_dict()
    if size.get("do_center_crop"):
        return size["crop_size"]["height"]
    return size["size"].get("height") or size["size"]["shortest_edge"]


def resize_processor(processor: BaseImageProcessor, image_size: int) -> BaseImageProcessor:
    """A copy of the processor whose output has another side; everything else keeps its proportion."""
    old_size = processor_image_size(processor)
    if isinstance(processor, TimmWrapperImageProcessor):
        config = processor.data_config | {"input_size": (3, image_size, image_size)}
        return TimmWrapperImageProcessor(config, architecture=processor.architecture)
    resized = copy.deepcopy(processor)
    for name in ("size", "crop_size"):
        sides = processor.to_dict().get(name) or {}
        sides = {side: round(pixels * image_size / old_size) for side, pixels in sides.items() if pixels is not None}
        if sides:
            setattr(resized, name, type(processor.size)(**sides))
    return resized


def normalization(processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, of pixels between 0 and 255, as the processor uses them; each of shape (3, 1, 1)."""
    if isinstance(processor, TimmWrapperImageProcessor):
        mean, std, scale = processor.data_config["mean"], processor.data_config["std"], 1 / 255
    else:
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
        scale = processor.rescale_factor if processor.do_rescale else 1.0
    return torch.tensor(mean).view(3, 1, 1) / scale, torch.tensor(std).view(3, 1, 1) / scale


def photo_pixels(processor: BaseImageProcessor, image: Image.Image) -> torch.Tensor:
    """The processor's own pixels before it rescales and normalises: uint8, of shape (3, side, side)."""
    if isinstance(processor, TimmWrapperImageProcessor):
        for transform in processor.val_transforms.transforms:
            # timm ends with a conversion to float and a normalisation; ours run on the batch.
            if type(transform).__name__ in ("MaybeToTensor", "ToTensor"):
                return v2.functional.pil_to_tensor(image)
            image = transform(image)
    pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    # A processor without torchvision answers in numpy's own type.
    return pixels.to(torch.uint8)


def pixel_recipe(processor: BaseImageProcessor) -> dict[str, Any]:
    """What `photo_pixels` and `normalization` do to an upright photo, in words for a program without these libraries.

    `resize`: the shorter side in pixels, or [height, width] whatever the shape; `resample`: a filter of Pillow's;
    `crop`: side of the square cut from the middle, or None, its odd pixel going `down` or to the `even` number;
    `mean` and `std` of pixels between 0 and 255. Raises `UsageError` for a way of its own.
    """
    if isinstance(processor, TimmWrapperImageProcessor):
        geometry = _timm_geometry(processor)
    else:
        geometry = _transformers_geometry(processor.to_dict())
    mean, std = normalization(processor)
    return {**geometry, "mean": mean.flatten().tolist(), "std": std.flatten().tolist()}


def _timm_geometry(processor: TimmWrapperImageProcessor) -> dict[str, Any]:
    config = processor.data_config
    if config.get("crop_mode", "center") not in ("center", "squash"):
        raise UsageError(f"timm's crop_mode '{config['crop_mode']}' has no form without torch; use one of 'center'")
    resize, crop, *_ = processor.val_transforms.transforms
    return {
        "resize": resize.size if isinstance(resize.size, int) else list(resize.size),
        "resample": config["interpolation"],
        "crop": crop.size[0],
        "odd_pixel": "even",
    }


def _transformers_geometry(facts: dict[str, Any]) -> dict[str, Any]:
    size, crop = facts["size"], None
    resize = size.get("shortest_edge") or [size["height"], size["width"]]
    if facts.get("do_center_crop"):
        crop = facts["crop_size"]["height"]
    elif "crop_pct" in facts and resize < CONVNEXT_SQUASHES_FROM:
        resize, crop = int(resize / facts["crop_pct"]), resize
    elif "crop_pct" in facts:
        resize = [resize, resize]
    resample = Image.Resampling(facts["resample"]).name.lower()
    return {"resize": resize, "resample": resample, "crop": crop, "odd_pixel": "down"}


@dataclass(frozen=True)
class EvaluationPixels:
    """The pixels that a model is tested and served with: those of its processor."""

    processor: BaseImageProcessor

    def read(self, photo: str | bytes) -> torch.Tensor:
        """Decode one photo: uint8, of shape (side, side, 3)."""
        return photo_pixels(self.processor, decode_photo(photo)).permute(1, 2, 0)

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Height and width that a photo of this size will have."""
        side = processor_image_size(self.processor)
        return side, side

    def mark(self) -> str:
        """All that decides what `read` gives."""
        processor = self.processor
        settings = processor.data_config if isinstance(processor, TimmWrapperImageProcessor) else processor.to_dict()
        return f"{type(processor).__name__} {json.dumps(settings, sort_keys=True, default=str)}"


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
        images: datasets.Dataset,
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


def training_pixels(processor: BaseImageProcessor, augmentation: str) -> EvaluationPixels | WholePhotos:
    """How training photos are decoded: as they are scored, or whole, with room to crop, where there is augmentation."""
    if augmentation == "none":
        return EvaluationPixels(processor)
    return WholePhotos(round(processor_image_size(processor) * CROP_MARGIN))


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
