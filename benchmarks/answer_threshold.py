"""Does the answer threshold keep its target error, and how many answers does that cost? Two simulations, one figure.

    python -m benchmarks.answer_threshold --draws 1000 --output docs/images
    python -m benchmarks.answer_threshold ../shared/data/cardamom_lab ../shared/models/efficientnet-lite0 --draws 200

Without photos, confidences are drawn whose true error is known at every threshold: calibrated ones, overconfident ones,
tied ones. With photos and a backbone, heads are fitted on random splits of the photos (groups kept whole), the
threshold on their validation photos, and the error is that of all remaining photos. `conformal risk control` is the
rule that agritransfer used before: it assumes an error that falls with every higher threshold, which is not the case.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from agritransfer.data.dataset import load_splits
from agritransfer.evaluation.calibration import calibrated_probabilities
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.intervals import clusters_of, wilson_interval
from agritransfer.evaluation.plots import ACCENT, INK, SOFT
from agritransfer.evaluation.selective import answer_threshold, calibrate, verdicts
from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset
from agritransfer.models.loading import load_pretrained, load_processor
from agritransfer.training.linear_probe import solve

TARGET = 0.05
PHOTOS = (40, 100, 300, 1000)
POPULATION = 400_000
IMAGE_SIZE = 112
# Shares of the photos that train and validate; the error is measured on the rest.
TRAIN, VALIDATION = 0.4, 0.2


@dataclass(frozen=True)
class Population:
    """Photos whose confidence is drawn by `draw(random, count)`, and their probability of a wrong answer."""

    name: str
    draw: Callable[[np.random.Generator, int], np.ndarray]
    error: Callable[[np.ndarray], np.ndarray]


def beta(a: float, b: float = 1.0) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Confidences from a beta distribution."""
    return lambda random, count: random.beta(a, b, count)


POPULATIONS = (
    Population("calibrated, accuracy 0.60", beta(1.5), lambda c: 1 - c),
    Population("calibrated, accuracy 0.80", beta(4), lambda c: 1 - c),
    Population("calibrated, accuracy 0.90", beta(9), lambda c: 1 - c),
    Population("calibrated, accuracy 0.95", beta(9.5, 0.5), lambda c: 1 - c),
    Population("calibrated, accuracy 0.99", beta(49.5, 0.5), lambda c: 1 - c),
    Population("2% wrong labels, accuracy 0.97", lambda r, n: 0.98 * r.beta(49.5, 0.5, n), lambda c: 1 - c),
    Population("overconfident, accuracy 0.82", beta(9), lambda c: 1 - c**2),
    Population("overconfident, accuracy 0.91", beta(20), lambda c: 1 - c**2),
    Population("too modest, accuracy 0.89", beta(4), lambda c: 1 - np.sqrt(c)),
    Population("tied, accuracy 0.80", lambda r, n: r.beta(4, 1, n).round(1), lambda c: 1 - c),
    Population("tied, accuracy 0.96", lambda r, n: r.beta(19, 1, n).round(1), lambda c: 1 - c),
)


def conformal_risk_control(confidence: np.ndarray, right: np.ndarray, target_error: float) -> float | None:
    """The lowest confidence with (wrong answers + 1) / (answers + 1) <= target at or above it."""
    order = np.argsort(-confidence, kind="stable")
    bound = (np.cumsum(~right[order]) + 1) / (np.arange(len(order)) + 2)
    last_of_equals = np.append(np.diff(confidence[order]) != 0, True)
    kept = np.flatnonzero((bound <= target_error) & last_of_equals)
    return float(confidence[order][kept[-1]]) if len(kept) else None


RULES = {"conformal risk control": conformal_risk_control, "agritransfer": answer_threshold}


def simulate(population: Population, photos: int, draws: int) -> dict[str, np.ndarray]:
    """For each rule, the true error and the share answered at the threshold of each draw (draws, 2); NaN for none."""
    random = np.random.default_rng(0)
    confidence = np.sort(population.draw(random, POPULATION))[::-1]
    error = np.cumsum(population.error(confidence)) / np.arange(1, POPULATION + 1)
    outcomes = {name: np.full((draws, 2), [np.nan, 0.0]) for name in RULES}
    for draw in range(draws):
        drawn = population.draw(random, photos)
        right = random.random(photos) >= population.error(drawn)
        for name, rule in RULES.items():
            if (threshold := rule(drawn, right, TARGET)) is not None:
                answered = np.searchsorted(-confidence, -threshold, side="right")
                outcomes[name][draw] = error[max(answered - 1, 0)], answered / POPULATION
    return outcomes


def facts(outcome: np.ndarray) -> dict[str, float]:
    """What the draws say of a rule: shares of draws and of thresholds that miss the target, found, answered, error."""
    found = ~np.isnan(outcome[:, 0])
    missed = int((outcome[found, 0] > TARGET).sum())
    return {
        "missed": missed / len(outcome),
        "missed_high": wilson_interval(missed, len(outcome))[1],
        "missed_of_found": missed / found.sum() if found.any() else 0.0,
        "found": float(found.mean()),
        "answered": float(outcome[:, 1].mean()),
        "error": float(outcome[found, 0].mean()) if found.any() else float("nan"),
    }


def resplit(folder: str, backbone: str, draws: int, train: float, heads: int) -> dict[str, np.ndarray]:
    """For each rule, the error on all remaining photos and the share answered, for random splits of real photos.

    With several `heads`, each is fitted on a bootstrap sample of the train photos, and the best on the validation
    photos is kept: the choice of the best checkpoint, at its worst.
    """
    features, labels, groups = features_of(folder, backbone)
    clusters = clusters_of(groups)
    outcomes = {name: np.full((draws, 2), [np.nan, 0.0]) for name in RULES}
    for draw in tqdm(range(draws), desc=Path(folder).name, disable=None):
        random = np.random.default_rng(draw)
        place = random.permutation(clusters.max() + 1)[clusters] / clusters.max()
        fit, validation, rest = (
            place < train,
            (place >= train) & (place < train + VALIDATION),
            place >= train + VALIDATION,
        )
        logits = best_logits(features, labels, clusters, fit, validation, heads, random)
        right = logits.argmax(axis=1) == labels
        entry, known = calibrate(
            logits[validation], features[validation], labels[validation], groups[validation], TARGET
        )
        confidence = calibrated_probabilities(logits, entry["temperature"]).max(axis=1)
        before = conformal_risk_control(confidence[validation], right[validation], TARGET)
        answered = {
            "conformal risk control": confidence[rest] >= (before if before is not None else 2),
            "agritransfer": np.array(verdicts(logits[rest], features[rest], entry, known)) == "answer",
        }
        for name, answers in answered.items():
            if answers.any():
                outcomes[name][draw] = (~right[rest][answers]).mean(), answers.mean()
    return outcomes


def features_of(folder: str, backbone: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frozen features (photos, width), label indices and groups ("" for none) of all photos of a dataset."""
    splits = load_splits(folder)
    processor = load_processor(backbone, None, IMAGE_SIZE)
    model = load_pretrained(backbone, None, splits.labels, processor.image_size)
    labels = [splits.labels.index(photo.label) for photo in splits.photos]
    rows, files = [photo.row for photo in splits.photos], [photo.file for photo in splits.photos]
    photos = PhotoDataset(splits.images, rows, labels, files, EvaluationPixels(processor))
    return predict(model, photos, 64)[1], np.array(labels), np.array([photo.group for photo in splits.photos])


def best_logits(
    features: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray,
    fit: np.ndarray,
    validation: np.ndarray,
    heads: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Logits (photos, classes) of the head that is best on the validation photos."""
    train, best, found = np.flatnonzero(fit), -1.0, None
    of_class = np.ones(labels.max() + 1)
    for _ in range(heads):
        sample = random.choice(train, len(train)) if heads > 1 else train
        if len(np.unique(labels[sample])) < len(of_class):
            continue
        # A photo may be drawn twice.
        groups = [f"group {number}" for number in clusters[sample]]
        head = solve(features[sample], labels[sample], of_class, features[validation], labels[validation], groups)
        score = head.sweep[head.best]["eval_macro_f1"]
        if score > best:
            best, found = score, features @ head.weight.T + head.bias
    return found


def print_row(name: str, photos: object, outcomes: dict[str, np.ndarray]) -> None:
    """One line per rule."""
    for rule, outcome in outcomes.items():
        told = facts(outcome)
        missed = f"{told['missed']:.1%} (<={told['missed_high']:.1%})"
        print(
            f"{name:<32}{photos!s:>7}  {rule:<24}{told['found']:>7.0%}{missed:>18}{told['missed_of_found']:>9.1%}"
            f"{told['error']:>9.1%}{told['answered']:>9.1%}",
            flush=True,
        )


HEADING = (
    f"{'confidences':<32}{'photos':>7}  {'rule':<24}{'found':>7}{'missed the target':>18}{'of found':>9}"
    f"{'error':>9}{'answers':>9}"
)


def draw_figure(path: Path, told: dict[tuple[str, int, str], dict[str, float]]) -> None:
    """Left: how often the target is missed. Right: how many photos are answered. One dot per kind of confidence."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4))
    for offset, (rule, color) in zip(
        (-0.08, 0.08), (("conformal risk control", SOFT), ("agritransfer", ACCENT)), strict=True
    ):
        rows = [(PHOTOS.index(photos) + offset, row) for (_, photos, of), row in told.items() if of == rule]
        for axes, value in ((left, "missed"), (right, "answered")):
            axes.plot(
                [x for x, _ in rows], [100 * row[value] for _, row in rows], "o", color=color, alpha=0.7, label=rule
            )
    left.axhline(10, color=INK, linewidth=1, linestyle="--")
    left.annotate("allowed: 10%", (len(PHOTOS) - 1, 10), (0, 4), textcoords="offset points", ha="right")
    left.set_ylabel(f"runs with more than {TARGET:.0%} wrong (%)")
    right.set_ylabel("photos that get an answer (%)")
    for axes in (left, right):
        axes.set_xticks(range(len(PHOTOS)), [f"{photos:,}" for photos in PHOTOS])
        axes.set_xlabel("validation photos")
        axes.set_ylim(bottom=-2)
    figure.legend(
        *left.get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 0.9), ncol=2, frameon=False
    )
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Print a table of one simulation; write the figure of the drawn confidences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?", help="folder of real photos")
    parser.add_argument("backbone", nargs="?", help="pretrained model for their features")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--train", type=float, default=TRAIN, help="share of the photos that the head is fitted on")
    parser.add_argument("--heads", type=int, default=1, help="heads of which the best on the validation photos is kept")
    parser.add_argument("--output", type=Path, help="folder for answer_threshold.png")
    args = parser.parse_args()
    print(f"target: at most {TARGET:.0%} wrong; {args.draws} draws\n{HEADING}")
    if args.photos:
        outcomes = resplit(args.photos, args.backbone, args.draws, args.train, args.heads)
        print_row(f"{Path(args.photos).name}, best of {args.heads}", "", outcomes)
        return
    told = {}
    for population in POPULATIONS:
        for photos in PHOTOS:
            outcomes = simulate(population, photos, args.draws)
            print_row(population.name, photos, outcomes)
            told |= {(population.name, photos, rule): facts(outcome) for rule, outcome in outcomes.items()}
    if args.output:
        draw_figure(args.output / "answer_threshold.png", told)


if __name__ == "__main__":
    main()
