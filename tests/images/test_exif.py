"""Tests that a photo is turned upright whatever else stands in its EXIF data."""

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from mutants import exif_block, mutant, phone_exif, without_jfif
from PIL import ExifTags, Image

from agritransfer.images.decoding import decode_photo
from agritransfer.images.photo_notes import file_notes
from pictures import UPRIGHT, encode

TURNED = (ExifTags.Base.Orientation, 3, 1, b"\0\6")
INCHES = (ExifTags.Base.ResolutionUnit, 3, 1, b"\0\2")
BYTE, ASCII, LONG, UNDEFINED, FLOAT = 1, 2, 4, 7, 11

# The EXIF directory lies behind the first one, and its only field says that its value lies outside of the file.
NESTED = exif_block(TURNED, (ExifTags.IFD.Exif, LONG, 1, struct.pack(">L", 38))) + struct.pack(
    ">HHHLL", 1, ExifTags.Base.UserComment, UNDEFINED, 12, 9999
)
DAMAGED = {
    "resolution as text": exif_block(TURNED, (ExifTags.Base.XResolution, ASCII, 4, b"abc"), INCHES),
    "resolution of one letter": exif_block(TURNED, (ExifTags.Base.XResolution, ASCII, 2, b"7"), INCHES),
    "resolution of one byte": exif_block(TURNED, (ExifTags.Base.XResolution, UNDEFINED, 1, b"7"), INCHES),
    "position that is no directory": exif_block(TURNED, (ExifTags.IFD.GPSInfo, ASCII, 4, b"abc")),
    "position outside of the file": exif_block(TURNED, (ExifTags.IFD.GPSInfo, LONG, 1, b"\xff\xff\xff\xff")),
    "nested field outside of the file": NESTED,
    "fields that are missing": exif_block(TURNED).replace(b"\0\x08\0\x01", b"\0\x08\0\x09"),
    "orientation as a long number": exif_block((ExifTags.Base.Orientation, LONG, 1, b"\0\0\0\6")),
    "orientation twice": exif_block((ExifTags.Base.Orientation, 3, 2, b"\0\6\0\1")),
}
FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "JPEG": lambda exif: encode(UPRIGHT, "JPEG", exif=exif),
    "JPEG of a camera": lambda exif: without_jfif(encode(UPRIGHT, "JPEG", exif=exif)),
    "PNG": lambda exif: encode(UPRIGHT, "PNG", exif=exif),
    "WEBP": lambda exif: encode(UPRIGHT, "WEBP", exif=exif),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_damaged_field_loses_neither_the_photo_nor_its_orientation(file_format, damage):
    content = FORMATS[file_format](DAMAGED[damage])
    assert decode_photo(content).size == (32, 48)
    assert isinstance(file_notes(content, "leaf"), tuple)


@pytest.mark.parametrize(
    "orientation",
    [(3, 1, b"\0\x09"), (BYTE, 1, b"\6"), (ASCII, 2, b"6"), (FLOAT, 1, struct.pack(">f", float("nan")))],
    ids=["9", "byte", "text", "nan"],
)
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_photo_whose_orientation_cannot_be_read_is_used_as_stored_with_a_note(file_format, orientation):
    content = FORMATS[file_format](exif_block((ExifTags.Base.Orientation, *orientation)))
    assert decode_photo(content).size == UPRIGHT.size
    assert file_notes(content, "leaf") == (
        "EXIF data that cannot be read, used as stored (check that they are upright)",
    )


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_photo_with_garbage_for_exif_data_is_used_as_stored(file_format):
    content = FORMATS[file_format](b"Exif\0\0garbage")
    assert decode_photo(content).size == UPRIGHT.size
    assert "used as stored" in file_notes(content, "leaf")[0]


def test_an_orientation_of_zero_says_nothing():
    content = encode(UPRIGHT, "JPEG", exif=exif_block((ExifTags.Base.Orientation, 3, 1, b"\0\0")))
    assert decode_photo(content).size == UPRIGHT.size
    assert file_notes(content, "leaf.jpg") == ()


def test_a_damaged_field_of_a_tiff_loses_neither_the_photo_nor_its_orientation():
    exif = phone_exif()
    # Pillow writes the directories of a TIFF only if they are fields as well.
    for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        exif[directory] = exif.get_ifd(directory)
    content = encode(UPRIGHT, "TIFF", exif=exif)
    assert file_notes(content, "leaf.tif") == ("a GPS position in the EXIF data (remove it before sharing)",)
    for place in _directories_of(content):
        for width in (2, 10, 14):
            damaged = bytearray(content)
            damaged[place : place + width] = b"\xff" * width
            assert decode_photo(bytes(damaged)).size == (32, 48)
            file_notes(bytes(damaged), "leaf.tif")


def _directories_of(tiff: bytes) -> list[int]:
    """Where the EXIF and the GPS directory lie."""
    with Image.open(io.BytesIO(tiff)) as image:
        places = [image.tag_v2[directory] for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)]
    assert len(set(places)) == 2
    return places


def test_every_damaged_block_of_exif_data_leaves_the_photo_readable():
    random = np.random.default_rng(0)
    block = phone_exif().tobytes()[6:]
    read = 0
    for _ in range(50):
        damaged = b"Exif\0\0" + mutant(block, random)
        for encoded in FORMATS.values():
            assert decode_photo(encoded(damaged)).mode == "RGB"
            read += 1
    assert read == 200
