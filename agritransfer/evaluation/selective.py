"""How confident is the model, and when should it answer "not sure"?

Everything is fitted on the validation photos: a temperature, the lowest probability at which an answer is given, and
the features of photos that the model knows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from agritransfer.evaluation.calibration import calibrated_probabilities, fit_temperature
from agritransfer.evaluation.intervals import clusters_of
from agritransfer.evaluation.novelty import FEWEST_KNOWN, KNOWN_SHARE, Known, learn_known, strangeness

# The rules of a model that was not calibrated: every photo is answered.
UNCALIBRATED = {"temperature": 1.0, "threshold": 0.0, "unknown": None}
# How certain it is that the error among the answered photos does not exceed the target.
CERTAINTY = 0.9
# Each threshold that is tested answers this many times the photos of the one before.
STEP = 1.1


def calibrate(
    logits: np.ndarray, features: np.ndarray, truth: np.ndarray, groups: Sequence[str], target_error: float
) -> tuple[dict[str, Any], Known | None]:
    """The entry `calibration` of `results.json`, and the known photos; all arrays are of the validation photos.

    `coverage` is the share of validation photos that are answered, `certainty` how certain the target is kept.
    `never_sure` says why there is no threshold and what to do; None if there is one.
    """
    temperature = fit_temperature(logits, truth)
    confidence = calibrated_probabilities(logits, temperature).max(axis=1)
    known, is_known, unknown = None, np.ones(len(truth), dtype=bool), None
    if len(truth) >= FEWEST_KNOWN:
        known, strange = learn_known(features, confidence, groups)
        limit = float(np.quantile(strange, KNOWN_SHARE))
        is_known = strange <= limit
        unknown = {"method": "softmax and nearest validation photo", "threshold": limit}
    right, groups = logits.argmax(axis=1) == truth, np.asarray(groups)
    threshold = answer_threshold(confidence[is_known], right[is_known], target_error, groups[is_known])
    answered = is_known & (confidence >= threshold) if threshold is not None else np.zeros_like(right)
    entry = {
        "temperature": temperature,
        "threshold": threshold,
        "target_error": target_error,
        "certainty": CERTAINTY,
        "coverage": float(answered.mean()),
        "unknown": unknown,
        "never_sure": _why_never_sure(groups[is_known], target_error) if threshold is None else None,
    }
    return entry, known


def answer_threshold(
    confidence: np.ndarray, right: np.ndarray, target_error: float, groups: Sequence[str] | None = None
) -> float | None:
    """The lowest confidence at or above which at most `target_error` of the answers are wrong, with 90% certainty.

    Thresholds are tested from high to low until one fails (fixed-sequence testing, as in "Learn then Test",
    Angelopoulos et al. 2021). A test passes if the wrong answers above the threshold reject a higher error (the bound
    of Clopper and Pearson 1934). The order of the tests depends on the confidences alone: only thresholds whose
    confidences themselves expect no higher error are tested, beginning with the one that is most likely to pass.
    Photos of one group may all be right or wrong together and count for less (Kish 1965). None if nothing passes.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, wrong, doubt = confidence[order], ~right[order], 1 - confidence[order]
    clusters = np.arange(len(order)) if groups is None else clusters_of(groups)[order]
    counts = [n for n in _answered_counts(confidence, target_error) if _highest_mean(doubt[:n]) <= target_error]
    if not counts:
        return None
    worth = [_independent(clusters[:count]) for count in counts]
    chances = [_chance_to_pass(n, doubt[:count].mean(), target_error) for n, count in zip(worth, counts, strict=True)]
    # Of equal chances the highest threshold: it passes even if the confidences promise too much.
    first, threshold = int(np.argmax(np.round(chances, 2))), None
    for count, independent in zip(counts[first:], worth[first:], strict=True):
        if not _rejects_higher_error(wrong[:count].mean() * independent, independent, target_error):
            break
        threshold = float(confidence[count - 1])
    return threshold


def fewest_photos(target_error: float) -> int:
    """How many independent photos, all answered right, show with 90% certainty that the error is not higher."""
    return math.ceil(math.log(1 - CERTAINTY) / math.log(1 - target_error))


def _answered_counts(confidence: np.ndarray, target_error: float) -> list[int]:
    """How many photos each tested threshold answers; `confidence` is sorted, photos of equal confidence go together."""
    last_of_equals = np.flatnonzero(np.append(np.diff(confidence) != 0, True)) + 1
    counts, count = [], fewest_photos(target_error)
    while count <= len(confidence):
        counts.append(int(last_of_equals[np.searchsorted(last_of_equals, count)]))
        count = max(counts[-1] + 1, min(math.ceil(counts[-1] * STEP), len(confidence)))
    return counts


def _highest_mean(doubt: np.ndarray) -> float:
    """The upper limit of the error that the confidences expect."""
    from scipy.stats import norm

    return float(doubt.mean() + norm.ppf(CERTAINTY) * doubt.std() / math.sqrt(len(doubt)))


def _independent(clusters: np.ndarray) -> float:
    """The number of independent photos that photos of these groups are worth if those of a group are all alike."""
    sizes = np.bincount(clusters)
    return float(sizes.sum() ** 2 / np.square(sizes).sum())


def _rejects_higher_error(mistakes: float, photos: float, target_error: float) -> bool:
    """Whether at most this many mistakes have a chance below 10% at any error over the target."""
    from scipy.special import betainc

    return mistakes < photos and betainc(photos - mistakes, mistakes + 1, 1 - target_error) <= 1 - CERTAINTY


def _chance_to_pass(photos: float, error: float, target_error: float) -> float:
    """The probability that photos with this error pass the test."""
    from scipy.stats import binom

    photos = math.floor(photos)
    allowed = int(binom.ppf(1 - CERTAINTY, photos, target_error)) + 1
    while allowed >= 0 and not _rejects_higher_error(allowed, photos, target_error):
        allowed -= 1
    return float(binom.cdf(allowed, photos, error))


def _why_never_sure(groups: Sequence[str], target_error: float) -> str:
    promise, needed = f"an error of at most {target_error:.0%}", fewest_photos(target_error)
    found = math.floor(_independent(clusters_of(groups)))
    remedy = "validate on more photos or set a larger --target_error"
    if found < needed:
        kind = "validation photos of different groups" if any(groups) else "familiar validation photos"
        return f"{promise} can be shown with {needed} {kind} or more, all answered right; found {found}: {remedy}"
    return f"no threshold on the validation photos shows {promise} with {CERTAINTY:.0%} certainty: {remedy}"


def verdicts(logits: np.ndarray, features: np.ndarray, calibration: dict[str, Any], known: Known | None) -> list[str]:
    """For each photo "answer", "not sure" (its probability is too low) or "unknown" (unlike the known photos)."""
    confidence = calibrated_probabilities(logits, calibration["temperature"]).max(axis=1)
    strange = np.zeros(len(logits), dtype=bool)
    if known is not None:
        strange = strangeness(features, confidence, known) > calibration["unknown"]["threshold"]
    threshold = calibration["threshold"]
    unsure = confidence < threshold if threshold is not None else np.ones(len(logits), dtype=bool)
    return ["unknown" if odd else "not sure" if low else "answer" for odd, low in zip(strange, unsure, strict=True)]


def never_sure(calibration: dict[str, Any]) -> str | None:
    """Why a model answers "not sure" to every photo, and what to do; None if it is ever sure."""
    if calibration["threshold"] is not None:
        return None
    # Runs of earlier versions do not say why.
    return calibration.get("never_sure", "no threshold on the validation photos keeps the target error: train again")


def promise(calibration: dict[str, Any]) -> str:
    """What is promised about the answers, and for which photos."""
    # Runs of earlier versions did not promise with any certainty.
    certain = f"with {calibration['certainty']:.0%} certainty " if "certainty" in calibration else ""
    wrong = f"at most {calibration['target_error']:.0%} of the answers are wrong"
    return f"{certain}{wrong} on photos like the validation photos"


def answered_scores(verdict_of: Sequence[str], right: np.ndarray) -> dict[str, Any]:
    """The share of photos that are answered, the error among them (None if none), and counts of the others."""
    answered = np.array([verdict == "answer" for verdict in verdict_of])
    return {
        "coverage": float(answered.mean()),
        "error": float((~right[answered]).mean()) if answered.any() else None,
        "not_sure": sum(verdict == "not sure" for verdict in verdict_of),
        "unknown": sum(verdict == "unknown" for verdict in verdict_of),
    }
