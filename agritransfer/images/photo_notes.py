"""What is unusual about a photo that can be used? Notes for the audit, each phrased to follow "5 photos with ..."."""

from pathlib import Path

import numpy as np
from PIL import Image

from agritransfer.images.broken_photos import BrokenPhoto, reasons_in_one_line
from agritransfer.images.decoding import FORMAT_OF_SUFFIX, bits_per_channel, opened_photo
from agritransfer.images.exif import has_position, orientation

# Bits of a sensor that may lie unscaled in 16 bits.
SENSOR_BITS = (8, 10, 12, 14)
# A photo is nearly black if no part of it is brighter, nearly white if no part is darker (of 255).
BLACK_UP_TO, WHITE_FROM = 31, 224


def file_notes(content: bytes, name: str) -> tuple[str, ...]:
    """Notes on the file of a photo that can be decoded."""
    with opened_photo(content) as image:
        notes = []
        expected = FORMAT_OF_SUFFIX.get(Path(name).suffix.lower(), image.format)
        if image.format not in (expected, "MPO"):
            notes.append(f"{image.format} content but the suffix {Path(name).suffix}")
        if (frames := _frames(image)) > 1:
            notes.append(f"{frames} frames, of which the first is used")
        if image.mode == "CMYK":
            notes.append("CMYK colors, converted to RGB")
        if (bits := bits_per_channel(image)) > 8:
            notes.append(f"{bits} bits per channel, scaled to 8")
        if bits == 16 and (used := next((few for few in SENSOR_BITS if _largest(image) < 2**few), None)):
            notes.append(f"values of at most {used} of 16 bits, so too dark here (scale them to 16 bits)")
        if orientation(image) is None:
            notes.append("EXIF data that cannot be read, used as stored (check that they are upright)")
        if has_position(image):
            notes.append("a GPS position in the EXIF data (remove it before sharing)")
        return tuple(notes)


def brightness_notes(look: np.ndarray) -> tuple[str, ...]:
    """Notes on the grey levels of a photo's thumbnail, uint8."""
    if look.max() <= BLACK_UP_TO:
        return ("nearly black pixels only (look at them)",)
    if look.min() >= WHITE_FROM:
        return ("nearly white pixels only (look at them)",)
    return ()


def _frames(image: Image.Image) -> int:
    # The second frame of an MPO or HEIC file is what phones store beside each photo, such as its depth.
    if image.format not in ("PNG", "WEBP", "TIFF"):
        return 1
    try:
        with reasons_in_one_line():
            return image.n_frames
    except BrokenPhoto:
        return 1


def _largest(image: Image.Image) -> int:
    """The largest value of the colors of a photo with 16 bits per channel, decoded here."""
    image.load()
    if image.mode.startswith("I;16"):
        return int(np.asarray(image).max())
    # Of 16-bit colors, Pillow keeps the upper 8 bits.
    return 256 * max(high for _, high in image.getextrema()[:3]) + 255
