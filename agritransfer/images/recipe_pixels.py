"""How is a photo preprocessed for an exported model? By its preprocessing recipe, without torch."""

from typing import Any

import numpy as np
from PIL import Image


def recipe_pixels(image: Image.Image, recipe: dict[str, Any]) -> np.ndarray:
    """The pixels of an upright RGB photo, resized and cropped by the recipe of an export: uint8 (3, side, side).

    They differ from those of the model's image processor by at most two of 256 levels, because Pillow rounds
    differently.
    """
    resize, crop = recipe["resize"], recipe["crop"]
    if isinstance(resize, int):
        shorter = min(image.size)
        width, height = (resize if side == shorter else int(resize * side / shorter) for side in image.size)
    else:
        height, width = resize
    resized = image.resize((width, height), Image.Resampling[recipe["resample"].upper()])
    if crop is not None:
        resized = _center_crop(resized, crop, round_to_even=recipe["odd_pixel"] == "even")
    return np.asarray(resized).transpose(2, 0, 1)


def _center_crop(image: Image.Image, side: int, round_to_even: bool) -> Image.Image:
    """The center crop; half a pixel of an odd margin is rounded down, or to the even number with `round_to_even`."""
    left, top = ((length - side) / 2 for length in image.size)
    left, top = (round(edge) if round_to_even else int(edge) for edge in (left, top))
    return image.crop((left, top, left + side, top + side))


def normalize(pixels: np.ndarray, recipe: dict[str, Any]) -> np.ndarray:
    """Normalize pixels (batch, 3, side, side) from 0 to 255 for the model: float32."""
    mean, std = (np.array(recipe[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return (pixels.astype(np.float32) - mean) / std
