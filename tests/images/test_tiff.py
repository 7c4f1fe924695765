"""Tests that bands which are no colors are refused by name, never dropped or taken for transparency."""

import numpy as np
import pytest
from mutants import tiff_of

from agritransfer.images.broken_photos import BrokenPhoto
from agritransfer.images.decoding import decode_photo
from pictures import UPRIGHT, encode

GREY, RGB, CMYK = 1, 2, 5
UNKNOWN, PREMULTIPLIED, ALPHA = 0, 1, 2
SIGNED, FLOAT = 2, 3
# The field of the compression.
UNCOMPRESSED, JPEG_2000 = b"\3\1\3\0\1\0\0\0\1\0", b"\3\1\3\0\1\0\0\0\x98\x87"


def values(bands: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 100, size=(6, 8, bands)).astype(dtype)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff_of(values(4), RGB), "4 bands, 1 of them neither a color nor transparency; convert it to RGB"),
        (tiff_of(values(4), RGB, [UNKNOWN]), "4 bands, 1 of them neither a color nor transparency; convert it to RGB"),
        (tiff_of(values(5), RGB), "5 bands, 2 of them neither a color nor transparency; convert it to RGB"),
        (tiff_of(values(5), RGB, [UNKNOWN] * 2), "5 bands, 2 of them neither"),
        (tiff_of(values(5, np.uint16), RGB, [UNKNOWN] * 2), "5 bands, 2 of them neither"),
        (tiff_of(values(5), RGB, [ALPHA, UNKNOWN]), "5 bands, 1 of them neither"),
        (tiff_of(values(5), GREY, [UNKNOWN] * 4), "5 bands, 4 of them neither"),
        (tiff_of(values(13, np.uint16), GREY), "13 bands, 12 of them neither"),
        (tiff_of(values(2), GREY), "2 bands, 1 of them neither"),
        (tiff_of(values(5), CMYK, [UNKNOWN]), "5 bands, 1 of them neither"),
        (tiff_of(values(3, np.float32), RGB, kind=FLOAT), "3 bands of 32-bit floating-point numbers, whose range is"),
        (tiff_of(values(1, np.float32), GREY, kind=FLOAT), "1 band of 32-bit floating-point numbers"),
        (tiff_of(values(5, np.float32), RGB, kind=FLOAT), "5 bands of 32-bit floating-point numbers"),
        (tiff_of(values(1, np.float64), GREY, kind=FLOAT), "1 band of 64-bit floating-point numbers"),
        (tiff_of(values(1, np.int16), GREY, kind=SIGNED), "1 band of 16-bit signed numbers"),
        (tiff_of(values(1, np.int8), GREY, kind=SIGNED), "1 band of 8-bit signed numbers"),
        (tiff_of(values(3, np.uint32), RGB), "3 bands of 32-bit whole numbers"),
        (tiff_of(values(2, np.uint16), GREY, [ALPHA]), "TIFF with 2 bands of 16 bits that cannot be read"),
        (encode(UPRIGHT.convert("YCbCr"), "TIFF"), "uncompressed YCbCr colors; convert it to RGB"),
        (
            encode(UPRIGHT, "TIFF").replace(b"\3\1\3\0\1\0\0\0\1\0", b"\3\1\3\0\1\0\0\0\x98\x87"),
            "TIFF compression 34712",
        ),
    ],
)
def test_a_tiff_that_is_no_photo_is_refused_by_what_it_is(content, reason):
    with pytest.raises(BrokenPhoto) as error:
        decode_photo(content)
    assert str(error.value).startswith(reason) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "first"),
    [
        (tiff_of(values(3), RGB), None),
        (tiff_of(values(3, np.uint16) * 257, RGB), None),
        (tiff_of(np.full((6, 8, 4), [10, 20, 30, 0], np.uint8), RGB, [ALPHA]), [255, 255, 255]),
        (tiff_of(np.full((6, 8, 4), [10, 20, 30, 255], np.uint8), RGB, [PREMULTIPLIED]), [10, 20, 30]),
        (tiff_of(np.full((6, 8, 2), [10, 255], np.uint8), GREY, [ALPHA]), [10, 10, 10]),
        (tiff_of(np.full((6, 8, 4), [255, 0, 0, 0], np.uint8), CMYK), [0, 255, 255]),
    ],
)
def test_colors_and_transparency_are_read(content, first):
    expected = values(3)[0, 0].tolist() if first is None else first
    assert np.asarray(decode_photo(content))[0, 0].tolist() == expected
