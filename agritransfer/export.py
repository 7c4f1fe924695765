"""How does it run without torch?

A finished run becomes one ONNX file, and a smaller one of 8-bit integers where that answers alike. Beside the logits
both give the head's input and the class evidence; their metadata hold what a program needs to answer as the run does.
"""

import io
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession
from PIL import Image
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import BaseImageProcessor

from agritransfer.data import Splits, load_splits
from agritransfer.errors import DataError, UsageError
from agritransfer.evidence import EXACT, ExplainedClassifier
from agritransfer.models import load_classifier
from agritransfer.pixels import (
    collate,
    decode_photo,
    normalization,
    photo_pixels,
    pixel_recipe,
    processor_image_size,
)
from agritransfer.processes import available_cores
from agritransfer.quantization import quantization_methods, quantize, refusal
from agritransfer.results import read_results
from agritransfer.run_folder import LOGIT_TOLERANCE
from agritransfer.streaming import StreamedPhotos

SCHEMA = 2
OUTPUTS = ("logits", "features", "evidence")
# Old enough for the runtimes of browsers.
OPSET = 18
BATCH_SIZE = 32
# So many train photos show how large the numbers between the layers get.
RANGE_PHOTOS = 96
# The deletion test: so many photos, this share of their cells, and random cells drawn so often.
DELETION_PHOTOS = 128
HIDDEN_SHARE = 0.1
RANDOM_DRAWS = 3
# Reduced decoding: so many photos are made as large as a phone's, and must be answered alike so often. Beside twice the
# pixels that the model wants, a photo keeps enough to be shown.
FULL_SIZE_PHOTOS = 64
FULL_SIZE = 12_000_000
REDUCED_AGREEMENT = 0.995
SHOWN_SIDE = 640


def export_onnx(folder: Path, photos: int | None = None) -> dict[str, Any]:
    """Write `onnx/` of a finished run: the model, its 8-bit form where that answers alike, and `export.json`, returned.

    Both are checked on the run's validation photos, or on so many of them. Raises `UsageError` where there is no
    finished run, that or `DataError` where its photos are gone, `RuntimeError` when the file answers unlike torch.
    """
    started = time.perf_counter()
    if photos is not None and photos < 1:
        raise UsageError(f"--photos begins at 1; found {photos}")
    if not (folder / "results.json").is_file():
        raise UsageError(f"'{folder}' is no finished run; give the --output_dir of a training that has ended")
    results = read_results(folder)
    splits = _load_photos(folder, results["dataset"])
    model, processor = load_classifier(folder)
    explained = ExplainedClassifier(model, processor_image_size(processor)).eval()
    # In a folder of its own until all is checked, so that an onnx/ is a whole one.
    with tempfile.TemporaryDirectory(dir=folder, prefix="onnx-") as unchecked:
        new = Path(unchecked) / "onnx"
        new.mkdir()
        exported = _write_checked(new, explained, processor, splits, results, photos)
        exported["seconds"] = round(time.perf_counter() - started, 1)
        (new / "export.json").write_text(json.dumps(exported, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder / "onnx", ignore_errors=True)
        new.rename(folder / "onnx")
    return exported


def _write_checked(
    folder: Path,
    explained: ExplainedClassifier,
    processor: BaseImageProcessor,
    splits: Splits,
    results: dict[str, Any],
    photos: int | None,
) -> dict[str, Any]:
    """Write the model, and the first 8-bit form that passes; returns the facts of all."""
    full, small = folder / "model.onnx", folder / "model_quantized.onnx"
    write_model(explained, processor_image_size(processor), full)
    truth, reference, exported = _outputs(explained, full, _batches(splits, "validation", processor, photos))
    _check_same(reference, exported)
    test_photos = _batches(splits, "validation", processor, min(photos or DELETION_PHOTOS, DELETION_PHOTOS))
    evidence = {
        "method": explained.method,
        "exact": explained.method == EXACT,
        "deletion_test": deletion_test(full, test_photos),
    }
    reduced = reduced_decoding_test(full, splits, processor, min(photos or FULL_SIZE_PHOTOS, FULL_SIZE_PHOTOS))
    tried = []
    for method in quantization_methods(explained):
        ranges = (pixels for pixels, _ in _batches(splits, "train", processor, RANGE_PHOTOS))
        quantize(method, full, small, explained.head, ranges)
        _add_metadata(small, results, processor, evidence, reduced)
        logits = _one_by_one(small, _batches(splits, "validation", processor, photos))
        tried.append({"method": method, **_facts(small, logits, reference["logits"], truth)})
        lost = _accuracy(reference["logits"], truth) - tried[-1]["accuracy"]
        tried[-1]["reason"] = refusal(tried[-1]["agreement"], lost)
        if tried[-1]["reason"] is None:
            break
        small.unlink()
    _add_metadata(full, results, processor, evidence, reduced)
    return {
        "schema": SCHEMA,
        "photos": len(truth),
        "torch": {"accuracy": _accuracy(reference["logits"], truth)},
        "model": _facts(full, exported["logits"], reference["logits"], truth),
        "model_quantized": {"written": small.exists(), "tried": tried},
        "evidence": evidence,
        "reduced_decoding": reduced,
    }


def _load_photos(folder: Path, dataset: dict[str, Any]) -> Splits:
    name = dataset["name"]
    try:
        # What the run dropped is not in its splits.csv; what it kept stays.
        splits = load_splits(
            name,
            revision=dataset["revision"],
            splits_file=str(folder / "splits.csv"),
            on_leakage="keep",
            # Runs from before there was streaming do not tell.
            streaming=dataset.get("streamed", False),
        )
    except (UsageError, DataError) as error:
        where = f"the export of {folder} is checked on the photos of its training"
        raise type(error)(f"{where}: {error}; start it where '{name}' still lies as it was then") from error
    if splits.fingerprint != dataset["fingerprint"]:
        raise DataError(f"'{name}' holds other photos than {folder} was trained on; bring those back")
    return splits


def _batches(
    splits: Splits, split: str, processor: BaseImageProcessor, most: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Normalised pixels and label indices of so many photos, evenly drawn from the split, batch by batch."""
    dataset = splits.dataset(split, processor)
    if isinstance(dataset, StreamedPhotos):
        dataset = dataset.first(most)
    loader = DataLoader(Subset(dataset, _evenly_drawn(len(dataset), most)), batch_size=BATCH_SIZE, collate_fn=collate)
    mean, std = normalization(processor)
    for batch in tqdm(loader, desc=f"{split} photos", delay=2, leave=False, disable=None):
        yield ((batch["pixel_values"] - mean) / std).numpy(), batch["labels"].numpy()


def _evenly_drawn(count: int, most: int | None) -> list[int]:
    return np.linspace(0, count - 1, min(count, most or count)).round().astype(int).tolist()


def write_model(explained: ExplainedClassifier, image_size: int, path: Path) -> None:
    """Write one ONNX file: `pixel_values` (batch, 3, side, side) to `logits`, `features` and `evidence`."""
    # torch takes a batch of one for a size that never changes.
    blank = torch.zeros(2, 3, image_size, image_size)
    program = torch.onnx.export(
        explained,
        (blank,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixel_values"],
        output_names=OUTPUTS,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        # torch notes the lines of its own code, with paths of this machine.
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


def _outputs(
    explained: ExplainedClassifier, path: Path, batches: Iterator[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The truth (photos,), and the outputs by name of torch and of the file."""
    session, truth, of_torch, of_file = _session(path), [], [], []
    for pixels, labels in batches:
        with torch.inference_mode():
            of_torch.append([output.numpy() for output in explained(torch.from_numpy(pixels))])
        of_file.append(session.run(OUTPUTS, {"pixel_values": pixels}))
        truth.append(labels)
    by_name = [
        {name: np.concatenate(parts) for name, parts in zip(OUTPUTS, zip(*own, strict=True), strict=True)}
        for own in (of_torch, of_file)
    ]
    return np.concatenate(truth), *by_name


def _one_by_one(path: Path, batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Logits (photos, classes) as a server gives them: a layer that measures its input would measure a whole batch."""
    session = _session(path)
    return np.concatenate(
        [session.run(["logits"], {"pixel_values": photo[None]})[0] for pixels, _ in batches for photo in pixels]
    )


def _session(path: Path) -> InferenceSession:
    return InferenceSession(path, providers=["CPUExecutionProvider"])


def _check_same(reference: dict[str, np.ndarray], exported: dict[str, np.ndarray]) -> None:
    for name in OUTPUTS:
        difference = float(np.abs(reference[name] - exported[name]).max())
        if not difference <= LOGIT_TOLERANCE * max(1.0, float(np.abs(reference[name]).max())):
            raise RuntimeError(
                f"model.onnx differs from the trained one by {difference:.3g} in its {name}; do not use it"
            )


def _facts(path: Path, logits: np.ndarray, reference: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    return {
        "bytes": path.stat().st_size,
        "accuracy": _accuracy(logits, truth),
        "agreement": _accuracy(logits, reference.argmax(axis=1)),
        "largest_logit_difference": float(np.abs(logits - reference).max()),
    }


def _accuracy(logits: np.ndarray, truth: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == truth).mean())


def deletion_test(path: Path, batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """How far the answer's logit falls when a tenth of the cells is hidden: those of most evidence, or random ones."""
    session, random = _session(path), np.random.default_rng(0)
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
    """Normalised pixels (batch, 3, side, side), the mean colour on a tenth of cells: most heat (batch, n, n)."""
    cells, side = heat[0].size, pixels.shape[-1]
    hidden = heat.reshape(len(heat), -1).argsort(axis=1).argsort(axis=1) >= cells - max(1, round(HIDDEN_SHARE * cells))
    place = np.arange(side) * heat.shape[-1] // side
    hidden = hidden.reshape(heat.shape)[:, place][:, :, place]
    return np.where(hidden[:, None], np.float32(0), pixels)


def reduced_decoding_test(path: Path, splits: Splits, processor: BaseImageProcessor, photos: int) -> dict[str, Any]:
    """Whether a JPEG of a phone's size is answered alike when it is decoded at a part of its size, as a server may.

    Validation photos that are smaller are enlarged and encoded for it.
    """
    resize = pixel_recipe(processor)["resize"]
    least_side = max(SHOWN_SIDE, 2 * (resize if isinstance(resize, int) else max(resize)))
    session, (mean, std) = _session(path), normalization(processor)
    dataset = splits.dataset("validation", processor)

    def answers(place: int) -> list[int]:
        image = dataset.images[dataset.rows[place]]["image"]
        jpeg = _full_size_jpeg(decode_photo(image["bytes"] or image["path"]))
        decoded = (decode_photo(jpeg, least_side=side) for side in (None, least_side))
        pixels = torch.stack([photo_pixels(processor, photo) for photo in decoded])
        return session.run(["logits"], {"pixel_values": ((pixels - mean) / std).numpy()})[0].argmax(axis=1).tolist()

    drawn = _evenly_drawn(len(dataset), photos)
    with ThreadPoolExecutor(available_cores()) as pool:
        pairs = list(tqdm(pool.map(answers, drawn), "full-size photos", len(drawn), delay=2, leave=False, disable=None))
    agreement = sum(whole == reduced for whole, reduced in pairs) / len(pairs)
    passed = agreement >= REDUCED_AGREEMENT
    return {"least_side": least_side, "photos": len(pairs), "agreement": agreement, "passed": passed}


def _full_size_jpeg(photo: Image.Image) -> bytes:
    scale = max(1.0, (FULL_SIZE / (photo.width * photo.height)) ** 0.5)
    buffer = io.BytesIO()
    photo.resize((round(photo.width * scale), round(photo.height * scale))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _add_metadata(
    path: Path,
    results: dict[str, Any],
    processor: BaseImageProcessor,
    evidence: dict[str, Any],
    reduced: dict[str, Any],
) -> None:
    model = onnx.load(path)
    facts = {
        "schema": SCHEMA,
        "labels": results["dataset"]["labels"],
        "preprocessing": pixel_recipe(processor),
        "image_size": processor_image_size(processor),
        "reduced_decoding": reduced,
        "calibration": results["calibration"],
        "evidence": evidence,
    }
    onnx.helper.set_model_props(model, {name: json.dumps(fact) for name, fact in facts.items()})
    onnx.save(model, path)
