"""How is a photo preprocessed for an exported model? By its preprocessing recipe, without torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

# The largest weight that torch's kernel for uint8 images stores, in 16 bits, and the most binary places it keeps.
MOST_WEIGHT, MOST_PLACES = 1 << 15, 22
# New columns that are computed together: more would be hardly faster and take more memory.
AT_ONCE = 8


def recipe_pixels(image: Image.Image, recipe: dict[str, Any]) -> np.ndarray:
    """The pixels of an upright RGB photo, resized and cropped by the recipe of an export: uint8 (3, side, side).

    They equal those of the model's image processor, except on an old CPU (neither AVX2 nor arm64), where torchvision
    rounds bilinear filters differently.
    """
    # Recipes of earlier versions have no padding.
    crop, pad = recipe["crop"], recipe.get("pad")
    width, height = _resized_size(image.size, recipe["resize"], pad, recipe["kernel"])
    # The two round differently.
    if recipe["kernel"] == "torch":
        pixels = _resized(np.asarray(image).transpose(2, 0, 1), width, height, recipe["resample"])
    else:
        resized = image.resize((width, height), Image.Resampling[recipe["resample"].upper()])
        pixels = np.asarray(resized).transpose(2, 0, 1)
    if pad is not None:
        pixels = _padded(pixels, recipe["resize"], pad)
    if crop is not None:
        pixels = _center_crop(pixels, crop, round_to_even=recipe["odd_pixel"] == "even")
    return pixels[[2, 1, 0]] if recipe["channels"] == "bgr" else pixels


def _resized_size(
    size: tuple[int, int], resize: int | list[int], pad: list[int] | None, kernel: str
) -> tuple[int, int]:
    """Width and height after resizing: of the whole square, of its longer side if it is padded, or of its shorter."""
    if not isinstance(resize, int):
        height, width = resize
        return width, height
    if pad is None:
        shorter = min(size)
        width, height = (resize if side == shorter else int(resize * side / shorter) for side in size)
        return width, height
    longer = max(size)
    # Of what differs in the last bit only, one may be rounded up and the other down.
    sides = [side * (resize / longer) if kernel == "torch" else side / (longer / resize) for side in size]
    width, height = (max(1, round(side)) for side in sides)
    return width, height


def _padded(pixels: np.ndarray, side: int, color: list[int]) -> np.ndarray:
    """The photo in the middle of a square of this color; of an odd margin, the extra pixel goes to the right."""
    _, height, width = pixels.shape
    square = np.empty((3, side, side), np.uint8)
    square[:] = np.array(color, np.uint8)[:, None, None]
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = pixels
    return square


def _center_crop(pixels: np.ndarray, side: int, round_to_even: bool) -> np.ndarray:
    """The central square; of an odd margin, the extra pixel goes to the right, or to where `round` puts it."""
    top, left = ((length - side) / 2 for length in pixels.shape[1:])
    top, left = (round(edge) if round_to_even else int(edge) for edge in (top, left))
    return pixels[:, top : top + side, left : left + side]


def _resized(pixels: np.ndarray, width: int, height: int, resample: str) -> np.ndarray:
    """Pixels (3, rows, columns) resized as torch does with antialiasing: in integers, columns first, then rows."""
    pixels = _resized_columns(pixels, width, resample)
    return _resized_columns(pixels.swapaxes(1, 2), height, resample).swapaxes(1, 2)


def _resized_columns(pixels: np.ndarray, count: int, resample: str) -> np.ndarray:
    if pixels.shape[2] == count:
        return pixels
    resized = np.empty((*pixels.shape[:2], count), np.uint8)
    windows, places = _windows(pixels.shape[2], count, resample)
    for start in range(0, count, AT_ONCE):
        block = windows[start : start + AT_ONCE]
        left, right = block[0][0], max(first + len(weights) for first, weights in block)
        matrix = np.zeros((right - left, len(block)))
        for column, (first, weights) in enumerate(block):
            matrix[first - left : first - left + len(weights), column] = weights
        # Exact in float64, whose products BLAS computes many times faster than those of integers.
        total = pixels[:, :, left:right].astype(np.float64, order="C") @ matrix + (1 << (places - 1))
        resized[:, :, start : start + AT_ONCE] = np.clip(np.floor(total / (1 << places)), 0, 255)
    return resized


def _windows(size: int, count: int, resample: str) -> tuple[list[tuple[int, np.ndarray]], int]:
    """For each of `count` new columns the first old one and integer weights, and how many binary places those have."""
    kernel, width = FILTERS[resample]
    scale = size / count
    support = width / 2 * max(scale, 1.0)
    windows = []
    for center in (np.arange(count) + 0.5) * scale:
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)
        weights = kernel((np.arange(first, last) - center + 0.5) / max(scale, 1.0))
        windows.append((first, weights / weights.sum()))
    largest = max(weights.max() for _, weights in windows)
    places = next(n for n in range(MOST_PLACES + 1) if n == MOST_PLACES or largest * 2 ** (n + 1) + 0.5 >= MOST_WEIGHT)
    # To the nearest, halves away from zero.
    return [(first, np.trunc(w * 2**places + np.copysign(0.5, w)).astype(np.int32)) for first, w in windows], places


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.clip(1 - np.abs(x), 0, None)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys's cubic convolution with a = -0.5."""
    x = np.abs(x)
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    """The sinc function with a window of three lobes."""
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


# Each filter, and over how many pixels it reaches.
FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bilinear": (_triangle, 2),
    "bicubic": (_cubic, 4),
    "lanczos": (_lanczos, 6),
}


def normalize(pixels: np.ndarray, recipe: dict[str, Any]) -> np.ndarray:
    """Pixels (batch, 3, side, side) from 0 to 255 as the model takes them, float32."""
    mean, std = (np.array(recipe[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return (pixels.astype(np.float32) - mean) / std
