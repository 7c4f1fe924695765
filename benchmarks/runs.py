"""How long does a whole run take, from the command to its end, and which accuracy does it reach?

Our runs and those of the recipe are started as a user would start them, one after the other, on the same folder. The
time includes imports, the photo check, the filling of caches and the scoring of the test photos.
"""

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from agritransfer.data.dataset import SPLITS, Splits, load_splits
from benchmarks.photos import SIZES, generated, photos_below
from benchmarks.timing import ROOT, Ratio, compare, parser, take_turns

SCORE_LINE = re.compile(r"^epoch ([\d.]+)/.*accuracy ([\d.]+)")
# What a user of the recipe would set on a machine with two cores; the defaults are no better here.
BEST_FLAGS = ["--per_device_train_batch_size", "32", "--gradient_accumulation_steps", "1"]
BEST_FLAGS += ["--per_device_eval_batch_size", "64"]
BEST_FLAGS += ["--dataloader_num_workers", "2", "--dataloader_persistent_workers", "True"]


@dataclass(frozen=True)
class Run:
    """A finished run: its seconds, each validation accuracy with its time in seconds, and the test accuracy."""

    folder: Path
    seconds: float
    validation: list[tuple[float, float]]
    test: float

    def seconds_to(self, accuracy: float) -> float | None:
        """When the validation accuracy first reached this value (rounded as printed), in seconds; None if never."""
        return next((at for at, reached in self.validation if round(reached, 3) >= round(accuracy, 3)), None)


def run_ours(script: str, data: Path, model: Path, folder: Path, flags: Sequence[str]) -> Run:
    """Run one of our scripts, starting with an empty run folder."""
    command = [script, "--dataset_name", data, "--model_name_or_path", model, "--output_dir", folder, "--restart"]
    seconds, lines = _timed([*command, *flags], folder)
    scored = [(at, SCORE_LINE.match(line)) for at, line in lines]
    validation = [(at, float(match[2])) for at, match in scored if match]
    results = json.loads((folder / "results.json").read_text())
    # Without a line per epoch, the score is known only at the end.
    return Run(
        folder, seconds, validation or [(seconds, results["validation"]["accuracy"])], results["test"]["accuracy"]
    )


def run_recipe(data: Path, model: Path, folder: Path, flags: Sequence[str]) -> Run:
    """Run the recipe of the documentation, starting with an empty run folder."""
    command = ["-m", "benchmarks.peers.recipe", "--data_dir", data, "--model_name_or_path", model]
    seconds, _ = _timed([*command, "--output_dir", folder, *flags], folder)
    scores = json.loads((folder / "scores.json").read_text())
    # Its own clock starts after the imports.
    before = seconds - scores["seconds"]
    validation = [(before + score["seconds"], score["accuracy"]) for score in scores["validation"]]
    return Run(folder, seconds, validation, scores["test"])


def _timed(command: Sequence[str | Path], folder: Path) -> tuple[float, list[tuple[float, str]]]:
    """Seconds of the whole process with empty caches, and its printed lines with the time of each."""
    cache = folder.with_suffix(".cache")
    for old in (folder, cache):
        shutil.rmtree(old, ignore_errors=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "HF_DATASETS_CACHE": str(cache)}
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    started = time.perf_counter()
    with log.open("w") as complaints:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
        for line in process.stdout:
            lines.append((time.perf_counter() - started, line.rstrip("\n")))
            complaints.write(f"{lines[-1][0]:.1f} s: {line}")
            complaints.flush()
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - started, lines


def split_folder(parent: Path, source: Path) -> Path:
    """The photos of a source in `train/ validation/ test/`, as our scripts split them, for the peers."""
    if any((source / split).is_dir() for split in SPLITS):
        return source.absolute()
    folder = parent.absolute() / f"split-{source.name}"
    return folder if folder.exists() else copy_splits(load_splits(str(source)), source, folder)


def copy_splits(splits: Splits, source: Path, folder: Path) -> Path:
    """Copy the photos of a source into `train/ validation/ test/` of the folder, and return it."""
    for photo in splits.photos:
        target = folder / photo.split / photo.label / Path(photo.file).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / photo.file, target)
    return folder


def count_photos(folder: Path) -> dict[str, int]:
    """The number of photos in each split."""
    return {split: len(photos_below(folder / split)) for split in SPLITS}


def answers(run: Path, split: str) -> dict[str, bool]:
    """Whether each photo of a split was classified correctly in a run of ours, by file."""
    return {row["file"]: row["label"] == row["predicted"] for row in _predictions(run, split)}


def labels_given(run: Path, split: str) -> dict[str, str]:
    """The label that a run of ours gave to each photo of a split, by file."""
    return {row["file"]: row["predicted"] for row in _predictions(run, split)}


def _predictions(run: Path, split: str) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def race(
    question: str, entrants: dict[str, Callable[[int], Run]], turns: int, target: float, tolerance: float
) -> list[Ratio]:
    """The first entrant compared with each of the others: seconds of whole runs, guarded by the mean test accuracy.

    An entrant takes the seed of its run, which is the number of the turn. Ours may be worse by `tolerance`.
    """
    tests: dict[str, list[float]] = {name: [] for name in entrants}

    def timed(name: str, seeds: count) -> float:
        run = entrants[name](next(seeds))
        tests[name].append(run.test)
        print(f"{name}: {run.seconds:.1f} s, test accuracy {run.test:.3f}", flush=True)
        return run.seconds

    seeds = {name: count() for name in entrants}
    contestants = {name: lambda name=name: timed(name, seeds[name]) for name in entrants}
    seconds, _ = take_turns(contestants, turns, warm_up=False)
    ours, *peers = entrants
    ratios = []
    for peer in peers:
        reached, theirs = statistics.mean(tests[ours]), statistics.mean(tests[peer])
        guard = f"test accuracy {reached:.3f}, peer {theirs:.3f}"
        guarded = reached >= theirs - tolerance
        sides = (ours, seconds[ours]), (peer, seconds[peer])
        ratios.append(compare(question, *sides, "seconds", "s", target=target, guard=guard, guarded=guarded))
    return ratios


def run_parser(story: str, turns: int, epochs: int) -> argparse.ArgumentParser:
    """The flags of benchmarks that time whole runs."""
    flags = parser(story, turns)
    flags.add_argument("--data", type=Path, help="Folder of photos (default: drawn photos).")
    flags.add_argument("--model", type=Path, default=ROOT / "sample/vit", help="Folder of a pretrained model.")
    flags.add_argument("--image_size", help="Side of the model's input (default: the model's own).")
    flags.add_argument("--epochs", type=int, default=epochs)
    flags.add_argument("--photos", type=int, default=800, help="Number of drawn train photos, without --data.")
    flags.add_argument("--photo_size", choices=SIZES, default="500px", help="Size of the drawn photos.")
    return flags


def parse_run(flags: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed flags, with tiny sizes for `--quick`."""
    args = flags.parse_args()
    if args.quick:
        args.turns, args.epochs, args.photos = 1, 1, 32
    return args


def photos_of(args: argparse.Namespace) -> Path:
    """The split folder that the flags ask for."""
    if args.data is not None:
        return split_folder(args.output, args.data)
    counts = {"train": args.photos, "validation": args.photos // 4, "test": args.photos // 4}
    return generated(args.output.absolute(), args.photo_size, counts)


def shared_flags(args: argparse.Namespace) -> list[str]:
    """The flags that both sides get."""
    size = ["--image_size", args.image_size] if args.image_size else []
    return ["--num_train_epochs", str(args.epochs), "--use_cpu", *size]


def described(data: Path, args: argparse.Namespace) -> str:
    """A short description of photos and model."""
    size = f" at {args.image_size} pixels" if args.image_size else ""
    return f"{count_photos(data)['train']} photos of {data.name.removeprefix('split-')}, {args.model.name}{size}"
