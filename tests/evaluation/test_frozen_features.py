"""Frozen features rank networks, find labels that do not fit, and show what a backbone forgot."""

import numpy as np
from clusters import clusters

from agritransfer.evaluation.frozen_features import knn_answers, linear_probe, out_of_fold_probabilities
from agritransfer.evaluation.metrics import macro_f1


def test_neighbours_vote_by_their_angle():
    known = np.array([[1, 0], [1, 0.1], [1, -0.1], [0, 1], [0.1, 1], [-0.1, 1.0]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # Far away, but in the direction of the first three.
    assert knn_answers(np.array([[50.0, 4.0], [0.2, 9.0]]), known, labels).tolist() == [0, 1]


def test_a_linear_probe_learns_what_can_be_learnt_and_chooses_its_penalty_by_the_known_photos():
    features, labels = clusters(300)
    new, new_labels = clusters(600, seed=1)
    answers = linear_probe(features, features, labels, [""] * 300).argmax(axis=1)
    assert macro_f1(answers, labels, 3) > 0.9
    probabilities = linear_probe(new, features, labels, [""] * 300)
    assert macro_f1(probabilities.argmax(axis=1), new_labels, 3) > 0.9
    assert np.allclose(probabilities.sum(axis=1), 1)
    # Forty photos in 200 dimensions of noise: the label does not follow from them, on new photos.
    noise = np.random.default_rng(0).normal(size=(1040, 200))
    guesses = linear_probe(noise[40:], noise[:40], labels[:40], [""] * 40).argmax(axis=1)
    assert (guesses == np.random.default_rng(1).integers(3, size=1000)).mean() < 0.45


def test_a_photo_is_judged_by_a_head_that_saw_neither_it_nor_its_copies():
    random = np.random.default_rng(0)
    noise = np.repeat(random.normal(size=(60, 400)), 2, axis=0)
    labels = np.repeat(random.integers(2, size=60), 2)
    for groups, knows in ((["" for _ in labels], True), ([f"pair {i // 2}" for i in range(120)], False)):
        right = (out_of_fold_probabilities(noise, labels, groups).argmax(axis=1) == labels).mean()
        # Noise tells nothing, unless the copy's label is remembered.
        assert (right > 0.8) == knows and (knows or right < 0.65)
