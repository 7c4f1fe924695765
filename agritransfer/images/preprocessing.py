"""Which pixels does the model's own image processor make of a photo?"""

import copy
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import BaseImageProcessor, TimmWrapperImageProcessor

from agritransfer.errors import UsageError

# A ConvNeXt's processor cuts a centre out of smaller photos, and squashes larger ones.
CONVNEXT_SQUASHES_FROM = 384


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
