"""Tests that the scores are scikit-learn's, their intervals the published ones, and the files complete."""

import numpy as np
import pytest
from answers import answers_of
from sklearn.metrics import f1_score

from agritransfer.evaluation.intervals import accuracy_interval, macro_f1_interval, wilson_interval


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
