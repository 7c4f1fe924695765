"""One image processor of every kind, those of timm too."""

from importlib.metadata import version

from packaging.version import Version
from transformers import BitImageProcessorPil, TimmWrapperImageProcessor, ViTImageProcessor

from pictures import PROCESSORS

# Older versions have no such filter, and transformers takes another one.
HAS_LANCZOS = Version(version("torchvision")) >= Version("0.27")


def timm_processor(**config: object) -> TimmWrapperImageProcessor:
    config = {"input_size": (3, 64, 64), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3, **config}
    return TimmWrapperImageProcessor(config, architecture="mobilenetv3_small_050")


LANCZOS = {"lanczos": lambda: ViTImageProcessor(size={"height": 64, "width": 64}, resample=1)} if HAS_LANCZOS else {}
KINDS = PROCESSORS | {
    **LANCZOS,
    "of_pillow": lambda: BitImageProcessorPil(size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}),
    "timm_center": lambda: timm_processor(crop_pct=0.875),
    "timm_squash": lambda: timm_processor(crop_pct=0.875, crop_mode="squash"),
}
