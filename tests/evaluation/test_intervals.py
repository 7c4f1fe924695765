"""Tests that intervals are the published ones, contain the true score as often as they say, and are never empty."""

import numpy as np
import pytest
from answers import answers_of
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, f1_score

from agritransfer.evaluation.intervals import (
    accuracy_interval,
    class_average_intervals,
    clopper_pearson_interval,
    f1_intervals,
    wilson_interval,
)
from benchmarks.interval_coverage import Population, coverage, grouped_coverage


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


@pytest.mark.parametrize(("successes", "trials"), [(0, 12), (3, 12), (12, 12)])
def test_the_exact_interval_is_that_of_scipy(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.95, "exact")
    assert clopper_pearson_interval(successes, trials) == pytest.approx([expected.low, expected.high])


def test_the_intervals_of_class_averages_hold_the_scores_and_narrow_with_more_photos():
    widths = []
    for photos in (30, 300):
        logits, truth = answers_of(classes=3, photos=photos)
        answers = logits.argmax(1)
        intervals = class_average_intervals(answers, truth, 3, [""] * photos)
        low, high = intervals["macro_f1"]
        assert low < f1_score(truth, answers, average="macro") < high
        widths.append(high - low)
        low, high = intervals["balanced_accuracy"]
        assert low < balanced_accuracy_score(truth, answers) < high
    # Ten times the photos, about a third of the width.
    assert 0.2 < widths[1] / widths[0] < 0.5


def test_an_interval_is_the_same_at_every_call():
    logits, truth = answers_of(classes=3, photos=40)
    calls = [class_average_intervals(logits.argmax(1), truth, 3, [""] * 40) for _ in range(2)]
    assert calls[0] == calls[1]


@pytest.mark.parametrize("classes", [2, 3, 24])
def test_no_interval_is_empty_when_all_answers_are_right(classes):
    truth = np.arange(24) % classes
    intervals = class_average_intervals(truth, truth, classes, [""] * 24)
    # 24 of 24: Clopper and Pearson give 0.025^(1/24) = 0.86. The bootstrap gave [1, 1].
    for low, high in intervals.values():
        assert high == 1.0 and 0.75 < low < 0.87
    # Of a class with n photos, n / (n + 1.96^2) of them are right at the lower end, and F1 is 2 J / (1 + J).
    lowest = 24 / classes / (24 / classes + 1.96**2)
    assert f1_intervals(truth, truth, classes, [""] * 24) == pytest.approx(
        np.array([[2 * lowest / (1 + lowest), 1.0]] * classes), abs=1e-4
    )


def test_even_one_photo_has_an_interval():
    for answer in (1, 2):
        intervals = class_average_intervals(np.array([answer]), np.array([1]), 3, [""])
        assert all(high - low > 0.9 for low, high in intervals.values())
        widths = np.diff(f1_intervals(np.array([answer]), np.array([1]), 3, [""]), axis=1)
        assert (widths > 0.5).all() and widths[0] == 1.0, "a class that is nowhere may have any F1"


def test_a_class_that_is_answered_but_never_shown_takes_no_part():
    # Half right among 100 photos of one class: F1 2/3, balanced accuracy 1/2.
    intervals = class_average_intervals(np.repeat([1, 2], 50), np.full(100, 1), 3, [""] * 100)
    low, high = intervals["macro_f1"]
    assert 0.5 < low < 2 / 3 < high < 0.8
    low, high = intervals["balanced_accuracy"]
    assert 0.38 < low < 0.5 < high < 0.62


def test_photos_of_one_group_count_less():
    # Ten plants of ten photos each, eight plants all right and two all wrong: about ten cases.
    right = np.repeat([True, False], [80, 20])
    plants = [f"plant {i // 10}" for i in range(100)]
    alone, grouped = (accuracy_interval(right, groups) for groups in ([""] * 100, plants))
    assert alone == wilson_interval(80, 100)
    # Student's quantile with 9 degrees of freedom is 2.26, and 10 x (1.98 / 2.26)^2 = 7.7 photos.
    assert grouped == pytest.approx(clopper_pearson_interval(0.8 * 7.7, 7.7), abs=0.01)
    answers, truth = np.where(right, 0, 1), np.zeros(100, int)
    for name in ("macro_f1", "balanced_accuracy"):
        wide, narrow = (
            np.diff(class_average_intervals(answers, truth, 2, groups)[name])[0] for groups in (plants, [""] * 100)
        )
        assert wide > 2 * narrow
    assert np.diff(f1_intervals(answers, truth, 2, plants)[0]) > 2 * np.diff(
        f1_intervals(answers, truth, 2, [""] * 100)[0]
    )
    # Twenty copies of one photo are one photo.
    assert accuracy_interval(np.full(20, True), ["copies"] * 20) == clopper_pearson_interval(1, 1)
    # Mistakes that are spread over all groups show that the photos of a group are not alike.
    spread = np.tile([True] * 8 + [False] * 2, 10)
    assert np.diff(accuracy_interval(spread, plants)) < 0.75 * np.diff(grouped)


@pytest.mark.parametrize(
    ("population", "photos"),
    [
        (Population(classes=3, imbalance=1, macro_f1=0.99), 60),
        (Population(classes=3, imbalance=1, macro_f1=0.7), 24),
        (Population(classes=3, imbalance=50, macro_f1=0.97), 200),
        (Population(classes=10, imbalance=50, macro_f1=0.9), 200),
        (Population(classes=38, imbalance=1, macro_f1=0.9), 200),
    ],
)
def test_the_intervals_contain_the_true_score(population, photos):
    for score, found in coverage(population, photos, draws=200, with_bootstrap=False).items():
        # 95% are aimed at; 200 draws have a standard error of 1.5 points.
        assert found["agritransfer"].coverage >= 0.92, score


def test_the_simulation_tells_an_interval_that_is_too_narrow():
    found = coverage(Population(classes=3, imbalance=1, macro_f1=0.99), 60, draws=100)["macro_f1"]
    assert found["bootstrap"].coverage < 0.75 < found["agritransfer"].coverage
    assert found["bootstrap"].width < found["agritransfer"].width


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_the_intervals_contain_the_true_score_when_photos_come_in_groups(correlation):
    found = grouped_coverage(groups=24, size=10, accuracy=0.9, correlation=correlation, draws=200)
    assert found["accuracy"] >= 0.92 and found["macro_f1"] >= 0.92


@pytest.mark.slow
def test_the_intervals_contain_the_true_score_over_the_whole_grid():
    measured = 0
    for classes in (2, 3, 10, 38, 73):
        for imbalance in (1, 50):
            for macro_f1 in (0.4, 0.7, 0.9, 0.97, 0.99):
                for photos in (24, 60, 200, 1000):
                    if photos < classes:
                        continue
                    population = Population(classes=classes, imbalance=imbalance, macro_f1=macro_f1)
                    found = coverage(population, photos, draws=100, with_bootstrap=False)
                    # At a coverage of 93%, one in 160 grids of 100 draws has a cell below 0.86.
                    assert all(of["agritransfer"].coverage >= 0.86 for of in found.values()), (population, photos)
                    measured += 1
    assert measured == 170
