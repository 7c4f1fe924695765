"""One image processor of every kind, those of timm too."""

from transformers import TimmWrapperImageProcessor

from pictures import PROCESSORS


def timm_processor(**config: object) -> TimmWrapperImageProcessor:
    config = {"input_size": (3, 64, 64), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, **config}
    return TimmWrapperImageProcessor(config, architecture="mobilenetv3_small_050")


KINDS = PROCESSORS | {
    "timm_center": lambda: timm_processor(crop_pct=0.875),
    "timm_squash": lambda: timm_processor(crop_pct=0.875, crop_mode="squash"),
}
