"""Frozen features rank networks, find labels that do not fit, and show what a backbone forgot."""

import numpy as np
from clusters import clusters

from agritransfer.evaluation.frozen_features import out_of_fold_probabilities
from agritransfer.evaluation.label_errors import suspected_mislabels


def test_wrong_labels_are_found_and_few_right_ones_are_suspected():
    features, labels = clusters(300, apart=6.0)
    given, flipped = labels.copy(), np.arange(0, 300, 20)
    given[flipped] = (labels[flipped] + 1) % 3
    suspects = suspected_mislabels(out_of_fold_probabilities(features, given, [""] * 300), given)
    places = [place for place, _, _ in suspects]
    # A list to look at: most of the wrong ones, hardly a right one.
    assert len(set(flipped) & set(places)) >= 10 and len(set(places) - set(flipped)) <= 3
    assert all(suggested == labels[place] for place, suggested, _ in suspects if place in flipped)
    doubts = [probability for _, _, probability in suspects]
    assert doubts == sorted(doubts)
    assert suspected_mislabels(np.eye(3)[labels], labels) == []
