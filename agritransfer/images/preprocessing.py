"""How does a model's own image processor turn a photo into pixels?

Processors differ by library and by model family. Each is wrapped in a `PhotoProcessor` when it is loaded, and all other
code uses only that: a family with a geometry of its own is described in this file. `pixel_check.py` compares what this
description gives with the processor itself.
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
from transformers import (
    BaseImageProcessor,
    JanusImageProcessor,
    LevitImageProcessor,
    LevitImageProcessorPil,
    PreTrainedConfig,
    TimmWrapperImageProcessor,
)
from transformers.image_processing_backends import TorchvisionBackend

from agritransfer.errors import UsageError
from agritransfer.images.recipe_pixels import FILTERS

# The ConvNeXt processor takes a center crop below this size and squashes the photo from this size on.
CONVNEXT_SQUASHES_FROM = 384
# The LeViT processor resizes the shorter side to this multiple of `size`.
LEVIT_MARGIN = 256 / 224
LEVIT = (LevitImageProcessor, LevitImageProcessorPil)
# The settings of `size` that a recipe can describe.
SIZES = ({"shortest_edge"}, {"height", "width"})
# To be raised when `pixels` changes, because pixels and activations are cached.
VERSION = 2
PILLOW_FILTERS = {filter: filter.name.lower() for filter in Image.Resampling}


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
        resize = self.geometry["resize"]
        return self.geometry["crop"] or (resize if isinstance(resize, int) else resize[0])

    @cached_property
    def normalization(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of pixels between 0 and 255, each of shape (3, 1, 1)."""
        settings = self.settings
        normalized = settings.get("do_normalize")
        mean, std = (settings["image_mean"], settings["image_std"]) if normalized else ([0.0] * 3, [1.0] * 3)
        return _statistics(mean, std, settings["rescale_factor"] if settings.get("do_rescale") else 1.0)

    @cached_property
    def channels(self) -> str:
        """The order of the channels, `rgb` or `bgr`."""
        return "bgr" if self.settings.get("do_flip_channel_order") else "rgb"

    @cached_property
    def geometry(self) -> dict[str, Any]:
        """`resize`, `resample`, `kernel`, `crop`, `odd_pixel` and `pad` of `pixel_recipe`; raises `UsageError`."""
        settings = self.settings
        size = settings.get("size") or {}
        if not settings.get("do_resize", True):
            raise unsupported(self, "do_resize is off")
        if size.keys() not in SIZES:
            raise unsupported(self, f"size is {size}, which is neither a shortest edge nor height and width")
        shape = (settings.get("crop_size") if settings.get("do_center_crop") else None) or size
        if shape.get("height") != shape.get("width"):
            raise unsupported(self, f"photos become {shape['height']} x {shape['width']} pixels, which is no square")
        kernel = "torch" if isinstance(self.library, TorchvisionBackend) else "pillow"
        resample = PILLOW_FILTERS.get(settings.get("resample"))
        if resample not in (filters := list(FILTERS if kernel == "torch" else PILLOW_FILTERS.values())):
            raise unsupported(self, f"resample is {resample}, not one of {', '.join(filters)}")
        resize, crop = _resize_and_crop(self.library, settings)
        shorter = resize if isinstance(resize, int) else min(resize)
        if crop is not None and crop > shorter:
            raise unsupported(self, f"crop_size is {crop}, more than the {shorter} pixels that photos are resized to")
        return {
            "resize": resize,
            "resample": resample,
            "kernel": kernel,
            "crop": crop,
            "odd_pixel": "down",
            "pad": list(self.library.background_color) if _pads(self.library) else None,
        }

    def pixels(self, photo: Image.Image) -> torch.Tensor:
        """The pixels of a photo before they are rescaled and normalized: uint8, of shape (3, side, side)."""
        pixels = self.library(photo, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        # Some processors resize in floating point.
        return pixels if pixels.dtype == torch.uint8 else pixels.round().clamp(0, 255).to(torch.uint8)

    def resized(self, image_size: int) -> "TransformersProcessor":
        """A copy for another side in pixels; all other sizes are scaled with it."""
        resized = copy.deepcopy(self.library)
        for name in ("size", "crop_size"):
            sides = self.settings.get(name) or {}
            scaled = {side: round(n * image_size / self.image_size) for side, n in sides.items() if n is not None}
            if scaled:
                setattr(resized, name, type(resized.size)(**scaled))
        return TransformersProcessor(resized)

    def configure(self, config: PreTrainedConfig) -> None:
        """Nothing to write: the settings have a file of their own."""

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

    @property
    def channels(self) -> str:
        """The order of the channels."""
        return "rgb"

    @cached_property
    def geometry(self) -> dict[str, Any]:
        """`resize`, `resample`, `kernel`, `crop`, `odd_pixel` and `pad` of `pixel_recipe`; raises `UsageError`."""
        settings = self.settings
        if len(settings["mean"]) != 3 or settings["input_size"][0] != 3:
            raise unsupported(self, f"the model takes photos of {settings['input_size'][0]} channels")
        if settings["crop_mode"] not in ("center", "squash", "border"):
            raise unsupported(self, f"crop_mode is '{settings['crop_mode']}', not 'center', 'squash' or 'border'")
        pads = settings["crop_mode"] == "border"
        if pads and settings["crop_pct"] != 1:
            raise unsupported(self, f"crop_mode is 'border' with a crop_pct of {settings['crop_pct']}, not 1")
        resize, crop, *_ = self.library.val_transforms.transforms
        resized = resize.size[0] if pads else resize.size
        return {
            "resize": resized if isinstance(resized, int) else list(resized),
            "resample": settings["interpolation"],
            "kernel": "pillow",
            "crop": None if pads else crop.size[0],
            "odd_pixel": "even",
            "pad": list(crop.fill) if pads else None,
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

    def configure(self, config: PreTrainedConfig) -> None:
        """Write the transforms into the configuration of the model, with which they are saved."""
        config.pretrained_cfg |= {name: self.settings[name] for name in ("crop_mode", "crop_pct")}

    def save(self, folder: Path) -> None:
        """Nothing to write: the transforms are part of the model's config.json."""


PhotoProcessor = TransformersProcessor | TimmProcessor


def describe_processor(processor: BaseImageProcessor) -> PhotoProcessor:
    """Wrap a model's image processor as a `PhotoProcessor`, unchecked: see `check_pixels`."""
    return (
        TimmProcessor(processor)
        if isinstance(processor, TimmWrapperImageProcessor)
        else TransformersProcessor(processor)
    )


def pixel_recipe(processor: PhotoProcessor) -> dict[str, Any]:
    """The preprocessing of an upright photo, described for programs without these libraries.

    `resize`: the shorter side in pixels, or [height, width] for any aspect ratio; `resample`: a Pillow filter;
    `kernel`: which library's arithmetic resizes, `torch` or `pillow`; `crop`: side of the center crop, or None;
    `odd_pixel`: how half a pixel of its margin is rounded, `down` or to the `even` number; `pad`: None, or the color
    around a photo whose longer side, not the shorter, was resized to the side `resize` of the square; `channels`: `rgb`
    or `bgr`; `mean` and `std` of pixels between 0 and 255. Raises `UsageError` for what the recipe cannot describe.
    """
    mean, std = processor.normalization
    return {
        **processor.geometry,
        "channels": processor.channels,
        "mean": mean.flatten().tolist(),
        "std": std.flatten().tolist(),
    }


def unsupported(processor: PhotoProcessor, reason: str) -> UsageError:
    """The error for a processor whose pixels cannot be made in training, scoring and export alike."""
    return UsageError(
        f"the image processor {type(processor.library).__name__} is not supported: {reason}; "
        "use another model, such as facebook/dinov2-small or timm/efficientnet_b0.ra_in1k"
    )


def settings_text(processor: PhotoProcessor) -> str:
    """Everything that the pixels depend on, as text that can be compared."""
    return f"{VERSION} {type(processor.library).__name__} {json.dumps(processor.settings, sort_keys=True, default=str)}"


def _pads(library: BaseImageProcessor) -> bool:
    """Whether it resizes the longer side and pads the photo to a square, as our letterbox does; strips stay strips."""
    return isinstance(library, JanusImageProcessor) and library.min_size == 1


def _resize_and_crop(library: BaseImageProcessor, settings: dict[str, Any]) -> tuple[int | list[int], int | None]:
    """`resize` and `crop` of `pixel_recipe`; families differ in how they enlarge `size` before the crop."""
    side, crop_pct, crop = settings["size"].get("shortest_edge"), settings.get("crop_pct"), None
    if settings.get("do_center_crop"):
        crop = (settings.get("crop_size") or {}).get("height")
    if _pads(library):
        return settings["size"]["height"], None
    if side is None:
        return [settings["size"]["height"], settings["size"]["width"]], crop
    if isinstance(library, LEVIT):
        return int(LEVIT_MARGIN * side), crop
    if crop_pct is None:
        return side, crop
    # PoolFormer has both settings, ConvNeXt only `crop_pct`.
    if crop is not None:
        return int(side / crop_pct), crop
    return (int(side / crop_pct), side) if side < CONVNEXT_SQUASHES_FROM else ([side, side], None)


def _statistics(mean: list[float], std: list[float], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(mean).expand(3).view(3, 1, 1) / scale, torch.tensor(std).expand(3).view(3, 1, 1) / scale
