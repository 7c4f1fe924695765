"""Are our pixels of a photo those of the model's own image processor?

Training, scoring and exported models make pixels in different ways. All are compared with the processor itself when it
is loaded, so that a processor that would give other pixels is refused before anything is trained.
"""

import io
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw

from agritransfer.errors import in_one_line
from agritransfer.images.photo_dataset import training_pixels
from agritransfer.images.preprocessing import PhotoProcessor, pixel_recipe, unsupported
from agritransfer.images.recipe_pixels import recipe_pixels

# Of 255: one for rounding, the rest for float32.
MOST_LEVELS = 1.01
# What processors raise that were made for something else: videos, pairs of photos, prompts, scanned pages.
MADE_FOR_ELSE = (AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


def check_pixels(processor: PhotoProcessor) -> None:
    """Raise `UsageError` unless our pixels equal those of the processor to 1 of 255 levels.

    Compared are the pixels of evaluation and of an exported model, on noise of odd shapes and on a drawn photo, and
    the colors of random crops and of their padding.
    """
    side = processor.image_size
    theirs = [_library_pixels(processor, photo) for photo in (*_pictures(), _flat())]
    recipe = pixel_recipe(processor)
    for photo, expected in zip(_pictures(), theirs, strict=False):
        if expected.shape != (1, 3, side, side):
            of, found = f"a photo of {photo.width} x {photo.height} pixels", tuple(expected.shape)
            raise unsupported(processor, f"it turns {of} into an array of shape {found}, not {(1, 3, side, side)}")
        _compare(processor, "evaluation", _evaluation_pixels(processor, photo), expected[0])
        _compare(processor, "an exported model", torch.tensor(recipe_pixels(photo, recipe)), expected[0])
    png = io.BytesIO()
    _flat().save(png, "PNG")
    whole = training_pixels(processor, "light").read(png.getvalue()).permute(2, 0, 1)
    # At the corner there may be padding.
    for edge in (0.0, 0.5):
        ours, expected = (_pixel_at(pixels, edge) for pixels in (whole, theirs[-1][0]))
        _compare(processor, "random crops", ours, expected)


def _pixel_at(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """The pixel (3, 1, 1) at this share of height and width."""
    row, column = (int(share * length) for length in pixels.shape[1:])
    return pixels[:, row : row + 1, column : column + 1]


def _library_pixels(processor: PhotoProcessor, photo: Image.Image) -> torch.Tensor:
    try:
        return processor.library(photo, return_tensors="pt")["pixel_values"].float()
    except MADE_FOR_ELSE as error:
        raise unsupported(processor, f"it makes no pixels of a single photo ({_told(error)})") from error


def _evaluation_pixels(processor: PhotoProcessor, photo: Image.Image) -> torch.Tensor:
    try:
        return processor.pixels(photo)
    except MADE_FOR_ELSE as error:
        raise unsupported(
            processor, f"it fails when rescaling and normalizing are left out ({_told(error)})"
        ) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {in_one_line(error)}"


def _compare(processor: PhotoProcessor, use: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    mean, std = processor.normalization
    if ours.shape != theirs.shape:
        found = f"{tuple(ours.shape)} instead of {tuple(theirs.shape)}"
        raise unsupported(processor, f"the pixels for {use} would have the shape {found}")
    levels = (((ours - mean) / std - theirs) * std).abs().max().item()
    # Not `>`, because the difference can be NaN.
    if not levels <= MOST_LEVELS:
        raise unsupported(processor, f"the pixels for {use} would differ by up to {levels:.0f} of 255 levels")


@cache
def _pictures() -> tuple[Image.Image, ...]:
    """Noise in both orientations, a strip, and a photo larger than most inputs: a leaf before a soft background."""
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (*shape, 3), np.uint8) for shape in ((97, 131), (131, 97), (7, 45))]
    photo = Image.fromarray(random.integers(0, 240, (6, 9, 3), np.uint8)).resize((805, 539), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(photo)
    draw.ellipse((120, 90, 680, 450), fill=(60, 140, 50), outline=(20, 60, 20), width=5)
    for across in range(180, 640, 40):
        draw.line((across, 270, across + 60, 180), fill=(170, 200, 120), width=3)
    # Below 256 together with the grain of the sensor.
    grainy = np.minimum(photo, np.uint8(240)) + random.integers(0, 16, (539, 805, 3), np.uint8)
    return tuple(Image.fromarray(pixels) for pixels in (*noise, grainy))


def _flat() -> Image.Image:
    return Image.new("RGB", (9, 7), (200, 100, 30))
