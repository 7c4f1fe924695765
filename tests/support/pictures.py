"""Pictures of noise, and one image processor of every kind."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    ConvNextImageProcessor,
    LevitImageProcessor,
    MobileViTImageProcessor,
    PoolFormerImageProcessor,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

from agritransfer.images.preprocessing import PhotoProcessor, describe_processor

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


# One processor of every kind: whole photo squashed, centre cut out, shortest edge then crop.
PROCESSORS = {
    "vit": lambda: ViTImageProcessor(size={"height": 32, "width": 32}),
    "swinv2": lambda: ViTImageProcessor(size={"height": 64, "width": 64}, resample=3, **IMAGENET),
    "convnextv2_below_384": lambda: ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875, **IMAGENET),
    "convnextv2_at_384": lambda: ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=1.0, **IMAGENET),
    "dinov2": lambda: BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3, **IMAGENET
    ),
    "levit": lambda: LevitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
    "poolformer": lambda: PoolFormerImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
    "mobilevit": lambda: MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
    "not_normalised": lambda: ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
    "between_minus_1_and_1": lambda: ViTImageProcessor(
        size={"height": 32, "width": 32}, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3
    ),
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def described(folder: Path) -> PhotoProcessor:
    return describe_processor(AutoImageProcessor.from_pretrained(folder))


def timm_model(**pretrained_cfg: object) -> TimmWrapperForImageClassification:
    pretrained_cfg = {"input_size": [3, 64, 64], "interpolation": "bicubic", "crop_pct": 0.875, **pretrained_cfg}
    config = TimmWrapperConfig(architecture="mobilenetv3_small_050", num_labels=3, pretrained_cfg=pretrained_cfg)
    return TimmWrapperForImageClassification(config)


UPRIGHT = Image.new("RGB", (48, 32), "white")


for corner, colour in {(0, 0): "red", (32, 0): "lime", (0, 16): "blue"}.items():
    UPRIGHT.paste(colour, (*corner, corner[0] + 16, corner[1] + 16))
