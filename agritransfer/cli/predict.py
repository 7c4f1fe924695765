"""Answer for photos with a trained model, and say "not sure" where its answer is not to be trusted.

    python -m agritransfer predict runs/NAME leaf.jpg photos/ 'more/*.png' --output predictions.csv
    python -m agritransfer predict user/model photos/ --top_k 3

The table has a row for every file: its verdict (answer, not sure, unknown, broken), the answers with their calibrated
probabilities, and why a broken file could not be read. "not sure": the probability is below the model's threshold;
"unknown": the photo is unlike those that the model was tested on. The rules were fitted on the run's validation photos;
a model without results.json has none, and then every answer is given as it is.
"""

import argparse
import csv
import glob
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

BATCH = 32
# So many answers are printed; the table has all.
SHOWN = 20
# What a published run is read from; never a pickle.
WANTED = ("*.json", "model.safetensors", "known_features.safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("model", help="a run folder, or any image classifier: Hub id or folder")
    parser.add_argument("photos", nargs="+", help="files, folders (all photos below them) or patterns such as '*.jpg'")
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), help="where to write the table")
    parser.add_argument("--top_k", type=int, default=3, help="how many answers to give for each photo")
    parser.add_argument("--model_revision", help="branch, tag or commit of a Hub model")


def run(arguments: argparse.Namespace) -> int:
    """Answer for every photo, write the table, print what it says; returns 0, or 3 when no photo can be read."""
    from agritransfer.errors import DataError, UsageError

    if arguments.top_k < 1:
        raise UsageError(f"--top_k begins at 1; found {arguments.top_k}")
    if not arguments.output.parent.is_dir():
        raise UsageError(f"there is no folder '{arguments.output.parent}' for --output; make it first")
    files = _photo_files(arguments.photos)
    folder = _model_folder(arguments.model, arguments.model_revision)
    rows, labels, calibration = _answer(folder, files)
    top_k = min(arguments.top_k, len(labels))
    _write_table(arguments.output, rows, labels, top_k)
    for row in rows[:SHOWN]:
        print(_sentence(row, labels))
    if len(rows) > SHOWN:
        print(f"... and {len(rows) - SHOWN} more")
    print(_summary(rows, calibration))
    print(f"written to {arguments.output}")
    if all(row["verdict"] == "broken" for row in rows):
        raise DataError(f"none of {len(rows)} files can be read as a photo; the reasons are in {arguments.output}")
    return 0


def _photo_files(patterns: list[str]) -> list[Path]:
    from agritransfer.data.readers.source import PHOTO_SUFFIXES
    from agritransfer.errors import UsageError

    files = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in PHOTO_SUFFIXES)
        else:
            found = [path] if path.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not found:
            raise UsageError(f"no photo at '{pattern}'; give files, folders that hold photos, or a pattern in quotes")
        files += [file for file in found if file.is_file()]
    return list(dict.fromkeys(files))


def _model_folder(name: str, revision: str | None) -> Path:
    from agritransfer.data.readers.hub import HUB_ID, hub_errors
    from agritransfer.errors import UsageError

    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        raise UsageError(f"'{name}' is neither a run folder nor a Hub id such as user/model")
    import huggingface_hub

    with hub_errors(f"the Hub model '{name}'"):
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))


def _answer(folder: Path, files: list[Path]) -> tuple[list[dict], list[str], dict | None]:
    """A row for each file, the labels in the order of its probabilities, and the calibration of the run, if any."""
    from agritransfer.evaluation.calibration import calibrated_probabilities
    from agritransfer.evaluation.inference import model_outputs
    from agritransfer.evaluation.results import read_calibration
    from agritransfer.evaluation.selective import UNCALIBRATED, verdicts
    from agritransfer.models.loading import load_classifier

    model, processor = load_classifier(folder)
    labels = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    calibration, known = read_calibration(folder) or (None, None)
    rules = calibration or UNCALIBRATED
    rows = [{"file": file, "verdict": "broken", "reason": ""} for file in files]
    whole: list[dict] = []
    # The batches fill `whole` just before their outputs are asked for, in the same order.
    for logits, features in model_outputs(model, processor, _batches(rows, processor, whole)):
        probabilities = calibrated_probabilities(logits, rules["temperature"])
        for row, verdict, chances in zip(
            whole[-len(logits) :], verdicts(logits, features, rules, known), probabilities, strict=True
        ):
            row |= {"verdict": verdict, "probabilities": chances}
    return rows, labels, calibration


def _batches(rows: list[dict], processor, whole: list[dict]) -> Iterator:
    """Pixels of the files that can be read, batch by batch; a row whose file cannot be gets the reason."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from tqdm import tqdm

    from agritransfer.errors import in_one_line
    from agritransfer.images.decoding import decode_photo
    from agritransfer.runtime.process import available_cores

    def read(row: dict) -> torch.Tensor | str:
        try:
            return processor.pixels(decode_photo(row["file"]))
        except (OSError, ValueError) as error:
            return in_one_line(error)

    with (
        ThreadPoolExecutor(available_cores()) as pool,
        tqdm(total=len(rows), desc="answering", unit="photo", delay=2, leave=False, disable=None) as bar,
    ):
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            pixels = []
            for row, read_as in zip(part, pool.map(read, part), strict=True):
                if isinstance(read_as, str):
                    row["reason"] = read_as
                else:
                    pixels.append(read_as)
                    whole.append(row)
            if pixels:
                yield torch.stack(pixels)
            bar.update(len(part))


def _ranked(row: dict, labels: list[str]) -> list[tuple[str, float]]:
    chances = row.get("probabilities", [])
    return sorted(zip(labels, map(float, chances), strict=False), key=lambda answer: -answer[1])


def _write_table(path: Path, rows: list[dict], labels: list[str], top_k: int) -> None:
    numbers = ["", *(f"_{place}" for place in range(2, top_k + 1))]
    answers = [name for number in numbers for name in (f"answer{number}", f"probability{number}")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "verdict", *answers, "reason"])
        for row in rows:
            cells = [cell for label, chance in _ranked(row, labels)[:top_k] for cell in (label, f"{chance:.4f}")]
            cells += [""] * (len(answers) - len(cells))
            writer.writerow([row["file"].as_posix(), row["verdict"], *cells, row["reason"]])


def _sentence(row: dict, labels: list[str]) -> str:
    if row["verdict"] == "broken":
        return f"{row['file']}: broken, {row['reason']}"
    (first, chance), *others = _ranked(row, labels)
    if row["verdict"] == "answer":
        return f"{row['file']}: {first} ({chance:.0%})"
    if row["verdict"] == "unknown":
        return f"{row['file']}: unlike what the model knows (nearest: {first})"
    second = f" or {others[0][0]} ({others[0][1]:.0%})" if others else ""
    return f"{row['file']}: not sure, it could be {first} ({chance:.0%}){second}"


def _summary(rows: list[dict], calibration: dict | None) -> str:
    counts = Counter(row["verdict"] for row in rows)
    counted = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("answer", "not sure", "unknown", "broken"))
    if calibration is None:
        return f"{len(rows)} files: {counted}; the model has no results.json, so its probabilities are as they come"
    if calibration["threshold"] is None:
        return f"{len(rows)} files: {counted}; this run found no threshold for its target, so it is never sure"
    return (
        f"{len(rows)} files: {counted}; probabilities are calibrated, answers begin at {calibration['threshold']:.2f} "
        f"(aim: at most {calibration['target_error']:.0%} of them wrong on photos like the validation's)"
    )
