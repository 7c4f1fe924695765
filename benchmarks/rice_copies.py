"""Are copies found in real photos, and how much do copies across splits inflate accuracy?

    python -m benchmarks.rice_copies ../shared/data/rice_field ../shared/models/efficientnet-lite0

The folder contains originals (`*_orig_*`), some of them twice, and mirrored and rotated copies (`*_rotated_*`) whose
numbers do not match. First, copies of different originals are made and searched for; then the dataset is used as it is,
and its pairs are checked by another measure, the difference of all color values at 64 x 64 pixels.
"""

import io
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from agritransfer.data.dataset import load_splits
from agritransfer.data.deduplication import find_duplicates, thumbnail
from agritransfer.evaluation.frozen_features import out_of_fold_probabilities
from agritransfer.evaluation.inference import predict
from agritransfer.images.decoding import decode_photo
from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset
from agritransfer.models.loading import load_pretrained, load_processor

SIDE = 64
# In levels from 0 to 255: every pair of this dataset differs by less than 3 or by more than 11.
SAME_COLOURS = 7.0
IMAGE_SIZE = 112
REPEATS = 5


def encode_again(photo: Image.Image, quality: int) -> Image.Image:
    """The photo after another JPEG compression."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return Image.open(file)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "rotated by 90°": lambda photo: photo.transpose(Image.Transpose.ROTATE_90),
    "rotated by 180°": lambda photo: photo.transpose(Image.Transpose.ROTATE_180),
    "rotated by 270°": lambda photo: photo.transpose(Image.Transpose.ROTATE_270),
    "JPEG quality 40": lambda photo: encode_again(photo, 40),
    "resized to 60%": lambda photo: photo.resize((photo.width * 6 // 10, photo.height * 6 // 10)),
    "mirrored, rotated, resized to 50%, JPEG quality 60": lambda photo: encode_again(
        ImageOps.mirror(photo).rotate(90, expand=True).resize((photo.height // 2, photo.width // 2)), 60
    ),
}


def pairs_of(groups: list[list[int]]) -> set[tuple[int, int]]:
    """All pairs within the groups."""
    return {pair for group in groups for pair in combinations(sorted(group), 2)}


def precision_and_recall(found: set, true: set) -> tuple[float, float]:
    """The share of found pairs that are true, and of true pairs that are found."""
    return len(found & true) / len(found), len(found & true) / len(true)


def known_copies(originals: list[Image.Image]) -> tuple[set, set, dict[str, float]]:
    """Found and true pairs among the originals and copies of every second one, and the recall of each kind of copy."""
    kinds = [list(COPIES)[number % len(COPIES)] for number in range(len(originals) // 2)]
    copies = [COPIES[kind](originals[2 * number]) for number, kind in enumerate(kinds)]
    looks = np.stack([thumbnail(photo.convert("RGB")) for photo in (*originals, *copies)])
    found = pairs_of(find_duplicates([str(place) for place in range(len(looks))], looks))
    true = {(2 * number, len(originals) + number) for number in range(len(copies))}
    recall = {
        kind: float(np.mean([pair in found for pair, of in zip(sorted(true), kinds, strict=True) if of == kind]))
        for kind in COPIES
    }
    return found, true, recall


def pairs_of_equal_colours(photos: list[Image.Image]) -> set[tuple[int, int]]:
    """Pairs whose colors at 64 x 64 pixels, in the best of the eight symmetries, differ by less than 7 levels."""
    colours = np.stack([np.asarray(photo.resize((SIDE, SIDE)), np.float32) for photo in photos])
    pairs = set()
    for turned in (colours, colours.transpose(0, 2, 1, 3)):
        for rows in (1, -1):
            for columns in (1, -1):
                other = turned[:, ::rows, ::columns].reshape(len(photos), -1)
                for place, one in enumerate(colours.reshape(len(photos), -1)):
                    near = np.flatnonzero(np.abs(other[place + 1 :] - one).mean(axis=1) < SAME_COLOURS)
                    pairs |= {(place, place + 1 + int(n)) for n in near}
    return pairs


def accuracies(features: np.ndarray, labels: np.ndarray, groups: list[str], repeats: int = REPEATS) -> list[float]:
    """Accuracy of a linear probe in each of several five-fold cross-validations that keep groups whole."""
    scores = []
    for seed in range(repeats):
        order = np.random.default_rng(seed).permutation(len(labels))
        probabilities = out_of_fold_probabilities(features[order], labels[order], [groups[place] for place in order])
        scores.append(float((probabilities.argmax(axis=1) == labels[order]).mean()))
    return scores


def main() -> None:
    """Print precision and recall, then the accuracies."""
    folder, model_name = sys.argv[1:]
    splits = load_splits(folder)
    photos = [decode_photo(Path(folder) / photo.file) for photo in splits.photos]
    true_pairs = pairs_of_equal_colours(photos)
    seen_before = {later for _, later in true_pairs}
    originals = [
        photos[place]
        for place, photo in enumerate(splits.photos)
        if "_orig_" in photo.file and place not in seen_before
    ]
    found, true, recall = known_copies(originals)
    precision, of_all = precision_and_recall(found, true)
    print(f"{len(true)} copies of {len(originals)} different photos: precision {precision:.3f}, recall {of_all:.3f}")
    print("\n".join(f"  {kind}: recall {share:.3f}" for kind, share in recall.items()))

    groups = find_duplicates([str(place) for place in range(len(photos))], np.stack([thumbnail(p) for p in photos]))
    precision, of_all = precision_and_recall(pairs_of(groups), true_pairs)
    print(f"the original dataset, {len(photos)} photos: precision {precision:.3f}, recall {of_all:.3f}")
    print(f"  {len(groups)} groups, the largest of {max(map(len, groups))}, {sum(map(len, groups))} photos in them")

    processor = load_processor(model_name, None, IMAGE_SIZE)
    model = load_pretrained(model_name, None, splits.labels, IMAGE_SIZE)
    labels = np.array([splits.labels.index(photo.label) for photo in splits.photos])
    rows, files = [photo.row for photo in splits.photos], [photo.file for photo in splits.photos]
    dataset = PhotoDataset(splits.images, rows, labels.tolist(), files, EvaluationPixels(processor))
    _, features = predict(model, dataset, batch_size=64)
    group_of = {place: f"group {number}" for number, group in enumerate(groups) for place in group}
    names = [group_of.get(place, f"photo {place}") for place in range(len(photos))]
    for kind, of in (("divide copies", [""] * len(photos)), ("keep copies together", names)):
        values = accuracies(features, labels, of)
        print(f"splits that {kind}: accuracy {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
