"""Which scores does the Trainer compute on the validation photos?

This is a separate file because `evaluate` takes seconds to import and only training needs it.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from transformers import TrainingArguments

from agritransfer.errors import DivergedError, UsageError
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
    """The Trainer's validation scores, scalars only; the best weights are chosen by one of them.

    Raises `DivergedError` if the outputs of the model are not finite.
    """
    if not np.isfinite(prediction.predictions).all():
        raise DivergedError("the outputs on the validation photos are NaN or infinite; lower --learning_rate")
    # In memory, because the cache files of several processes would collide.
    metric = ClassificationMetric(keep_in_memory=True)
    scores = metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
    return _scalars(scores)


def _scalars(scores: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def higher_is_better(num_labels: int) -> dict[str, bool]:
    """The validation scores that can choose among weights, each with whether a higher value is better.

    Right and wrong answers are scored and compared. A score that is equal for both is left out, such as the top-5
    accuracy of five classes.
    """
    right = np.eye(num_labels)
    good, bad = (_scalars(scores_of(logits, np.arange(num_labels))) for logits in (right, -right))
    return {"loss": False} | {name: good[name] > bad[name] for name in good if good[name] != bad[name]}


def check_selection(args: TrainingArguments, num_labels: int = 6) -> None:
    """Raise `UsageError` if validation does not report `metric_for_best_model`, or if its direction is wrong.

    The default number of labels suits a check before the photos are read: with six, every score can differ.
    """
    directions = higher_is_better(num_labels)
    metric = args.metric_for_best_model.removeprefix("eval_")
    if metric not in directions:
        raise UsageError(
            f"--metric_for_best_model {args.metric_for_best_model} cannot choose the best weights; use one of the "
            f"validation scores {', '.join(sorted(directions))}"
        )
    if args.greater_is_better != directions[metric]:
        better, other = ("higher", "true") if directions[metric] else ("lower", "false")
        raise UsageError(
            f"--greater_is_better {str(args.greater_is_better).lower()} is wrong for --metric_for_best_model {metric}, "
            f"of which a {better} value is better; remove --greater_is_better or set it to {other}"
        )
