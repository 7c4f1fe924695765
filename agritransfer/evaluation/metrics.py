"""Which metrics describe a classifier?"""

from typing import Any

import numpy as np


def scores_of(logits: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """All scores of logits (photos, classes) against the true label indices (photos,).

    Averages are over the classes that occur in the truth, so that a field set with fewer classes is not penalized for
    the missing ones.
    """
    # Imported here because many commands do not score.
    from scipy.special import log_softmax
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score

    logits = np.asarray(logits, dtype=np.float64)
    every_class, answers = np.arange(logits.shape[1]), logits.argmax(axis=1)
    matrix = confusion_matrix(truth, answers, labels=every_class)
    occurring = matrix.sum(axis=1) > 0
    precision, recall, f1, counts = precision_recall_fscore_support(truth, answers, labels=every_class, zero_division=0)
    in_top_5 = top_k_accuracy_score(truth, logits, k=5, labels=every_class) if len(every_class) > 5 else 1.0
    return {
        "accuracy": float((answers == truth).mean()),
        "macro_f1": float(f1[occurring].mean()),
        "balanced_accuracy": float(recall[occurring].mean()),
        "top5_accuracy": float(in_top_5),
        "log_loss": float(log_loss(truth, np.exp(log_softmax(logits, axis=1)), labels=every_class)),
        "per_class": [
            {"n": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
            for n, p, r, f in zip(counts, precision, recall, f1, strict=True)
        ],
        "confusion_matrix": matrix.tolist(),
    }


def macro_f1(answers: np.ndarray, truth: np.ndarray, num_labels: int, weights: np.ndarray | None = None) -> float:
    """Macro F1 over the classes that occur in the truth, each photo counted with its weight."""
    in_truth, in_answers = (np.bincount(of, weights, minlength=num_labels) for of in (truth, answers))
    right = answers == truth
    hits = np.bincount(truth[right], None if weights is None else weights[right], minlength=num_labels)
    occurring = in_truth > 0
    return float((2 * hits[occurring] / (in_truth + in_answers)[occurring]).mean())
