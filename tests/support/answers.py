"""Answers of a classifier that is right more often than not."""

import numpy as np

LABELS = ["healthy", "mosaic", "rust"]


def answers_of(classes: int, photos: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than not, and the truth, in which every class occurs."""
    random = np.random.default_rng(seed)
    truth = np.arange(photos) % classes
    logits = random.normal(size=(photos, classes)) + 1.2 * np.eye(classes)[truth]
    return logits.astype(np.float32), truth
