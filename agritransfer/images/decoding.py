"""How does a file become an upright RGB photo?"""

import ctypes
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pillow_heif
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from agritransfer.images.broken_photos import BrokenPhoto, reasons_in_one_line
from agritransfer.images.exif import forget_other_fields, turned_upright
from agritransfer.images.jpeg import open_despite_metadata
from agritransfer.images.tiff import WHITE_IS_ZERO, tiff_fault, tiff_layout

pillow_heif.register_heif_opener()


# Pillow opens MPO, which phones write, as JPEG, and has no opener of that name.
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF")
FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif"), "HEIF"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
# Enough for the 50 million pixels of phones, whose decoding takes 0.4 to 0.8 GB. Checked in the header, since a small
# file can decompress to gigabytes.
MAX_PIXELS = 64_000_000
# A strip of one by a million pixels would be enlarged to gigabytes, since its shorter side is resized to the model's.
MAX_ASPECT = 100
# The size box of each image of a HEIC file: its length, its name, a version, width and height. Pillow knows the size
# after cropping alone, and the decoder allocates what is cropped.
HEIC_SIZE = re.compile(rb"\x00\x00\x00\x14ispe\x00\x00\x00\x00(.{4})(.{4})", re.DOTALL)
# Pillow warns from 89 million pixels on; our refusal says enough.
warnings.simplefilter("error", Image.DecompressionBombWarning)
# What it says of damaged metadata, none of which is used, names no file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
# Nor do the lines of libtiff, for which Pillow has no switch; where it is linked in another way, they stay.
with suppress(OSError, AttributeError):
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def decode_photo(photo: str | Path | bytes, least_side: int | None = None) -> Image.Image:
    """Decode a file or its bytes to an upright RGB image.

    With `least_side`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep that many pixels.
    16-bit photos are scaled to 8 bits, transparent ones composited on white; of several frames, the first is used.
    Raises `BrokenPhoto`, with the reason in one line, for a file that is not a complete photo.
    """
    with opened_photo(photo) as image:
        # A draft of a HEIC would be its preview.
        if least_side is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (least_side, least_side))
        if image.format == "TIFF":
            # Pillow reads all fields of a TIFF while it loads it, and turns it.
            forget_other_fields(image)
        bits = bits_per_channel(image)
        image.load()
        upright = turned_upright(image)
        if upright.mode.startswith("I;16"):
            is_negative = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION, 0) == WHITE_IS_ZERO
            upright = _grey_of_8_bits(upright, 2**bits - 1, is_negative)
        return _as_rgb(upright)


@contextmanager
def opened_photo(photo: str | Path | bytes) -> Iterator[Image.Image]:
    """A file or its bytes, opened and checked by its header but not decoded.

    Whatever a decoder raises in the block is raised as `BrokenPhoto`.
    """
    with reasons_in_one_line(), io.BytesIO(photo) if isinstance(photo, bytes) else Path(photo).open("rb") as file:
        if (fault := tiff_fault(file)) is not None:
            raise BrokenPhoto(fault)
        with _opened(file) as image:
            _check_size(image, file)
            yield image


def _opened(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=PHOTO_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenPhoto(f"over {MAX_PIXELS // 10**6} million pixels; resize it") from error
    except (UnidentifiedImageError, KeyError, OverflowError) as error:
        file.seek(0)
        content = file.read()
        with suppress(UnidentifiedImageError):
            return open_despite_metadata(content)
        if (layout := tiff_layout(file)) is not None:
            raise BrokenPhoto(f"{layout} that cannot be read; convert it to 8-bit RGB") from error
        raise BrokenPhoto(f"not a photo in any of the formats {', '.join(PHOTO_FORMATS)}") from error


def _check_size(image: Image.Image, file: BinaryIO) -> None:
    sizes = [image.size]
    if image.format == "HEIF":
        file.seek(0)
        sizes += [tuple(int.from_bytes(side) for side in sides) for sides in HEIC_SIZE.findall(file.read())]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    if width * height > MAX_PIXELS:
        raise BrokenPhoto(f"{width} x {height} is over {MAX_PIXELS // 10**6} million pixels; resize it")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BrokenPhoto(f"{image.width} x {image.height} is over {MAX_ASPECT} times as long as wide; crop it")


def bits_per_channel(image: Image.Image) -> int:
    """The bits of each channel of an opened photo, from its header; at least 8."""
    if image.format == "TIFF":
        return max(8, *image.tag_v2.get(BITSPERSAMPLE, (1,)))
    if image.format == "HEIF":
        return image.info["bit_depth"]
    # The name of the layout that is decoded, such as RGB;16B.
    return 16 if any(";16" in str(tile.args) for tile in image.tile) else 8


def _grey_of_8_bits(image: Image.Image, white: int, is_negative: bool) -> Image.Image:
    # Pillow would clip 16 bits to 8, which turns most of a photo white, and does not turn negatives.
    shares = np.asarray(image) / np.float32(white)
    return Image.fromarray((255 * (1 - shares if is_negative else shares)).round().astype(np.uint8))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    # Pillow would copy the whole photo even if nothing changes.
    return image if image.mode == "RGB" else image.convert("RGB")
