"""Which photos are accepted, and which pixels does the model get?

A photo is decoded as in training, with limits that protect against hostile files, and preprocessed exactly as in the
test. Advice for a better photo is derived from measurements on it.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageOps

from recipe_pixels import normalize, recipe_pixels

pillow_heif.register_heif_opener()
warnings.simplefilter("error", Image.DecompressionBombWarning)

MAX_BYTES = 12_000_000
# Read from the header, since a small file can unpack to gigabytes. Lower than in training, because anyone may send
# photos, several at once: a WebP of this size takes 0.6 GB while it is decoded.
MAX_PIXELS = 40_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
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


def read_photo(source: Path | bytes, least_side: int | None = None) -> Photo:
    """Decode a file or its bytes; with `least_side`, at a reduced size of at least that many pixels on both sides.

    Raises `PhotoError` for files that are too large or not complete photos.
    """
    try:
        if (len(source) if isinstance(source, bytes) else source.stat().st_size) > MAX_BYTES:
            raise PhotoError("error_bytes")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            shorter_side = min(image.size)
            if image.width * image.height > MAX_PIXELS:
                raise PhotoError("error_pixels")
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            exif = image.getexif()
            image = _averaged(_of_8_bits(image), least_side)
            # Only the file itself records its orientation.
            image.info["exif"] = exif.tobytes()
            return Photo(_rgb(ImageOps.exif_transpose(image)), shorter_side)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError("error_pixels") from error
    except PhotoError:
        raise
    # Pillow raises all of these for broken files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise PhotoError("error_no_photo") from error


def _of_8_bits(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or RGBA, whose pixels can be averaged."""
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit values, which turns most of a photo white.
        return image.convert("I;16").point(lambda value: value / 257 + 0.5).convert("L")
    if image.mode in ("I", "F"):
        raise PhotoError("error_no_photo")
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
    """The area of a picture that the model sees: left, top, right, bottom, from 0 to 1."""
    resize, crop = recipe["resize"], recipe["crop"]
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
