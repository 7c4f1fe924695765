"""Which backbones work, with which strategy and which command?

    python -m benchmarks.backbone_matrix --write docs/backbones.md
    python -m benchmarks.backbone_matrix --families vit "timm resnet" --columns LoRA export

A tiny network with random weights of every family goes through the scripts and commands of users, in one process. A
cell is "works", "refused" with the reason in one line, or "failed". The cells are kept in runs/bench, so that a part
can be tried again; `--write` puts all of them into the table of a page.
"""

import argparse
import contextlib
import csv
import gc
import io
import json
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

import train_finetune
import train_lora
import train_scratch
from agritransfer import runtime
from agritransfer.__main__ import main as agritransfer
from agritransfer.arguments import DataArguments, FinetuneArguments, LoraArguments, ModelArguments, ScratchArguments
from agritransfer.evaluation.predictions import read_predictions
from agritransfer.training import run as run_folder
from benchmarks.timing import machine, machine_line
from benchmarks.tiny_backbones import TIMM, TRANSFORMERS, example_of, put_backbone

COLORS = {"blight": (150, 90, 40), "healthy": (40, 140, 40), "rust": (200, 120, 30)}
# Photos of each class.
PHOTOS = {"train": 6, "validation": 2, "test": 2}
FAMILIES = [*TRANSFORMERS, *(f"timm {module}" for module in TIMM)]
SHORT = ["--num_train_epochs", "1", "--per_device_train_batch_size", "9", "--learning_rate", "5e-3", "--use_cpu"]
SHORT += ["--pixel_store", "off", "--report_to", "none", "--disable_tqdm", "true"]
FINETUNE = (train_finetune, (DataArguments, ModelArguments, FinetuneArguments))
TRAININGS: dict[str, tuple[tuple[ModuleType, tuple[type, ...]], list[str]]] = {
    # From a random head, so that the statistics of BatchNorm move too.
    "all": (FINETUNE, ["--no_head_first"]),
    "last block": (FINETUNE, ["--train_layers", "1"]),
    "head": (FINETUNE, ["--train_layers", "head"]),
    "LoRA": ((train_lora, (DataArguments, ModelArguments, LoraArguments)), []),
    "scratch": ((train_scratch, (DataArguments, ScratchArguments)), []),
}
COLUMNS = (*TRAININGS, "predict", "export", "pipeline")
NO_RUN = "there is no run, since its training was refused"
BEGIN, END = "<!-- the matrix begins -->", "<!-- the matrix ends -->"


@dataclass(frozen=True)
class Cell:
    """How a command ended: `state` is works, refused or failed, `reason` says why, `seconds` are of processor time."""

    state: str
    reason: str = ""
    seconds: float = 0.0


def put_photos(folder: Path) -> Path:
    """Draw a few noisy photos of three classes into the folders of three splits."""
    random = np.random.default_rng(0)
    for split, count in PHOTOS.items():
        for label, color in COLORS.items():
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(random.normal(color, 40, size=(72, 80, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


def try_family(family: str, photos: Path, columns: Sequence[str] = COLUMNS) -> dict[str, Cell]:
    """The cells of a family; every run is written into a temporary folder."""
    # The figures do not depend on the network and would take as long as everything else.
    with mock.patch.object(run_folder, "_draw_figures"), tempfile.TemporaryDirectory(dir=photos.parent) as parent:
        folder = Path(parent)
        try:
            put_backbone(family, folder / "backbone")
        except ImportError as error:
            reason = "transformers cannot build it: " + str(error).strip().splitlines()[0].split(". ")[0]
            return dict.fromkeys(columns, Cell("refused", reason))
        cells = {}
        # The commands need a run.
        for column in TRAININGS if {"predict", "export", "pipeline"} & {*columns} else columns:
            if column in columns or not any(cell.state == "works" for cell in cells.values()):
                cells[column] = tried(column, lambda column=column: train(column, folder, photos))
        run = next((folder / column for column, cell in cells.items() if cell.state == "works"), None)
        for column, check in COMMANDS.items():
            if column in columns:
                command = (lambda check=check: check(run, photos)) if run else None
                cells[column] = tried(column, command) if command else Cell("refused", NO_RUN)
    return {column: cells[column] for column in columns}


def train(column: str, folder: Path, photos: Path) -> int:
    """Run the `main` of a training script in this process."""
    (script, classes), flags = TRAININGS[column]
    flags = ["--model_name_or_path", str(folder / "backbone"), "--dataset_name", str(photos), *SHORT, *flags]
    sys.argv = [str(script.__file__), *flags, "--output_dir", str(folder / column)]
    script.main(*runtime.parse_args(classes, script.__doc__))
    return 0


def check_predict(run: Path, photos: Path) -> int:
    """`predict` gives the answers of predictions.csv for the test photos."""
    table = run / "predicted.csv"
    code = agritransfer(["predict", str(run), str(photos / "test"), "--output", str(table)])
    if code == 0:
        with table.open(newline="", encoding="utf-8") as file:
            answers = {Path(row["file"]).resolve(): row["answer"] for row in csv.DictReader(file)}
        expected = {path: label for path, (label, _) in expected_answers(run, photos).items()}
        assert answers == expected, f"{answers} instead of {expected}"
    return code


def check_export(run: Path, _photos: Path) -> int:
    """`export` writes an ONNX file, after it has compared the file with torch."""
    code = agritransfer(["export", str(run), "--photos", "2"])
    assert code != 0 or (run / "onnx/model.onnx").is_file()
    return code


def check_pipeline(run: Path, photos: Path) -> int:
    """`pipeline` gives the labels and the probabilities of predictions.csv for the test photos."""
    classifier, expected = pipeline("image-classification", model=str(run), device="cpu"), expected_answers(run, photos)
    for path, (label, probability) in expected.items():
        answer = classifier(str(path), top_k=1)[0]
        assert answer["label"] == label, f"{answer} instead of {label}"
        assert abs(answer["score"] - probability) < 1e-3, f"{answer} instead of {probability}"
    return 0


COMMANDS = {"predict": check_predict, "export": check_export, "pipeline": check_pipeline}


def expected_answers(run: Path, photos: Path) -> dict[Path, tuple[str, float]]:
    """The label of each test photo and its probability, as in predictions.csv."""
    labels = sorted(COLORS)
    predictions = read_predictions(run / "predictions.csv", "test", labels)
    shares = np.exp(predictions.logits - predictions.logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    answers = {
        (photos / file).resolve(): (labels[int(row.argmax())], float(row.max()))
        for file, row in zip(predictions.files, shares, strict=True)
    }
    assert len(answers) == PHOTOS["test"] * len(COLORS)
    return answers


def tried(column: str, command: Callable[[], int]) -> Cell:
    """The cell of a command. A refusal is exit code 2 or 3 with one line on stderr; all else is a failure."""
    program = Path(TRAININGS[column][0][0].__file__).name if column in TRAININGS else f"agritransfer {column}"
    started, out, err = time.process_time(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = command()
        except SystemExit as end:
            code = end.code or 0
        except Exception:  # noqa: BLE001 (whatever ends in a traceback is a failure)
            code = traceback.format_exc()
    seconds = time.process_time() - started
    if code == 0:
        return Cell("works", "", seconds)
    lines = err.getvalue().strip().splitlines() or [""]
    said = re.fullmatch(rf"{re.escape(program)}: error: (.+)", lines[-1])
    if code in (2, 3) and said:
        return Cell("refused", general(said[1]), seconds)
    return Cell("failed", f"{code}\n{err.getvalue()[-1000:]}", seconds)


def general(reason: str) -> str:
    """A reason without the names of temporary folders."""
    return re.sub(r"'?/\S*/(\w+)'?(?=[\s;:,)]|$)", r"\1", reason)


def table(results: dict[str, dict[str, Cell]]) -> str:
    """The families that were tried, in Markdown, and the reasons that the numbers in the cells stand for."""
    reasons: dict[str, int] = {}
    tried_families = [family for family in FAMILIES if results.get(family, {}).keys() >= {*COLUMNS}]
    lines = [f"| family | example | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for family in tried_families:
        example = f"`{found}`" if (found := example_of(family)) else ""
        lines.append(f"| {' | '.join([family, example, *row_of(results[family], reasons)])} |")
    cells = [results[family][column] for family in tried_families for column in COLUMNS]
    of, minutes = Counter(cell.state for cell in cells), sum(cell.seconds for cell in cells) / 60
    lines += [
        "",
        f"{len(tried_families)} families, {len(cells)} cells: {of['works']} work ({of['works'] / len(cells):.0%}), "
        f"{of['refused']} are refused, {of['failed']} failed; {minutes:.0f} minutes of processor time.",
        "",
        *(f"{number}. {reason}" for reason, number in reasons.items()),
    ]
    return "\n".join(lines)


def row_of(cells: dict[str, Cell], reasons: dict[str, int]) -> list[str]:
    """The cells of a family as they are printed; new reasons are added to `reasons` with their numbers."""
    return [
        "✓" if cell.state == "works" else f"({reasons.setdefault(reason_of(cell), len(reasons) + 1)})"
        for cell in (cells[column] for column in COLUMNS)
    ]


def reason_of(cell: Cell) -> str:
    """Why a command was refused, or that it failed."""
    return cell.reason if cell.state == "refused" else "failed"


def read_cells(path: Path) -> dict[str, dict[str, Cell]]:
    """The cells of earlier runs, by family and column."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {family: {column: Cell(**cell) for column, cell in row.items()} for family, row in stored.items()}


def write_table(page: Path, results: dict[str, dict[str, Cell]]) -> None:
    """Replace what stands between the two markers of a page."""
    text = page.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    made = f"{table(results)}\n\nMachine: {machine_line(machine())}."
    page.write_text(f"{before}{BEGIN}\n\n{made}\n\n{after}", encoding="utf-8")


def main() -> None:
    """Try families, print and keep their cells, and write the table if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=FAMILIES, metavar="FAMILY")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=COLUMNS, metavar="COLUMN")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench/backbone_matrix.json"), help="where cells are kept"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table of all kept cells into this page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = read_cells(args.output)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    # Each training collects garbage, which takes long among the objects of all these libraries.
    gc.freeze()
    with tempfile.TemporaryDirectory() as parent:
        photos = put_photos(Path(parent) / "photos")
        for family in args.families:
            cells = try_family(family, photos, args.columns)
            results[family] = results.get(family, {}) | cells
            stored = {name: {column: asdict(cell) for column, cell in row.items()} for name, row in results.items()}
            args.output.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
            print(f"{family:28}", *(f"{column}: {cell.state}" for column, cell in cells.items()), sep="  ", flush=True)
            for reason in dict.fromkeys(cell.reason for cell in cells.values() if cell.reason):
                print(f"    {reason}", flush=True)
    if args.write:
        write_table(args.write, results)


if __name__ == "__main__":
    main()
