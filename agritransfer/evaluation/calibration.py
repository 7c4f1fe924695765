"""Are the probabilities calibrated?"""

import numpy as np

BINS = 15


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature that logits (photos, classes) are divided by, fitted by maximum likelihood (Guo et al. 2017).

    The target probability of the true class is 1 - 1 / (n + 2), as in Platt scaling, so that n correct answers never
    lead to a probability of 1.
    """
    # Imported here because applying a temperature does not need scipy.
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    classes, doubt = logits.shape[1], 1 / (len(truth) + 2)
    target = np.full(logits.shape, doubt / (classes - 1))
    target[np.arange(len(truth)), truth] = 1 - doubt

    def loss(log_temperature: float) -> float:
        return -(target * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(axis=1).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def calibrated_probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """The softmax of logits (photos, classes) divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def confidence_bins(probabilities: np.ndarray, truth: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of photos of each of 15 equal-width confidence bins that is not empty."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    members = [bins == number for number in range(BINS)]
    return [(float(confidence[m].mean()), float(right[m].mean()), int(m.sum())) for m in members if m.any()]


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over the bins, weighted by number of photos (Naeini et al. 2015)."""
    return float(sum(n * abs(sure - right) for sure, right, n in confidence_bins(probabilities, truth)) / len(truth))
