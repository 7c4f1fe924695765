"""How confident is the model, and when should it answer "not sure"?

Everything is fitted on the validation photos: a temperature, the lowest probability at which an answer is given, and
the features of photos that the model knows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from agritransfer.evaluation.calibration import calibrated_probabilities, fit_temperature
from agritransfer.evaluation.novelty import FEWEST_KNOWN, KNOWN_SHARE, Known, learn_known, strangeness

# The rules of a model that was not calibrated: every photo is answered.
UNCALIBRATED = {"temperature": 1.0, "threshold": 0.0, "unknown": None}


def calibrate(
    logits: np.ndarray, features: np.ndarray, truth: np.ndarray, groups: Sequence[str], target_error: float
) -> tuple[dict[str, Any], Known | None]:
    """The entry `calibration` of `results.json`, and the known photos; all arrays are of the validation photos.

    The threshold is the lowest probability above which the error, counted with one additional wrong answer, does not
    exceed the target; None if there is no such threshold. `coverage` is the share of photos that are answered.
    """
    temperature = fit_temperature(logits, truth)
    confidence = calibrated_probabilities(logits, temperature).max(axis=1)
    known, is_known, unknown = None, np.ones(len(truth), dtype=bool), None
    if len(truth) >= FEWEST_KNOWN:
        known, strange = learn_known(features, confidence, groups)
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


def answer_threshold(confidence: np.ndarray, right: np.ndarray, target_error: float) -> float | None:
    """The lowest confidence with (wrong answers + 1) / (answers + 1) <= target_error at or above it; None if none.

    The additional 1 makes the bound hold for unseen photos (conformal risk control, Angelopoulos et al. 2022).
    """
    order = np.argsort(-confidence, kind="stable")
    bound = (np.cumsum(~right[order]) + 1) / (np.arange(len(order)) + 2)
    # Photos of equal confidence are answered together.
    last_of_equals = np.append(np.diff(confidence[order]) != 0, True)
    kept = np.flatnonzero((bound <= target_error) & last_of_equals)
    return float(confidence[order][kept[-1]]) if len(kept) else None


def verdicts(logits: np.ndarray, features: np.ndarray, calibration: dict[str, Any], known: Known | None) -> list[str]:
    """For each photo "answer", "not sure" (its probability is too low) or "unknown" (unlike the known photos)."""
    confidence = calibrated_probabilities(logits, calibration["temperature"]).max(axis=1)
    strange = np.zeros(len(logits), dtype=bool)
    if known is not None:
        strange = strangeness(features, confidence, known) > calibration["unknown"]["threshold"]
    threshold = calibration["threshold"]
    unsure = confidence < threshold if threshold is not None else np.ones(len(logits), dtype=bool)
    return ["unknown" if odd else "not sure" if low else "answer" for odd, low in zip(strange, unsure, strict=True)]


def answered_scores(verdict_of: Sequence[str], right: np.ndarray) -> dict[str, Any]:
    """The share of photos that are answered, the error among them (None if none), and counts of the others."""
    answered = np.array([verdict == "answer" for verdict in verdict_of])
    return {
        "coverage": float(answered.mean()),
        "error": float((~right[answered]).mean()) if answered.any() else None,
        "not_sure": sum(verdict == "not sure" for verdict in verdict_of),
        "unknown": sum(verdict == "unknown" for verdict in verdict_of),
    }
