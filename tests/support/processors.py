"""One image processor of every kind, those of timm too."""

from transformers import BitImageProcessorPil, TimmWrapperImageProcessor, ViTImageProcessor

from pictures import PROCESSORS


def timm_processor(**config: object) -> TimmWrapperImageProcessor:
    config = {"input_size": (3, 64, 64), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, **config}
    return TimmWrapperImageProcessor(config, architecture="mobilenetv3_small_050")


KINDS = PROCESSORS | {
    "lanczos": lambda: ViTImageProcessor(size={"height": 64, "width": 64}, resample=1),
    "of_pillow": lambda: BitImageProcessorPil(size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}),
    "timm_center": lambda: timm_processor(crop_pct=0.875),
    "timm_squash": lambda: timm_processor(crop_pct=0.875, crop_mode="squash"),
}
