"""How long does fitting a head take, and which rule chooses its penalty best?

    python -m benchmarks.head_solver
    python -m benchmarks.head_solver --choice 20 --data ../shared/data/apple_lab --field ../shared/data/apple_field \\
        --model ../shared/models/efficientnet-lite0

Without photos, heads are fitted to drawn features of growing size and, up to `--peer_photos`, by scikit-learn's
`LogisticRegression` along the same penalties, as agritransfer did before; CPU seconds of one thread. With `--choice`,
photos are divided again and again into train, validation and test, groups kept whole, and each rule chooses among the
same heads; then again with at most `--train` photos and 30 validation photos.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from agritransfer.data.dataset import load_shift_photos, load_splits
from agritransfer.evaluation.calibration import fit_temperature
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.intervals import clusters_of
from agritransfer.evaluation.logistic_regression import PENALTIES, Components, Regressions, held_out
from agritransfer.evaluation.metrics import macro_f1
from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset
from agritransfer.models.loading import load_pretrained, load_processor
from agritransfer.training.linear_probe import solve

# Photos, width of the features and classes.
SIZES = ((1_000, 384, 4), (1_000, 1_280, 4), (2_640, 768, 81), (5_000, 1_280, 20), (20_000, 1_280, 100))
IMAGE_SIZE = 112
PARTS = 7
# Validation photos beside few train photos.
FEW = 30
# Weaker penalties were never the best.
TRIED = PENALTIES[:20]


def drawn(photos: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features, which a head tells apart for about nine of ten photos, and their labels."""
    random = np.random.default_rng(0)
    mix = (random.normal(size=(width, width)) * np.logspace(0, -2, width)).astype(np.float32)
    centers = random.normal(size=(classes, width)).astype(np.float32) * 0.13
    labels = np.arange(photos) % classes
    features = np.concatenate([random.normal(size=(len(part), width)) + centers[part] for part in _parts(labels)])
    return features.astype(np.float32) @ mix, labels


def _parts(labels: np.ndarray) -> list[np.ndarray]:
    return np.array_split(labels, max(1, len(labels) // 2000))


def peer_seconds(features: np.ndarray, labels: np.ndarray, tried: int) -> float:
    """CPU seconds of scikit-learn for the first `tried` penalties, each from the optimum of the one before."""
    began = time.process_time()
    scaled = StandardScaler().fit_transform(features.astype(np.float64)).astype(np.float32)
    model = LogisticRegression(tol=1e-4, max_iter=2000, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for penalty in PENALTIES[:tried]:
            model.set_params(C=penalty).fit(scaled, labels)
    return time.process_time() - began


def print_times(peer_photos: int) -> None:
    """One row per size: CPU seconds, validation accuracy and log loss, and scikit-learn's seconds."""
    print("| photos | width | classes | CPU | accuracy | log loss | penalties | scikit-learn |\n|" + "---|" * 8)
    for photos, width, classes in SIZES:
        features, labels = drawn(photos * 23 // 20, width, classes)
        train, validation = (features[:photos], labels[:photos]), (features[photos:], labels[photos:])
        began = time.process_time()
        solved = solve(*train, np.ones(classes), *validation, [""] * photos)
        seconds, best = time.process_time() - began, solved.sweep[solved.best]
        peer = f"{peer_seconds(*train, len(solved.sweep)):.1f} s" if photos <= peer_photos else ""
        scores = f"{best['eval_accuracy']:.3f} | {best['eval_loss']:.3f}"
        sizes = f"{photos:,} | {width:,} | {classes}"
        print(f"| {sizes} | {seconds:.1f} s | {scores} | {len(solved.sweep)} | {peer} |", flush=True)


def features_of(data: Path, field: Path | None, backbone: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Features (photos, width), labels and clusters of all photos, then of the field photos if there are any."""
    splits = load_splits(str(data))
    splits, shift = load_shift_photos(field and str(field), splits)
    processor = load_processor(str(backbone), None, IMAGE_SIZE)
    model = load_pretrained(str(backbone), None, splits.labels, processor.image_size)
    found = []
    for of in [splits] if shift is None else [splits, shift]:
        labels = [splits.labels.index(photo.label) for photo in of.photos]
        rows, files = [photo.row for photo in of.photos], [photo.file for photo in of.photos]
        photos = PhotoDataset(of.images, rows, labels, files, EvaluationPixels(processor))
        features = predict(model, photos, 64)[1]
        found.append((features, np.array(labels), clusters_of([photo.group for photo in of.photos])))
    return found


def divided(
    labels: np.ndarray, clusters: np.ndarray, seed: int, limits: tuple[int | None, int | None]
) -> list[np.ndarray]:
    """Train, validation and test photos: five, one and one seventh, at most `limits` of the first two."""
    folds = StratifiedGroupKFold(PARTS, shuffle=True, random_state=seed).split(labels, labels, clusters)
    test, validation, *train = (part for _, part in folds)
    random = np.random.default_rng(seed)
    train, validation = (random.permutation(part) for part in (np.concatenate(train), validation))
    return [train[: limits[0]], validation[: limits[1]], test]


def losses_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log loss of each photo."""
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def within_one_error(losses: np.ndarray, paired: bool) -> int:
    """The strongest penalty whose mean loss is within one standard error of the lowest; losses (penalties, photos).

    The error is that of the lowest mean or, if `paired`, that of the difference.
    """
    means = losses.mean(axis=1)
    lowest = int(means.argmin())
    spread = (losses - losses[lowest] if paired else np.broadcast_to(losses[lowest], losses.shape)).std(axis=1)
    return int(np.argmax(means <= means[lowest] + spread / np.sqrt(losses.shape[1])))


def outcomes(
    photos: tuple, field: tuple | None, seed: int, limits: tuple[int | None, int | None]
) -> dict[str, list[float]]:
    """For each rule: accuracy, macro F1, log loss and temperature on the test, field accuracy and F1, the chosen C."""
    features, labels, clusters = photos
    train, validation, test = divided(labels, clusters, seed, limits)
    components, classes = Components.of(features[train]), labels.max() + 1
    scores, truth = components.scores(features[train]), labels[train]
    held = held_out(truth, clusters[train], len(train))
    fits = Regressions(scores, components.variances, truth, np.column_stack([np.ones(len(train)), ~held]))
    rows, folds = np.nonzero(held)
    known = fits.occurs[folds + 1, truth[rows]]
    rows, folds = rows[known], folds[known]
    scored = [(components.scores(features[part]), labels[part]) for part in (validation, test)]
    scored += [(components.scores(field[0]), field[1])] if field else []
    logits, of_folds = [], []
    for penalty in TRIED:
        fits.fit(penalty)
        logits.append([fits.log_probabilities(part)[:, 0] for part, _ in scored])
        of_folds.append(-fits.log_probabilities(scores)[rows, folds + 1, truth[rows]])
    on_validation = np.array([losses_of(of[0], scored[0][1]) for of in logits])
    joined = np.concatenate([on_validation, np.array(of_folds)], axis=1)
    f1 = [macro_f1(of[0].argmax(axis=1), scored[0][1], classes) for of in logits]
    chosen = {
        "validation: macro F1 (before)": max(range(len(TRIED)), key=lambda n: (f1[n], -on_validation[n].mean())),
        "validation: log loss": int(on_validation.mean(axis=1).argmin()),
        "validation: log loss, one standard error": within_one_error(on_validation, paired=False),
        "folds and validation: log loss (now)": int(joined.mean(axis=1).argmin()),
        "folds and validation: one standard error": within_one_error(joined, paired=False),
        "folds and validation: one paired standard error": within_one_error(joined, paired=True),
        "the best of all on the test": int(np.argmax([_right(of[1], scored[1][1]) for of in logits])),
    }
    return {rule: _outcome(logits[number], scored, TRIED[number]) for rule, number in chosen.items()}


def _right(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def _outcome(logits: list[np.ndarray], scored: list[tuple], penalty: float) -> list[float]:
    of_test, truth = logits[1], scored[1][1]
    f1 = [macro_f1(of.argmax(axis=1), labels, of.shape[1]) for of, (_, labels) in zip(logits, scored, strict=True)]
    temperature = fit_temperature(logits[0], scored[0][1])
    scores = [_right(of_test, truth), f1[1], float(losses_of(of_test, truth).mean()), np.log(temperature)]
    return [*scores, *([_right(logits[2], scored[2][1]), f1[2]] if len(logits) > 2 else [np.nan] * 2), np.log(penalty)]


def print_choices(found: list[dict[str, list[float]]]) -> None:
    """One row per rule: means over the re-splits, the accuracy also as the difference from the rule before."""
    print("| rule | accuracy | difference | macro F1 | log loss | temperature | field accuracy | field F1 | C |")
    print("|" + "---|" * 9)
    before = np.array([next(iter(of.values())) for of in found])
    for rule in found[0]:
        of = np.array([each[rule] for each in found])
        gain = 100 * (of[:, 0] - before[:, 0])
        accuracy, f1, loss, temperature, field, field_f1, penalty = of.mean(axis=0)
        spread = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
        numbers = f"{accuracy:.3f} | {gain.mean():+.2f} ± {spread:.2f} | {f1:.3f} | {loss:.3f}"
        print(
            f"| {rule} | {numbers} | {np.exp(temperature):.2f} | {field:.3f} | {field_f1:.3f} | {np.exp(penalty):.2g} |"
        )


def main() -> None:
    """Print the times, or the outcomes of the rules."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--peer_photos", type=int, default=1_000, help="largest number of photos for scikit-learn")
    flags.add_argument("--choice", type=int, metavar="N", help="compare the rules over N re-splits of --data")
    flags.add_argument("--data", type=Path, default=Path("sample/leaves"))
    flags.add_argument("--field", type=Path)
    flags.add_argument("--model", type=Path, default=Path("sample/vit"))
    flags.add_argument("--train", type=int, nargs="*", default=[], help="also with at most so many train photos")
    args = flags.parse_args()
    torch.set_num_threads(1)
    if args.choice is None:
        print_times(args.peer_photos)
        return
    photos, *field = features_of(args.data, args.field, args.model)
    for train in (None, *args.train):
        limits = train, train and FEW
        print(f"\n{args.data.name}, {args.model.name}, train photos: {train or 'all'}", flush=True)
        print_choices([outcomes(photos, field[0] if field else None, seed, limits) for seed in range(args.choice)])


if __name__ == "__main__":
    main()
