"""What is read of a photo's EXIF data? Only its orientation, and whether there is a position."""

from PIL import ExifTags, Image

from agritransfer.images.broken_photos import BrokenPhoto, reasons_in_one_line

ORIENTATION, GPS = ExifTags.Base.Orientation, ExifTags.IFD.GPSInfo
# How a photo is turned upright that was stored with each orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of an opened photo, from 1 to 8; 1 if it has none, None if it cannot be read."""
    try:
        with reasons_in_one_line():
            exif = image.getexif()
            found = exif.get(ORIENTATION, 1)
    except BrokenPhoto:
        return None
    # Pillow has read the block of a JPEG before, and an unreadable one leaves an object without its byte order.
    if image.info.get("exif") and exif.endian is None:
        return None
    # Some cameras write 0 for "not known", which viewers take for 1.
    return 1 if found == 0 else found if found in range(1, 9) else None


def turned_upright(image: Image.Image) -> Image.Image:
    """A decoded photo turned by its orientation, or itself.

    Unlike `ImageOps.exif_transpose`, no other field is read or written, any of which may be damaged.
    """
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def forget_other_fields(image: Image.Image) -> None:
    """Remove all EXIF fields but the orientation from an opened photo, so that none of them is read."""
    is_readable = orientation(image) is not None
    # The object that Pillow keeps, even where it could read only a part.
    exif = image.getexif()
    for tag in list(exif):
        if tag != ORIENTATION or not is_readable:
            del exif[tag]


def has_position(image: Image.Image) -> bool:
    """Whether the EXIF data of an opened photo has GPS data; True as well if there is some that cannot be read."""
    try:
        with reasons_in_one_line():
            return bool(image.getexif().get_ifd(GPS))
    except BrokenPhoto:
        return GPS in image.getexif()
