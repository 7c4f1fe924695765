"""How uncertain is a score?

Every interval is one of a proportion, computed with the number of independent photos that the score is worth: photos of
one group, and classes with few photos, are worth less (Korn and Graubard 1998, Survey Methodology 24, 193-201).
`python -m benchmarks.interval_coverage` measures how often the intervals contain the true score.
"""

import math
from collections.abc import Sequence

import numpy as np

from agritransfer.evaluation.metrics import macro_f1

# Simulated test sets per interval. They give a variance, which needs fewer than the tails of a distribution do.
SIMULATIONS = 500
# The two-sided 95% point of the normal distribution.
Z = 1.959964
# Mistakes that are assumed in addition to those observed, so that a score without a mistake is not certain.
ASSUMED_MISTAKES = 1
# Photos that are assumed in addition to those of each class, since few photos say little of their class alone.
ASSUMED_PHOTOS = 4
# The simulated variance is itself uncertain where it depends on a few photos; found by measuring the coverage.
MARGIN = 1.1
# Mistakes whose whole group is assumed to be wrong, until enough are observed to tell.
GROUPED_MISTAKES = 3


def wilson_interval(successes: float, trials: float) -> list[float]:
    """95% Wilson score interval of a proportion; for 20 of 20 it is [0.84, 1], a bootstrap would give [1, 1]."""
    share, extra = successes / trials, Z**2 / trials
    center = (share + extra / 2) / (1 + extra)
    half = math.sqrt(share * (1 - share) * extra + extra**2 / 4) / (1 + extra)
    return [max(0.0, center - half), min(1.0, center + half)]


def accuracy_interval(right: np.ndarray, groups: Sequence[str]) -> list[float]:
    """95% Wilson interval of the accuracy; `right` is boolean (photos,), `groups` has "" for a photo without one.

    Ten photos of one plant carry less information than photos of ten plants. With groups it is therefore the interval
    of Clopper and Pearson for the number of independent photos.
    """
    if not any(groups):
        return wilson_interval(right.sum(), len(right))
    worth = max(len(right) / _design_effect(right - right.mean(), np.ones(len(right)), groups), 1.0)
    return clopper_pearson_interval(right.mean() * worth, worth)


def class_average_intervals(
    answers: np.ndarray, truth: np.ndarray, num_labels: int, groups: Sequence[str]
) -> dict[str, list[float]]:
    """95% intervals of `macro_f1` and `balanced_accuracy`; answers and truth are label indices (photos,).

    Test sets of the same size are simulated from the confusion matrix, smoothed so that a class without a mistake is
    not taken for one that never has any. Their variance says how many photos of a plain proportion the average is
    worth, their mean how far it is biased in small classes; the interval is Clopper and Pearson's for that many photos.
    """
    counts = np.bincount(truth, minlength=num_labels)
    hits = np.bincount(truth[answers == truth], minlength=num_labels)
    occurring = counts > 0
    recall = hits[occurring] / counts[occurring]
    weights = len(truth) / (occurring.sum() * counts[truth])
    right = (answers == truth) - (hits / np.maximum(counts, 1))[truth]
    effect = _design_effect(weights * right, weights, groups)
    scores = {"macro_f1": macro_f1(answers, truth, num_labels), "balanced_accuracy": float(recall.mean())}
    expected, simulated = _simulate(answers, truth, num_labels)
    return {
        name: _interval_of_average(score, expected[name], simulated[name], len(truth), effect)
        for name, score in scores.items()
    }


def macro_f1_interval(answers: np.ndarray, truth: np.ndarray, num_labels: int, groups: Sequence[str]) -> list[float]:
    """95% interval of macro F1 alone, as in `class_average_intervals`."""
    return class_average_intervals(answers, truth, num_labels, groups)["macro_f1"]


def f1_intervals(answers: np.ndarray, truth: np.ndarray, num_labels: int, groups: Sequence[str]) -> list[list[float]]:
    """95% interval of the F1 of each class, [0, 1] for a class that is neither in the truth nor answered.

    F1 is 2 J / (1 + J), where J is the share of right answers among the photos that are of the class or answered as it:
    a proportion, with the interval of `accuracy_interval`.
    """
    groups, right = np.asarray(groups), answers == truth
    intervals = []
    for label in range(num_labels):
        involved = (answers == label) | (truth == label)
        shares = accuracy_interval(right[involved], groups[involved]) if involved.any() else [0.0, 1.0]
        intervals.append([2 * share / (1 + share) for share in shares])
    return intervals


def clopper_pearson_interval(successes: float, trials: float) -> list[float]:
    """95% Clopper-Pearson interval of a proportion; neither number needs to be whole."""
    # Imported here because commands that compute no interval import this file too.
    from scipy.stats import beta

    failures = trials - successes
    low = float(beta.ppf(0.025, successes, failures + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(0.975, successes + 1, failures)) if failures > 0 else 1.0
    return [low, high]


def _interval_of_average(
    score: float, expected: float, simulated: np.ndarray, photos: int, design_effect: float
) -> list[float]:
    worth = min(expected * (1 - expected) / max(simulated.var(), 1e-12), photos) / (MARGIN * design_effect)
    unbiased = min(max(score - (simulated.mean() - expected), 0.0), 1.0)
    low, high = clopper_pearson_interval(unbiased * max(worth, 1.0), max(worth, 1.0))
    return [min(low, score), max(high, score)]


def _simulate(
    answers: np.ndarray, truth: np.ndarray, num_labels: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Macro F1 and balanced accuracy of the smoothed confusion matrix, and of test sets that are drawn from it."""
    random, photos = np.random.default_rng(0), len(truth)
    counts = np.bincount(truth, minlength=num_labels)
    observed = np.zeros((num_labels, num_labels))
    np.add.at(observed, (truth, answers), 1)
    np.fill_diagonal(observed, 0)
    mistakes = observed.sum(axis=1)
    rate = (mistakes.sum() + ASSUMED_MISTAKES) / (photos + 2 * ASSUMED_MISTAKES)
    # A mistake and a right answer more, shared by all photos, and a few photos more of each class, which are
    # wrong at the rate of all photos.
    assumed = ASSUMED_MISTAKES * counts / photos + ASSUMED_PHOTOS * rate
    wrong = (mistakes + assumed) / (counts + 2 * ASSUMED_MISTAKES * counts / photos + ASSUMED_PHOTOS)
    # An assumed mistake may be any other label.
    elsewhere = (1 - np.eye(num_labels)) / (num_labels - 1)
    answered_as = (observed + assumed[:, None] * elsewhere) / (mistakes + assumed)[:, None]
    expected = _averages(counts * (1 - wrong), (counts * wrong) @ answered_as, counts)
    missed = random.binomial(counts, wrong, size=(SIMULATIONS, num_labels))
    mistaken_for = np.zeros((SIMULATIONS, num_labels))
    for label in np.flatnonzero(counts):
        mistaken_for += random.multinomial(missed[:, label], answered_as[label])
    simulated = _averages(counts - missed, mistaken_for, counts)
    return {name: float(value) for name, value in expected.items()}, simulated


def _averages(hits: np.ndarray, mistaken_for: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Both averages over the classes that occur, from the right answers and the wrong ones (..., classes) per label."""
    occurring = counts > 0
    hits, others = hits[..., occurring], mistaken_for[..., occurring]
    return {
        "macro_f1": (2 * hits / (counts[occurring] + hits + others)).mean(axis=-1),
        "balanced_accuracy": (hits / counts[occurring]).mean(axis=-1),
    }


def clusters_of(groups: Sequence[str]) -> np.ndarray:
    """The number of the group of each photo (photos,); a photo without a group ("") is its own."""
    names = [group or f"photo {i}" for i, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1]


def _design_effect(residuals: np.ndarray, weights: np.ndarray, groups: Sequence[str]) -> float:
    """How many photos, on average, carry as much information as one independent photo; at least 1.

    The variance of the score with whole groups over that with single photos (Kish 1965), and the larger quantile of
    Student's distribution if there are few groups.
    """
    if not any(groups):
        return 1.0
    from scipy.stats import t

    cluster = clusters_of(groups)
    count = cluster.max() + 1
    if count == 1:
        return float(len(weights))
    # Until mistakes are observed, the photos of a group are assumed to be right or wrong together.
    assumed = GROUPED_MISTAKES * np.mean(weights**2)
    together = np.sum(np.bincount(cluster, weights) ** 2) / np.sum(weights**2)
    variance = np.sum(np.bincount(cluster, residuals) ** 2) + assumed * together
    effect = max(1.0, variance / (np.sum(residuals**2) + assumed))
    return float(effect * (t.ppf(0.975, count - 1) / t.ppf(0.975, max(len(weights) - 1, 1))) ** 2)
