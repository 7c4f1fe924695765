"""How sure is the model, and when should it say "not sure"?

All of it is fitted on the validation photos: a temperature, the lowest probability that is worth an answer, and what
photos look like that the model knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
# So many of the photos that it should know pass for known; 3 points above 90 %, since validation photos are a sample.
KNOWN_SHARE = 0.93
# Fewer validation photos cannot tell what is strange.
FEWEST_KNOWN = 20
# The rules of a model that nobody calibrated: every answer is given as it comes.
UNCALIBRATED = {"temperature": 1.0, "threshold": 0.0, "unknown": None}


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
        save_file(
            {
                "features": self.features.astype(np.float16),
                "confidence": self.confidence,
                "distance": self.distance,
            },
            path,
        )


def load_known(path: Path) -> Known:
    """What `Known.save` wrote."""
    arrays = load_file(path)
    return Known(arrays["features"].astype(np.float32), arrays["confidence"], arrays["distance"])


def calibrate(
    logits: np.ndarray, features: np.ndarray, truth: np.ndarray, groups: Sequence[str], target_error: float
) -> tuple[dict[str, Any], Known | None]:
    """The entry `calibration` of `results.json`, and what the model knows; all arrays are of the validation photos.

    The threshold is the lowest probability above which the error stays under the target, counted with one wrong answer
    more than was seen; it is None where no threshold does. `coverage` is the share of photos that are answered.
    """
    temperature = fit_temperature(logits, truth)
    confidence = calibrated_probabilities(logits, temperature).max(axis=1)
    known, is_known, unknown = None, np.ones(len(truth), dtype=bool), None
    if len(truth) >= FEWEST_KNOWN:
        known, strange = _learn_known(features, confidence, groups)
        limit = float(np.quantile(strange, KNOWN_SHARE))
        is_known = strange <= limit
        unknown = {"method": "softmax and nearest validation photo", "threshold": limit}
    right = logits.argmax(axis=1) == truth
    threshold = answer_threshold(confidence[is_known], right[is_known], target_error)
    answered = is_known & (confidence >= threshold) if threshold is not None else np.zeros_like(right)
    entry = {
        "temperature": temperature,
        "threshold": threshold,
        "target_error": target_error,
        "coverage": float(answered.mean()),
        "unknown": unknown,
    }
    return entry, known


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """What the logits are divided by so that probabilities hold (Guo et al. 2017), by maximum likelihood.

    The truth counts as 1 - 1 / (n + 2), as in Platt's scaling, so that no sample of n right answers makes it certain.
    """
    classes, doubt = logits.shape[1], 1 / (len(truth) + 2)
    target = np.full(logits.shape, doubt / (classes - 1))
    target[np.arange(len(truth)), truth] = 1 - doubt

    def loss(log_temperature: float) -> float:
        return -(target * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(axis=1).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def calibrated_probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of shape (photos, classes)."""
    return softmax(logits.astype(np.float64) / temperature, axis=1)


def confidence_bins(probabilities: np.ndarray, truth: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of photos in each of 15 equal bins of confidence that holds any."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    members = [bins == number for number in range(BINS)]
    return [(float(confidence[m].mean()), float(right[m].mean()), int(m.sum())) for m in members if m.any()]


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The mean gap between confidence and accuracy over the bins, weighted by their photos (Naeini et al. 2015)."""
    return float(sum(n * abs(sure - right) for sure, right, n in confidence_bins(probabilities, truth)) / len(truth))


def answer_threshold(confidence: np.ndarray, right: np.ndarray, target_error: float) -> float | None:
    """The lowest confidence with (wrong answers + 1) / (answers + 1) <= target_error at or above it; None without one.

    The one more is what keeps the promise for photos that were not seen (conformal risk control, Angelopoulos 2022).
    """
    order = np.argsort(-confidence, kind="stable")
    bound = (np.cumsum(~right[order]) + 1) / (np.arange(len(order)) + 2)
    # Photos of equal confidence are answered together.
    last_of_equals = np.append(np.diff(confidence[order]) != 0, True)
    kept = np.flatnonzero((bound <= target_error) & last_of_equals)
    return float(confidence[order][kept[-1]]) if len(kept) else None


def _learn_known(features: np.ndarray, confidence: np.ndarray, groups: Sequence[str]) -> tuple[Known, np.ndarray]:
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
    as_unsure = np.searchsorted(known.confidence, confidence.astype(np.float32), side="right")
    as_far = count - np.searchsorted(known.distance, distance, side="left")
    return -np.log((as_unsure + 1) / (count + 1)) - np.log((as_far + 1) / (count + 1))


def verdicts(logits: np.ndarray, features: np.ndarray, calibration: dict[str, Any], known: Known | None) -> list[str]:
    """For each photo "answer", "not sure" (its probability is too low) or "unknown" (unlike what the model knows)."""
    confidence = calibrated_probabilities(logits, calibration["temperature"]).max(axis=1)
    strange = np.zeros(len(logits), dtype=bool)
    if known is not None:
        strange = strangeness(features, confidence, known) > calibration["unknown"]["threshold"]
    threshold = calibration["threshold"]
    unsure = confidence < threshold if threshold is not None else np.ones(len(logits), dtype=bool)
    return ["unknown" if odd else "not sure" if low else "answer" for odd, low in zip(strange, unsure, strict=True)]


def answered_scores(verdict_of: Sequence[str], right: np.ndarray) -> dict[str, Any]:
    """The share of photos that are answered, the error among them (None without any), and why others are not."""
    answered = np.array([verdict == "answer" for verdict in verdict_of])
    return {
        "coverage": float(answered.mean()),
        "error": float((~right[answered]).mean()) if answered.any() else None,
        "not_sure": sum(verdict == "not sure" for verdict in verdict_of),
        "unknown": sum(verdict == "unknown" for verdict in verdict_of),
    }


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
