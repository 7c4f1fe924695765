"""How does it run without torch?

A finished run becomes one ONNX file, and a smaller one of 8-bit integers where that answers alike. Beside the logits
both give the head's input and the class evidence; their metadata hold what a program needs to answer as the run does.
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import BaseImageProcessor

from agritransfer.data import Splits, load_splits
from agritransfer.errors import DataError, UsageError
from agritransfer.evidence import EXACT, ExplainedClassifier
from agritransfer.models import load_classifier
from agritransfer.pixels import collate, normalization, processor_image_size
from agritransfer.results import read_results
from agritransfer.run_folder import LOGIT_TOLERANCE

SCHEMA = 1
OUTPUTS = ("logits", "features", "evidence")
# Old enough for the runtimes of browsers.
OPSET = 18
BATCH_SIZE = 32
# What the 8-bit file must keep of torch's answers and accuracy on the validation photos, or it is not written.
LEAST_AGREEMENT = 0.99
MOST_ACCURACY_LOST = 0.003
# So many train photos show how large the numbers between the layers get.
RANGE_PHOTOS = 96
# The deletion test: so many photos, this share of their cells, and random cells drawn so often.
DELETION_PHOTOS = 128
HIDDEN_SHARE = 0.1
RANDOM_DRAWS = 3


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
    """Write the model, and its 8-bit form if it passes; returns the facts of both."""
    full, small = folder / "model.onnx", folder / "model_quantized.onnx"
    write_model(explained, processor_image_size(processor), full)
    method = _quantize(explained, full, small, _batches(splits, "train", processor, RANGE_PHOTOS))
    truth, (reference, exact, rounded) = _outputs(
        explained, [full, small], _batches(splits, "validation", processor, photos)
    )
    _check_same(reference, exact)
    test_photos = _batches(splits, "validation", processor, min(photos or DELETION_PHOTOS, DELETION_PHOTOS))
    evidence = {
        "method": explained.method,
        "exact": explained.method == EXACT,
        "deletion_test": deletion_test(full, test_photos),
    }
    for path in (full, small):
        _add_metadata(path, results, processor, evidence)
    accuracy = float((reference["logits"].argmax(axis=1) == truth).mean())
    facts, of_small = (_facts(path, own, reference, truth) for path, own in ((full, exact), (small, rounded)))
    if reason := refusal(of_small["agreement"], accuracy - of_small["accuracy"]):
        small.unlink()
    return {
        "schema": SCHEMA,
        "photos": len(truth),
        "torch": {"accuracy": accuracy},
        "model": facts,
        "model_quantized": {"method": method, "written": reason is None, "reason": reason, **of_small},
        "evidence": evidence,
    }


def _load_photos(folder: Path, dataset: dict[str, Any]) -> Splits:
    name = dataset["name"]
    try:
        # What the run dropped is not in its splits.csv; what it kept stays.
        splits = load_splits(
            name, revision=dataset["revision"], splits_file=str(folder / "splits.csv"), on_leakage="keep"
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
    drawn = np.linspace(0, len(dataset) - 1, min(len(dataset), most or len(dataset))).round().astype(int)
    loader = DataLoader(Subset(dataset, drawn.tolist()), batch_size=BATCH_SIZE, collate_fn=collate)
    mean, std = normalization(processor)
    for batch in tqdm(loader, desc=f"{split} photos", delay=2, leave=False, disable=None):
        yield ((batch["pixel_values"] - mean) / std).numpy(), batch["labels"].numpy()


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


def _quantize(
    explained: ExplainedClassifier, full: Path, small: Path, batches: Iterator[tuple[np.ndarray, np.ndarray]]
) -> str:
    """Write the 8-bit form; returns "dynamic" or "static".

    Linear layers measure their input as they run; convolutions need ranges from photos. The head stays as it is: it is
    small, and evidence is read by it.
    """
    head = sorted(explained.head.weight.shape)
    prepared = full.with_name("prepared.onnx")
    logging.disable(logging.WARNING)
    try:
        quant_pre_process(full, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        heads = {weight.name for weight in graph.initializer if sorted(weight.dims) == head}
        kept = [node.name for node in graph.node if heads & set(node.input)]
        options = {"per_channel": True, "nodes_to_exclude": kept}
        # Signed weights of 8 bits overflow on processors without VNNI: unsigned ones do not, nor do those of 7 bits,
        # with which convolutions are ten times as fast.
        if _mostly_convolutions(explained):
            types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "reduce_range": True}
            quantize_static(prepared, small, _Ranges(batches), **types, **options)
            return "static"
        linear = ["MatMul", "Gemm"]
        quantize_dynamic(prepared, small, linear, weight_type=QuantType.QUInt8, **options)
        return "dynamic"
    finally:
        logging.disable(logging.NOTSET)
        prepared.unlink(missing_ok=True)


def _mostly_convolutions(model: nn.Module) -> bool:
    def weights(kind: type[nn.Module]) -> int:
        return sum(module.weight.numel() for module in model.modules() if isinstance(module, kind))

    return weights(nn.Conv2d) > weights(nn.Linear)


class _Ranges(CalibrationDataReader):
    """Batches as ONNX Runtime asks for them; it takes nothing but its own class."""

    def __init__(self, batches: Iterator[tuple[np.ndarray, np.ndarray]]):
        self.batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        pixels, _ = next(self.batches, (None, None))
        return None if pixels is None else {"pixel_values": pixels}


def _outputs(
    explained: ExplainedClassifier, paths: list[Path], batches: Iterator[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """The truth (photos,), and the outputs by name of torch and of each file."""
    sessions = [InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths]
    truth, collected = [], []
    for pixels, labels in batches:
        with torch.inference_mode():
            of_torch = [output.numpy() for output in explained(torch.from_numpy(pixels))]
        collected.append([of_torch, *(session.run(OUTPUTS, {"pixel_values": pixels}) for session in sessions)])
        truth.append(labels)
    joined = [[np.concatenate(parts) for parts in zip(*own, strict=True)] for own in zip(*collected, strict=True)]
    return np.concatenate(truth), [dict(zip(OUTPUTS, own, strict=True)) for own in joined]


def _check_same(reference: dict[str, np.ndarray], exported: dict[str, np.ndarray]) -> None:
    for name in OUTPUTS:
        difference = float(np.abs(reference[name] - exported[name]).max())
        if not difference <= LOGIT_TOLERANCE * max(1.0, float(np.abs(reference[name]).max())):
            raise RuntimeError(
                f"model.onnx differs from the trained one by {difference:.3g} in its {name}; do not use it"
            )


def _facts(
    path: Path, exported: dict[str, np.ndarray], reference: dict[str, np.ndarray], truth: np.ndarray
) -> dict[str, Any]:
    answers = exported["logits"].argmax(axis=1)
    return {
        "bytes": path.stat().st_size,
        "accuracy": float((answers == truth).mean()),
        "agreement": float((answers == reference["logits"].argmax(axis=1)).mean()),
        "largest_logit_difference": float(np.abs(exported["logits"] - reference["logits"]).max()),
    }


def refusal(agreement: float, accuracy_lost: float) -> str | None:
    """Why an 8-bit file is not written: too few of torch's answers kept, or too much accuracy lost; None if it is."""
    if agreement < LEAST_AGREEMENT:
        return f"it gives the answer of torch for {agreement:.1%} of the photos; at least {LEAST_AGREEMENT:.0%} must be"
    # Two shares of whole photos differ by rounding where they are equal.
    if accuracy_lost > MOST_ACCURACY_LOST + 1e-9:
        lost, most = 100 * accuracy_lost, 100 * MOST_ACCURACY_LOST
        return f"it loses {lost:.1f} points of accuracy; at most {most:.1f} may be lost"
    return None


def deletion_test(path: Path, batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """How far the answer's logit falls when a tenth of the cells is hidden: those of most evidence, or random ones."""
    session, random = InferenceSession(path, providers=["CPUExecutionProvider"]), np.random.default_rng(0)
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


def _add_metadata(path: Path, results: dict[str, Any], processor: BaseImageProcessor, evidence: dict[str, Any]) -> None:
    model = onnx.load(path)
    facts = {
        "schema": SCHEMA,
        "labels": results["dataset"]["labels"],
        "preprocessing": processor.to_dict(),
        "image_size": processor_image_size(processor),
        "calibration": results["calibration"],
        "evidence": evidence,
    }
    onnx.helper.set_model_props(model, {name: json.dumps(fact) for name, fact in facts.items()})
    onnx.save(model, path)
