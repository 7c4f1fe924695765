"""Tests that a photo is decoded as people see it and that the model sees the pixels of its own image processor."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from mutants import tiff_of
from PIL import Image

from agritransfer.images.broken_photos import BrokenPhoto
from agritransfer.images.decoding import decode_photo
from pictures import UPRIGHT, encode, noise

# How a camera that was held so stores the upright photo: the inverse of what each EXIF orientation asks for.
AS_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def difference(photo: Image.Image, expected: Image.Image) -> float:
    """Mean absolute difference of two photos of one size, in steps of 8 bits."""
    assert photo.mode == "RGB"
    assert photo.size == expected.size
    return np.abs(np.asarray(photo).astype(float) - np.asarray(expected.convert("RGB"))).mean()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "HEIF"])
def test_every_exif_orientation_gives_the_same_upright_photo(file_format, orientation):
    stored = UPRIGHT.transpose(AS_STORED[orientation]) if orientation in AS_STORED else UPRIGHT
    exif = Image.Exif()
    exif[0x0112] = orientation
    frames = {"save_all": True, "append_images": [stored]} if file_format == "MPO" else {}
    # A HEIC says twice how it is turned, in its own words and in the EXIF data.
    content = encode(stored, file_format, exif=exif.tobytes(), **frames)
    assert difference(decode_photo(content), UPRIGHT) < 5


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF"])
def test_the_formats_of_phones_and_scanners_are_read_from_bytes_and_from_files(file_format, tmp_path):
    content = encode(UPRIGHT, file_format)
    (tmp_path / "leaf").write_bytes(content)
    assert difference(decode_photo(content), UPRIGHT) < 5
    assert difference(decode_photo(tmp_path / "leaf"), UPRIGHT) < 5
    assert difference(decode_photo(str(tmp_path / "leaf")), UPRIGHT) < 5


def test_cmyk_and_grey_photos_become_rgb():
    assert difference(decode_photo(encode(UPRIGHT.convert("CMYK"), "JPEG", quality=95)), UPRIGHT) < 5
    assert difference(decode_photo(encode(UPRIGHT.convert("L"), "PNG")), UPRIGHT.convert("L")) == 0
    assert difference(decode_photo(encode(UPRIGHT.convert("1"), "PNG")), UPRIGHT.convert("1")) == 0


def test_what_is_transparent_is_white_and_never_shows_its_hidden_colour():
    white = Image.new("RGB", (8, 8), "white")
    hidden = {
        "RGBA": encode(Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "PNG"),
        "RGBA WebP": encode(Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "WEBP", lossless=True, exact=True),
        "LA": encode(Image.new("LA", (8, 8), (40, 0)), "PNG"),
        "L": encode(Image.new("L", (8, 8), 40), "PNG", transparency=40),
        "RGB": encode(Image.new("RGB", (8, 8), (200, 0, 0)), "PNG", transparency=(200, 0, 0)),
        "P": encode(Image.new("RGB", (8, 8), (200, 0, 0)).quantize(4), "PNG", transparency=0),
    }
    assert {mode: difference(decode_photo(content), white) for mode, content in hidden.items()} == dict.fromkeys(
        hidden, 0
    )
    half = decode_photo(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"))
    assert np.asarray(half)[0, 0].tolist() == [127, 127, 127]
    opaque = decode_photo(encode(Image.new("RGB", (8, 8), (200, 0, 0)).quantize(4), "PNG"))
    assert np.asarray(opaque)[0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_photos_are_scaled_and_not_clipped(file_format, byte_order):
    values = np.array([[0, 257, 32896, 51400, 65278, 65535]], dtype=byte_order)
    photo = decode_photo(encode(Image.fromarray(values), file_format))
    assert np.asarray(photo)[0].tolist() == [[v] * 3 for v in (0, 1, 128, 200, 254, 255)]


@pytest.mark.parametrize("file_format", ["MPO", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(file_format):
    content = encode(UPRIGHT, file_format, save_all=True, append_images=[Image.new("RGB", UPRIGHT.size)])
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.n_frames) == (file_format, 2)
    assert difference(decode_photo(content), UPRIGHT) < 5


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF"])
def test_a_truncated_photo_is_refused_wherever_it_ends(file_format):
    content = encode(noise(60, 40), file_format)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(BrokenPhoto):
            decode_photo(content[: int(share * len(content))])


@pytest.mark.parametrize("content", [b"", b"a text file\n", encode(UPRIGHT, "GIF")], ids=["empty", "text", "gif"])
def test_what_is_no_photo_is_refused_with_the_allowed_formats(content):
    with pytest.raises(BrokenPhoto, match="not a photo in any of the formats JPEG, PNG, WEBP, BMP, TIFF, HEIF"):
        decode_photo(content)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def bmp_that_claims(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


@pytest.mark.parametrize("size", [(8000, 8001), (12_000, 12_000), (60_000, 60_000)])
@pytest.mark.parametrize("claim", [png_that_claims, bmp_that_claims])
def test_a_photo_over_64_million_pixels_is_refused_from_its_header(claim: Callable, size: tuple[int, int]):
    content = claim(*size)
    images_made = Image.core.get_stats()["new_count"]
    with pytest.raises(BrokenPhoto, match="over 64 million pixels; resize it"):
        decode_photo(content)
    assert Image.core.get_stats()["new_count"] == images_made


@pytest.mark.parametrize("size", [(8000, 6000), (8160, 6120), (8000, 8000)], ids=["48 Mpx", "50 Mpx", "64 Mpx"])
def test_a_photo_of_a_phone_is_not_too_large(size, monkeypatch):
    # The Space, whose tests run in the same process, lowers Pillow's own limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    # Refused as well, but for what it lacks: the pixels that its header promises.
    with pytest.raises(BrokenPhoto, match="truncated"):
        decode_photo(png_that_claims(*size))


def heic_that_claims(width: int, height: int) -> bytes:
    content = bytearray(encode(noise(96, 80), "HEIF", tile_size=64))
    assert content.count(b"ispe") == 2
    # The size of the tiles, which Pillow does not know.
    place = content.rindex(b"ispe") + 8
    content[place : place + 8] = struct.pack(">LL", width, height)
    return bytes(content)


@pytest.mark.parametrize("size", [(20_000, 20_000), (2**24, 64)])
def test_a_heic_whose_tiles_are_too_large_is_refused_from_its_header(size):
    with pytest.raises(BrokenPhoto, match=f"^{size[0]} x {size[1]} is over 64 million pixels; resize it$"):
        decode_photo(heic_that_claims(*size))


def test_a_strip_is_refused_that_would_become_gigabytes_when_its_shorter_side_is_enlarged():
    with pytest.raises(BrokenPhoto, match="^2 x 202 is over 100 times as long as wide; crop it$"):
        decode_photo(encode(Image.new("L", (2, 202)), "PNG"))
    assert decode_photo(encode(Image.new("L", (2, 200)), "PNG")).size == (2, 200)


def test_grey_of_12_bits_and_grey_negatives_keep_their_brightness():
    # Two values of 12 bits in three bytes: black and white.
    packed = np.tile(np.array([[0x00, 0x0F, 0xFF]], np.uint8), (4, 4))[:, :, None]
    assert np.asarray(decode_photo(tiff_of(packed, 1, bits=12)))[0, :2, 0].tolist() == [0, 255]
    negative = np.full((4, 4, 1), 65535 - 257, np.uint16)
    assert np.asarray(decode_photo(tiff_of(negative, 0)))[0, 0, 0] == 1


def test_a_reduced_photo_is_never_a_preview_in_the_file():
    with_preview = encode(Image.linear_gradient("L").convert("RGB"), "HEIF", thumbnails=[128])
    with Image.open(io.BytesIO(with_preview)) as image:
        assert image.info["thumbnails"]
    assert decode_photo(with_preview, least_side=50).size == (256, 256)


def run_alone(code: str, folder: Path) -> subprocess.CompletedProcess:
    """What a process of its own says that runs this code in a folder."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.script
def test_nothing_but_the_refusal_is_said_of_a_photo_of_which_pillow_would_warn(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(12_000, 12_000))
    code = (
        "from agritransfer.images.decoding import decode_photo\n"
        "try:\n    decode_photo('bomb.png')\nexcept ValueError as error:\n    print(error)"
    )
    said = run_alone(code, tmp_path)
    assert (said.stdout, said.stderr) == ("over 64 million pixels; resize it\n", "")


@pytest.mark.slow
def test_a_photo_of_50_million_pixels_is_decoded_in_two_copies(tmp_path):
    Image.linear_gradient("L").resize((8160, 6120)).convert("RGB").save(tmp_path / "leaf.jpg", quality=60)
    code = (
        "import resource\nfrom agritransfer.images.decoding import decode_photo\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nphoto = decode_photo('leaf.jpg')\n"
        "print(*photo.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    said = run_alone(code, tmp_path)
    width, height, megabytes = map(int, said.stdout.split())
    # Pillow keeps four bytes per pixel.
    assert (width, height) == (8160, 6120) and megabytes < 450
