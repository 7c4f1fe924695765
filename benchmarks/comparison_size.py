"""How often does `compare` find a difference where there is none, and how often one that is there?

    python -m benchmarks.comparison_size --output runs/comparison_size --figure docs/images/comparison_size.png
    python -m benchmarks.comparison_size --draws 200

Simulated models answer simulated photos. A photo is as difficult for one model as for another, for some models more
than for others, and for some runs more than for others; the seeds of a model differ by the seed spread. Tested beside
ours: the sign-flip test of accuracy that `compare` used before, and a bootstrap over the photos alone. Writes size.csv
(all conditions), power.csv, family.csv and a figure.
"""

import argparse
import csv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from agritransfer.evaluation.significance import LEVEL, measure_gain
from agritransfer.runtime.process import available_cores

# The share of the variance of a verdict that is common to all models, to the runs of a model, and to nothing.
SHARED, OF_MODEL, OF_RUN = 0.5, 0.2, 0.3
# Simulated at once, so that the memory stays small.
ANSWERS_AT_ONCE = 500_000


@dataclass(frozen=True)
class Condition:
    """Photos and models of a simulation; spread and gain are in accuracy, imbalance is the largest class to the least.

    `seeds` has the number of runs of each model; the first model is better by `gain`.
    """

    seeds: tuple[int, ...] = (3, 3)
    spreads: tuple[float, ...] = (0.03, 0.03)
    photos: int = 300
    classes: int = 3
    imbalance: float = 1
    accuracy: float = 0.8
    grouped: bool = False
    gain: float = 0


def photos_of(condition: Condition) -> tuple[np.ndarray, list[str]]:
    """The true labels of the photos and their groups; a group has up to four photos of one class."""
    shares = np.geomspace(1, condition.imbalance, condition.classes)
    extra = (condition.photos - condition.classes) * shares / shares.sum()
    counts = 1 + np.diff(np.round(np.cumsum(extra)), prepend=0).astype(int)
    truth = np.repeat(np.arange(condition.classes), counts)
    groups = [f"{label}-{i // 4}" for label, count in enumerate(counts) for i in range(count)]
    return truth, groups if condition.grouped else [""] * len(truth)


def draw_thresholds(condition: Condition, draws: int, random: np.random.Generator) -> list[np.ndarray]:
    """How able each run is, one array (draws, runs, 1) per model: the quantile of its accuracy."""
    thresholds = []
    for model, (runs, spread) in enumerate(zip(condition.seeds, condition.spreads, strict=True)):
        mean = condition.accuracy + (condition.gain if model == 0 else 0)
        accuracy = mean + spread * random.standard_normal((draws, runs, 1))
        thresholds.append(ndtri(np.clip(accuracy, 0.01, 0.9995)).astype(np.float32))
    return thresholds


def draw_answers(
    condition: Condition, thresholds: Sequence[np.ndarray], random: np.random.Generator
) -> list[np.ndarray]:
    """The answers of each model (draws, runs, photos) to photos that all models share."""
    truth, groups = photos_of(condition)
    group = np.unique(groups, return_inverse=True)[1] if condition.grouped else None
    draws, classes = len(thresholds[0]), condition.classes

    def difficulty(variance: float) -> np.ndarray:
        of_photo = random.standard_normal((draws, 1, len(truth)), dtype=np.float32)
        if group is not None:
            of_group = random.standard_normal((draws, 1, group.max() + 1), dtype=np.float32)[..., group]
            of_photo = (of_photo + of_group) / np.sqrt(2)
        return np.sqrt(np.float32(variance)) * of_photo

    def other_label(uniform: np.ndarray) -> np.ndarray:
        return (truth + 1 + (uniform * (classes - 1)).astype(np.int64)) % classes

    shared = difficulty(SHARED)
    confusion = other_label(random.random((draws, 1, len(truth)), dtype=np.float32))
    answers = []
    for able in thresholds:
        of_run = random.standard_normal((draws, able.shape[1], len(truth)), dtype=np.float32)
        right = able + shared + difficulty(OF_MODEL) + np.sqrt(np.float32(OF_RUN)) * of_run > 0
        # Seven of ten errors are the confusion that is typical of the photo.
        uniform = random.random(right.shape, dtype=np.float32)
        errors = np.where(uniform < 0.7, confusion, other_label((uniform - 0.7).clip(0) / 0.3001))
        answers.append(np.where(right, truth, errors))
    return answers


def sign_flip(answers: Sequence[np.ndarray], truth: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Whether the permutation test of accuracy that `compare` used before finds a difference (draws,)."""
    gains = (answers[0] == truth).mean(axis=1) - (answers[1] == truth).mean(axis=1)
    names = [group or str(i) for i, group in enumerate(groups)]
    group = np.unique(names, return_inverse=True)[1]
    sums = np.stack([np.bincount(group, of) for of in gains])
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), size=(1999, sums.shape[1]))
    as_large = np.abs(sums.astype(np.float32) @ signs.T) >= np.abs(sums.sum(axis=1, keepdims=True)) - 1e-5
    return (as_large.sum(axis=1) + 1) / 2000 < LEVEL


def photo_bootstrap(answers: Sequence[np.ndarray], truth: np.ndarray, classes: int) -> np.ndarray:
    """Whether a 95% percentile bootstrap interval over photos without groups excludes zero (draws,)."""
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), size=500).astype(np.float32)
    of_truth = drawn @ np.eye(classes, dtype=np.float32)[truth]

    def resampled(answers_of_run: np.ndarray) -> np.ndarray:
        is_answer = np.eye(classes, dtype=np.float32)[answers_of_run]
        hits = drawn @ (is_answer * (answers_of_run == truth)[:, None])
        return (2 * hits / np.maximum(of_truth + drawn @ is_answer, 1)).sum(1) / (of_truth > 0).sum(1)

    found = []
    for ours, theirs in zip(*answers, strict=True):
        gain = np.mean([resampled(run) for run in ours], axis=0) - np.mean([resampled(run) for run in theirs], axis=0)
        low, high = np.quantile(gain, [LEVEL / 2, 1 - LEVEL / 2])
        found.append(low > 0 or high < 0)
    return np.array(found)


def detected(condition: Condition, draws: int, seed: int = 0, bootstrap: bool = False) -> dict[str, float]:
    """The share of draws in which each test finds a difference."""
    truth, groups = photos_of(condition)
    at_once = max(1, ANSWERS_AT_ONCE // (len(truth) * sum(condition.seeds)))
    found: dict[str, list[np.ndarray]] = {"compare": [], "sign flip": []} | ({"bootstrap": []} if bootstrap else {})
    for start in range(0, draws, at_once):
        random = np.random.default_rng([seed, start, *_numbers(condition)])
        thresholds = draw_thresholds(condition, min(at_once, draws - start), random)
        answers = draw_answers(condition, thresholds, random)
        gain = measure_gain(*answers, truth, groups, condition.classes)
        found["compare"].append(np.abs(gain.value) > gain.half_width())
        found["sign flip"].append(sign_flip(answers, truth, groups))
        if bootstrap:
            found["bootstrap"].append(photo_bootstrap(answers, truth, condition.classes))
    return {name: float(np.concatenate(of).mean()) for name, of in found.items()}


def _numbers(condition: Condition) -> list[int]:
    """The condition as integers, so that each has random numbers of its own."""
    return [round(1000 * value) for field in asdict(condition).values() for value in np.atleast_1d(field)]


def family(condition: Condition, draws: int, seed: int = 0) -> dict[str, float]:
    """For equal models: how often any pair differs (Holm), and what a choice adds to the score that is reported.

    The bias is the reported macro F1 of the chosen model minus that of the same runs on fresh photos, in points.
    """
    truth, groups = photos_of(condition)
    random = np.random.default_rng([seed, *_numbers(condition)])
    thresholds = draw_thresholds(condition, draws, random)
    validation, test, fresh = (draw_answers(condition, thresholds, random) for _ in range(3))
    pairs = [(i, j) for i in range(len(test)) for j in range(i)]
    gains = [measure_gain(test[i], test[j], truth, groups, condition.classes) for i, j in pairs]
    # If all are equal, Holm's correction finds something exactly when the smallest p is below level / pairs.
    found = [np.abs(gain.value) > gain.half_width(LEVEL / len(pairs)) for gain in gains]
    scores = {
        name: _scores(of, truth, condition.classes) for name, of in (("v", validation), ("t", test), ("f", fresh))
    }
    picked = {name: np.argmax(of, axis=0)[None] for name, of in scores.items()}
    reported = {name: np.take_along_axis(scores["t"] - scores["f"], picked[name], axis=0).mean() for name in "vt"}
    return {
        "any pair differs": float(np.any(found, axis=0).mean()),
        "bias, chosen on validation": 100 * float(reported["v"]),
        "bias, chosen on test": 100 * float(reported["t"]),
    }


def _scores(answers: Sequence[np.ndarray], truth: np.ndarray, classes: int) -> np.ndarray:
    """The mean macro F1 of each model (models, draws): its gain over a model that is always right, plus 1."""
    right = np.broadcast_to(truth, (len(answers[0]), 1, len(truth)))
    return np.stack([1 + measure_gain(of, right, truth, [""] * len(truth), classes).value for of in answers])


def size_conditions() -> list[Condition]:
    """Pairs of equal models: 1, 3 and 5 seeds; photo sets of all sizes and kinds with at least one photo per class."""
    seeds = [(1, 0.0), *product((3, 5), (0.0, 0.01, 0.03))]
    photo_sets = product((24, 60, 300, 1000), (2, 3, 10, 40), (1, 10), (0.6, 0.9, 0.98), (False, True))
    return [
        Condition((runs, runs), (spread, spread), photos, classes, imbalance, accuracy, grouped)
        for (runs, spread), (photos, classes, imbalance, accuracy, grouped) in product(seeds, photo_sets)
        if photos >= classes
    ]


def unequal_conditions() -> list[Condition]:
    """Equal models of which one has no seed spread, fewer runs, or a single one."""
    runs = [((3, 3), (0, 0.03)), ((5, 5), (0, 0.03)), ((2, 2), (0, 0.03)), ((2, 2), (0.03, 0.03))]
    runs += [((1, 3), (0, 0.03)), ((2, 5), (0.01, 0.03)), ((3, 5), (0.03, 0.01))]
    return [
        Condition(seeds, spreads, photos, classes, accuracy=accuracy)
        for (seeds, spreads), photos, classes, accuracy in product(runs, (60, 300, 1000), (2, 10), (0.6, 0.9))
    ]


def power_conditions() -> list[Condition]:
    """Pairs of models with a true gain of 0, 2, 5 and 10 points."""
    sets = [(1, 0.0, 300), *product((3, 5), (0.0, 0.01, 0.03), (300,)), (3, 0.01, 1000), (3, 0.03, 1000)]
    return [
        Condition((runs, runs), (spread, spread), photos, gain=gain)
        for (runs, spread, photos), gain in product(sets, (0, 0.02, 0.05, 0.1))
    ]


def family_conditions() -> list[Condition]:
    """Four equal models."""
    seeds = [(1, 0.0), (3, 0.0), (3, 0.01), (3, 0.03), (5, 0.03)]
    return [Condition((r,) * 4, (s,) * 4, n, 3, 1, 0.9) for (r, s), n in product(seeds, (60, 300))]


def _size(job: tuple[Condition, int, int]) -> dict[str, float]:
    return detected(*job)


def _power(job: tuple[Condition, int]) -> dict[str, float]:
    return detected(*job, bootstrap=True)


def _family(job: tuple[Condition, int]) -> dict[str, float]:
    return family(*job)


def draw(path: Path, sizes: Sequence[dict[str, Any]], powers: Sequence[dict[str, Any]]) -> None:
    """Left: the size of both tests in each condition; right: how often a true gain is found with three seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    random = np.random.default_rng(0)
    for place, spread in enumerate((0.0, 0.01, 0.03)):
        for name, color, side in (("sign flip", "#c0562f", -0.2), ("compare", "#2f7d4f", 0.2)):
            shares = [100 * row[name] for row in sizes if row["spreads"][0] == spread]
            places = place + side + 0.12 * random.uniform(-1, 1, len(shares))
            label = {"sign flip": "before: sign flip of accuracy", "compare": "compare"}[name] if place == 0 else None
            left.plot(places, shares, ".", color=color, ms=3, alpha=0.5, label=label)
    left.axhline(5, color="#20302a", lw=0.8)
    left.set_xticks(range(3), ["0", "1", "3"])
    left.set(xlabel="seed spread, points of accuracy", ylabel="equal models called different, %")
    left.set_title("False findings (one dot per condition; line: 5%)", fontsize=10)
    for spread, style in ((0.01, "-"), (0.03, "--")):
        rows = [r for r in powers if r["seeds"] == (3, 3) and r["spreads"][0] == spread and r["photos"] == 300]
        for name, color in (("bootstrap", "#c0562f"), ("compare", "#2f7d4f")):
            label = f"{'bootstrap over photos' if name == 'bootstrap' else name}, spread {100 * spread:.0f}"
            gains, shares = zip(*((100 * row["gain"], 100 * row[name]) for row in rows), strict=True)
            right.plot(gains, shares, "o" + style, color=color, ms=4, label=label)
    right.axhline(5, color="#20302a", lw=0.8)
    right.set(xlabel="true gain, points of accuracy", ylabel="found, %", ylim=(0, 102))
    right.set_title("Findings with 3 seeds and 300 photos", fontsize=10)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)


def main() -> None:
    """Simulate, rerun the largest sizes with more draws, write the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="simulated comparisons per condition")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison_size"), help="folder of the tables")
    parser.add_argument("--figure", type=Path, help="path of the figure; by default in the folder of the tables")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(available_cores()) as pool:

        def simulate(work: Any, conditions: Sequence[Condition], *more: int) -> list[dict[str, Any]]:
            found = pool.map(work, [(condition, *more) for condition in conditions])
            return [asdict(condition) | shares for condition, shares in zip(conditions, found, strict=True)]

        def simulate_sizes(name: str, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
            rows = simulate(_size, conditions, arguments.draws, 0)
            # The largest of a thousand noisy numbers is too large; ten times the draws tell.
            largest = np.argsort([row["compare"] for row in rows])[-20:]
            again = simulate(_size, [conditions[i] for i in largest], 10 * arguments.draws, 1)
            for i, row in zip(largest, again, strict=True):
                rows[i] = row
            _write(arguments.output / f"{name}.csv", rows)
            for test in ("compare", "sign flip"):
                shares = np.array([row[test] for row in rows])
                print(f"{name}: {test}: mean {shares.mean():.3f}, largest {shares.max():.3f}, ", end="")
                print(f"above 7%: {(shares > 0.07).sum()} of {len(shares)} conditions", flush=True)
            return rows

        sizes = [
            simulate_sizes(name, conditions)
            for name, conditions in (("size", size_conditions()), ("unequal", unequal_conditions()))
        ]
        powers = simulate(_power, power_conditions(), arguments.draws)
        families = simulate(_family, family_conditions(), arguments.draws)
    _write(arguments.output / "power.csv", powers)
    _write(arguments.output / "family.csv", families)
    print(f"four equal models, any pair differs: at most {max(row['any pair differs'] for row in families):.3f}")
    draw(arguments.figure or arguments.output / "comparison_size.png", sizes[0], powers)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
