"""Small photos of every kind that is read, and damaged copies of them."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pillow_heif
from PIL import ExifTags, Image

from pictures import encode, noise

pillow_heif.register_heif_opener()

# Numbers at which decoders count wrong: sizes, offsets and counts at the ends of their ranges.
EDGES = [0, 1, 2, *(2**bits + step for bits in (7, 8, 15, 16, 31, 32, 63, 64) for step in (-1, 0))]


def phone_exif(orientation: int = 6) -> Image.Exif:
    """EXIF data as phones write it: text, fractions, a nested directory and a position."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Phone", orientation
    exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = 72.0, 72.0
    exif[ExifTags.Base.ResolutionUnit] = 2
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.01
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0leaf"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (0.0, 30.0, 12.5)
    return exif


def exif_block(*fields: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of fields as they lie in a file: tag, type, count, and the value or its place in four bytes."""
    entries = (struct.pack(">HHL", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in fields)
    return b"Exif\0\0MM\0*" + struct.pack(">LH", 8, len(fields)) + b"".join(entries) + bytes(4)


def png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each chunk of a PNG, as far as its lengths lead."""
    place = 8
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4])
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        place += length + 12


def png_of(chunks: Iterator[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, each with the right checksum."""
    parts = (struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of_16_bits(rows: np.ndarray, color: int) -> bytes:
    """A PNG of 16 bits from values (height, width, channels); `color` is its color type."""
    height, width = rows.shape[:2]
    pixels = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")])


def tiff_of(values: np.ndarray, photometric: int, extra: list[int] = (), bits: int = 0, kind: int = 1) -> bytes:
    """An uncompressed TIFF from values (height, width, bands); `extra` are its ExtraSamples, `kind` its SampleFormat.

    `bits` are needed for packed values, whose array holds the bytes of each row.
    """
    height, width, bands = values.shape
    width = width * 8 // bits if bits else width
    bits = bits or 8 * values.itemsize
    pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    fields = {256: ("L", [width]), 257: ("L", [height]), 258: ("H", [bits] * bands), 259: ("H", [1])}
    fields |= {262: ("H", [photometric]), 273: ("L", [0]), 277: ("H", [bands]), 278: ("L", [height])}
    fields |= {279: ("L", [len(pixels)])}
    fields |= {} if not extra else {338: ("H", extra)}
    fields |= {} if kind == 1 else {339: ("H", [kind] * bands)}
    start = 8 + 2 + 12 * len(fields) + 4
    # The pixels come first, so that their place is known.
    outside, entries = pixels, b""
    for tag, (letter, numbers) in fields.items():
        content = struct.pack(f"<{len(numbers)}{letter}", *([start] if tag == 273 else numbers))
        if len(content) > 4:
            outside, content = outside + content, struct.pack("<L", start + len(outside))
        entries += struct.pack("<HHL", tag, {"H": 3, "L": 4}[letter], len(numbers)) + content.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<LH", 8, len(fields)) + entries + bytes(4) + outside


def photos_of_every_kind() -> dict[str, bytes]:
    """Photos of 40 x 30 pixels in all formats that are read, most of them with EXIF data."""
    photo, exif = noise(40, 30), phone_exif()
    other = noise(40, 30, seed=1)
    values = np.random.default_rng(0).integers(2**16, size=(30, 40, 3), dtype=np.uint16)
    return {
        "JPEG": encode(photo, "JPEG", exif=exif),
        "JPEG, no JFIF": without_jfif(encode(photo, "JPEG", exif=exif)),
        "JPEG, progressive": encode(photo, "JPEG", exif=exif, progressive=True),
        "JPEG, CMYK": encode(photo.convert("CMYK"), "JPEG", exif=exif),
        "MPO": encode(photo, "MPO", exif=exif, save_all=True, append_images=[other]),
        "PNG": encode(photo, "PNG", exif=exif),
        "PNG, palette": encode(photo.quantize(16), "PNG", transparency=3, exif=exif),
        "PNG, animated": encode(photo, "PNG", exif=exif, save_all=True, append_images=[other]),
        "PNG, 16 bits": png_of_16_bits(values, 2),
        "WEBP": encode(photo, "WEBP", exif=exif),
        "WEBP, transparent": encode(photo.convert("RGBA"), "WEBP", lossless=True, exif=exif),
        "WEBP, animated": encode(photo, "WEBP", exif=exif, save_all=True, append_images=[other]),
        "BMP": encode(photo, "BMP"),
        "BMP, palette": encode(photo.quantize(16), "BMP"),
        "TIFF": encode(photo, "TIFF", exif=exif),
        "TIFF, 16 bits": tiff_of(values, 2),
        **{
            f"TIFF, {compression}": encode(photo, "TIFF", exif=exif, compression=compression)
            for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        },
        "TIFF, fax": encode(photo.convert("1"), "TIFF", compression="group4"),
        # Of EXIF bytes, not of the object, pillow-heif takes the orientation.
        "HEIF": encode(photo, "HEIF", exif=exif.tobytes()),
        "HEIF, transparent": encode(photo.convert("RGBA"), "HEIF", exif=exif.tobytes()),
        "HEIF, tiles": encode(noise(96, 80), "HEIF", exif=exif.tobytes(), tile_size=64),
    }


def without_jfif(jpeg: bytes) -> bytes:
    """As cameras write it; only then does Pillow look for the resolution in the EXIF data."""
    length = int.from_bytes(jpeg[4:6])
    return jpeg[:2] + jpeg[4 + length :]


def mutant(content: bytes, random: np.random.Generator) -> bytes:
    """A damaged copy of a photo: bytes, numbers or whole parts of it are changed, most often in its header."""
    damaged = bytearray(content)
    header = min(len(content), 600)
    for _ in range(random.integers(1, 5)):
        place = int(random.integers(header if random.random() < 0.7 else len(content)))
        match random.integers(8):
            case 0 | 1 | 2:
                damaged[place : place + 1] = random.bytes(1)
            case 3 | 4 | 5:
                width = int(random.choice([1, 2, 4, 8]))
                number = EDGES[random.integers(len(EDGES))] % 256**width
                damaged[place : place + width] = number.to_bytes(width, str(random.choice(["big", "little"])))
            case 6:
                del damaged[place : place + int(random.integers(1, 40))]
            case 7 if random.random() < 0.2:
                del damaged[place:]
            case _:
                part = damaged[place : place + int(random.integers(1, 40))]
                damaged[place:place] = part
    # A PNG with a wrong checksum would be refused for that alone.
    return png_of(png_chunks(bytes(damaged))) if content.startswith(b"\x89PNG") else bytes(damaged)
