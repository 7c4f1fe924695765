"""Which backbone suits these photos best, judged before any training?"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from agritransfer.arguments import ResizeMode
from agritransfer.data.dataset import Splits
from agritransfer.errors import UsageError
from agritransfer.evaluation.frozen_features import knn_answers, linear_probe
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.metrics import macro_f1
from agritransfer.images.preprocessing import PhotoProcessor
from agritransfer.models.loading import load_pretrained, load_processor

# Samples of backbones for the interval of a rank correlation.
RESAMPLES = 2000


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean log evidence per photo of a Bayesian linear model of each label, features (photos, width).

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
    """The log evidence, maximized over the precisions of the weights (alpha) and of the noise (beta)."""
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


def rank_backbones(
    inputs: Sequence[tuple[str, int | None, ResizeMode]],
    splits: Splits,
    batch_size: int,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Score the frozen features of each backbone on these photos; the best linear probe comes first.

    Each of the `inputs` is the name of a backbone, the side of its input (None for its own) and a resize mode.
    Probe and nearest neighbors are fitted on the training photos and scored on the validation photos; LogME uses the
    training photos; the test photos are not used. `report` is called with each row as soon as it is ready.
    """
    # All of them first, so that a mode that a processor does not support is refused before the work.
    processors = [load_processor(name, None, image_size, mode) for name, image_size, mode in inputs]
    rows = []
    for (name, _, mode), processor in zip(inputs, processors, strict=True):
        rows.append(_probe_backbone(name, processor, splits, batch_size) | {"resize_mode": mode})
        report(rows[-1])
    # The probe estimates what feature extraction would reach, on the scale of the final score; LogME does not.
    return sorted(rows, key=lambda row: (-row["probe_macro_f1"], -row["logme"]))


def _probe_backbone(name: str, processor: PhotoProcessor, splits: Splits, batch_size: int) -> dict[str, Any]:
    started = time.perf_counter()
    model = load_pretrained(name, None, splits.labels, processor.image_size)
    labels = {split: np.array(splits.label_indices(split)) for split in ("train", "validation")}
    forward = time.perf_counter()
    features = {split: predict(model, splits.dataset(split, processor), batch_size)[1] for split in labels}
    forward = time.perf_counter() - forward
    groups = [photo.group for photo in splits.of("train")]
    probe = linear_probe(features["validation"], features["train"], labels["train"], groups).argmax(axis=1)
    knn = knn_answers(features["validation"], features["train"], labels["train"])
    return {
        "model": name,
        "image_size": processor.image_size,
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


def order_agreement(before: Sequence[float], after: Sequence[float]) -> tuple[float, list[float]]:
    """Kendall's tau between two scores of the same backbones, with a 95% bootstrap interval over the backbones."""
    if len(set(before)) < 2 or len(set(after)) < 2 or len(before) < 3:
        raise UsageError(
            f"the scores of {len(before)} backbones give no ranking to compare; give at least 3 that differ"
        )
    before, after = np.array(before), np.array(after)
    random = np.random.default_rng(0)
    taus = []
    while len(taus) < RESAMPLES:
        drawn = random.integers(len(before), size=len(before))
        # A sample of one backbone only has no ranking.
        if len(set(before[drawn])) > 1 and len(set(after[drawn])) > 1:
            taus.append(kendalltau(before[drawn], after[drawn]).statistic)
    low, high = np.quantile(taus, [0.025, 0.975])
    return float(kendalltau(before, after).statistic), [float(low), float(high)]
