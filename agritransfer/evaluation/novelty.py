"""Is a photo unlike those that the model was trained on?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from agritransfer.evaluation.intervals import clusters_of

# Share of validation photos accepted as known; 3 points above the aim of 90%, since they are only a sample.
KNOWN_SHARE = 0.93
# With fewer validation photos no limit is fitted.
FEWEST_KNOWN = 20

# Photos that are compared at once, so that memory does not grow with the square of their number.
BLOCK = 4096
# A photo ties with itself whichever runtime computed it.
ROUNDING = np.float32(1e-5)


@dataclass(frozen=True)
class Known:
    """The validation photos as the model represents them.

    `features` (photos, width) have unit length; `confidence` (photos,) and `distance` (photos,), the cosine distance to
    the nearest other photo, are sorted.
    """

    features: np.ndarray
    confidence: np.ndarray
    distance: np.ndarray

    def save(self, path: Path) -> None:
        """Write the three arrays as a safetensors file, the features in half precision."""
        arrays = {
            "features": self.features.astype(np.float16),
            "confidence": self.confidence,
            "distance": self.distance,
        }
        # Not `save_file`, which ignores the umask and lets only the owner read the file.
        path.write_bytes(save(arrays))


def load_known(path: Path) -> Known:
    """Read what `Known.save` wrote."""
    arrays = load_file(path)
    return Known(arrays["features"].astype(np.float32), arrays["confidence"], arrays["distance"])


def learn_known(features: np.ndarray, confidence: np.ndarray, groups: Sequence[str]) -> tuple[Known, np.ndarray]:
    """The known photos, and the novelty score of each of them relative to the others."""
    # In the precision of the saved file, so that the run and everyone who loads it get the same verdicts.
    features, confidence = _unit(features).astype(np.float16).astype(np.float32), confidence.astype(np.float32)
    distance = _distance(features, features, clusters_of(groups))
    known = Known(features, np.sort(confidence), np.sort(distance))
    return known, _strangeness(confidence, distance, known)


def strangeness(features: np.ndarray, confidence: np.ndarray, known: Known) -> np.ndarray:
    """Novelty score of each photo (photos,), from its confidence and its distance to the known photos.

    Each is converted to an empirical p-value on the validation photos, and the two are combined by Fisher's method:
    minus the sum of their logarithms.
    """
    return _strangeness(confidence, _distance(_unit(features), known.features), known)


def _distance(features: np.ndarray, known: np.ndarray, group_of: np.ndarray | None = None) -> np.ndarray:
    """The cosine distance (photos,) of unit features to the nearest known one, if given not of the same group."""
    nearest = np.full(len(features), -1, np.float32)
    for top in range(0, len(features), BLOCK):
        rows = slice(top, top + BLOCK)
        for start in range(0, len(known), BLOCK):
            columns = slice(start, start + BLOCK)
            similarity = features[rows] @ known[columns].T
            if group_of is not None:
                # Otherwise another photo of its group would make a photo look familiar.
                similarity[group_of[rows, None] == group_of[columns]] = -1
            nearest[rows] = np.maximum(nearest[rows], similarity.max(axis=1))
    return 1 - nearest


def _strangeness(confidence: np.ndarray, distance: np.ndarray, known: Known) -> np.ndarray:
    count = len(known.distance)
    as_unsure = np.searchsorted(known.confidence, confidence.astype(np.float32) + ROUNDING, side="right")
    as_far = count - np.searchsorted(known.distance, distance - ROUNDING, side="left")
    return -np.log((as_unsure + 1) / (count + 1)) - np.log((as_far + 1) / (count + 1))


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
