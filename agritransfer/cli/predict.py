"""Answer for photos with a trained model, and say "not sure" where the answer cannot be trusted.

    agritransfer predict runs/NAME leaf.jpg photos/ 'more/*.png' --output predictions.csv
    agritransfer predict user/model photos/ --top_k 3

Every photo gets a verdict (answer, not sure, unknown, broken), its most probable labels with their calibrated
probabilities, and the reason if it is broken. "not sure": the probability is below the model's threshold. "unknown":
the photo is unlike those that the model was validated on. Temperature and thresholds were fitted on the validation
photos of the run; a model without results.json has none, so all its answers are given. An exported run is answered by
ONNX Runtime, which starts faster than torch, from the same pixels.

The answers are printed; --output writes them to a table. Folders are read as the audit reads them: hidden files,
system folders and files that are no photos are passed over and counted, and images in other formats are broken. A
photo that is given twice is answered once.
"""

import argparse
import csv
import os
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from agritransfer.evaluation.inference import TrainedClassifier
    from agritransfer.evaluation.onnx_inference import ExportedClassifier

BATCH = 32
# Answers that are printed if there is a table; it has all.
SHOWN = 20
# The files to download of a published run; never a pickle.
WANTED = ("*.json", "model.safetensors", "known_features.safetensors")
VERDICTS = ("answer", "not sure", "unknown", "broken")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("model", help="a run folder, or the Hub id or folder of any image classifier")
    parser.add_argument(
        "photos", nargs="+", help="files, folders (with all photos in them) or patterns such as 'photos/**/*.jpg'"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all answers to this CSV table")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing table")
    parser.add_argument("--top_k", type=int, default=3, help="number of labels per photo")
    parser.add_argument("--model_revision", help="branch, tag or commit of a Hub model")


def run(arguments: argparse.Namespace) -> int:
    """Answer for every photo, print the answers or write the table, print a summary; returns 0.

    Raises `DataError` if none of the files can be decoded.
    """
    from agritransfer.data.readers.given import find_given
    from agritransfer.errors import DataError, UsageError
    from agritransfer.evaluation.results import read_calibration
    from agritransfer.evaluation.selective import UNCALIBRATED, never_sure
    from agritransfer.wording import counted, escaped

    if arguments.top_k < 1:
        raise UsageError(f"--top_k must be at least 1; found {arguments.top_k}")
    given = find_given(arguments.photos)
    _check_output(arguments, list(given.reasons))
    folder = _model_folder(arguments.model, arguments.model_revision)
    classifier = _load_classifier(folder)
    calibration, known = read_calibration(folder) or (None, None)
    if calibration is not None and (reason := never_sure(calibration)):
        print(f'note: every answer of this model is "not sure": {reason}')
    rows = _answer(classifier, given.reasons, calibration or UNCALIBRATED, known)
    shown = rows
    if arguments.output is not None:
        _write_table(arguments.output, rows, classifier.labels, min(arguments.top_k, len(classifier.labels)))
        shown = rows[:SHOWN]
    for row in shown:
        print(_sentence(row, classifier.labels))
    if len(rows) > len(shown):
        print(f"... and {len(rows) - len(shown):,} more")
    print(_summary(rows, calibration), *given.passed_over_lines(), sep="\n")
    where = "above"
    if arguments.output is not None:
        where = f"in {escaped(str(arguments.output))}"
        print(f"written to {escaped(str(arguments.output))}")
    if all(row["verdict"] == "broken" for row in rows):
        raise DataError(f"{counted(len(rows), 'file')}, none of which can be decoded; the reasons are {where}")
    return 0


def _check_output(arguments: argparse.Namespace, photos: list[Path]) -> None:
    """Before the work: nothing of the user's is overwritten, least of all a photo."""
    from agritransfer.cli.outputs import check_output
    from agritransfer.errors import UsageError

    if arguments.output is None:
        if arguments.overwrite:
            raise UsageError("--overwrite is for --output, which is missing; add --output FILE")
        return
    check_output(arguments.output, arguments.overwrite)
    if os.path.realpath(arguments.output) in map(os.path.realpath, photos):
        raise UsageError(f"--output '{arguments.output}' is one of the photos; choose another name")


def _model_folder(name: str, revision: str | None) -> Path:
    from agritransfer.data.readers.source import HUB_ID
    from agritransfer.errors import UsageError

    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        raise UsageError(f"'{name}' is neither a run folder nor a Hub id such as user/model; correct the name")
    import huggingface_hub

    from agritransfer.data.readers.hub import hub_errors

    with hub_errors(name, revision, "model"):
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))


def _load_classifier(folder: Path) -> "ExportedClassifier | TrainedClassifier":
    """The exported file of a run if it has one that belongs to its weights, and otherwise the weights themselves."""
    from agritransfer.errors import UsageError

    # Without the extra `export` there is no ONNX Runtime to ask.
    if (folder / "onnx/model.onnx").is_file() and find_spec("onnxruntime"):
        from agritransfer.evaluation.onnx_inference import ExportedClassifier

        try:
            return ExportedClassifier(folder)
        except UsageError as error:
            print(f"note: {error}; the weights are used instead")
    # Imported here, since torch and transformers take seconds to import.
    from agritransfer.evaluation.inference import TrainedClassifier
    from agritransfer.evaluation.results import read_results
    from agritransfer.models.loading import check_labels

    classifier = TrainedClassifier(folder)
    # A model that was not trained here has no results.
    if (folder / "results.json").is_file():
        check_labels(classifier.model.config, read_results(folder)["dataset"]["labels"], folder)
    return classifier


def _answer(
    classifier: "ExportedClassifier | TrainedClassifier", reasons: dict[Path, str], calibration: dict, known
) -> list[dict]:
    """A row per photo, with its verdict and the probabilities of the labels or the reason why it is broken.

    `reasons` has the reason of each photo that cannot be decoded for certain, and "" for the others.
    """
    from agritransfer.data.readers.walk import unread_format
    from agritransfer.evaluation.calibration import calibrated_probabilities
    from agritransfer.evaluation.selective import verdicts

    rows = [{"file": file, "verdict": "broken", "reason": reason} for file, reason in reasons.items()]
    decoded: list[dict] = []
    # Each batch appends its rows to `decoded` just before its outputs are computed, in the same order.
    for logits, features in classifier.outputs(
        _batches([row for row in rows if not row["reason"]], classifier, decoded)
    ):
        probabilities = calibrated_probabilities(logits, calibration["temperature"])
        for row, verdict, of_labels in zip(
            decoded[-len(logits) :], verdicts(logits, features, calibration, known), probabilities, strict=True
        ):
            row |= {"verdict": verdict, "probabilities": of_labels}
    for row in rows:
        # A file given by name is decoded whatever its suffix; if it fails, the suffix says most.
        if row["verdict"] == "broken":
            row["reason"] = unread_format(row["file"]) or row["reason"]
    return rows


def _batches(
    rows: list[dict], classifier: "ExportedClassifier | TrainedClassifier", decoded: list[dict]
) -> Iterator["np.ndarray"]:
    """The pixels of the files that can be decoded, batch by batch; the rows of the other files get the reason."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from tqdm import tqdm

    from agritransfer.images.broken_photos import BrokenPhoto, reasons_in_one_line
    from agritransfer.images.decoding import decode_photo
    from agritransfer.runtime.process import available_cores

    def read(row: dict) -> np.ndarray | str:
        try:
            with reasons_in_one_line():
                return classifier.pixels(decode_photo(row["file"]))
        except BrokenPhoto as error:
            return str(error)

    with (
        ThreadPoolExecutor(available_cores()) as pool,
        tqdm(total=len(rows), desc="answering", unit="photo", delay=2, leave=False, disable=None) as bar,
    ):
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            pixels = []
            for row, pixels_or_reason in zip(part, pool.map(read, part), strict=True):
                if isinstance(pixels_or_reason, str):
                    row["reason"] = pixels_or_reason
                else:
                    pixels.append(pixels_or_reason)
                    decoded.append(row)
            if pixels:
                yield np.stack(pixels)
            bar.update(len(part))


def _ranked(row: dict, labels: list[str]) -> list[tuple[str, float]]:
    probabilities = row.get("probabilities", [])
    return sorted(zip(labels, map(float, probabilities), strict=False), key=lambda answer: -answer[1])


def _write_table(path: Path, rows: list[dict], labels: list[str], top_k: int) -> None:
    """A row per photo; texts that a spreadsheet would run are guarded, and file names escaped."""
    from agritransfer.data.readers.given import written
    from agritransfer.spreadsheet import guarded

    numbers = ["", *(f"_{place}" for place in range(2, top_k + 1))]
    answers = [name for number in numbers for name in (f"answer{number}", f"probability{number}")]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "verdict", *answers, "reason"])
        for row in rows:
            cells = [cell for label, share in _ranked(row, labels)[:top_k] for cell in (guarded(label), f"{share:.4f}")]
            cells += [""] * (len(answers) - len(cells))
            writer.writerow([guarded(written(row["file"])), row["verdict"], *cells, guarded(row["reason"])])


def _sentence(row: dict, labels: list[str]) -> str:
    from agritransfer.data.readers.given import written

    file = written(row["file"])
    if row["verdict"] == "broken":
        return f"{file}: broken, {row['reason']}"
    (first, probability), *others = _ranked(row, labels)
    if row["verdict"] == "answer":
        return f"{file}: {first} ({probability:.0%})"
    if row["verdict"] == "unknown":
        return f"{file}: unknown, unlike the photos that the model was validated on (nearest: {first})"
    second = f" or {others[0][0]} ({others[0][1]:.0%})" if others else ""
    return f"{file}: not sure, perhaps {first} ({probability:.0%}){second}"


def _summary(rows: list[dict], calibration: dict | None) -> str:
    from agritransfer.evaluation.selective import promise
    from agritransfer.wording import counted

    counts = Counter(row["verdict"] for row in rows)
    answers = counted(counts["answer"], "answer")
    listed = [
        answers if verdict == "answer" else f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]
    ]
    line = f"{counted(len(rows), 'file')}: {', '.join(listed)}"
    if calibration is None:
        return f"{line}; the model has no results.json, so its probabilities are not calibrated"
    if calibration["threshold"] is None:
        return f"{line}; this model is never sure"
    return (
        f"{line}; probabilities are calibrated, and answers need at least {calibration['threshold']:.2f}: "
        f"{promise(calibration)}"
    )
