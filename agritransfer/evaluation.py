"""How good, how sure, and where does it fail?"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import PreTrainedModel

from agritransfer.pixels import PhotoDataset, collate, normalization
from agritransfer.sources import Photo

RESAMPLES = 2000


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


def predict_logits(model: PreTrainedModel, dataset: PhotoDataset, batch_size: int) -> np.ndarray:
    """Logits of shape (photos, classes) in float32, the photos shared out over the processes of the run."""
    state = PartialState()
    model = model.to(state.device).eval()
    mean, std = (statistic.to(state.device) for statistic in normalization(dataset.processor))
    with state.split_between_processes(list(range(len(dataset)))) as mine, torch.inference_mode():
        loader = DataLoader(Subset(dataset, mine), batch_size=batch_size, collate_fn=collate)
        bar = tqdm(loader, desc="scoring", delay=2, leave=False, disable=None if state.is_main_process else True)
        logits = [model((batch["pixel_values"].to(state.device) - mean) / std).logits.cpu().numpy() for batch in bar]
    return np.concatenate(gather_object(logits))


def compute_metrics(prediction: Any) -> dict[str, float]:
    """The Trainer's validation scores, single numbers only; `macro_f1` chooses the best weights."""
    scores = _scores(prediction.predictions, prediction.label_ids)
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def score(logits: np.ndarray, truth: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """One split's entry in `results.json`; logits of shape (photos, classes), truth as label indices."""
    scores = _scores(logits, truth)
    answers = logits.argmax(axis=1)
    per_class = [{"label": label, **row} for label, row in zip(labels, scores.pop("per_class"), strict=True)]
    matrix = scores.pop("confusion_matrix")
    return {
        "n": len(truth),
        "accuracy": scores.pop("accuracy"),
        "accuracy_ci95": wilson_interval(int((answers == truth).sum()), len(truth)),
        "macro_f1": scores.pop("macro_f1"),
        "macro_f1_ci95": macro_f1_interval(answers, truth, len(labels)),
        **scores,
        # Calibration is measured by a later step.
        "ece": None,
        "per_class": per_class,
        "confusion_matrix": matrix,
    }


def _scores(logits: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    # In memory: the files of two processes would meet in one cache folder.
    return ClassificationMetric(keep_in_memory=True).compute(predictions=logits, references=truth)


def wilson_interval(successes: int, trials: int) -> list[float]:
    """95 % Wilson score interval of a share; of 20 right answers in 20 it says [0.84, 1], a bootstrap [1, 1]."""
    interval = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def macro_f1_interval(answers: np.ndarray, truth: np.ndarray, num_labels: int, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of macro F1 over the photos."""
    random = np.random.default_rng(seed)
    drawn = (random.integers(len(truth), size=len(truth)) for _ in range(RESAMPLES))
    values = [_macro_f1(answers[rows], truth[rows], num_labels) for rows in drawn]
    return [float(bound) for bound in np.quantile(values, [0.025, 0.975])]


def _macro_f1(answers: np.ndarray, truth: np.ndarray, num_labels: int) -> float:
    in_truth, in_answers = np.bincount(truth, minlength=num_labels), np.bincount(answers, minlength=num_labels)
    right = np.bincount(truth[answers == truth], minlength=num_labels)
    occurring = in_truth > 0
    return float((2 * right[occurring] / (in_truth + in_answers)[occurring]).mean())


def paired_gain_interval(right: np.ndarray, right_of_other: np.ndarray, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of the gain in accuracy over another model on the same photos; both boolean (photos,)."""
    gain = right.astype(float) - right_of_other.astype(float)
    random = np.random.default_rng(seed)
    means = [gain[random.integers(len(gain), size=len(gain))].mean() for _ in range(RESAMPLES)]
    return [float(bound) for bound in np.quantile(means, [0.025, 0.975])]


def write_predictions(path: Path, scored: dict[str, tuple[Sequence[Photo], np.ndarray]], labels: Sequence[str]) -> None:
    """Write every scored photo: split, file, group, label, predicted, one logit column a class."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "file", "group", "label", "predicted", *(f"logit_{label}" for label in labels)])
        for split, (photos, logits) in scored.items():
            for photo, row in zip(photos, logits, strict=True):
                answer = labels[int(row.argmax())]
                writer.writerow([split, photo.file, photo.group, photo.label, answer, *(f"{x:.6g}" for x in row)])
