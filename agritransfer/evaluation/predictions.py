"""How are the predictions for every scored photo written and read?"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agritransfer.data.readers.source import Photo


def write_predictions(path: Path, scored: dict[str, tuple[Sequence[Photo], np.ndarray]], labels: Sequence[str]) -> None:
    """Write a row per scored photo: split, file, group, label, predicted, and one logit column per class.

    The texts are exact, since `compare` and `export` read them: unlike the table of `agritransfer predict`, formulas
    are not guarded, so do not open it in a spreadsheet if you do not trust the names of files and classes.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "file", "group", "label", "predicted", *(f"logit_{label}" for label in labels)])
        for split, (photos, logits) in scored.items():
            for photo, row in zip(photos, logits, strict=True):
                answer = labels[int(row.argmax())]
                writer.writerow([split, photo.file, photo.group, photo.label, answer, *(f"{x:.6g}" for x in row)])


@dataclass(frozen=True)
class Predictions:
    """The scored photos of one split of a run: `truth` (photos,) as label indices, `logits` (photos, classes)."""

    files: list[str]
    groups: list[str]
    truth: np.ndarray
    logits: np.ndarray


def read_predictions(path: Path, split: str, labels: Sequence[str]) -> Predictions:
    """Read what `write_predictions` wrote for one split."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return Predictions(
        [row["file"] for row in rows],
        [row["group"] for row in rows],
        np.array([labels.index(row["label"]) for row in rows], dtype=int),
        np.array([[float(row[f"logit_{label}"]) for label in labels] for row in rows]).reshape(-1, len(labels)),
    )
