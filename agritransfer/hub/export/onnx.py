"""How does a model run without torch?

A finished run is exported to an ONNX file and, if the verdicts agree, to a smaller one with 8-bit integers. Besides the
logits, both output the input of the head and the class evidence; their metadata hold preprocessing and calibration. The
8-bit file has a calibration and known photos of its own.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from agritransfer.data.dataset import Splits, load_splits
from agritransfer.data.streaming import StreamedPhotos
from agritransfer.errors import DataError, UsageError
from agritransfer.evaluation.novelty import FEWEST_KNOWN
from agritransfer.evaluation.onnx_inference import SCHEMA
from agritransfer.evaluation.results import read_results
from agritransfer.hub.export.parity import (
    OUTPUTS,
    CheckedPhotos,
    check_same,
    checked_photos,
    deletion_test,
    evenly_drawn,
    facts_of,
    outputs_of_both,
    outputs_one_by_one,
    reduced_decoding_test,
    share_equal,
)
from agritransfer.hub.export.quantization import quantization_methods, quantize, refusal
from agritransfer.images.photo_dataset import collate
from agritransfer.images.preprocessing import PhotoProcessor, pixel_recipe
from agritransfer.models.attribution import EXACT, ExplainedClassifier
from agritransfer.models.loading import check_labels, load_classifier

QUANTIZED_FILE = "model_quantized.onnx"
# The known photos as the 8-bit file represents them; those of model.onnx are the run's.
QUANTIZED_KNOWN_FILE = "known_features_quantized.safetensors"
# Old enough for browser runtimes.
OPSET = 18
BATCH_SIZE = 32
# Training photos that calibrate the ranges of the activations.
RANGE_PHOTOS = 96
# Photos of the deletion test.
DELETION_PHOTOS = 128
# Photos of the test of reduced decoding, each enlarged to the size of a phone photo.
FULL_SIZE_PHOTOS = 64


def export_onnx(folder: Path, photos: int | None = None) -> dict[str, Any]:
    """Write `onnx/` of a finished run: the model, its 8-bit form if that agrees, and `export.json`, which is returned.

    Both are checked on the validation photos of the run, at most `photos` of them. Raises `UsageError` without a
    finished run, `UsageError` or `DataError` if its photos are gone, `RuntimeError` if the file differs from torch.
    """
    started = time.perf_counter()
    if photos is not None and photos < 1:
        raise UsageError(f"--photos must be at least 1; found {photos}")
    if not (folder / "results.json").is_file():
        raise UsageError(f"'{folder}' is not a finished run; give the --output_dir of a finished training")
    dataset = read_results(folder)["dataset"]
    splits = _load_photos(folder, dataset)
    model, processor = load_classifier(folder)
    check_labels(model.config, dataset["labels"], folder)
    explained = ExplainedClassifier(model, processor.image_size).eval()
    # A temporary folder until everything is checked, so that onnx/ is always complete.
    with tempfile.TemporaryDirectory(dir=folder, prefix="onnx-") as unchecked:
        new = Path(unchecked) / "onnx"
        new.mkdir()
        exported = _write_checked(new, explained, processor, splits, folder, photos)
        exported["seconds"] = round(time.perf_counter() - started, 1)
        (new / "export.json").write_text(json.dumps(exported, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder / "onnx", ignore_errors=True)
        new.rename(folder / "onnx")
    return exported


def _write_checked(
    folder: Path,
    explained: ExplainedClassifier,
    processor: PhotoProcessor,
    splits: Splits,
    run: Path,
    photos: int | None,
) -> dict[str, Any]:
    """Write the model and the first 8-bit form that passes; returns the measurements."""
    results, full = read_results(run), folder / "model.onnx"
    write_model(explained, processor.image_size, full)
    truth, reference, exported = outputs_of_both(explained, full, _batches(splits, "validation", processor, photos))
    check_same(reference, exported)
    test_photos = _batches(splits, "validation", processor, min(photos or DELETION_PHOTOS, DELETION_PHOTOS))
    evidence = {
        "method": explained.method,
        "exact": explained.method == EXACT,
        "deletion_test": deletion_test(full, test_photos),
    }
    reduced = reduced_decoding_test(full, splits, processor, min(photos or FULL_SIZE_PHOTOS, FULL_SIZE_PHOTOS))
    facts = {
        "schema": SCHEMA,
        "labels": results["dataset"]["labels"],
        "preprocessing": pixel_recipe(processor),
        "image_size": processor.image_size,
        "reduced_decoding": reduced,
        "calibration": results["calibration"],
        "evidence": evidence,
    }
    validation = splits.of("validation")
    files = [validation[place].file for place in evenly_drawn(len(validation), photos)]
    checked = checked_photos(run, results["dataset"]["labels"], files, reference)
    tried = []
    for method in quantization_methods(explained):
        ranges = (pixels for pixels, _ in _batches(splits, "train", processor, RANGE_PHOTOS))
        quantize(method, full, folder / QUANTIZED_FILE, explained.head, ranges)
        batches = _batches(splits, "validation", processor, photos)
        tried.append({"method": method, **_check_quantized(folder, batches, reference["logits"], checked, facts)})
        if tried[-1]["reason"] is None:
            break
        (folder / QUANTIZED_FILE).unlink()
    _add_metadata(full, facts)
    return {
        "schema": SCHEMA,
        "photos": len(truth),
        "torch": {"accuracy": share_equal(reference["logits"], truth)},
        "model": facts_of(full, exported["logits"], reference["logits"], truth),
        "model_quantized": {"written": (folder / QUANTIZED_FILE).exists(), "tried": tried},
        "evidence": evidence,
        "reduced_decoding": reduced,
    }


def _check_quantized(
    folder: Path,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    reference: np.ndarray,
    checked: CheckedPhotos,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Calibrate the 8-bit file, write its metadata and its known photos, and return its entry in `export.json`.

    Rounding moves logits and features, so temperature, threshold and known photos of the run are not those of the file.
    """
    path = folder / QUANTIZED_FILE
    logits, features = outputs_one_by_one(path, batches)
    calibration, known, agreement = checked.calibrate(logits, features)
    _add_metadata(path, facts | {"calibration": calibration})
    found = facts_of(path, logits, reference, checked.truth) | {"verdicts": agreement, "calibration": calibration}
    lost = share_equal(reference, checked.truth) - found["accuracy"]
    reason = refusal(found["agreement"], agreement["agreement"], lost)
    if checked.calibration["unknown"] and known is None:
        reason = (
            f"{agreement['photos']} photos are too few to tell unknown photos; at least {FEWEST_KNOWN} are required"
        )
    if reason is None and known is not None:
        known.save(folder / QUANTIZED_KNOWN_FILE)
    return found | {"reason": reason}


def _load_photos(folder: Path, dataset: dict[str, Any]) -> Splits:
    name = dataset["name"]
    try:
        # Dropped photos are not in splits.csv, and kept ones stay.
        splits = load_splits(
            name,
            revision=dataset["revision"],
            config_name=dataset.get("config"),
            splits_file=str(folder / "splits.csv"),
            on_leakage="keep",
            # Runs from before --streaming and --dataset_config_name lack these entries.
            streaming=dataset.get("streamed", False),
        )
    except (UsageError, DataError) as error:
        where = f"the export of {folder} is checked on its validation photos"
        raise type(error)(f"{where}: {error}; export where '{name}' is still available and unchanged") from error
    if splits.fingerprint != dataset["fingerprint"]:
        raise DataError(f"'{name}' no longer holds the photos that {folder} was trained on; restore them")
    return splits


def _batches(
    splits: Splits, split: str, processor: PhotoProcessor, most: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of normalized pixels and label indices of at most `most` photos, evenly drawn from the split."""
    dataset = splits.dataset(split, processor)
    if isinstance(dataset, StreamedPhotos):
        dataset = dataset.first(most)
    loader = DataLoader(Subset(dataset, evenly_drawn(len(dataset), most)), batch_size=BATCH_SIZE, collate_fn=collate)
    mean, std = processor.normalization
    for batch in tqdm(loader, desc=f"{split} photos", delay=2, leave=False, disable=None):
        yield ((batch["pixel_values"] - mean) / std).numpy(), batch["labels"].numpy()


def write_model(explained: ExplainedClassifier, image_size: int, path: Path) -> None:
    """Write one ONNX file: `pixel_values` (batch, 3, side, side) to `logits`, `features` and `evidence`."""
    # torch would treat a batch size of one as constant.
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
        # torch records the lines of its own code, with local paths.
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


def _add_metadata(path: Path, facts: dict[str, Any]) -> None:
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {name: json.dumps(fact) for name, fact in facts.items()})
    onnx.save(model, path)
