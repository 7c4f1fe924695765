"""How good is a classifier?"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score

from agritransfer.errors import DivergedError


class ClassificationMetric(evaluate.Metric):
    """The scores of a classifier as a metric of `evaluate`, kept here so that it needs no network.

    Predictions are one row of logits a photo, references the labels' indices. Averages are over the classes that occur
    among the references, so that a field set with fewer classes is not punished for those that it lacks.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, macro F1, balanced accuracy, top-5 accuracy, log loss, per class, confusion matrix.",
            citation="",
            inputs_description="predictions: logits of shape (photos, classes); references: label indices.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, Any]:
        logits, truth = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        every_class, answers = np.arange(logits.shape[1]), logits.argmax(axis=1)
        matrix = confusion_matrix(truth, answers, labels=every_class)
        occurring = matrix.sum(axis=1) > 0
        precision, recall, f1, counts = precision_recall_fscore_support(
            truth, answers, labels=every_class, zero_division=0
        )
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


def compute_metrics(prediction: Any) -> dict[str, float]:
    """The Trainer's validation scores, single numbers only; `macro_f1` chooses the best weights.

    Raises `DivergedError` where the last step before it left weights whose outputs are no numbers.
    """
    if not np.isfinite(prediction.predictions).all():
        raise DivergedError("the outputs on the validation photos became no numbers; lower --learning_rate")
    scores = scores_of(prediction.predictions, prediction.label_ids)
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def scores_of(logits: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """All scores of logits (photos, classes) by the metric, truth as label indices."""
    # In memory: the files of two processes would meet in one cache folder.
    return ClassificationMetric(keep_in_memory=True).compute(predictions=logits, references=truth)


def macro_f1(answers: np.ndarray, truth: np.ndarray, num_labels: int, weights: np.ndarray | None = None) -> float:
    """Macro F1 over the classes that occur, each photo counted as often as its weight says."""
    in_truth, in_answers = (np.bincount(of, weights, minlength=num_labels) for of in (truth, answers))
    right = answers == truth
    hits = np.bincount(truth[right], None if weights is None else weights[right], minlength=num_labels)
    occurring = in_truth > 0
    return float((2 * hits[occurring] / (in_truth + in_answers)[occurring]).mean())
