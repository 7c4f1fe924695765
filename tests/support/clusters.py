"""Features around three centers, one for each label."""

import numpy as np


def clusters(count: int, seed: int = 0, apart: float = 3.0, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Features (photos, width) around three centres, and labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(3, size=count)
    return np.eye(width)[labels] * apart + random.normal(size=(count, width)), labels
