"""Which TIFF files are photos? Those with colors and transparency only, in whole numbers of at most 16 bits."""

from typing import BinaryIO

from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    COMPRESSION_INFO,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    PREFIXES,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    ImageFileDirectory_v2,
)

from agritransfer.wording import counted

BIG_TIFF, UNCOMPRESSED = 43, 1
WHITE_IS_ZERO, RGB, CMYK, YCBCR, LAB = 0, 2, 5, 6, 8
# Bands of the colors; grey and palettes have one.
BANDS = {RGB: 3, CMYK: 4, YCBCR: 3, LAB: 3}
# Values of ExtraSamples for transparency; the last one is Corel Draw's.
TRANSPARENCY = {1, 2, 999}
NUMBERS = {1: "whole numbers", 2: "signed numbers", 3: "floating-point numbers"}
MOST_BITS = 16


def tiff_fault(file: BinaryIO) -> str | None:
    """Why an opened TIFF file is not a photo, from its tags; None if it is one or no TIFF at all.

    Pillow would drop the bands that it does not know, or take near infrared for transparency.
    """
    tags = _tags(file)
    if tags is None:
        return None
    compression = tags.get(COMPRESSION, UNCOMPRESSED)
    if compression not in COMPRESSION_INFO:
        return f"TIFF compression {compression} cannot be read; save it as PNG"
    colors = tags.get(PHOTOMETRIC_INTERPRETATION, WHITE_IS_ZERO)
    if (colors, compression) == (YCBCR, UNCOMPRESSED):
        return "uncompressed YCbCr colors; convert it to RGB"
    bands, bits = tags.get(SAMPLESPERPIXEL, 1), max(tags.get(BITSPERSAMPLE, (1,)))
    kind = max(tags.get(SAMPLEFORMAT, (1,)))
    if kind != 1 or bits > MOST_BITS:
        numbers = NUMBERS.get(kind, "numbers of an unknown kind")
        return f"{counted(bands, 'band')} of {bits}-bit {numbers}, whose range is unknown; convert it to 8-bit RGB"
    transparent = any(extra in TRANSPARENCY for extra in tags.get(EXTRASAMPLES, ()))
    if (others := bands - BANDS.get(colors, 1) - transparent) > 0:
        return f"{bands} bands, {others} of them neither a color nor transparency; convert it to RGB"
    return None


def tiff_layout(file: BinaryIO) -> str | None:
    """The bands of an opened TIFF file in words; None if it is no TIFF."""
    tags = _tags(file)
    if tags is None:
        return None
    return f"TIFF with {counted(tags.get(SAMPLESPERPIXEL, 1), 'band')} of {max(tags.get(BITSPERSAMPLE, (1,)))} bits"


def _tags(file: BinaryIO) -> ImageFileDirectory_v2 | None:
    file.seek(0)
    header = file.read(8)
    if not header.startswith(tuple(PREFIXES)):
        return None
    if header[2] == BIG_TIFF:
        header += file.read(8)
    tags = ImageFileDirectory_v2(header)
    file.seek(tags.next)
    tags.load(file)
    return tags
