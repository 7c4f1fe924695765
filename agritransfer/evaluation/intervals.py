"""How uncertain is a score?"""

from collections.abc import Callable, Sequence

import numpy as np

from agritransfer.evaluation.metrics import macro_f1

RESAMPLES = 2000


def wilson_interval(successes: int, trials: int) -> list[float]:
    """95% Wilson score interval of a proportion; for 20 of 20 it is [0.84, 1], a bootstrap would give [1, 1]."""
    # Imported here because commands that compute no interval import this file too.
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def accuracy_interval(right: np.ndarray, groups: Sequence[str]) -> list[float]:
    """95% interval of the accuracy; `right` is boolean (photos,).

    The Wilson interval; if photos share a group, it is widened to include a bootstrap interval over the groups, since
    ten photos of one plant carry less information than photos of ten plants.
    """
    low, high = wilson_interval(int(right.sum()), len(right))
    if any(groups):
        clustered = bootstrap_interval(lambda weights: np.average(right, weights=weights), groups)
        low, high = min(low, clustered[0]), max(high, clustered[1])
    return [low, high]


def macro_f1_interval(answers: np.ndarray, truth: np.ndarray, num_labels: int, groups: Sequence[str]) -> list[float]:
    """95% bootstrap interval of macro F1 over the photos, or over their groups if they have any."""
    return bootstrap_interval(lambda weights: macro_f1(answers, truth, num_labels, weights), groups)


def bootstrap_interval(statistic: Callable[[np.ndarray], float], groups: Sequence[str], seed: int = 0) -> list[float]:
    """95% percentile interval of a statistic over photos drawn with replacement; groups are drawn as a whole.

    `statistic` takes how often each photo was drawn (photos,). A photo without a group ("") is its own group.
    """
    cluster = _clusters(groups)
    count, random = int(cluster.max()) + 1, np.random.default_rng(seed)
    drawn = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))
    values = [statistic(times[cluster]) for times in drawn]
    return [float(bound) for bound in np.quantile(values, [0.025, 0.975])]


def _clusters(groups: Sequence[str]) -> np.ndarray:
    names = [group or f"photo {i}" for i, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1]
