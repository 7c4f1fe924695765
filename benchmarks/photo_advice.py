"""How often does the Space call a photo dark or blurred, and how often is that right?

    python -m benchmarks.photo_advice ../shared/data/cardamom_field ../shared/data/rice_field

Prints for each folder the share of original photos, of copies blurred by 2, 3 and 5 pixels (at 512 pixels), and of
copies darkened to 30% brightness that are called so.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).parent.parent / "space"))
from photos import DETAIL_SIDE, Photo, advice, read_photo

MOST = 200
LIGHT = 0.3


def main() -> None:
    """Print one line per folder."""
    random = np.random.default_rng(0)
    for folder in map(Path, sys.argv[1:]):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        drawn = [files[i] for i in random.permutation(len(files))[:MOST]]
        told = {"dark as it is": 0, "blurred as it is": 0, f"dark at {LIGHT} light": 0}
        told |= {f"blurred by {sigma}": 0 for sigma in (2, 3, 5)}
        for path in drawn:
            picture = read_photo(path).picture
            picture.thumbnail((DETAIL_SIDE, DETAIL_SIDE))
            told["dark as it is"] += "dark" in _advice(picture)
            told["blurred as it is"] += "blurred" in _advice(picture)
            told[f"dark at {LIGHT} light"] += "dark" in _advice(picture.point(lambda value: value * LIGHT))
            for sigma in (2, 3, 5):
                told[f"blurred by {sigma}"] += "blurred" in _advice(picture.filter(ImageFilter.GaussianBlur(sigma)))
        shares = ", ".join(f"{what} {count / len(drawn):.1%}" for what, count in told.items())
        print(f"{folder.name} ({len(drawn)} photos): {shares}")


def _advice(picture: Image.Image) -> list[str]:
    return advice(Photo(picture, min(picture.size)), image_size=1)


if __name__ == "__main__":
    main()
