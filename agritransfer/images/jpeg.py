"""How is a JPEG opened whose metadata is so damaged that Pillow takes it for no photo?"""

import io

from PIL import Image

APP1, APP2, APP15, START_OF_SCAN = b"\xe1", b"\xe2", b"\xef", b"\xda"


def open_despite_metadata(content: bytes) -> Image.Image:
    """Open a JPEG without its application segments 1 and 2, among them the index of further frames (MPF).

    Its EXIF data is kept to be read later, as far as it can be.
    """
    # Pillow passes over segment 15.
    hidden, exif, place = bytearray(content), b"", 2
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] not in (START_OF_SCAN, b""):
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4])
        if content[place + 1 : place + 2] in (APP1, APP2):
            hidden[place + 1 : place + 2] = APP15
            if content.startswith(b"Exif\0\0", place + 4):
                exif = content[place + 4 : end]
        place = end
    image = Image.open(io.BytesIO(hidden), formats=["JPEG"])
    image.info["exif"] = exif
    return image
