"""How well do simple classifiers work on the features of a frozen network?"""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel

from agritransfer.data.dataset import Splits
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.intervals import clusters_of
from agritransfer.images.preprocessing import PhotoProcessor

NEIGHBOURS = 5
# Photos that are compared with all known ones at once.
BLOCK = 256
# Inverse strengths of the penalty on standardized features that cross-validation chooses from.
PENALTIES = (0.001, 0.01, 0.1, 1.0)
FOLDS = 5


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
    folds = list(_folds(known_labels, known_groups))

    def held_out_accuracy(penalty: float) -> float:
        answers = [_fit(known_features[fit], known_labels[fit], known_features[held], penalty) for fit, held in folds]
        right = [rows.argmax(axis=1) == known_labels[held] for rows, (_, held) in zip(answers, folds, strict=True)]
        return float(np.concatenate(right).mean())

    best = max(PENALTIES, key=held_out_accuracy) if folds else PENALTIES[1]
    return _fit(known_features, known_labels, features, best)


def out_of_fold_probabilities(features: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Probabilities (photos, classes) of linear heads that were fitted without the photo and without its group."""
    probabilities = np.full((len(labels), int(labels.max()) + 1), 1 / (int(labels.max()) + 1))
    for fit, held in _folds(labels, groups):
        rows = _fit(features[fit], labels[fit], features[held], PENALTIES[1])
        probabilities[held] = 0
        probabilities[held, : rows.shape[1]] = rows
    return probabilities


def _folds(labels: np.ndarray, groups: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    clusters = clusters_of(groups)
    count = min(FOLDS, clusters.max() + 1, int(np.bincount(labels).max()))
    if count < 2:
        return []
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=0).split(labels, labels, clusters)
    # A fold is skipped if the other photos are all of one class.
    return [(fit, held) for fit, held in folds if len(set(labels[fit])) > 1]


def _fit(known: np.ndarray, labels: np.ndarray, features: np.ndarray, penalty: float) -> np.ndarray:
    """Probabilities of shape (photos, highest label + 1)."""
    scaler = StandardScaler().fit(known)
    head = LogisticRegression(C=penalty, max_iter=1000).fit(scaler.transform(known), labels)
    probabilities = np.zeros((len(features), int(labels.max()) + 1))
    probabilities[:, head.classes_] = head.predict_proba(scaler.transform(features))
    return probabilities


def probe_answers(model: PreTrainedModel, processor: PhotoProcessor, splits: Splits, batch_size: int) -> np.ndarray:
    """Predictions of a linear probe on the frozen features for the test photos (photos,), as label indices."""
    features = {split: predict(model, splits.dataset(split, processor), batch_size)[1] for split in ("train", "test")}
    groups = [photo.group for photo in splits.of("train")]
    return linear_probe(features["test"], features["train"], np.array(splits.label_indices("train")), groups).argmax(
        axis=1
    )
