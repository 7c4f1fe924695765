"""How often do the 95% intervals contain the true score, and how wide are they? A simulation beside a bootstrap.

    python -m benchmarks.interval_coverage --draws 400 --output docs/images

The population is a confusion matrix with a known macro F1: the classes are equally frequent or the rarest is 50 times
as rare as the commonest, the error rate is the same for all classes or grows to twice the mean, and mistakes go to any
class or mostly to the next one. A test set has fixed class counts, as a stratified split has.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from agritransfer.evaluation.intervals import accuracy_interval, class_average_intervals
from agritransfer.evaluation.metrics import macro_f1
from agritransfer.evaluation.plots import ACCENT, INK, SOFT

PHOTOS = (24, 60, 200, 1000)
CLASSES = (2, 3, 10, 38, 73)
IMBALANCES = (1, 50)
SCORES = (0.4, 0.7, 0.9, 0.97, 0.99)
RESAMPLES = 300


@dataclass(frozen=True)
class Population:
    """Photos of some classes and a classifier with a known macro F1."""

    classes: int
    imbalance: int
    macro_f1: float
    uneven: bool = False

    @cached_property
    def frequency(self) -> np.ndarray:
        """The share of each class (classes,)."""
        shares = np.geomspace(1, 1 / self.imbalance, self.classes)
        return shares / shares.sum()

    @cached_property
    def answers(self) -> np.ndarray:
        """The probability of each answer (columns) for each class (rows)."""
        low, high = 0.0, 0.999
        for _ in range(40):
            middle = (low + high) / 2
            too_good = averages(self.frequency[:, None] * self._rows(middle))[0] > self.macro_f1
            low, high = (middle, high) if too_good else (low, middle)
        return self._rows(low)

    def _rows(self, error: float) -> np.ndarray:
        order = np.random.default_rng(5).permutation(self.classes)
        errors = np.clip(error * (np.linspace(0, 2, self.classes)[order] if self.uneven else 1), 0, 0.95)
        elsewhere = (1 - np.eye(self.classes)) / (self.classes - 1)
        if self.uneven:
            elsewhere = 0.3 * elsewhere + 0.7 * np.roll(np.eye(self.classes), 1, axis=1)
        errors = np.broadcast_to(errors, self.classes)
        return np.diag(1 - errors) + errors[:, None] * elsewhere

    def counts(self, photos: int) -> np.ndarray:
        """The photos of each class in a stratified test set, at least one each."""
        counts = np.maximum(1, np.floor(self.frequency * photos).astype(int))
        while counts.sum() != photos:
            place = np.argmax(self.frequency * photos - counts) if counts.sum() < photos else np.argmax(counts)
            counts[place] += np.sign(photos - counts.sum())
        return counts


@dataclass(frozen=True)
class Coverage:
    """The share of intervals that contain the true score, and their mean width."""

    coverage: float
    width: float


def averages(matrix: np.ndarray) -> tuple[float, float]:
    """Macro F1 and balanced accuracy of a confusion matrix."""
    hits, shown, answered = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return float((2 * hits / (shown + answered)).mean()), float((hits / shown).mean())


def bootstrap(answers: np.ndarray, truth: np.ndarray, classes: int, random: np.random.Generator) -> list[float]:
    """The percentile interval of macro F1 over resampled photos, which agritransfer used before."""
    drawn = random.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), size=RESAMPLES)
    values = [macro_f1(answers, truth, classes, times) for times in drawn]
    return np.quantile(values, [0.025, 0.975]).tolist()


def coverage(
    population: Population, photos: int, draws: int, with_bootstrap: bool = True
) -> dict[str, dict[str, Coverage]]:
    """For both averages, the coverage of our intervals; for macro F1 also that of a bootstrap."""
    random, classes = np.random.default_rng(0), population.classes
    counts = population.counts(photos)
    truth = np.repeat(np.arange(classes), counts)
    true = dict(
        zip(("balanced_accuracy", "macro_f1"), averages(counts[:, None] * population.answers)[::-1], strict=True)
    )
    edges = population.answers.cumsum(axis=1)[truth]
    found: dict[str, dict[str, list]] = {score: {"agritransfer": []} for score in true}
    if with_bootstrap:
        found["macro_f1"]["bootstrap"] = []
    for _ in range(draws):
        answers = np.minimum((random.random(photos)[:, None] > edges).sum(axis=1), classes - 1)
        intervals = class_average_intervals(answers, truth, classes, [""] * photos)
        for score in true:
            found[score]["agritransfer"].append(intervals[score])
        if with_bootstrap:
            found["macro_f1"]["bootstrap"].append(bootstrap(answers, truth, classes, random))
    return {score: {name: _covered(of, true[score]) for name, of in found[score].items()} for score in true}


def _covered(intervals: Sequence[Sequence[float]], true: float) -> Coverage:
    low, high = np.array(intervals).T
    # True scores are computed with another order of sums.
    return Coverage(float(((low - 1e-9 <= true) & (true <= high + 1e-9)).mean()), float((high - low).mean()))


def grouped_coverage(groups: int, size: int, accuracy: float, correlation: float, draws: int) -> dict[str, float]:
    """Coverage of accuracy and macro F1 for two classes, with right answers correlated within groups of photos."""
    random, names = np.random.default_rng(0), [f"plant {i}" for i in np.repeat(np.arange(groups), size)]
    truth = np.repeat(np.arange(groups) % 2, size)
    covered = {"accuracy": 0, "macro_f1": 0}
    for _ in range(draws):
        right = random.random(groups * size) < accuracy
        together = np.repeat(random.random(groups) < accuracy, size)
        # With this probability a photo shares the luck of its group; two photos then correlate by its square.
        shares = random.random(groups * size) < np.sqrt(correlation)
        right = np.where(shares, together, right)
        low, high = accuracy_interval(right, names)
        covered["accuracy"] += low <= accuracy <= high
        low, high = class_average_intervals(np.where(right, truth, 1 - truth), truth, 2, names)["macro_f1"]
        covered["macro_f1"] += low <= accuracy <= high
    return {score: count / draws for score, count in covered.items()}


def draw_figure(path: Path, rows: list[tuple[Population, int, dict[str, dict[str, Coverage]]]]) -> None:
    """Coverage and width of every cell of the grid, by the number of photos."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4))
    for offset, (name, color) in zip((-0.1, 0.1), (("bootstrap", SOFT), ("agritransfer", ACCENT)), strict=True):
        places = [PHOTOS.index(photos) + offset for _, photos, _ in rows]
        cells = [found["macro_f1"][name] for _, _, found in rows]
        left.plot(
            places, [100 * cell.coverage for cell in cells], "o", color=color, alpha=0.5, label=name, markersize=4
        )
        right.plot(places, [cell.width for cell in cells], "o", color=color, alpha=0.5, markersize=4)
    left.axhline(95, color=INK, linewidth=1, linestyle="--")
    left.set_ylabel("intervals with the true macro F1 (%)")
    right.set_ylabel("mean width of the interval")
    for axes in (left, right):
        axes.set_xticks(range(len(PHOTOS)), [f"{photos:,}" for photos in PHOTOS])
        axes.set_xlabel("test photos")
        axes.set_ylim(bottom=0)
    figure.legend(
        *left.get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 0.9), ncol=2, frameon=False
    )
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Print the coverage of every cell and a summary; write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--output", type=Path, help="folder for interval_coverage.png")
    args = parser.parse_args()
    grid = [
        (Population(classes, imbalance, score, uneven), photos)
        for classes in CLASSES
        for imbalance in IMBALANCES
        for uneven in (False, True)
        for score in SCORES
        for photos in PHOTOS
        if photos >= classes
    ]
    rows = []
    for population, photos in tqdm(grid, disable=None):
        found = coverage(population, photos, args.draws)
        rows.append((population, photos, found))
        told = [("macro F1", *found["macro_f1"].items()), ("balanced accuracy", *found["balanced_accuracy"].items())]
        text = "; ".join(
            f"{score}: " + ", ".join(f"{name} {of.coverage:.1%} width {of.width:.3f}" for name, of in cells)
            for score, *cells in told
        )
        print(f"{population}, {photos} photos: {text}", flush=True)
    for score, name in (("macro_f1", "bootstrap"), ("macro_f1", "agritransfer"), ("balanced_accuracy", "agritransfer")):
        cells = [found[score][name] for _, _, found in rows]
        covered = np.array([cell.coverage for cell in cells])
        print(
            f"{score}, {name}: {len(cells)} cells, coverage {covered.min():.1%} to {covered.max():.1%}, mean "
            f"{covered.mean():.1%}, below 93% in {(covered < 0.93).mean():.1%}; mean width "
            f"{np.mean([cell.width for cell in cells]):.3f}"
        )
    if args.output:
        draw_figure(args.output / "interval_coverage.png", rows)


if __name__ == "__main__":
    main()
