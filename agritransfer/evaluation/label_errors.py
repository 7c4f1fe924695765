"""Which labels are probably wrong?"""

import numpy as np


def suspected_mislabels(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, float]]:
    """(photo, suggested label, probability of the given label) of probably wrong labels, the least probable first.

    Confident learning (Northcutt et al. 2021): a class is likely if its probability reaches the average of the photos
    with its label; a photo is suspected if the most probable of its likely classes is not its label.
    """
    classes = np.arange(probabilities.shape[1])
    own = probabilities[np.arange(len(labels)), labels]
    usual = np.array([own[labels == label].mean() if (labels == label).any() else np.inf for label in classes])
    likely = np.where(probabilities >= usual, probabilities, -1.0)
    suggested = likely.argmax(axis=1)
    suspects = np.flatnonzero((likely.max(axis=1) > 0) & (suggested != labels))
    return [(int(i), int(suggested[i]), float(own[i])) for i in suspects[np.argsort(own[suspects], kind="stable")]]
