"""Is one model better than another by more than chance, counting both the photos and the seeds?

The quantity is always the difference in mean macro F1 over the runs. Photos are paired, and photos of a group stay
together. A model with a single run stands for that run alone: the variation between its seeds cannot be known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from agritransfer.evaluation.intervals import clusters_of, macro_f1_interval

# A gain is called significant if its p-value, corrected for the number of comparisons, is below this level.
LEVEL = 0.05
SMALLEST_P = 1e-12
# Photos of opposite verdicts that are added so that few photos cannot give a sure answer (Bonett and Price, 2012).
ADDED = 2


@dataclass(frozen=True)
class Gain:
    """A gain in mean macro F1 and its variance due to the photos and due to the seeds, with degrees of freedom.

    Each field is a number, or an array with one element per comparison.
    """

    value: np.ndarray
    photo_variance: np.ndarray
    photo_df: float
    seed_variance: np.ndarray
    seed_df: np.ndarray

    def half_width(self, level: float = LEVEL) -> np.ndarray:
        """Half the width of the interval that misses the true gain with this probability.

        The quantile of Student's t is the mean of those of photos and seeds, weighted by their share of the variance
        (Cochran and Cox, 1957): with few seeds, Satterthwaite's single number of degrees of freedom is too optimistic.
        """
        variance = self.photo_variance + self.seed_variance
        share = self.seed_variance / variance
        of_photos, of_seeds = (-stdtrit(df, level / 2) for df in (self.photo_df, self.seed_df))
        return np.sqrt(variance) * ((1 - share) * of_photos + share * of_seeds)

    def p_value(self) -> float:
        """The smallest level at which the interval excludes zero: below 0.05 exactly if the 95% interval does."""
        beyond = abs(self.value)
        if self.half_width(SMALLEST_P) <= beyond:
            return SMALLEST_P
        return float(np.exp(brentq(lambda log_p: self.half_width(np.exp(log_p)) - beyond, np.log(SMALLEST_P), 0.0)))


def measure_gain(
    answers: np.ndarray, of_other: np.ndarray, truth: np.ndarray, groups: Sequence[str], num_labels: int
) -> Gain:
    """The gain of one model over another on the same photos.

    Answers are label indices of shape (..., runs, photos), truth (photos,); each leading index is one comparison.
    """
    group, models = clusters_of(groups), (answers, of_other)
    f1, sizes = zip(*(_class_scores(model, truth, num_labels) for model in models), strict=True)
    # Around the mean of both models the gain is exactly the sum of what the photos add to it (for one run of each),
    # and a photo with the same answer from both adds nothing: for accuracy, this would be McNemar's test.
    middle = [(of[0].mean(axis=-2) + of[1].mean(axis=-2)) / 2 for of in (f1, sizes)]
    added = [_contributions(model, truth, *middle, group) for model in models]
    macro_f1 = [_macro(of, truth) for of in f1]
    paired = added[0].mean(axis=-2) - added[1].mean(axis=-2)
    weights = np.bincount(group, 1 / np.bincount(truth)[truth]) / len(np.unique(truth))
    return Gain(
        macro_f1[0].mean(axis=-1) - macro_f1[1].mean(axis=-1),
        (paired**2).sum(axis=-1) + ADDED * (weights**2).mean(),
        max(len(weights) - 1, 1),
        *_seed_variance(macro_f1, added),
    )


def _class_scores(answers: np.ndarray, truth: np.ndarray, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """F1 of each class, and the photos with that label plus those with that answer; both (..., runs, classes).

    A class that does not occur in the truth has an F1 of 0 and the size 1: it adds nothing.
    """
    of_truth = np.bincount(truth, minlength=num_labels)
    hits = _counts(np.where(answers == truth, answers, num_labels), num_labels)
    sizes = np.where(of_truth > 0, of_truth + _counts(answers, num_labels), 1)
    return 2 * hits / sizes, sizes


def _counts(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """How often each label occurs in the last axis; the index `num_labels` is not counted."""
    rows = labels.reshape(-1, labels.shape[-1])
    offset = (num_labels + 1) * np.arange(len(rows))[:, None]
    counts = np.bincount((rows + offset).ravel(), minlength=(num_labels + 1) * len(rows))
    return counts.reshape(*labels.shape[:-1], num_labels + 1)[..., :-1]


def _macro(f1: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return f1.sum(axis=-1) / len(np.unique(truth))


def _contributions(
    answers: np.ndarray, truth: np.ndarray, f1: np.ndarray, sizes: np.ndarray, group: np.ndarray
) -> np.ndarray:
    """What each group of photos adds to the macro F1 of a run, to first order (..., runs, groups).

    `f1` and `sizes` (..., classes) are where the score is linearized. A right answer adds to its class; every answer
    makes its class larger.
    """
    right = (2 / sizes)[..., None, truth] * (answers == truth)
    weight = np.broadcast_to((f1 / sizes)[..., None, :], (*answers.shape[:-1], f1.shape[-1]))
    of_photos = (right - np.take_along_axis(weight, answers, axis=-1)) / len(np.unique(truth))
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return np.add.reduceat(of_photos[..., order], starts, axis=-1)


def _seed_variance(macro_f1: Sequence[np.ndarray], added: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Variance of a difference of means over runs that is due to the seeds, with Welch's degrees of freedom.

    Scores of runs (..., runs) also differ because each run errs on other photos. The variance over the photos includes
    that part already, so it is subtracted (as in the analysis of readers and cases of Obuchowski and Rockette, 1995).
    """
    variance, squares = np.zeros(macro_f1[0].shape[:-1]), np.zeros(macro_f1[0].shape[:-1])
    for scores, of_groups in zip(macro_f1, added, strict=True):
        runs = scores.shape[-1]
        if runs > 1:
            of_photos = of_groups.var(axis=-2, ddof=1).sum(axis=-1)
            of_seeds = np.maximum(scores.var(axis=-1, ddof=1) - of_photos, 0) / runs
            variance, squares = variance + of_seeds, squares + of_seeds**2 / (runs - 1)
    # Without any variance the quantile has no weight.
    return variance, np.divide(variance**2, squares, out=np.ones_like(variance), where=squares > 0)


def gain(
    answers: np.ndarray, of_other: np.ndarray, truth: np.ndarray, groups: Sequence[str], num_labels: int
) -> dict[str, Any]:
    """The gain in mean macro F1 over another model on the same photos, with its 95% interval and its p-value.

    Answers are label indices of shape (runs, photos), truth (photos,).
    """
    found = measure_gain(answers, of_other, truth, groups, num_labels)
    half = found.half_width()
    return {
        "gain": float(found.value),
        "gain_ci95": [max(-1.0, float(found.value - half)), min(1.0, float(found.value + half))],
        "p_value": found.p_value(),
    }


def mean_macro_f1(answers: np.ndarray, truth: np.ndarray, groups: Sequence[str], num_labels: int) -> dict[str, Any]:
    """Mean macro F1 over the runs with its 95% interval, and the macro F1 of each run; answers (runs, photos).

    The interval over the photos is the mean of those of the runs; the variation between seeds widens it.
    """
    f1, sizes = _class_scores(answers, truth, num_labels)
    each = _macro(f1, truth)
    added = _contributions(answers, truth, f1.mean(axis=0), sizes.mean(axis=0), clusters_of(groups))
    variance, df = _seed_variance([each], [added])
    of_seeds = -stdtrit(df, LEVEL / 2) * np.sqrt(variance)
    mean = each.mean()
    over_photos = np.mean([macro_f1_interval(run, truth, num_labels, groups) for run in answers], axis=0)
    low, high = mean + np.array([-1, 1]) * np.hypot(over_photos - mean, of_seeds)
    return {
        "macro_f1": float(mean),
        "macro_f1_of_seeds": each.tolist(),
        "macro_f1_ci95": [max(0.0, float(low)), min(1.0, float(high))],
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the chance of any false finding stays below the level (Holm, 1979)."""
    order = np.argsort(p_values)
    stepped = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted.tolist()
