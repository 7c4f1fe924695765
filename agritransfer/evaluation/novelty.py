"""Is a photo unlike those that the model knows?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

# So many of the photos that it should know pass for known; 3 points above 90 %, since validation photos are a sample.
KNOWN_SHARE = 0.93
# Fewer validation photos cannot tell what is strange.
FEWEST_KNOWN = 20

# A photo ties with itself whichever runtime computed it.
ROUNDING = np.float32(1e-5)


@dataclass(frozen=True)
class Known:
    """The validation photos as the model sees them.

    `features` are of length 1 (photos, width); `confidence` and `distance`, to the nearest other photo, are sorted.
    """

    features: np.ndarray
    confidence: np.ndarray
    distance: np.ndarray

    def save(self, path: Path) -> None:
        """Write the three as a safetensors file, the features in half precision."""
        arrays = {
            "features": self.features.astype(np.float16),
            "confidence": self.confidence,
            "distance": self.distance,
        }
        # Not `save_file`, which ignores the umask: only the owner could read the file.
        path.write_bytes(save(arrays))


def load_known(path: Path) -> Known:
    """What `Known.save` wrote."""
    arrays = load_file(path)
    return Known(arrays["features"].astype(np.float32), arrays["confidence"], arrays["distance"])


def learn_known(features: np.ndarray, confidence: np.ndarray, groups: Sequence[str]) -> tuple[Known, np.ndarray]:
    """What the model knows, and how strange each of these photos is beside the others."""
    # As they are saved, so that the verdicts of the run are those of whoever loads it.
    features, confidence = _unit(features).astype(np.float16).astype(np.float32), confidence.astype(np.float32)
    similarity = features @ features.T
    names = np.array([group or f"photo {i}" for i, group in enumerate(groups)])
    # A photo's own copies would make it look familiar.
    similarity[names[:, None] == names[None]] = -1
    distance = 1 - similarity.max(axis=1)
    known = Known(features, np.sort(confidence), np.sort(distance))
    return known, _strangeness(confidence, distance, known)


def strangeness(features: np.ndarray, confidence: np.ndarray, known: Known) -> np.ndarray:
    """How unlike the known photos each one is (photos,): both too little confidence and too great a distance count.

    Each is turned into the share of validation photos that are no less strange, and the two are joined as Fisher does:
    minus the sum of their logarithms.
    """
    return _strangeness(confidence, 1 - (_unit(features) @ known.features.T).max(axis=1), known)


def _strangeness(confidence: np.ndarray, distance: np.ndarray, known: Known) -> np.ndarray:
    count = len(known.distance)
    as_unsure = np.searchsorted(known.confidence, confidence.astype(np.float32) + ROUNDING, side="right")
    as_far = count - np.searchsorted(known.distance, distance - ROUNDING, side="left")
    return -np.log((as_unsure + 1) / (count + 1)) - np.log((as_far + 1) / (count + 1))


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
