"""Does a trained model recognize plants that it was not trained on as unknown? A comparison of novelty scores.

    python -m benchmarks.unknown_plants ../shared/data/other_plants runs/NAME...

The photos in the folder belong to no class of the runs. The limit of every score accepts 93% of the validation photos
of a run, so that only the score differs. The row "not sure" applies all rules of the run together.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from agritransfer.data.dataset import load_splits
from agritransfer.data.sources import read_source
from agritransfer.evaluation.calibration import calibrated_probabilities
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.novelty import KNOWN_SHARE, strangeness
from agritransfer.evaluation.results import read_calibration, read_results
from agritransfer.evaluation.selective import verdicts
from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset
from agritransfer.models.loading import load_classifier

BATCH_SIZE = 64
SCORES = ("softmax", "energy", "distance", "both")


def outputs_of(folder: Path, strangers: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and features of the validation, test and field photos of a run, and of the unknown plants."""
    results = read_results(folder)
    model, processor = load_classifier(folder)
    splits = load_splits(results["dataset"]["name"], splits_file=str(folder / "splits.csv"))
    sets = {split: splits.dataset(split, processor) for split in ("validation", "test")}
    if results["shift"]:
        field = read_source(results["shift"]["name"])
        rows, files = [photo.row for photo in field.photos], [photo.file for photo in field.photos]
        sets["field"] = PhotoDataset(field.images, rows, [0] * len(rows), files, EvaluationPixels(processor))
    others = sorted(Path(strangers).rglob("*.jpg"))
    images = [{"image": {"path": str(path), "bytes": None}} for path in others]
    names = [path.name for path in others]
    sets["others"] = PhotoDataset(images, range(len(images)), [0] * len(images), names, EvaluationPixels(processor))
    return {name: predict(model, photos, BATCH_SIZE) for name, photos in sets.items()}


def strangeness_by_score(
    outputs: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path
) -> dict[str, dict[str, np.ndarray]]:
    """{score: {set: novelty of each photo}}."""
    calibration, known = read_calibration(folder)
    found: dict[str, dict[str, np.ndarray]] = {score: {} for score in SCORES}
    for name, (logits, features) in outputs.items():
        confidence = calibrated_probabilities(logits, calibration["temperature"]).max(axis=1)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        similarity = unit @ known.features.T
        if name == "validation":
            np.fill_diagonal(similarity, -1)
        found["softmax"][name] = 1 - confidence
        found["energy"][name] = -logsumexp(logits, axis=1)
        found["distance"][name] = 1 - similarity.max(axis=1)
        # A validation photo is its own nearest neighbor; the limit of this score is the run's own.
        if name != "validation":
            found["both"][name] = strangeness(features, confidence, known)
    return found


def main() -> None:
    """Print a table for each run."""
    strangers, *folders = sys.argv[1:]
    for folder in map(Path, folders):
        outputs = outputs_of(folder, strangers)
        calibration, known = read_calibration(folder)
        shown = [name for name in outputs if name != "validation"]
        print(f"{folder.name}: share rejected as unknown\n  {'score':<10}" + "".join(f"{name:>8}" for name in shown))
        for score, of in strangeness_by_score(outputs, folder).items():
            own = calibration["unknown"]["threshold"]
            limit = own if score == "both" else np.quantile(of["validation"], KNOWN_SHARE)
            print(f"  {score:<10}" + "".join(f"{(of[name] > limit).mean():>8.1%}" for name in shown))
        refused = {name: [v != "answer" for v in verdicts(*outputs[name], calibration, known)] for name in shown}
        print(f"  {'not sure':<10}" + "".join(f"{np.mean(refused[name]):>8.1%}" for name in shown))


if __name__ == "__main__":
    main()
