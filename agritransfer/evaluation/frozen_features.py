"""How well do simple classifiers work on the features of a frozen network?"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from agritransfer.data.dataset import Splits
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.intervals import clusters_of
from agritransfer.evaluation.logistic_regression import (
    ENOUGH_PHOTOS,
    Components,
    Judged,
    Regressions,
    fit_to_convergence,
    held_out,
    penalty_path,
)
from agritransfer.images.preprocessing import PhotoProcessor

NEIGHBOURS = 5
# Photos that are compared with all known ones at once.
BLOCK = 256
# The inverse strength of the penalty (C) where no photos are held out to choose it.
USUAL_PENALTY = 0.01


def knn_answers(features: np.ndarray, known_features: np.ndarray, known_labels: np.ndarray) -> np.ndarray:
    """Predictions (photos,) of a vote of the 5 nearest known photos by cosine similarity, weighted by it."""
    unit, known = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features, known_features))
    answers = [_vote(unit[start : start + BLOCK] @ known.T, known_labels) for start in range(0, len(unit), BLOCK)]
    return np.concatenate(answers) if answers else np.zeros(0, int)


def _vote(similarity: np.ndarray, known_labels: np.ndarray) -> np.ndarray:
    """Predictions (photos,) from the similarity of each photo to each known photo (photos, known)."""
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    votes = np.zeros((len(similarity), int(known_labels.max()) + 1))
    for column in nearest.T:
        np.add.at(votes, (np.arange(len(votes)), known_labels[column]), similarity[np.arange(len(votes)), column])
    return votes.argmax(axis=1)


def linear_probe(
    features: np.ndarray, known_features: np.ndarray, known_labels: np.ndarray, known_groups: Sequence[str]
) -> np.ndarray:
    """Probabilities (photos, classes) of a linear head on the known photos, with a cross-validated penalty."""
    components, weights = Components.of(known_features), np.ones(len(known_labels))
    known = Judged(components.scores(known_features), known_labels, weights)
    held = held_out(known_labels, clusters_of(known_groups), ENOUGH_PHOTOS)
    penalty, start = USUAL_PENALTY, None
    if held.any():
        penalty, _, start = min(penalty_path(known, components.variances, held), key=lambda found: found[1])
    head = fit_to_convergence(components, known_features, known_labels, weights, penalty, start)
    return np.exp(head.log_probabilities(components.scores(features, torch.float64))[:, 0])


def out_of_fold_probabilities(features: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Probabilities (photos, classes) of linear heads that were fitted without the photo and without its group."""
    held = held_out(labels, clusters_of(groups), len(labels))
    classes = int(labels.max()) + 1
    probabilities = np.full((len(labels), classes), 1 / classes)
    if not held.any():
        return probabilities
    components = Components.of(features)
    scores = components.scores(features)
    heads = Regressions(scores, components.variances, labels, 1.0 - held)
    heads.fit(USUAL_PENALTY)
    photos, folds = np.nonzero(held)
    probabilities[photos] = np.exp(heads.log_probabilities(scores)[photos, folds])
    return probabilities


def probe_answers(model: PreTrainedModel, processor: PhotoProcessor, splits: Splits, batch_size: int) -> np.ndarray:
    """Predictions of a linear probe on the frozen features for the test photos (photos,), as label indices."""
    features = {split: predict(model, splits.dataset(split, processor), batch_size)[1] for split in ("train", "test")}
    groups = [photo.group for photo in splits.of("train")]
    return linear_probe(features["test"], features["train"], np.array(splits.label_indices("train")), groups).argmax(
        axis=1
    )
