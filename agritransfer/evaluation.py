"""How good, how sure, and where does it fail?"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from transformers import BaseImageProcessor, PreTrainedModel

from agritransfer.errors import DivergedError
from agritransfer.models import find_head
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


def predict(model: PreTrainedModel, dataset: PhotoDataset, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (photos, classes) and features, the head's input (photos, width), both float32.

    The photos are shared out over the processes of the run.
    """
    state = PartialState()
    with state.split_between_processes(list(range(len(dataset)))) as mine:
        loader = DataLoader(Subset(dataset, mine), batch_size=batch_size, collate_fn=collate)
        bar = tqdm(loader, desc="scoring", delay=2, leave=False, disable=None if state.is_main_process else True)
        outputs = list(model_outputs(model, dataset.pixels.processor, (batch["pixel_values"] for batch in bar)))
    logits, features = zip(*outputs, strict=True) if outputs else ((), ())
    return np.concatenate(gather_object(list(logits))), np.concatenate(gather_object(list(features)))


def model_outputs(
    model: PreTrainedModel, processor: BaseImageProcessor, batches: Iterable[torch.Tensor]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits (photos, classes) and the head's input (photos, width) of batches of uint8 pixels, one by one."""
    device = PartialState().device
    model = model.to(device).eval()
    mean, std = (statistic.to(device) for statistic in normalization(processor))
    seen = []
    hook = find_head(model)[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu().numpy()))
    try:
        for pixels in batches:
            with torch.inference_mode():
                logits = model((pixels.to(device) - mean) / std).logits.float().cpu().numpy()
            yield logits, seen.pop()
    finally:
        hook.remove()


def compute_metrics(prediction: Any) -> dict[str, float]:
    """The Trainer's validation scores, single numbers only; `macro_f1` chooses the best weights.

    Raises `DivergedError` where the last step before it left weights whose outputs are no numbers.
    """
    if not np.isfinite(prediction.predictions).all():
        raise DivergedError("the outputs on the validation photos became no numbers; lower --learning_rate")
    scores = _scores(prediction.predictions, prediction.label_ids)
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def score(logits: np.ndarray, truth: np.ndarray, labels: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    """One split's entry in `results.json`; logits (photos, classes), truth as label indices, a group ("" none) each."""
    scores = _scores(logits, truth)
    answers = logits.argmax(axis=1)
    per_class = [{"label": label, **row} for label, row in zip(labels, scores.pop("per_class"), strict=True)]
    matrix = scores.pop("confusion_matrix")
    return {
        "n": len(truth),
        "accuracy": scores.pop("accuracy"),
        "accuracy_ci95": accuracy_interval(answers == truth, groups),
        "macro_f1": scores.pop("macro_f1"),
        "macro_f1_ci95": macro_f1_interval(answers, truth, len(labels), groups),
        **scores,
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


def accuracy_interval(right: np.ndarray, groups: Sequence[str]) -> list[float]:
    """95 % interval of accuracy; right is boolean (photos,).

    Wilson's, and where photos share a group the wider of Wilson's and a bootstrap over the groups: ten photos of one
    plant tell less than ten photos of ten.
    """
    low, high = wilson_interval(int(right.sum()), len(right))
    if any(groups):
        clustered = bootstrap_interval(lambda weights: np.average(right, weights=weights), groups)
        low, high = min(low, clustered[0]), max(high, clustered[1])
    return [low, high]


def macro_f1_interval(answers: np.ndarray, truth: np.ndarray, num_labels: int, groups: Sequence[str]) -> list[float]:
    """95 % bootstrap interval of macro F1 over the photos, or over their groups where they have some."""
    return bootstrap_interval(lambda weights: macro_f1(answers, truth, num_labels, weights), groups)


def macro_f1(answers: np.ndarray, truth: np.ndarray, num_labels: int, weights: np.ndarray | None = None) -> float:
    """Macro F1 over the classes that occur, each photo counted as often as its weight says."""
    in_truth, in_answers = (np.bincount(of, weights, minlength=num_labels) for of in (truth, answers))
    right = answers == truth
    hits = np.bincount(truth[right], None if weights is None else weights[right], minlength=num_labels)
    occurring = in_truth > 0
    return float((2 * hits[occurring] / (in_truth + in_answers)[occurring]).mean())


def bootstrap_interval(statistic: Callable[[np.ndarray], float], groups: Sequence[str], seed: int = 0) -> list[float]:
    """95 % percentile interval of a statistic over photos drawn with replacement; photos of one group come together.

    `statistic` is told how often each photo was drawn (photos,). A photo without a group ("") is one of its own.
    """
    cluster = _clusters(groups)
    count, random = int(cluster.max()) + 1, np.random.default_rng(seed)
    drawn = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))
    values = [statistic(times[cluster]) for times in drawn]
    return [float(bound) for bound in np.quantile(values, [0.025, 0.975])]


def _clusters(groups: Sequence[str]) -> np.ndarray:
    names = [group or f"photo {i}" for i, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1]


def seeded_interval(statistic: Callable[..., float], runs: Sequence[int], groups: Sequence[str]) -> list[float]:
    """95 % bootstrap interval of a statistic over the photos and over the seeds that the runs were trained with.

    `runs` has the number of runs of each model that takes part; `statistic` is told which of them were drawn, an array
    for each model, and then how often each photo was (photos,). One run a model leaves the luck of its seed out.
    """
    random = np.random.default_rng(1)
    return bootstrap_interval(
        lambda weights: statistic(*(random.integers(count, size=count) for count in runs), weights), groups
    )


def sign_flip_p_value(gain: np.ndarray, groups: Sequence[str]) -> float:
    """Two-sided permutation test of a mean gain of zero; gain of one model over another at each photo (photos,).

    The sign of whole groups is flipped, 9,999 times. For two runs and photos without groups it is McNemar's test.
    """
    sums = np.bincount(_clusters(groups), gain)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(9999, len(sums)))
    as_large = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9
    return float((as_large.sum() + 1) / (len(signs) + 1))


def write_predictions(path: Path, scored: dict[str, tuple[Sequence[Photo], np.ndarray]], labels: Sequence[str]) -> None:
    """Write every scored photo: split, file, group, label, predicted, one logit column a class."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "file", "group", "label", "predicted", *(f"logit_{label}" for label in labels)])
        for split, (photos, logits) in scored.items():
            for photo, row in zip(photos, logits, strict=True):
                answer = labels[int(row.argmax())]
                writer.writerow([split, photo.file, photo.group, photo.label, answer, *(f"{x:.6g}" for x in row)])


@dataclass(frozen=True)
class Predictions:
    """The scored photos of one split of a run: `truth` (photos,) as label indices, `logits` (photos, classes)."""

    files: list[str]
    groups: list[str]
    truth: np.ndarray
    logits: np.ndarray


def read_predictions(path: Path, split: str, labels: Sequence[str]) -> Predictions:
    """What `write_predictions` wrote of one split."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return Predictions(
        [row["file"] for row in rows],
        [row["group"] for row in rows],
        np.array([labels.index(row["label"]) for row in rows], dtype=int),
        np.array([[float(row[f"logit_{label}"]) for label in labels] for row in rows]).reshape(-1, len(labels)),
    )
