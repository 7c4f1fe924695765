"""What happens to one photo, and to one batch?

An item of a dataset is uint8 pixels and a label. Evaluation pixels are those of the model's own image processor;
augmentation and normalisation run on whole batches, on the device that trains.
"""

import copy
import io
import struct
from collections.abc import Callable, Sequence
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
# Training pixels are this much larger than the model's input, so that a crop has room to move.
CROP_MARGIN = 8 / 7


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


class PhotoDataset(torch.utils.data.Dataset):
    """Photos as items for Trainer: `pixel_values` uint8 (3, side, side), `labels` int, `files` its name.

    `images` has the column `image` (path or bytes); `rows`, `labels` and `files` give the place, the label and the name
    of each item.
    """

    def __init__(
        self,
        images: datasets.Dataset,
        rows: Sequence[int],
        labels: Sequence[int],
        files: Sequence[str],
        processor: BaseImageProcessor,
    ):
        self.images, self.rows, self.labels, self.files, self.processor = images, rows, labels, files, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[self.rows[index]]["image"]
        pixels = photo_pixels(self.processor, decode_photo(image["bytes"] or image["path"]))
        return {"pixel_values": pixels, "labels": self.labels[index], "files": self.files[index]}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items to `pixel_values` uint8 (batch, 3, side, side) and `labels` int64 (batch,); `files` names them."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
        "files": [item["files"] for item in items],
    }


def training_processor(processor: BaseImageProcessor, augmentation: str) -> BaseImageProcessor:
    """The processor of training photos: evaluation's own, with a margin to crop into where there is augmentation."""
    if augmentation == "none":
        return processor
    return resize_processor(processor, round(processor_image_size(processor) * CROP_MARGIN))


def build_augmentation(
    augmentation: str, image_size: int, num_labels: int
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """A function from uint8 pixels and labels of a batch to augmented float pixels (0 to 255) and labels.

    `strong` mixes photos, so its labels are shares of shape (batch, num_labels).
    """
    if augmentation == "none":
        return lambda pixels, labels: (pixels.float(), labels)
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    if augmentation == "light":
        of_one_photo = v2.Compose([v2.RandomResizedCrop(image_size, scale=(0.6, 1.0), ratio=(0.9, 1.1)), *flips])
        return lambda pixels, labels: (_each(of_one_photo, pixels).float(), labels)

    of_one_photo = v2.Compose(
        [v2.RandomResizedCrop(image_size, scale=(0.25, 1.0)), *flips, v2.TrivialAugmentWide(), v2.RandomErasing(p=0.25)]
    )
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=num_labels), v2.CutMix(num_classes=num_labels)])
    return lambda pixels, labels: mix(_each(of_one_photo, pixels).float(), labels)


def _each(transform: Callable, pixels: torch.Tensor) -> torch.Tensor:
    # A torchvision transform draws once for all that it is given; every photo needs a draw of its own.
    return torch.stack([transform(photo) for photo in pixels])
