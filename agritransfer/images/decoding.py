"""How does a file become an upright RGB photo?"""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

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
# Pillow warns from 89 million pixels on; our refusal says enough.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def decode_photo(photo: str | Path | bytes, least_side: int | None = None) -> Image.Image:
    """Decode a file or its bytes to an upright RGB image.

    With `least_side`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep that many pixels.
    16-bit photos are scaled to 8 bits, transparent ones composited on white; of several frames, the first is used.
    Raises `OSError` or `ValueError`, with the reason, for a file that is not a complete photo.
    """
    source = io.BytesIO(photo) if isinstance(photo, bytes) else photo
    limit = f"over {MAX_PIXELS // 10**6} million pixels; resize it"
    try:
        with Image.open(source, formats=PHOTO_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} is {limit}")
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        # Pillow's own message contains a memory address.
        raise ValueError(f"not a photo in any of the formats {', '.join(PHOTO_FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(limit) from error
    except (SyntaxError, struct.error, EOFError) as error:
        # Raised for a damaged chunk of a PNG, for damaged EXIF data and for truncated HEIC.
        raise ValueError(str(error)) from error


def file_notes(content: bytes, name: str) -> tuple[str, ...]:
    """Notes from the header of a photo, each phrased to follow "5 photos with ..."."""
    with Image.open(io.BytesIO(content), formats=PHOTO_FORMATS) as image:
        notes = []
        expected = FORMAT_OF_SUFFIX.get(Path(name).suffix.lower(), image.format)
        if image.format not in (expected, "MPO"):
            notes.append(f"{image.format} content but the suffix {Path(name).suffix}")
        if image.mode.startswith("I;16"):
            notes.append("16 bits per channel, scaled to 8")
        if image.mode == "CMYK":
            notes.append("CMYK colors, converted to RGB")
        if image.getexif().get_ifd(ExifTags.IFD.GPSInfo):
            notes.append("a GPS position in the EXIF data (remove it before sharing)")
        return tuple(notes)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits to 8, which turns most of a photo white.
        return Image.fromarray((np.asarray(image) / np.float32(257)).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    # Pillow would copy the whole photo even if nothing changes.
    return image if image.mode == "RGB" else image.convert("RGB")
