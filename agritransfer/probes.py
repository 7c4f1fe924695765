"""What do frozen features tell before any training?

A probe is a small classifier on the features of a network that is not trained. It ranks networks, finds labels that do
not fit and measures what fine-tuning made a network forget.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from transformers import BaseImageProcessor, PreTrainedModel

from agritransfer.data import Splits
from agritransfer.errors import UsageError
from agritransfer.evaluation import RESAMPLES, macro_f1, predict
from agritransfer.models import load_pretrained, load_processor
from agritransfer.pixels import processor_image_size

NEIGHBOURS = 5
# Inverse strengths of the penalty on standardised features that the cross-validation chooses from.
PENALTIES = (0.001, 0.01, 0.1, 1.0)
FOLDS = 5


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean log evidence a photo of a Bayesian linear model of each label, features (photos, width).

    LogME (You et al., ICML 2021) with the fixed-point iteration of its journal version (2022); higher is better.
    """
    count, width = features.shape
    left, singular, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    energy = np.square(singular)
    evidences = []
    for label in np.unique(labels):
        target = (labels == label).astype(np.float64)
        projected = left.T @ target
        outside = max(float(target @ target - projected @ projected), 0.0)
        evidences.append(_log_evidence(energy, np.square(projected), outside, count, width) / count)
    return float(np.mean(evidences))


def _log_evidence(energy: np.ndarray, projected: np.ndarray, outside: float, count: int, width: int) -> float:
    """The log evidence where it is largest over the precisions of weights (alpha) and of noise (beta)."""
    alpha = beta = 1.0
    for _ in range(200):
        shrunk = beta * energy + alpha
        effective = (beta * energy / shrunk).sum()
        weights = (beta**2 * energy * projected / shrunk**2).sum()
        residual = (alpha**2 * projected / shrunk**2).sum() + outside
        previous = alpha / beta
        alpha, beta = effective / max(weights, 1e-12), (count - effective) / max(residual, 1e-12)
        if abs(alpha / beta - previous) <= 1e-6 * previous:
            break
    shrunk = beta * energy + alpha
    weights = (beta**2 * energy * projected / shrunk**2).sum()
    residual = (alpha**2 * projected / shrunk**2).sum() + outside
    determinant = np.log(shrunk).sum() + (width - len(energy)) * np.log(alpha)
    fit = width * np.log(alpha) + count * np.log(beta) - determinant - beta * residual - alpha * weights
    return 0.5 * (fit - count * np.log(2 * np.pi))


def knn_answers(features: np.ndarray, known_features: np.ndarray, known_labels: np.ndarray) -> np.ndarray:
    """The label of most of the 5 known photos at the smallest angle, each vote weighted by its cosine: (photos,)."""
    unit, known = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features, known_features))
    similarity = unit @ known.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    votes = np.zeros((len(features), int(known_labels.max()) + 1))
    for column in nearest.T:
        np.add.at(votes, (np.arange(len(votes)), known_labels[column]), similarity[np.arange(len(votes)), column])
    return votes.argmax(axis=1)


def linear_probe(
    features: np.ndarray, known_features: np.ndarray, known_labels: np.ndarray, known_groups: Sequence[str]
) -> np.ndarray:
    """Probabilities (photos, classes) of a linear head fitted to known photos; they alone choose its penalty."""
    folds = list(_folds(known_labels, known_groups))

    def held_out_accuracy(penalty: float) -> float:
        answers = [_fit(known_features[fit], known_labels[fit], known_features[held], penalty) for fit, held in folds]
        right = [rows.argmax(axis=1) == known_labels[held] for rows, (_, held) in zip(answers, folds, strict=True)]
        return float(np.concatenate(right).mean())

    best = max(PENALTIES, key=held_out_accuracy) if folds else PENALTIES[1]
    return _fit(known_features, known_labels, features, best)


def out_of_fold_probabilities(features: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Probabilities (photos, classes) of each photo by a linear head that saw neither it nor a photo of its group."""
    probabilities = np.full((len(labels), int(labels.max()) + 1), 1 / (int(labels.max()) + 1))
    for fit, held in _folds(labels, groups):
        rows = _fit(features[fit], labels[fit], features[held], PENALTIES[1])
        probabilities[held] = 0
        probabilities[held, : rows.shape[1]] = rows
    return probabilities


def _folds(labels: np.ndarray, groups: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    names = np.array([group or f"photo {i}" for i, group in enumerate(groups)])
    count = min(FOLDS, len(set(names)), int(np.bincount(labels).max()))
    if count < 2:
        return []
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=0).split(labels, labels, names)
    # A fold whose other photos are of one class has nothing to fit.
    return [(fit, held) for fit, held in folds if len(set(labels[fit])) > 1]


def _fit(known: np.ndarray, labels: np.ndarray, features: np.ndarray, penalty: float) -> np.ndarray:
    """Probabilities of shape (photos, highest label + 1)."""
    scaler = StandardScaler().fit(known)
    head = LogisticRegression(C=penalty, max_iter=1000).fit(scaler.transform(known), labels)
    probabilities = np.zeros((len(features), int(labels.max()) + 1))
    probabilities[:, head.classes_] = head.predict_proba(scaler.transform(features))
    return probabilities


def suspected_mislabels(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, float]]:
    """(photo, suggested label, probability of the given label) of labels that look wrong, the most doubtful first.

    Confident learning (Northcutt et al. 2021): a class is likely where its probability reaches what photos with its
    label have on average; a photo is suspected when the most probable of its likely classes is another than its label.
    """
    classes = np.arange(probabilities.shape[1])
    own = probabilities[np.arange(len(labels)), labels]
    usual = np.array([own[labels == label].mean() if (labels == label).any() else np.inf for label in classes])
    likely = np.where(probabilities >= usual, probabilities, -1.0)
    suggested = likely.argmax(axis=1)
    suspects = np.flatnonzero((likely.max(axis=1) > 0) & (suggested != labels))
    return [(int(i), int(suggested[i]), float(own[i])) for i in suspects[np.argsort(own[suspects], kind="stable")]]


def rank_backbones(
    names: Sequence[str],
    splits: Splits,
    image_size: int | None,
    batch_size: int,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """What the frozen features of each network tell of these photos, the best linear probe first.

    Probe and neighbours learn from the train photos and are scored on the validation photos; LogME sees the train
    photos; the test stays unseen. `report` is given each row as soon as it is there.
    """
    rows = []
    for name in names:
        rows.append(_probe_backbone(name, splits, image_size, batch_size))
        report(rows[-1])
    # The probe is what feature extraction would reach, on the scale of the final score; LogME's is of its own.
    return sorted(rows, key=lambda row: (-row["probe_macro_f1"], -row["logme"]))


def _probe_backbone(name: str, splits: Splits, image_size: int | None, batch_size: int) -> dict[str, Any]:
    started = time.perf_counter()
    processor = load_processor(name, None, image_size)
    model = load_pretrained(name, None, splits.labels, processor_image_size(processor))
    labels = {split: np.array(splits.label_indices(split)) for split in ("train", "validation")}
    forward = time.perf_counter()
    features = {split: predict(model, splits.dataset(split, processor), batch_size)[1] for split in labels}
    forward = time.perf_counter() - forward
    groups = [photo.group for photo in splits.of("train")]
    probe = linear_probe(features["validation"], features["train"], labels["train"], groups).argmax(axis=1)
    knn = knn_answers(features["validation"], features["train"], labels["train"])
    return {
        "model": name,
        "logme": log_me(features["train"], labels["train"]),
        "knn_accuracy": float((knn == labels["validation"]).mean()),
        "probe_accuracy": float((probe == labels["validation"]).mean()),
        "probe_macro_f1": macro_f1(probe, labels["validation"], len(splits.labels)),
        "photos_per_second": sum(map(len, labels.values())) / forward,
        "parameters": model.num_parameters(),
        "memory_bytes": model.get_memory_footprint(),
        "width": features["train"].shape[1],
        "seconds": time.perf_counter() - started,
    }


def probe_answers(model: PreTrainedModel, processor: BaseImageProcessor, splits: Splits, batch_size: int) -> np.ndarray:
    """What a linear probe on the frozen features answers on the test photos (photos,), as label indices."""
    features = {split: predict(model, splits.dataset(split, processor), batch_size)[1] for split in ("train", "test")}
    groups = [photo.group for photo in splits.of("train")]
    return linear_probe(features["test"], features["train"], np.array(splits.label_indices("train")), groups).argmax(
        axis=1
    )


def order_agreement(before: Sequence[float], after: Sequence[float]) -> tuple[float, list[float]]:
    """Kendall's tau between two scores of the same networks, with a 95 % bootstrap interval over the networks."""
    if len(set(before)) < 2 or len(set(after)) < 2 or len(before) < 3:
        raise UsageError(f"{len(before)} networks with these scores have no order to compare; give at least 3 others")
    before, after = np.array(before), np.array(after)
    random = np.random.default_rng(0)
    taus = []
    while len(taus) < RESAMPLES:
        drawn = random.integers(len(before), size=len(before))
        # One network drawn again and again has no order.
        if len(set(before[drawn])) > 1 and len(set(after[drawn])) > 1:
            taus.append(kendalltau(before[drawn], after[drawn]).statistic)
    low, high = np.quantile(taus, [0.025, 0.975])
    return float(kendalltau(before, after).statistic), [float(low), float(high)]
