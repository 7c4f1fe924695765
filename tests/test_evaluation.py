"""Tests that the scores are scikit-learn's, their intervals the published ones, and the files complete."""

import csv
import io
import json
import socket

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
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
from transformers import EvalPrediction, ViTConfig, ViTForImageClassification, ViTImageProcessor

from agritransfer.data.readers.source import Photo
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.intervals import accuracy_interval, macro_f1_interval, wilson_interval
from agritransfer.evaluation.predictions import write_predictions
from agritransfer.evaluation.results import score
from agritransfer.evaluation.trainer_metric import ClassificationMetric, compute_metrics
from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset
from agritransfer.images.preprocessing import PhotoProcessor, describe_processor

LABELS = ["healthy", "mosaic", "rust"]


def answers_of(classes: int, photos: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than not, and the truth, in which every class occurs."""
    random = np.random.default_rng(seed)
    truth = np.arange(photos) % classes
    logits = random.normal(size=(photos, classes)) + 1.2 * np.eye(classes)[truth]
    return logits.astype(np.float32), truth


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
    assert entry["macro_f1_ci95"] == macro_f1_interval(logits.argmax(1), truth, 3, [""] * len(truth))
    assert entry["per_class"][1] == {"label": "mosaic", "n": 2, "precision": 1.0, "recall": 0.5, "f1": 2 / 3}
    assert entry["confusion_matrix"] == [[2, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert {"balanced_accuracy", "top5_accuracy", "log_loss"} < set(entry)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # The Wilson column of Newcombe (1998), Statistics in Medicine 17, 857-872, table I.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # All right: n / (n + 1.96^2) = 20 / 23.84.
        (20, 20, 0.8389, 1.0000),
    ],
)
def test_the_interval_of_a_share_is_the_published_one(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx([low, high], abs=5e-5)


def test_the_interval_of_macro_f1_holds_the_score_and_narrows_with_more_photos():
    widths = []
    for photos in (30, 300):
        logits, truth = answers_of(classes=3, photos=photos)
        low, high = macro_f1_interval(logits.argmax(1), truth, 3, [""] * len(truth))
        assert low < f1_score(truth, logits.argmax(1), average="macro") < high
        widths.append(high - low)
    # Ten times the photos, about a third of the width.
    assert 0.2 < widths[1] / widths[0] < 0.5


def test_the_interval_of_macro_f1_is_the_same_at_every_call_and_another_for_other_draws():
    logits, truth = answers_of(classes=3, photos=40)
    answers = logits.argmax(1)
    assert macro_f1_interval(answers, truth, 3, [""] * len(truth)) == macro_f1_interval(
        answers, truth, 3, [""] * len(truth)
    )
    assert macro_f1_interval(answers, truth, 3, [""] * len(truth)) != macro_f1_interval(
        answers[::-1], truth[::-1], 3, [""] * len(truth)
    )


def test_the_interval_of_macro_f1_is_of_the_f1_of_scikit_learn():
    # One photo: every draw is the same, so that the bounds are the score itself.
    assert macro_f1_interval(np.array([1]), np.array([1]), 3, [""]) == [1.0, 1.0]
    assert macro_f1_interval(np.array([2]), np.array([1]), 3, [""]) == [0.0, 0.0]
    # Photos without any mistake have no draw with one.
    assert macro_f1_interval(np.arange(30) % 3, np.arange(30) % 3, 3, [""] * 30) == [1.0, 1.0]
    # A class that is answered but never shown takes no part: half right among 100 photos of one class has an F1 of 2/3.
    low, high = macro_f1_interval(np.repeat([1, 2], 50), np.full(100, 1), 3, [""] * 100)
    assert 0.5 < low < 2 / 3 < high < 0.8
    # The middle of the draws lies at the score, here of a classifier that is right in 2 of 3 and in 1 of 3.
    truth, answers = (
        np.repeat([0, 1], 300),
        np.concatenate([np.repeat([0, 1], [200, 100]), np.repeat([0, 1], [200, 100])]),
    )
    expected = f1_score(truth, answers, average="macro")
    assert np.mean(macro_f1_interval(answers, truth, 2, [""] * len(truth))) == pytest.approx(expected, abs=0.005)


def test_photos_of_one_group_count_as_one_case():
    # Ten plants of ten photos each, eight plants all right and two all wrong.
    right = np.repeat([True, False], [80, 20])
    plants = [f"plant {i // 10}" for i in range(100)]
    alone, grouped = (accuracy_interval(right, groups) for groups in ([""] * 100, plants))
    assert alone == wilson_interval(80, 100)
    # The standard error of 10 plants is the square root of 0.8 x 0.2 / 10, that of 100 photos is a third of it.
    assert grouped[1] - grouped[0] == pytest.approx(2 * 1.96 * 0.126, rel=0.15)
    answers, truth = np.where(right, 0, 1), np.zeros(100, int)
    wide, narrow = (np.diff(macro_f1_interval(answers, truth, 2, groups))[0] for groups in (plants, [""] * 100))
    assert wide > 2 * narrow
    # A bootstrap of one group knows no doubt; the interval is never narrower than Wilson's.
    assert accuracy_interval(np.full(20, True), ["copies"] * 20) == wilson_interval(20, 20)


def photo_dataset(count: int, processor: PhotoProcessor) -> tuple[PhotoDataset, list[Image.Image]]:
    """Photos of noise, in a store whose order is not that of the split."""
    random, images, store = np.random.default_rng(0), [], []
    for _ in range(count):
        images.append(Image.fromarray(random.integers(256, size=(40, 36, 3), dtype=np.uint8)))
        file = io.BytesIO()
        images[-1].save(file, "PNG")
        store.append({"image": {"bytes": file.getvalue(), "path": None}})
    rows = list(range(count))[::-1]
    return PhotoDataset(store, rows, [0] * count, [f"{row}.png" for row in rows], EvaluationPixels(processor)), [
        images[row] for row in rows
    ]


def test_logits_are_those_of_a_plain_forward_in_the_order_of_the_photos():
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(
        ViTConfig(**tiny, image_size=32, patch_size=8, num_labels=3, hidden_dropout_prob=0.5)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    processor = describe_processor(
        ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.2, 0.4, 0.6], image_std=[0.3] * 3)
    )
    dataset, images = photo_dataset(10, processor)
    # Ten photos in batches of four: the last one is not full. The model comes as training left it, with dropout.
    predicted, features = predict(model.train(), dataset, batch_size=4)
    assert (predicted.shape, predicted.dtype) == ((10, 3), np.float32)
    with torch.no_grad():
        expected = [model.eval()(**processor.library(image, return_tensors="pt")).logits[0].numpy() for image in images]
    assert np.allclose(predicted, expected, atol=1e-4)
    assert np.std(expected, axis=0).min() > 1e-2
    # The features are what the head is given: its weights turn them into the logits.
    assert (features.shape, features.dtype) == ((10, 16), np.float32)
    head = model.classifier
    assert np.allclose(features @ head.weight.detach().numpy().T + head.bias.detach().numpy(), predicted, atol=1e-4)
    assert not head._forward_pre_hooks


def test_every_scored_photo_is_a_row_with_all_that_is_needed_to_score_it_again(tmp_path):
    validation = [Photo(0, "a/1.jpg", "rust", "validation", "field 7"), Photo(1, "a,2.jpg", "healthy", "validation")]
    test = [Photo(2, "b/ñ.jpg", "mosaic", "test")]
    logits = {
        "validation": np.array([[0.5, -1.25, 2], [1e-7, 0, -1]], dtype=np.float32),
        "test": np.array([[3.14159265, 0, 0]], dtype=np.float32),
    }
    scored = {"validation": (validation, logits["validation"]), "test": (test, logits["test"])}
    write_predictions(tmp_path / "predictions.csv", scored, LABELS)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert ",".join(header) == "split,file,group,label,predicted,logit_healthy,logit_mosaic,logit_rust"
    assert rows == [
        ["validation", "a/1.jpg", "field 7", "rust", "rust", "0.5", "-1.25", "2"],
        ["validation", "a,2.jpg", "", "healthy", "healthy", "1e-07", "0", "-1"],
        ["test", "b/ñ.jpg", "", "mosaic", "healthy", "3.14159", "0", "0"],
    ]


def test_a_split_whose_photos_and_logits_differ_in_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_predictions(
            tmp_path / "predictions.csv", {"test": ([Photo(0, "a.jpg", "rust", "test")] * 2, np.zeros((1, 3)))}, LABELS
        )
