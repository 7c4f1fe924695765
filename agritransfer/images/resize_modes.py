"""How does a photo become a square, if not as the model's own image processor makes it?

`squash` resizes the whole photo to the square. `letterbox` keeps its shape and fills the rest of the square with the
mean color. `crop` cuts out the largest square in the middle. A processor that does this replaces the model's own and is
saved with the model, so that whoever loads the model gets the same pixels.
"""

from collections.abc import Sequence

from transformers import BitImageProcessor, JanusImageProcessor, TimmWrapperImageProcessor, ViTImageProcessor

from agritransfer.arguments import ResizeMode
from agritransfer.errors import UsageError
from agritransfer.images.decoding import MAX_ASPECT
from agritransfer.images.preprocessing import PhotoProcessor, TimmProcessor, TransformersProcessor
from agritransfer.wording import counted

# The names in timm, where a crop_pct of 1 leaves no margin around the crop.
TIMM_CROP_MODES = {"squash": "squash", "letterbox": "border", "crop": "center"}
# From this aspect ratio on, a photo counts as elongated; such photos were measured (docs/photos.md).
ELONGATED = 1.4


def with_resize_mode(processor: PhotoProcessor, mode: ResizeMode) -> PhotoProcessor:
    """The processor itself, or one of another geometry with the same size, filter and normalization.

    Raises `UsageError` if no processor of the library has the geometry and gives these colors.
    """
    if mode == "processor":
        return processor
    if isinstance(processor, TimmProcessor):
        return _timm_processor(processor, mode)
    if processor.channels == "bgr":
        raise UsageError(
            f"--resize_mode {mode} is not supported for {type(processor.library).__name__}, whose photos have blue as "
            "their first channel; remove --resize_mode, or use another model"
        )
    side, square = processor.image_size, {"height": processor.image_size, "width": processor.image_size}
    mean, std = processor.normalization
    shared = {
        "resample": processor.settings["resample"],
        "image_mean": [round(value, 6) for value in (mean.flatten() / 255).tolist()],
        "image_std": [round(value, 6) for value in (std.flatten() / 255).tolist()],
        "do_convert_rgb": True,
    }
    if mode == "squash":
        return TransformersProcessor(ViTImageProcessor(size=square, **shared))
    if mode == "letterbox":
        # Of the classes that pad to a square, this one resizes first; without `min_size` it widens no strip.
        return TransformersProcessor(JanusImageProcessor(size=square, min_size=1, **shared))
    return TransformersProcessor(BitImageProcessor(size={"shortest_edge": side}, crop_size=square, **shared))


def _timm_processor(processor: TimmProcessor, mode: ResizeMode) -> TimmProcessor:
    # timm would resize the thinnest strips to a width of 0.
    if mode == "letterbox" and 2 * processor.image_size <= MAX_ASPECT:
        raise UsageError(
            f"--resize_mode letterbox needs at least {MAX_ASPECT // 2 + 1} pixels with a model of timm, not "
            f"{processor.image_size}; use a larger --image_size, or --resize_mode squash"
        )
    config = processor.settings | {"crop_mode": TIMM_CROP_MODES[mode], "crop_pct": 1.0}
    return TimmProcessor(TimmWrapperImageProcessor(config, architecture=processor.library.architecture))


def share_cut_off(processor: PhotoProcessor, width: int, height: int) -> float:
    """Which share of a photo of this size lies outside the center crop of the processor."""
    resize, crop = processor.geometry["resize"], processor.geometry["crop"]
    if crop is None:
        return 0.0
    shorter = min(width, height)
    sides = (resize * side / shorter for side in (width, height)) if isinstance(resize, int) else resize
    kept = 1.0
    for side in sides:
        kept *= crop / side
    return 1 - kept


def cut_off_line(processor: PhotoProcessor, sizes: Sequence[tuple[int, int]]) -> str | None:
    """A note on elongated photos, given (width, height) of each, of which the center crop cuts much off; else None."""
    cut = [share_cut_off(processor, *size) for size in sizes if max(size) >= ELONGATED * min(size)]
    if not any(cut):
        return None
    verb, them = ("is", "it") if len(cut) == 1 else ("are", "them")
    return (
        f"{len(cut):,} of {counted(len(sizes), 'photo')} {verb} at least {ELONGATED} times as long as wide, and the "
        f"center crop cuts off {sum(cut) / len(cut):.0%} of {them}; to use the whole photo, add --resize_mode squash"
    )
