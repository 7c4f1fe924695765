"""How does a model's own image processor turn a photo into pixels?

Processors differ by library and by model family. Each is wrapped in a `PhotoProcessor` when it is loaded, and all other
code uses only that: a family that needs special treatment is a class in this file and a line in `describe_processor`.
"""

import copy
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import BaseImageProcessor, EfficientNetImageProcessor, TimmWrapperImageProcessor

from agritransfer.errors import UsageError

# The ConvNeXt processor takes a center crop below this size and squashes the photo from this size on.
CONVNEXT_SQUASHES_FROM = 384


@dataclass(frozen=True)
class TransformersProcessor:
    """An image processor of transformers."""

    library: BaseImageProcessor

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that its pixels depend on."""
        return self.library.to_dict()

    @cached_property
    def image_size(self) -> int:
        """Side of the square model input, in pixels."""
        if self.settings.get("do_center_crop"):
            return self.settings["crop_size"]["height"]
        return self.settings["size"].get("height") or self.settings["size"]["shortest_edge"]

    @cached_property
    def normalization(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of pixels between 0 and 255, each of shape (3, 1, 1)."""
        library = self.library
        mean, std = (library.image_mean, library.image_std) if library.do_normalize else ([0.0] * 3, [1.0] * 3)
        return _statistics(mean, std, library.rescale_factor if library.do_rescale else 1.0)

    @cached_property
    def geometry(self) -> dict[str, Any]:
        """`resize`, `resample`, `crop` and `odd_pixel` of `pixel_recipe`."""
        size, crop = self.settings["size"], None
        resize = size.get("shortest_edge") or [size["height"], size["width"]]
        if self.settings.get("do_center_crop"):
            crop = self.settings["crop_size"]["height"]
        elif "crop_pct" in self.settings and resize < CONVNEXT_SQUASHES_FROM:
            resize, crop = int(resize / self.settings["crop_pct"]), resize
        elif "crop_pct" in self.settings:
            resize = [resize, resize]
        resample = Image.Resampling(self.settings["resample"]).name.lower()
        return {"resize": resize, "resample": resample, "crop": crop, "odd_pixel": "down"}

    def pixels(self, photo: Image.Image) -> torch.Tensor:
        """The pixels of a photo before they are rescaled and normalized: uint8, of shape (3, side, side)."""
        pixels = self.library(photo, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        # Without torchvision the processor may return another dtype.
        return pixels.to(torch.uint8)

    def resized(self, image_size: int) -> "TransformersProcessor":
        """A copy for another side in pixels; all other sizes are scaled with it."""
        resized = copy.deepcopy(self.library)
        for name in ("size", "crop_size"):
            sides = self.settings.get(name) or {}
            scaled = {side: round(n * image_size / self.image_size) for side, n in sides.items() if n is not None}
            if scaled:
                setattr(resized, name, type(resized.size)(**scaled))
        return TransformersProcessor(resized)

    def save(self, folder: Path) -> None:
        """Write it into the folder of the model."""
        self.library.save_pretrained(folder)


@dataclass(frozen=True)
class TimmProcessor:
    """The transforms of a timm model, in transformers' wrapper."""

    library: TimmWrapperImageProcessor

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that its pixels depend on."""
        return self.library.data_config

    @cached_property
    def image_size(self) -> int:
        """Side of the square model input, in pixels."""
        return self.settings["input_size"][-1]

    @cached_property
    def normalization(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of pixels between 0 and 255, each of shape (3, 1, 1)."""
        return _statistics(self.settings["mean"], self.settings["std"], 1 / 255)

    @cached_property
    def geometry(self) -> dict[str, Any]:
        """`resize`, `resample`, `crop` and `odd_pixel` of `pixel_recipe`."""
        if self.settings.get("crop_mode", "center") not in ("center", "squash"):
            raise UsageError(
                f"timm's crop_mode '{self.settings['crop_mode']}' cannot be exported; use 'center' or 'squash'"
            )
        resize, crop, *_ = self.library.val_transforms.transforms
        return {
            "resize": resize.size if isinstance(resize.size, int) else list(resize.size),
            "resample": self.settings["interpolation"],
            "crop": crop.size[0],
            "odd_pixel": "even",
        }

    def pixels(self, photo: Image.Image) -> torch.Tensor:
        """The pixels of a photo before they are rescaled and normalized: uint8, of shape (3, side, side)."""
        for transform in self.library.val_transforms.transforms:
            # The last transforms convert to float and normalize; ours run on the batch.
            if type(transform).__name__ in ("MaybeToTensor", "ToTensor"):
                break
            photo = transform(photo)
        return v2.functional.pil_to_tensor(photo)

    def resized(self, image_size: int) -> "TimmProcessor":
        """A copy for another side in pixels; all other sizes are scaled with it."""
        config = self.settings | {"input_size": (3, image_size, image_size)}
        return TimmProcessor(TimmWrapperImageProcessor(config, architecture=self.library.architecture))

    def save(self, folder: Path) -> None:
        """Nothing to write: the transforms are part of the model's config.json."""


PhotoProcessor = TransformersProcessor | TimmProcessor


def describe_processor(processor: BaseImageProcessor) -> PhotoProcessor:
    """Wrap a model's image processor as a `PhotoProcessor`; raises `UsageError` for one that is not supported."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return TimmProcessor(processor)
    if isinstance(processor, EfficientNetImageProcessor):
        # It normalizes twice, which no other tool reproduces.
        raise UsageError("transformers' EfficientNet processor is not supported; use timm/efficientnet_b0.ra_in1k")
    return TransformersProcessor(processor)


def pixel_recipe(processor: PhotoProcessor) -> dict[str, Any]:
    """The preprocessing of an upright photo, described for programs without these libraries.

    `resize`: the shorter side in pixels, or [height, width] for any aspect ratio; `resample`: a Pillow filter; `crop`:
    side of the center crop, or None; `odd_pixel`: how half a pixel of its margin is rounded, `down` or to the `even`
    number; `mean` and `std` of pixels between 0 and 255. Raises `UsageError` for what the recipe cannot describe.
    """
    mean, std = processor.normalization
    return {**processor.geometry, "mean": mean.flatten().tolist(), "std": std.flatten().tolist()}


def settings_text(processor: PhotoProcessor) -> str:
    """Everything that the pixels depend on, as text that can be compared."""
    return f"{type(processor.library).__name__} {json.dumps(processor.settings, sort_keys=True, default=str)}"


def _statistics(mean: list[float], std: list[float], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(mean).view(3, 1, 1) / scale, torch.tensor(std).view(3, 1, 1) / scale
