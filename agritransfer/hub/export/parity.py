"""Does an exported file give the same predictions as the trained model?"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import InferenceSession
from PIL import Image
from tqdm import tqdm

from agritransfer.data.dataset import Splits
from agritransfer.errors import UsageError
from agritransfer.evaluation.intervals import clusters_of, wilson_interval
from agritransfer.evaluation.novelty import Known
from agritransfer.evaluation.predictions import read_predictions
from agritransfer.evaluation.results import read_calibration
from agritransfer.evaluation.selective import calibrate, verdicts
from agritransfer.images.decoding import decode_photo
from agritransfer.images.preprocessing import PhotoProcessor, pixel_recipe
from agritransfer.models.attribution import ExplainedClassifier
from agritransfer.runtime.process import available_cores, full_precision
from agritransfer.training.saving import LOGIT_TOLERANCE

OUTPUTS = ("logits", "features", "evidence")
# Deletion test: the share of cells that is hidden, and the number of random draws to compare with.
HIDDEN_SHARE = 0.1
RANDOM_DRAWS = 3
# Reduced decoding: pixels of a phone photo, the required agreement, and the shortest side that can still be displayed.
FULL_SIZE = 12_000_000
REDUCED_AGREEMENT = 0.995
SHOWN_SIDE = 640


def evenly_drawn(count: int, most: int | None) -> list[int]:
    """At most `most` evenly spaced indices of `count` photos."""
    return np.linspace(0, count - 1, min(count, most or count)).round().astype(int).tolist()


def outputs_of_both(
    explained: ExplainedClassifier, path: Path, batches: Iterator[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The true labels (photos,) and the outputs of torch and of the file by name."""
    session, truth, of_torch, of_file = open_session(path), [], [], []
    for pixels, labels in batches:
        with full_precision(), torch.inference_mode():
            of_torch.append([output.numpy() for output in explained(torch.from_numpy(pixels))])
        of_file.append(session.run(OUTPUTS, {"pixel_values": pixels}))
        truth.append(labels)
    by_name = [
        {name: np.concatenate(parts) for name, parts in zip(OUTPUTS, zip(*own, strict=True), strict=True)}
        for own in (of_torch, of_file)
    ]
    return np.concatenate(truth), *by_name


def outputs_one_by_one(path: Path, batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (photos, classes) and features (photos, width) of single photos, as in serving.

    Dynamic quantization depends on the whole batch.
    """
    session = open_session(path)
    outputs = [
        session.run(["logits", "features"], {"pixel_values": photo[None]}) for pixels, _ in batches for photo in pixels
    ]
    logits, features = zip(*outputs, strict=True)
    return np.concatenate(logits), np.concatenate(features)


def open_session(path: Path) -> InferenceSession:
    """An inference session on the CPU."""
    return InferenceSession(path, providers=["CPUExecutionProvider"])


def check_same(reference: dict[str, np.ndarray], exported: dict[str, np.ndarray]) -> None:
    """Raise `UsageError` if an output of the file differs from that of torch by more than rounding."""
    for name in OUTPUTS:
        difference = float(np.abs(reference[name] - exported[name]).max())
        if not difference <= LOGIT_TOLERANCE * max(1.0, float(np.abs(reference[name]).max())):
            raise UsageError(
                f"the {name} of model.onnx differ from those of the trained model by {difference:.3g}, so no file was "
                "written; predict and pipeline work without an export"
            )


def facts_of(path: Path, logits: np.ndarray, reference: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """The entry of a file in `export.json`: size, accuracy and agreement with torch."""
    return {
        "bytes": path.stat().st_size,
        "accuracy": share_equal(logits, truth),
        "agreement": share_equal(logits, reference.argmax(axis=1)),
        "largest_logit_difference": float(np.abs(logits - reference).max()),
    }


@dataclass(frozen=True)
class CheckedPhotos:
    """The validation photos of a run that its export is checked on, and the verdicts of the run on them.

    `truth` (photos,) are label indices, `groups` their groups ("" for none), `clusters` (photos,) numbers that are
    equal for photos of one group; `calibration` is that of the run.
    """

    truth: np.ndarray
    groups: list[str]
    clusters: np.ndarray
    calibration: dict[str, Any]
    verdicts: list[str]

    def calibrate(self, logits: np.ndarray, features: np.ndarray) -> tuple[dict[str, Any], Known | None, dict]:
        """The calibration and the known photos of another form of the model, and how far its verdicts agree.

        The agreement is {photos, same, agreement, agreement_ci95}.
        """
        entry, known = calibrate(logits, features, self.truth, self.groups, self.calibration["target_error"])
        own = new_verdicts(logits, features, entry, known, self.clusters, self.clusters)
        same = sum(ours == theirs for ours, theirs in zip(own, self.verdicts, strict=True))
        agreement = {"photos": len(own), "same": same, "agreement": same / len(own)}
        return entry, known, agreement | {"agreement_ci95": wilson_interval(same, len(own))}


def checked_photos(
    run: Path, labels: Sequence[str], files: Sequence[str], reference: dict[str, np.ndarray]
) -> CheckedPhotos:
    """The validation photos with these names; `reference` are the outputs of the run for them."""
    # The known photos are all validation photos, in this order.
    scored = read_predictions(run / "predictions.csv", "validation", labels)
    clusters = clusters_of(scored.groups)
    place_of = {file: place for place, file in enumerate(scored.files)}
    places = [place_of[file] for file in files]
    calibration, known = read_calibration(run)
    found = new_verdicts(reference["logits"], reference["features"], calibration, known, clusters[places], clusters)
    groups = [scored.groups[place] for place in places]
    return CheckedPhotos(scored.truth[places], groups, clusters[places], calibration, found)


def new_verdicts(
    logits: np.ndarray,
    features: np.ndarray,
    calibration: dict[str, Any],
    known: Known | None,
    clusters: np.ndarray,
    known_clusters: np.ndarray,
) -> list[str]:
    """The verdict on each photo, with the class of an answer, as if its own group were not among the known photos.

    `clusters` (photos,) and `known_clusters` (known photos,) number the groups.
    """
    found = [""] * len(logits)
    others = known and replace(known, features=known.features.copy())
    for cluster in np.unique(clusters):
        rows, same = np.flatnonzero(clusters == cluster), known_clusters == cluster
        if others is not None:
            # A photo would be nearest to itself. Nothing is similar to zeros.
            others.features[same] = 0
        for row, verdict in zip(rows, verdicts(logits[rows], features[rows], calibration, others), strict=True):
            found[row] = f"answer {logits[row].argmax()}" if verdict == "answer" else verdict
        if others is not None:
            others.features[same] = known.features[same]
    return found


def share_equal(logits: np.ndarray, truth: np.ndarray) -> float:
    """The share of photos whose most probable class is the given one."""
    return float((logits.argmax(axis=1) == truth).mean())


def deletion_test(path: Path, batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The drop in the predicted class's logit if a tenth of the cells is hidden: highest evidence, or random."""
    session, random = open_session(path), np.random.default_rng(0)
    hottest, by_chance = [], []
    for pixels, _ in batches:
        logits, _, evidence = session.run(OUTPUTS, {"pixel_values": pixels})
        answers = logits.argmax(axis=1)[:, None]
        heat = np.take_along_axis(evidence, answers[..., None, None], axis=1)[:, 0]
        orders = [heat, *(random.random(heat.shape) for _ in range(RANDOM_DRAWS))]
        after = [session.run(["logits"], {"pixel_values": hide_cells(pixels, order)})[0] for order in orders]
        falls = [np.take_along_axis(logits - hidden, answers, axis=1) for hidden in after]
        hottest.append(falls[0])
        by_chance += falls[1:]
    fall = {"hottest": float(np.concatenate(hottest).mean()), "random": float(np.concatenate(by_chance).mean())}
    return {"photos": sum(map(len, hottest)), "logit_fall": fall, "passed": fall["hottest"] > fall["random"]}


def hide_cells(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Normalized pixels (batch, 3, side, side), the mean color in the hottest tenth of the cells (batch, n, n)."""
    cells, side = heat[0].size, pixels.shape[-1]
    hidden = heat.reshape(len(heat), -1).argsort(axis=1).argsort(axis=1) >= cells - max(1, round(HIDDEN_SHARE * cells))
    place = np.arange(side) * heat.shape[-1] // side
    hidden = hidden.reshape(heat.shape)[:, place][:, :, place]
    return np.where(hidden[:, None], np.float32(0), pixels)


def reduced_decoding_test(path: Path, splits: Splits, processor: PhotoProcessor, photos: int) -> dict[str, Any]:
    """Whether JPEG photos of phone size get the same answer if they are decoded at reduced size.

    Smaller validation photos are enlarged and encoded for this test.
    """
    resize = pixel_recipe(processor)["resize"]
    least_side = max(SHOWN_SIDE, 2 * (resize if isinstance(resize, int) else max(resize)))
    session, (mean, std) = open_session(path), processor.normalization
    dataset = splits.dataset("validation", processor)

    def answers(place: int) -> list[int]:
        image = dataset.images[dataset.rows[place]]["image"]
        jpeg = _full_size_jpeg(decode_photo(image["bytes"] or image["path"]))
        decoded = (decode_photo(jpeg, least_side=side) for side in (None, least_side))
        pixels = torch.stack([processor.pixels(photo) for photo in decoded])
        return session.run(["logits"], {"pixel_values": ((pixels - mean) / std).numpy()})[0].argmax(axis=1).tolist()

    drawn = evenly_drawn(len(dataset), photos)
    with ThreadPoolExecutor(available_cores()) as pool:
        pairs = list(
            tqdm(pool.map(answers, drawn), "phone-size photos", len(drawn), delay=2, leave=False, disable=None)
        )
    agreement = sum(whole == reduced for whole, reduced in pairs) / len(pairs)
    passed = agreement >= REDUCED_AGREEMENT
    return {"least_side": least_side, "photos": len(pairs), "agreement": agreement, "passed": passed}


def _full_size_jpeg(photo: Image.Image) -> bytes:
    scale = max(1.0, (FULL_SIZE / (photo.width * photo.height)) ** 0.5)
    buffer = io.BytesIO()
    photo.resize((round(photo.width * scale), round(photo.height * scale))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
