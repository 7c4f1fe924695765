"""Logistic regressions reach the optimum of scikit-learn; photos held out, with their groups, choose the penalty."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from agritransfer.evaluation.logistic_regression import (
    PENALTIES,
    WITHOUT_GAIN,
    Components,
    Judged,
    Regressions,
    fit_to_convergence,
    held_out,
    logits_of,
    penalty_path,
)


def drawn(photos: int, width: int, classes: int, seed: int = 0, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different size, one of them constant and two collinear, and labels that they depend on."""
    random = np.random.default_rng(seed)
    labels = np.arange(photos) % classes
    centers = np.random.default_rng(9).normal(size=(classes, width)) * apart
    features = (centers[labels] + random.normal(size=(photos, width))) * np.logspace(-2, 2, width) + 5
    features[:, 0], features[:, 1] = 7.1, -3 * features[:, 2]
    return features.astype(np.float32), labels


def gradient(head: tuple[np.ndarray, np.ndarray], features, labels, weights, penalty) -> np.ndarray:
    """Of the loss summed over the photos and the penalty, by the standardized weights and the bias; per photo."""
    scaler = StandardScaler().fit(features.astype(np.float64))
    logits = features.astype(np.float64) @ head[0].T + head[1]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    wrong = weights[:, None] * (shares - np.eye(shares.shape[1])[labels])
    by_weight = wrong.T @ scaler.transform(features.astype(np.float64)) + head[0] * scaler.scale_ / penalty
    return np.column_stack([by_weight, wrong.sum(axis=0)]) / len(labels)


# More features than photos in the last case.
@pytest.mark.parametrize(("photos", "width", "classes"), [(90, 6, 2), (90, 6, 3), (100, 8, 10), (40, 70, 3)])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_head_is_the_optimum_that_scikit_learn_finds(photos, width, classes, penalty, weighted):
    features, labels = drawn(photos, width, classes)
    weights = np.random.default_rng(1).uniform(0.2, 3, photos) if weighted else np.ones(photos)
    components = Components.of(features)
    assert len(components.variances) == min(width - 2, photos - 1)
    fit = fit_to_convergence(components, features, labels, weights, penalty)
    weight, bias = components.head(fit.coefficients[:, 0])
    assert np.abs(gradient((weight, bias), features, labels, weights, penalty)).max() < 1e-5
    assert np.abs(gradient((weight * 1.05, bias), features, labels, weights, penalty)).max() > 1e-4
    assert not weight[:, 0].any()
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    peer = LogisticRegression(C=2 * penalty if classes == 2 else penalty, tol=1e-9, max_iter=10_000)
    expected = peer.fit(scaled, labels, sample_weight=weights).predict_proba(scaled)
    shares = torch.softmax(torch.from_numpy(features @ weight.T + bias), dim=1).numpy()
    assert shares == pytest.approx(expected, abs=1e-4)
    assert 2 < fit.iterations < 150


def test_fits_that_are_minimized_together_are_those_of_each_alone():
    features, labels = drawn(80, 10, 4)
    components = Components.of(features)
    scores, random = components.scores(features, torch.float64), np.random.default_rng(0)
    weights = random.uniform(size=(80, 3)) * (random.random((80, 3)) < 0.7)
    # The second fit lacks a class.
    weights[labels == 3, 1] = 0
    together = Regressions(scores, components.variances, labels, weights)
    together.fit(0.1, 1e-8)
    shares = np.exp(together.log_probabilities(scores))
    assert shares[:, 1, 3].max() == 0 and shares.sum(axis=2) == pytest.approx(1)
    for number, column in enumerate(weights.T):
        rows = column > 0
        alone = Regressions(scores[rows], components.variances, labels[rows], column[rows, None])
        alone.fit(0.1, 1e-8)
        expected = np.exp(alone.log_probabilities(scores))[:, 0]
        assert shares[:, number, : expected.shape[1]] == pytest.approx(expected, abs=1e-6)


def path_of(features, labels, clusters, needed=10**6) -> list[tuple[float, float, np.ndarray]]:
    components = Components.of(features)
    train = Judged(components.scores(features), labels, np.ones(len(labels)))
    return list(penalty_path(train, components.variances, held_out(labels, clusters, needed)))


def test_a_path_starts_with_the_strongest_penalty_and_ends_when_weaker_ones_only_overfit():
    features, labels = drawn(120, 60, 3, apart=0.3)
    path = path_of(features, labels, np.arange(120))
    losses = [loss for _, loss, _ in path]
    assert [penalty for penalty, _, _ in path] == list(PENALTIES[: len(path)])
    assert len(path) < len(PENALTIES) and int(np.argmin(losses)) == len(path) - 1 - WITHOUT_GAIN
    # The same bits again.
    again = path_of(features, labels, np.arange(120))
    assert losses == [loss for _, loss, _ in again]
    assert all(np.array_equal(one[2], other[2]) for one, other in zip(path, again, strict=True))
    # The coefficients are those of a fit to all photos.
    components = Components.of(features)
    exact = fit_to_convergence(components, features, labels, np.ones(120), PENALTIES[6])
    logits = [logits_of(exact.scores, coefficients) for coefficients in (path[6][2], exact.coefficients[:, 0])]
    assert logits[0] == pytest.approx(logits[1], abs=0.01)


def test_copies_that_are_held_out_together_do_not_praise_a_weak_penalty():
    random = np.random.default_rng(0)
    # Noise says nothing of the label, unless a copy is among the photos of the fit.
    noise = np.repeat(random.normal(size=(60, 300)).astype(np.float32), 2, axis=0)
    labels = np.repeat(random.integers(2, size=60), 2)
    best = {
        name: min(path_of(noise, labels, clusters), key=lambda found: found[1])[0]
        for name, clusters in (("divided", np.arange(120)), ("whole", np.arange(120) // 2))
    }
    assert best["whole"] < 0.001 and best["divided"] > 100 * best["whole"]


def test_as_many_folds_are_held_out_as_are_needed_and_none_divides_a_cluster():
    random = np.random.default_rng(0)
    labels, clusters = random.integers(3, size=200), random.integers(60, size=200)
    for needed, folds in ((0, 0), (1, 1), (90, 3), (10**6, 5)):
        held = held_out(labels, clusters, needed)
        assert held.shape == (200, folds)
        assert (held.sum(axis=1) <= 1).all() and (folds < 5 or held.any(axis=1).all())
        assert all(not set(clusters[fold]) & set(clusters[~fold]) for fold in held.T)
    assert held_out(np.zeros(10, int), np.arange(10), 10).shape == (10, 0)
    assert held_out(labels, np.zeros(200, int), 10).shape == (200, 0)


def test_a_class_with_one_photo_and_classes_that_are_apart_are_fitted_in_few_iterations():
    features, labels = drawn(60, 20, 3, apart=100.0)
    labels[-1] = 3
    components = Components.of(features)
    train = Judged(components.scores(features), labels, np.ones(60))
    held = held_out(labels, np.arange(60), 60)
    assert held.shape[1] == 5
    # The lonely photo does not count where it is held out: no other photo tells of its class.
    path = list(penalty_path(train, components.variances, held))
    assert np.isfinite([loss for _, loss, _ in path]).all()
    fits = Regressions(train.scores, components.variances, labels, np.ones((60, 1)))
    for penalty in PENALTIES:
        fits.fit(penalty)
    answers = logits_of(train.scores, fits.coefficients[:, 0]).argmax(axis=1)
    assert (answers == labels)[:-1].all()
    assert 20 < fits.iterations < 500
    one = Components.of(features[:1])
    assert len(one.variances) == 0
