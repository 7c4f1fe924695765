"""What does a run write into its folder?

All later commands rely on this folder: a plain transformers model, `results.json`, the split of every file, every
scored photo, figures, and `status.json`.
"""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from transformers import TrainingArguments

from agritransfer.arguments import DataArguments
from agritransfer.data.dataset import SPLITS, Splits, write_splits_file
from agritransfer.data.readers.source import Photo
from agritransfer.errors import DataError, DivergedError, Preempted, PublishError, StorageError, UsageError
from agritransfer.evaluation.calibration import calibrated_probabilities, confidence_bins
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.plots import draw_confusion_matrix, draw_gallery, draw_reliability, draw_training_curves
from agritransfer.evaluation.predictions import write_predictions
from agritransfer.evaluation.results import KNOWN_FILE, read_results, results_table, score_splits
from agritransfer.evaluation.trainer_metric import check_selection
from agritransfer.images.augmentation import check_augmentation
from agritransfer.images.decoding import decode_photo
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.models.loading import load_classifier
from agritransfer.runtime.command_line import settings_line
from agritransfer.runtime.process import prepare_process, say
from agritransfer.runtime.profiling import PeakMemory
from agritransfer.training.preemption import broken_in, preemptible
from agritransfer.training.run_folder import check_folder, reserve_folder, write_status
from agritransfer.training.trainer import ImageTrainer
from agritransfer.training.trainer_checks import check_trainer_flags
from agritransfer.wording import escaped

SCHEMA = 1
PACKAGES = ("torch", "transformers", "datasets", "peft", "accelerate")


@dataclass(frozen=True)
class Run:
    """A run in progress: its arguments (`DataArguments` first, the Trainer's last), its folder, the peak memory."""

    arguments: tuple[Any, ...]
    folder: Path
    memory: PeakMemory

    @property
    def data_args(self) -> DataArguments:
        """Which photos are used, and how."""
        return self.arguments[0]

    @property
    def strategy(self) -> str:
        """Its name in the table of strategies."""
        return self.arguments[-2].strategy

    @property
    def training_args(self) -> TrainingArguments:
        """The arguments of the Trainer."""
        return self.arguments[-1]

    def end_stage(self, stage: str, *lines: str) -> None:
        """Print these lines and the peak memory of the stage that has just ended."""
        say(*lines, self.memory.line(stage))


@contextmanager
def start_run(*arguments: Any) -> Iterator[Run]:
    """Reserve `output_dir` for this run; `status.json` and the exit code say how it ended.

    If the run is already finished, the same command prints its results and exits with 0.
    """
    run = Run(arguments, Path(arguments[-1].output_dir), PeakMemory())
    args, restart, folder = run.training_args, run.data_args.restart, run.folder
    try:
        check_augmentation(run.data_args.augmentation, run.data_args.cached_views)
        check_selection(args)
        _check_name(folder)
        check_trainer_flags(args)
        check_folder(folder)
        _check_unused(folder, restart, args.push_to_hub)
        # After the results of a finished run, which need no GPU, have been printed.
        prepare_process(args)
        PartialState().wait_for_everyone()
        if args.should_save:
            reserve_folder(folder, restart)
    except UsageError as error:
        sys.exit(_say(error))
    with preemptible(), _reported(folder, args.should_save):
        say(settings_line(*arguments))
        yield run
    # Left to the end of the interpreter, the threads of gloo may abort a process that is done.
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        PartialState().destroy_process_group()


@contextmanager
def _reported(folder: Path, writes: bool) -> Iterator[None]:
    """Report how a run ended: `status.json`, one line on stderr and the exit code."""
    state, exit_code = "failed", 1
    try:
        yield
        state, exit_code = "done", 0
    except Preempted as error:
        state, exit_code = "preempted", error.exit_code
        sys.exit(_say(error, "preempted: ", "; run the same command again to resume"))
    except KeyboardInterrupt:
        # The exit code of a process that was ended by Ctrl-C.
        state, exit_code = "interrupted", 130
        sys.exit(exit_code)
    except PublishError as error:
        state, exit_code = "not published", error.exit_code
        sys.exit(_say(error))
    except (UsageError, DataError, DivergedError, StorageError) as error:
        exit_code = error.exit_code
        sys.exit(_say(error))
    finally:
        if writes:
            write_status(folder, state, exit_code)


def _check_name(folder: Path) -> None:
    # The library that writes the weights takes no other path.
    if (name := str(folder)).encode("utf-8", "replace").decode() != name:
        raise UsageError(f"--output_dir '{escaped(name)}' is not in UTF-8, which weights need; choose another name")


def _check_unused(folder: Path, restart: bool, push_to_hub: bool) -> None:
    if restart or not (folder / "results.json").exists():
        return
    results = read_results(folder)
    if results["command"] != command_line():
        changes = _differences(results["command"], command_line())
        raise UsageError(f"{folder} holds another finished run: {changes}; choose a new --output_dir or add --restart")
    say(f"the run in {folder} is finished; results:\n{results_table(results)}")
    if push_to_hub and not (folder / "published.json").exists():
        again = f"agritransfer publish {folder} --repo_id USER/NAME"
        sys.exit(_say(PublishError(f"the run is not published yet; run {again}")))
    sys.exit(0)


def _differences(then: str, now: str) -> str:
    """The flags that differ between two commands, with both values."""
    was, asked = _flags_of(then), _flags_of(now)
    names = sorted(name for name in was.keys() | asked.keys() if was.get(name) != asked.get(name))
    changes = (f"{name} was {was.get(name, 'not given')}, is {asked.get(name, 'not given')}" for name in names)
    return "; ".join(changes) or "the same flags in another order"


def _flags_of(command: str) -> dict[str, str]:
    """The words after each flag; the words before the first flag are stored under "script"."""
    flags, name = {"script": []}, "script"
    for word in shlex.split(command):
        flag, given, value = word.partition("=") if word.startswith("--") else ("", "", word)
        name = flag or name
        flags.setdefault(name, [])
        flags[name] += [value] if given or not flag else []
    return {name: " ".join(words) or "set" for name, words in flags.items()}


def _say(error: Exception | Preempted, before: str = "error: ", after: str = "") -> int:
    if PartialState().is_main_process:
        print(f"{Path(sys.argv[0]).name}: {before}{error}{after}", file=sys.stderr)
    return error.exit_code


def command_line() -> str:
    """The command that started this process: a script, or `agritransfer` with a subcommand."""
    program = Path(sys.argv[0])
    command = shlex.join([*(["python", program.name] if program.suffix else sys.argv[0].split()), *sys.argv[1:]])
    # The path of a folder may hold bytes that are not UTF-8.
    return command.encode("utf-8", "backslashreplace").decode()


def score_run(
    trainer: ImageTrainer, splits: Splits, shift: Splits | None, store: PixelStore
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and features of the saved model, loaded as a user would; the test split is used only here, and once."""
    PartialState().wait_for_everyone()
    model, processor = load_classifier(Path(trainer.args.output_dir))
    batch_size = trainer.args.per_device_eval_batch_size
    sources = {"validation": splits, "test": splits} | ({"shift": shift} if shift else {})
    return {split: predict(model, s.dataset(split, processor, store), batch_size) for split, s in sources.items()}


def write_results(
    run: Run,
    trainer: ImageTrainer,
    splits: Splits,
    shift: Splits | None,
    outputs: dict[str, tuple[np.ndarray, np.ndarray]],
    base_model: dict | None,
    architecture: dict | None = None,
) -> None:
    """Write `results.json`, `splits.csv`, `predictions.csv`, the known features and the figures; print the table.

    `architecture` names the model whose network was trained from random weights.
    """
    if not trainer.args.should_save:
        return
    folder, memory = run.folder, run.memory
    run.end_stage("scoring")
    sources = {split: shift if split == "shift" else splits for split in outputs}
    scores, calibration, known = score_splits(outputs, sources, run.data_args.target_error)
    if shift:
        scores["shift"] = {"name": shift.name, "fingerprint": shift.fingerprint, **scores["shift"]}
    results = {
        "schema": SCHEMA,
        "strategy": run.strategy,
        "base_model": base_model,
        "architecture": architecture,
        **_data_facts(splits, shift, [*splits.broken, *broken_in(trainer.state)]),
        "validation": scores["validation"],
        "test": scores["test"],
        "shift": scores.get("shift"),
        "calibration": calibration,
        "training": _training_facts(trainer, load_classifier(folder)[0].num_parameters(), memory),
        "environment": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
            "git_commit": _commit(),
        },
        "command": command_line(),
    }
    write_splits_file(folder / "splits.csv", splits)
    write_predictions(
        folder / "predictions.csv",
        {split: (sources[split].of(split), logits) for split, (logits, _) in outputs.items()},
        splits.labels,
    )
    if known is not None:
        known.save(folder / KNOWN_FILE)
    _draw_figures(folder / "figures", trainer, splits, outputs["test"][0], results)
    # Written last, so that a folder with results is complete.
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(results_table(results))
    print(f"\nsaved to {folder}: the model, results.json, splits.csv, predictions.csv, figures/")
    print(f'use it: pipeline("image-classification", model="{folder}")')
    print(f'or, to allow the answer "not sure": agritransfer predict {folder} PHOTOS')


def _data_facts(splits: Splits, shift: Splits | None, broken: list[str]) -> dict[str, Any]:
    # Streamed train photos are not read before training.
    into_shift = {
        "found": None if splits.stream else splits.shift_leaks,
        "dropped": splits.shift_leaks if splits.leaks_dropped else 0,
    }
    return {
        "dataset": {
            "name": splits.name,
            "revision": splits.revision,
            "config": splits.config,
            "fingerprint": splits.fingerprint,
            "labels": splits.labels,
            "counts": {split: splits.label_counts(split) for split in SPLITS},
            "streamed": splits.stream is not None,
            "notes": list(splits.notes),
        },
        "selection": {**asdict(splits.selection), "photos_over_limits": splits.over_limits},
        "splits": {
            "method": splits.method,
            "seed": splits.seed,
            "leakage": {
                "found": None if splits.stream else len(splits.leaked),
                "dropped": len(splits.leaked) if splits.leaks_dropped else 0,
                **({"shift": into_shift} if shift else {}),
            },
            "broken": {"found": len(broken), "skipped": len(broken)},
        },
    }


def _training_facts(trainer: ImageTrainer, total_parameters: int, memory: PeakMemory) -> dict[str, Any]:
    state = trainer.state
    speed = next(entry for entry in reversed(state.log_history) if "train_runtime" in entry)
    # Filling a cache and fitting a head first are part of the training time.
    seconds = sum(trainer.times.seconds.values())
    photos = speed["train_runtime"] * speed["train_samples_per_second"]
    on_gpu = trainer.args.device.type == "cuda"
    chosen_by = trainer.args.metric_for_best_model.removeprefix("eval_") if state.best_global_step else None
    best_step = state.best_global_step or state.global_step
    # A linear probe has penalties in place of steps.
    penalties = {entry["step"]: entry["penalty"] for entry in state.log_history if "penalty" in entry}
    if penalties:
        chosen_by = "log_loss"
    return {
        "epochs": round(state.epoch, 4),
        "steps": state.global_step,
        "best_step": best_step,
        # The validation score that chose this step; None for the last step of a run that chose none.
        "chosen_by": chosen_by,
        "penalty": penalties.get(best_step),
        "seconds": round(seconds, 1),
        "images_per_second": round(photos / seconds, 2),
        "peak_memory_bytes": memory.highest(on_gpu),
        "trainable_parameters": trainer.trainable_parameters,
        "total_parameters": total_parameters,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "num_processes": trainer.args.world_size,
    }


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        # A downloaded archive has no git history.
        return None


def _draw_figures(folder: Path, trainer: ImageTrainer, splits: Splits, logits: np.ndarray, results: dict) -> None:
    folder.mkdir(exist_ok=True)
    test, temperature = results["test"], results["calibration"]["temperature"]
    title = f"Test: accuracy {test['accuracy']:.3f}, {test['n']} photos"
    draw_confusion_matrix(folder / "confusion_matrix.png", test["confusion_matrix"], splits.labels, title)
    best_step = trainer.state.best_global_step or trainer.state.global_step
    draw_training_curves(folder / "training_curves.png", trainer.state.log_history, best_step)
    photos, truth = splits.of("test"), np.array(splits.label_indices("test"))
    raw, calibrated = (calibrated_probabilities(logits, t) for t in (1.0, temperature))
    draw_reliability(
        folder / "reliability.png",
        {
            f"as trained, error {test['ece']:.3f}": confidence_bins(raw, truth),
            f"calibrated, error {test['ece_calibrated']:.3f}": confidence_bins(calibrated, truth),
        },
    )
    confidence, answers = calibrated.max(axis=1), logits.argmax(axis=1)
    wrong = sorted(np.flatnonzero(answers != truth), key=lambda i: -confidence[i])
    worst = [
        (
            _picture(splits, photos[i]),
            f"predicted: {splits.labels[answers[i]]} ({confidence[i]:.0%})",
            f"label: {photos[i].label}",
        )
        for i in wrong[:12]
    ]
    draw_gallery(
        folder / "errors.png",
        worst,
        f"Most confident errors: {len(worst)} of {len(wrong)}, on {len(photos)} test photos",
    )


def _picture(splits: Splits, photo: Photo) -> Image.Image:
    image = splits.images[photo.row]["image"]
    picture = decode_photo(image["bytes"] or image["path"])
    picture.thumbnail((320, 320))
    return picture
