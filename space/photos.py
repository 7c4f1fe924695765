"""Which photos are accepted, and which pixels does the model get?

A photo is decoded as in training, with limits that protect against hostile files, and preprocessed exactly as in the
test. Advice for a better photo is derived from measurements on it.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
)

from recipe_pixels import normalize, recipe_pixels

pillow_heif.register_heif_opener()
warnings.simplefilter("error", Image.DecompressionBombWarning)
# What Pillow says of damaged metadata, none of which is used, names no file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

MAX_BYTES = 12_000_000
# Read from the header, since a small file can unpack to gigabytes. Lower than in training, because anyone may send
# photos, several at once: a WebP of this size takes 0.6 GB while it is decoded.
MAX_PIXELS = 40_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# A strip of one by a million pixels would be enlarged to gigabytes, since its shorter side is resized to the model's.
MAX_ASPECT = 100
# The size box of each image of a HEIC file: its length, its name, a version, width and height. Pillow knows the size
# after cropping alone, and the decoder allocates what is cropped.
HEIC_SIZE = re.compile(rb"\x00\x00\x00\x14ispe\x00\x00\x00\x00(.{4})(.{4})", re.DOTALL)
# How a photo is turned upright that was stored with each EXIF orientation.
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_IS_ZERO = 0
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF")

# A photo is dark if 95% of its pixels are below this brightness (of 255), so a black background alone does not count.
# It is blurred if the variance of its Laplacian at 512 pixels is lower. benchmarks/photo_advice.py measures both rates.
DARK_BELOW = 80.0
BLURRED_BELOW = 12.0
DETAIL_SIDE = 512


class PhotoError(ValueError):
    """A photo that cannot be used: a key of the translations and the numbers in its text."""

    def __init__(self, key: str, **numbers: int):
        super().__init__(key)
        self.key, self.numbers = key, numbers


@dataclass(frozen=True)
class Photo:
    """An upright RGB picture, possibly decoded at reduced size, and the shorter side of the original in pixels."""

    picture: Image.Image
    shorter_side: int


@contextmanager
def one_reason() -> Iterator[None]:
    """Turn whatever is raised for one photo into `PhotoError`."""
    try:
        yield
    except PhotoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError("error_pixels") from error
    # For damaged files, decoders raise almost every kind of exception, and one photo must never end a batch.
    except Exception as error:  # noqa: BLE001
        raise PhotoError("error_no_photo") from error


def read_photo(source: Path | bytes, least_side: int | None = None) -> Photo:
    """Decode a file or its bytes; with `least_side`, at a reduced size of at least that many pixels on both sides.

    Raises `PhotoError` for files that are too large or not complete photos.
    """
    with one_reason():
        if (len(source) if isinstance(source, bytes) else source.stat().st_size) > MAX_BYTES:
            raise PhotoError("error_bytes")
        content = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            shorter_side = min(image.size)
            _check_header(image, content)
            # A draft of a HEIC would be its preview.
            if least_side is not None and image.format in ("JPEG", "MPO"):
                image.draft(None, (least_side, least_side))
            if image.format == "TIFF":
                # Pillow reads all fields of a TIFF while it loads it, and turns it.
                _forget_all_but_orientation(image)
            image.load()
            # Only the file itself records its orientation.
            turn = TURNS.get(_orientation(image))
            picture = _rgb(_averaged(_of_8_bits(image), least_side))
            return Photo(picture if turn is None else picture.transpose(turn), shorter_side)


def _check_header(image: Image.Image, content: bytes) -> None:
    sizes = [image.size]
    if image.format == "HEIF":
        sizes += [tuple(int.from_bytes(side) for side in sides) for sides in HEIC_SIZE.findall(content)]
    if max(width * height for width, height in sizes) > MAX_PIXELS:
        raise PhotoError("error_pixels")
    if max(image.size) > MAX_ASPECT * min(image.size) or (image.format == "TIFF" and _has_other_bands(image)):
        raise PhotoError("error_no_photo")


def _has_other_bands(tiff: Image.Image) -> bool:
    """Whether a TIFF has bands, such as near infrared, that Pillow drops or takes for transparency."""
    extra = tiff.tag_v2.get(EXTRASAMPLES, ())
    is_dropped = tiff.tag_v2.get(SAMPLESPERPIXEL, 1) > len(tiff.getbands())
    return is_dropped or (tiff.mode == "RGBA" and not extra) or max(tiff.tag_v2.get(SAMPLEFORMAT, (1,))) > 1


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None if it cannot be read."""
    try:
        with one_reason():
            return image.getexif().get(ExifTags.Base.Orientation)
    except PhotoError:
        return None


def _forget_all_but_orientation(image: Image.Image) -> None:
    """Remove all other EXIF fields, any of which may be damaged."""
    is_readable = _orientation(image) in TURNS
    # The object that Pillow keeps, even where it could read only a part.
    exif = image.getexif()
    for tag in list(exif):
        if tag != ExifTags.Base.Orientation or not is_readable:
            del exif[tag]


def _of_8_bits(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or RGBA, whose pixels can be averaged."""
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit values, which turns most of a photo white, and does not turn negatives.
        tags = image.tag_v2 if image.format == "TIFF" else {}
        share = 255 / (2 ** max(tags.get(BITSPERSAMPLE, (16,))) - 1)
        black, step = (255, -share) if tags.get(PHOTOMETRIC_INTERPRETATION, 1) == WHITE_IS_ZERO else (0, share)
        if image.mode == "I;16B":
            # Pillow would clip these to 255 when it converts them.
            image = Image.fromarray(np.asarray(image).astype(np.uint16))
        return image.point(lambda value: value * step + (black + 0.5)).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _averaged(image: Image.Image, least_side: int | None) -> Image.Image:
    """Reduced decoding for formats other than JPEG, to save memory on large photos."""
    factor = min(image.size) // least_side if least_side else 1
    return image.reduce(factor) if factor > 1 else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def model_pixels(picture: Image.Image, recipe: dict[str, Any]) -> np.ndarray:
    """Normalized float32 pixels (1, 3, side, side), by the `preprocessing` of an exported model."""
    return normalize(recipe_pixels(picture, recipe)[None], recipe)


def seen_part(picture: Image.Image, recipe: dict[str, Any]) -> tuple[float, float, float, float]:
    """The area of a picture that the model sees: left, top, right, bottom; 0 to 1 is the picture, beyond is padding."""
    # Recipes of earlier versions have no padding.
    resize, crop, pad = recipe["resize"], recipe["crop"], recipe.get("pad")
    if pad is not None:
        left, top = ((1 - max(picture.size) / side) / 2 for side in picture.size)
        return left, top, 1 - left, 1 - top
    if crop is None:
        return 0.0, 0.0, 1.0, 1.0
    shorter = min(picture.size)
    sides = (resize * side / shorter for side in picture.size) if isinstance(resize, int) else resize[::-1]
    left, top = ((1 - crop / side) / 2 for side in sides)
    return left, top, 1 - left, 1 - top


def advice(photo: Photo, image_size: int) -> list[str]:
    """Keys of advice for a better photo: `tiny`, `dark`, `blurred`."""
    gray = photo.picture.convert("L")
    gray.thumbnail((DETAIL_SIDE, DETAIL_SIDE))
    found = []
    if photo.shorter_side < image_size:
        found.append("tiny")
    if np.percentile(np.asarray(gray), 95) < DARK_BELOW:
        found.append("dark")
    if not found and detail(gray) < BLURRED_BELOW:
        found.append("blurred")
    return found


def detail(gray: Image.Image) -> float:
    """The variance of the Laplacian of a gray picture, a measure of its sharpness."""
    pixels = np.asarray(gray, np.float32)
    middle = pixels[1:-1, 1:-1]
    neighbors = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    return float((neighbors - 4 * middle).var())
