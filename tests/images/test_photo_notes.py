"""Tests that what a reader of the audit should know of a photo is noted."""

import numpy as np
import pytest
from mutants import photos_of_every_kind, png_of_16_bits, tiff_of
from PIL import Image

from agritransfer.images.decoding import decode_photo
from agritransfer.images.photo_notes import brightness_notes, file_notes
from pictures import UPRIGHT, encode

GREY, RGB = 1, 2
PNG_GREY, PNG_RGB, PNG_RGBA = 0, 2, 6
KINDS = photos_of_every_kind()
DEPTH = "16 bits per channel, scaled to 8"


def ramp(most: int, channels: int) -> np.ndarray:
    """Values from 0 to `most`: uint16 (4, 8, channels)."""
    return np.linspace(0, most, 4 * 8 * channels).astype(np.uint16).reshape(4, 8, channels)


ENCODED = {
    "TIFF, RGB": lambda most: tiff_of(ramp(most, 3), RGB),
    "TIFF, grey": lambda most: tiff_of(ramp(most, 1), GREY),
    "TIFF, grey, big-endian": lambda most: encode(Image.fromarray(ramp(most, 1)[:, :, 0].astype(">u2")), "TIFF"),
    "PNG, RGB": lambda most: png_of_16_bits(ramp(most, 3), PNG_RGB),
    "PNG, grey": lambda most: png_of_16_bits(ramp(most, 1), PNG_GREY),
    # Transparency is no brightness.
    "PNG, RGBA": lambda most: png_of_16_bits(
        np.concatenate([ramp(most, 3), np.full((4, 8, 1), 65535, np.uint16)], axis=2), PNG_RGBA
    ),
}


@pytest.mark.parametrize(
    ("most", "bits"),
    [(255, 8), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16383, 14), (16384, None), (65535, None)],
)
@pytest.mark.parametrize("kind", ENCODED)
def test_the_bits_of_a_16_bit_photo_are_noted_and_how_many_it_uses(kind, most, bits):
    notes = file_notes(ENCODED[kind](most), "leaf")
    used = () if bits is None else (f"values of at most {bits} of 16 bits, so too dark here (scale them to 16 bits)",)
    assert notes == (DEPTH, *used)


def test_grey_of_12_bits_that_says_so_is_not_called_dark():
    packed = np.full((4, 12, 1), 0x11, np.uint8)
    assert file_notes(tiff_of(packed, GREY, bits=12), "leaf.tif") == ("12 bits per channel, scaled to 8",)


def test_frames_that_are_not_used_are_noted_but_not_what_phones_store_beside_a_photo():
    noted = {kind: [note for note in file_notes(of, "leaf") if "frames" in note] for kind, of in KINDS.items()}
    assert {kind for kind, notes in noted.items() if notes} == {"PNG, animated", "WEBP, animated"}
    two_pages = encode(UPRIGHT, "TIFF", save_all=True, append_images=[UPRIGHT])
    assert file_notes(two_pages, "leaf.tif") == ("2 frames, of which the first is used",)


def test_the_position_is_noted_in_every_format_that_has_exif_data():
    placed = {kind for kind, content in KINDS.items() if any("GPS" in note for note in file_notes(content, "leaf"))}
    assert placed == {kind for kind in KINDS if kind.split(",")[0] in ("JPEG", "MPO", "PNG", "WEBP", "HEIF")} - {
        "PNG, 16 bits"
    }


@pytest.mark.parametrize(
    ("pixels", "note"),
    [
        (np.full((60, 60), 15), "nearly black pixels only (look at them)"),
        (np.full((60, 60), 250), "nearly white pixels only (look at them)"),
        (np.pad(np.full((20, 20), 120), 20), None),
        (np.pad(np.full((20, 20), 120), 20, constant_values=255), None),
    ],
    ids=["black", "white", "leaf on black", "leaf on white"],
)
def test_photos_that_show_nothing_are_noted(pixels, note):
    look = np.asarray(decode_photo(encode(Image.fromarray(pixels.astype(np.uint8)), "PNG")).convert("L"))
    assert brightness_notes(look) == (() if note is None else (note,))
