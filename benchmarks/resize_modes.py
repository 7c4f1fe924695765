"""Which resize mode suits frozen features best, on square and on elongated photos?

    python -m benchmarks.resize_modes efficientnet-lite0 112 --data apple_lab --field apple_field
    python -m benchmarks.resize_modes efficientnet-lite0 112 --data apple_lab --elongated

A logistic regression is fitted on the frozen features, with the penalty that validation log loss chooses, and scored on
six re-splits with groups whole. `--elongated` turns each leaf on its black background to its main axis, cuts it out and
keeps the photos that are then at least 1.4 times as long as wide. Square photos look the same in all modes but
`processor`.
"""

import argparse
import random
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from agritransfer.arguments import ResizeMode
from agritransfer.data.dataset import load_splits
from agritransfer.evaluation.inference import model_outputs
from agritransfer.images.decoding import decode_photo
from agritransfer.models.loading import load_pretrained, load_processor

PENALTIES = np.logspace(-4, 0, 5)
RESPLITS, FOLDS = 6, 5
# Levels above which a pixel belongs to the leaf, and the pixels that a row of it has at least.
LEAF, LEAST = 30, 4
ASPECT = 1.4
BATCH = 32
Labelled = tuple[list[Image.Image], np.ndarray, np.ndarray]


def cut_out(photo: Image.Image) -> Image.Image:
    """A leaf on black, turned so that its longest axis is level, without the background around it."""
    rows, columns = np.nonzero(np.asarray(photo).max(axis=2) > LEAF)
    axis = np.linalg.eigh(np.cov(np.stack([columns, rows])))[1][:, 1]
    turned = photo.rotate(float(np.degrees(np.arctan2(axis[1], axis[0]))), Image.Resampling.BICUBIC, expand=True)
    leaf = np.asarray(turned).max(axis=2) > LEAF
    (top, *_, bottom), (left, *_, right) = (np.nonzero(leaf.sum(axis=1 - a) >= LEAST)[0] for a in (0, 1))
    return turned.crop((left, top, right + 1, bottom + 1))


def read(folder: Path, most: int, elongated: bool) -> Labelled:
    """Photos, labels and groups of a dataset: whole groups in random order, until there are `most` photos."""
    splits = load_splits(str(folder))
    groups: dict[str, list] = {}
    for photo in sorted(splits.found, key=lambda photo: photo.file):
        groups.setdefault(photo.group or photo.file, []).append(photo)
    order, kept = list(groups), []
    random.Random(0).shuffle(order)
    for group in order:
        for photo in groups[group]:
            entry = splits.images[photo.row]["image"]
            picture = decode_photo(entry["bytes"] or entry["path"])
            picture = cut_out(picture) if elongated else picture
            if not elongated or max(picture.size) >= ASPECT * min(picture.size):
                kept.append((picture, photo.label, group))
        if len(kept) >= most:
            break
    pictures, labels, names = zip(*kept, strict=True)
    return list(pictures), np.array(labels), np.unique(names, return_inverse=True)[1]


def features_of(backbone: str, image_size: int, mode: ResizeMode, pictures: list[Image.Image]) -> np.ndarray:
    """The input of the head (photos, width)."""
    processor = load_processor(backbone, None, image_size, mode)
    model = load_pretrained(backbone, None, ["a", "b"], image_size).eval()
    starts = range(0, len(pictures), BATCH)
    batches = (torch.stack([processor.pixels(photo) for photo in pictures[start : start + BATCH]]) for start in starts)
    return np.concatenate([features for _, features in model_outputs(model, processor, batches)])


def scores(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, field: tuple | None) -> np.ndarray:
    """Test accuracy, test log loss and field macro F1 (NaN without a field set) of each re-split."""
    rows = []
    for seed in range(RESPLITS):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(features, labels, groups)
        (_, test), (_, validation), *_ = folds
        train = np.setdiff1d(np.arange(len(labels)), np.concatenate([test, validation]))
        heads = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(features[train], labels[train])
            for c in PENALTIES
        ]
        head = min(
            heads, key=lambda h: log_loss(labels[validation], h.predict_proba(features[validation]), labels=h.classes_)
        )
        accuracy = float((head.predict(features[test]) == labels[test]).mean())
        loss = log_loss(labels[test], head.predict_proba(features[test]), labels=head.classes_)
        f1 = f1_score(field[1], head.predict(field[0]), average="macro") if field else np.nan
        rows.append([accuracy, loss, f1])
    return np.array(rows)


def main() -> None:
    """Print the scores of every resize mode."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("backbone")
    flags.add_argument("image_size", type=int)
    flags.add_argument("--data", type=Path, required=True)
    flags.add_argument("--field", type=Path)
    flags.add_argument("--elongated", action="store_true")
    flags.add_argument("--most", type=int, default=400, help="photos of the dataset that are used, at least")
    args = flags.parse_args()
    torch.set_num_threads(1)
    pictures, labels, groups = read(args.data, args.most, args.elongated)
    field = read(args.field, 240, elongated=False) if args.field else None
    for mode in get_args(ResizeMode):
        started = time.process_time()
        features = features_of(args.backbone, args.image_size, mode, pictures)
        speed = len(pictures) / (time.process_time() - started)
        in_field = (features_of(args.backbone, args.image_size, mode, field[0]), field[1]) if field else None
        accuracy, loss, f1 = scores(features, labels, groups, in_field).mean(axis=0)
        print(
            f"{mode:<10} accuracy {accuracy:.3f}, log loss {loss:.3f}, field F1 {f1:.3f}, {speed:.1f} photos per CPU s"
        )


if __name__ == "__main__":
    main()
