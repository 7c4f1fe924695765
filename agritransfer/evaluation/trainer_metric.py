"""Which scores does the Trainer compute on the validation photos?

This is a separate file because `evaluate` takes seconds to import and only training needs it.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from agritransfer.errors import DivergedError
from agritransfer.evaluation.metrics import scores_of


class ClassificationMetric(evaluate.Metric):
    """The scores of a classifier as a metric of `evaluate`, defined locally so that it needs no network.

    Predictions are one row of logits per photo, references the label indices.
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
        return scores_of(np.asarray(predictions), np.asarray(references))


def compute_metrics(prediction: Any) -> dict[str, float]:
    """The Trainer's validation scores, scalars only; the best weights are chosen by `macro_f1`.

    Raises `DivergedError` if the outputs of the model are not finite.
    """
    if not np.isfinite(prediction.predictions).all():
        raise DivergedError("the outputs on the validation photos are NaN or infinite; lower --learning_rate")
    # In memory, because the cache files of several processes would collide.
    metric = ClassificationMetric(keep_in_memory=True)
    scores = metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
    return {name: value for name, value in scores.items() if isinstance(value, float)}
