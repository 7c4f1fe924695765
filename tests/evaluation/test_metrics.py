"""Tests that the scores are scikit-learn's, their intervals the published ones, and the files complete."""

import json
import socket

import evaluate
import numpy as np
import pytest
from answers import LABELS, answers_of
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from transformers import EvalPrediction, TrainingArguments

from agritransfer.errors import UsageError
from agritransfer.evaluation.intervals import class_average_intervals, f1_intervals, wilson_interval
from agritransfer.evaluation.results import score
from agritransfer.evaluation.trainer_metric import (
    ClassificationMetric,
    check_selection,
    compute_metrics,
    higher_is_better,
)


def metric(logits: np.ndarray, truth: np.ndarray) -> dict:
    return ClassificationMetric(keep_in_memory=True).compute(predictions=logits, references=truth)


def sure(answers: list[int], classes: int) -> np.ndarray:
    return 5.0 * np.eye(classes, dtype=np.float32)[answers]


def test_the_metric_is_one_of_evaluate_and_says_what_scikit_learn_says_without_a_network(monkeypatch):
    def no_network(*_):
        raise AssertionError("a metric of our own must not need a network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    logits, truth = answers_of(classes=7, photos=80)
    answers, shares = logits.argmax(1), softmax(logits.astype(float), axis=1)
    assert issubclass(ClassificationMetric, evaluate.Metric)
    scores = metric(logits, truth)
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, answers))
    assert scores["macro_f1"] == pytest.approx(f1_score(truth, answers, average="macro"))
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, answers))
    assert scores["top5_accuracy"] == pytest.approx(top_k_accuracy_score(truth, logits, k=5))
    assert scores["log_loss"] == pytest.approx(log_loss(truth, shares), rel=1e-5)
    assert scores["confusion_matrix"] == confusion_matrix(truth, answers).tolist()
    columns = precision_recall_fscore_support(truth, answers)
    for row, precision, recall, f1, count in zip(scores["per_class"], *columns, strict=True):
        assert row == {"n": count, "precision": precision, "recall": recall, "f1": f1}
    assert 0.4 < scores["accuracy"] < scores["top5_accuracy"] < 1


def test_the_metric_takes_its_photos_in_batches_as_every_metric_of_evaluate_does():
    logits, truth = answers_of(classes=3, photos=10)
    in_batches = ClassificationMetric(keep_in_memory=True)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        in_batches.add_batch(predictions=logits[rows], references=truth[rows])
    assert in_batches.compute() == metric(logits, truth)


def test_classes_that_do_not_occur_are_left_out_of_the_averages():
    # Class 2 is answered once and class 3 never; no photo shows either.
    scores = metric(sure([0, 0, 1, 2], classes=4), np.array([0, 0, 1, 1]))
    assert scores["accuracy"] == 0.75
    assert scores["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert [row["n"] for row in scores["per_class"]] == [2, 2, 0, 0]
    assert scores["confusion_matrix"] == [[2, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_of_up_to_five_classes_the_right_one_is_always_among_five():
    assert metric(sure([1, 0], classes=5), np.array([0, 1]))["top5_accuracy"] == 1.0
    last = np.array([[5.0, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 6]], dtype=np.float32)
    assert metric(last, np.array([5, 5]))["top5_accuracy"] == 0.5


def test_a_sure_and_wrong_answer_has_a_large_but_finite_log_loss():
    scores = metric(np.array([[1000.0, 0], [0, 1000]], dtype=np.float32), np.array([1, 1]))
    assert 10 < scores["log_loss"] < 100


def test_the_trainer_gets_single_numbers_only():
    logits, truth = answers_of(classes=3, photos=12)
    scores = compute_metrics(EvalPrediction(predictions=logits, label_ids=truth))
    assert set(scores) == {"accuracy", "macro_f1", "balanced_accuracy", "top5_accuracy", "log_loss"}
    assert all(isinstance(value, float) for value in scores.values())
    assert scores["accuracy"] == accuracy_score(truth, logits.argmax(1))


def test_one_split_of_the_results_has_every_field_and_is_json():
    logits, truth = sure([0, 0, 1, 2, 2], classes=3), np.array([0, 0, 1, 1, 2])
    entry = score(logits, truth, LABELS, [""] * 5)
    assert json.loads(json.dumps(entry)) == entry
    assert (entry["n"], entry["accuracy"]) == (5, 0.8)
    assert entry["accuracy_ci95"] == wilson_interval(4, 5)
    assert entry["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    averages = class_average_intervals(logits.argmax(1), truth, 3, [""] * len(truth))
    assert (entry["macro_f1_ci95"], entry["balanced_accuracy_ci95"]) == tuple(averages.values())
    mosaic = {"label": "mosaic", "n": 2, "precision": 1.0, "recall": 0.5, "f1": 2 / 3}
    assert entry["per_class"][1] == mosaic | {"f1_ci95": f1_intervals(logits.argmax(1), truth, 3, [""] * 5)[1]}
    assert entry["confusion_matrix"] == [[2, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert {"balanced_accuracy", "top5_accuracy", "log_loss"} < set(entry)


@pytest.mark.parametrize("num_labels", [2, 5, 6, 73])
def test_weights_are_chosen_by_scores_that_validation_reports_in_the_direction_of_the_better(num_labels, tmp_path):
    right, truth = np.eye(num_labels), np.arange(num_labels)
    reported = set(compute_metrics(EvalPrediction(predictions=right, label_ids=truth))) | {"loss"}
    constant = {"top5_accuracy"} if num_labels <= 5 else set()
    directions = higher_is_better(num_labels)
    assert set(directions) == reported - constant and len(directions) >= 5
    assert {name for name, higher in directions.items() if not higher} == {"loss", "log_loss"}
    for name, higher in directions.items():
        for metric in (name, f"eval_{name}"):
            # The Trainer's own guess.
            args = TrainingArguments(output_dir=str(tmp_path), metric_for_best_model=metric)
            check_selection(args, num_labels)
            args.greater_is_better = not higher
            with pytest.raises(UsageError, match=f"remove --greater_is_better or set it to {str(higher).lower()}"):
                check_selection(args, num_labels)
    for name in ("f1", "eval_f1", "runtime", *constant):
        args = TrainingArguments(output_dir=str(tmp_path), metric_for_best_model=name)
        with pytest.raises(UsageError, match="cannot choose the best weights; use one of the validation scores accur"):
            check_selection(args, num_labels)
