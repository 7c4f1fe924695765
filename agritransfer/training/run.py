"""What does a run write into its folder?

All later commands rely on this folder: a plain transformers model, `results.json`, the split of every file, every
scored photo, figures, and `status.json`.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from transformers import TrainingArguments

from agritransfer.arguments import DataArguments
from agritransfer.data.dataset import Splits, write_splits_file
from agritransfer.data.readers.source import Photo
from agritransfer.errors import DataError, DivergedError, Preempted, PublishError, StorageError, UsageError
from agritransfer.evaluation.calibration import calibrated_probabilities, confidence_bins
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.plots import draw_confusion_matrix, draw_gallery, draw_reliability, draw_training_curves
from agritransfer.evaluation.predictions import write_predictions
from agritransfer.evaluation.results import (
    KNOWN_FILE,
    VALIDATION_FILE,
    read_results,
    read_validation,
    results_table,
    score_splits,
    validation_line,
)
from agritransfer.evaluation.trainer_metric import check_selection
from agritransfer.images.augmentation import check_augmentation
from agritransfer.images.decoding import decode_photo
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.models.loading import load_classifier
from agritransfer.runtime.command_line import settings_line
from agritransfer.runtime.commands import command_line, differences
from agritransfer.runtime.process import prepare_process, say
from agritransfer.runtime.profiling import PeakMemory, Times
from agritransfer.training.facts import data_facts, environment_facts, training_facts
from agritransfer.training.preemption import broken_in, preemptible
from agritransfer.training.run_folder import check_folder, reserve_folder, write_status
from agritransfer.training.trainer import ImageTrainer
from agritransfer.training.trainer_checks import check_trainer_flags
from agritransfer.wording import escaped

SCHEMA = 1
# Flags in which the command that scores the test photos may differ from the one that trained without.
APART = ("--skip_test", "--output_dir", "--restart")


@dataclass(frozen=True)
class Run:
    """A run in progress: its arguments (`DataArguments` first, the Trainer's last) and its folder.

    `memory` has the peak of each stage, `times` the seconds of scoring each split.
    """

    arguments: tuple[Any, ...]
    folder: Path
    memory: PeakMemory
    times: Times = field(default_factory=Times)

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
        _check_publishing(run)
        _check_unused(run)
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


def _check_publishing(run: Run) -> None:
    if run.data_args.skip_test and run.training_args.push_to_hub:
        raise UsageError("--push_to_hub publishes the test scores, which --skip_test leaves out; remove one of them")


def _check_unused(run: Run) -> None:
    """End the process with the scores of a finished run; raise `UsageError` if its flags were others."""
    folder, skip_test = run.folder, run.data_args.skip_test
    finished, validated = (folder / "results.json").exists(), (folder / VALIDATION_FILE).exists()
    if run.data_args.restart or not (finished or validated):
        return
    results = read_results(folder) if finished else read_validation(folder)
    if changes := differences(results["command"], command_line(), APART):
        raise UsageError(f"{folder} holds another finished run: {changes}; choose a new --output_dir or add --restart")
    if not finished and not skip_test:
        return
    told = f"; results:\n{results_table(results)}" if finished else f"; {validation_line(results)}"
    say(f"the run in {folder} is finished{told}")
    if run.training_args.push_to_hub and not (folder / "published.json").exists():
        again = f"agritransfer publish {folder} --repo_id USER/NAME"
        sys.exit(_say(PublishError(f"the run is not published yet; run {again}")))
    sys.exit(0)


def _say(error: Exception | Preempted, before: str = "error: ", after: str = "") -> int:
    if PartialState().is_main_process:
        print(f"{Path(sys.argv[0]).name}: {before}{error}{after}", file=sys.stderr)
    return error.exit_code


def score_run(
    run: Run, trainer: ImageTrainer, splits: Splits, shift: Splits | None, store: PixelStore
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and features of the saved model, loaded as a user would; the test split is used only here, and once."""
    PartialState().wait_for_everyone()
    model, processor = load_classifier(run.folder)
    sources = {"validation": splits}
    if not run.data_args.skip_test:
        sources |= {"test": splits} | ({"shift": shift} if shift else {})
    outputs = {}
    for split, photos in sources.items():
        with run.times.spent(split):
            dataset = photos.dataset(split, processor, store)
            outputs[split] = predict(model, dataset, trainer.args.per_device_eval_batch_size)
    return outputs


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

    With `--skip_test` only `validation.json` is written. `architecture` names the model whose network was trained from
    random weights.
    """
    if not trainer.args.should_save:
        return
    folder = run.folder
    run.end_stage("scoring")
    sources = {split: shift if split == "shift" else splits for split in outputs}
    scores, calibration, known = score_splits(outputs, sources, run.data_args.target_error)
    if "shift" in scores:
        scores["shift"] = {"name": shift.name, "fingerprint": shift.fingerprint, **scores["shift"]}
    results = {
        "schema": SCHEMA,
        "strategy": run.strategy,
        "base_model": base_model,
        "architecture": architecture,
        "input": {"image_size": trainer.processor.image_size, "resize_mode": run.data_args.resize_mode},
        **data_facts(splits, shift, [*splits.broken, *broken_in(trainer.state)]),
        "validation": scores["validation"],
        **({"test": scores["test"], "shift": scores.get("shift")} if "test" in scores else {}),
        "calibration": calibration,
        "training": _training_facts(run, trainer, splits),
        "environment": environment_facts(),
        "command": command_line(),
    }
    if run.data_args.skip_test:
        results["scoring"] = {
            "photos": len(splits.of("validation")),
            "seconds": round(run.times.seconds["validation"], 3),
            "unscored": len(splits.of("test")) + (len(shift.of("shift")) if shift else 0),
        }
        _write_validation(folder, results, outputs["validation"][0], np.array(splits.label_indices("validation")))
        return
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


def _training_facts(run: Run, trainer: ImageTrainer, splits: Splits) -> dict[str, Any]:
    """Those of the session that trained, if it skipped the test."""
    if (run.folder / VALIDATION_FILE).exists():
        earlier = read_validation(run.folder)
        if earlier["dataset"]["fingerprint"] == splits.fingerprint:
            return earlier["training"]
    return training_facts(trainer, load_classifier(run.folder)[0].num_parameters(), run.memory)


def _write_validation(folder: Path, results: dict[str, Any], logits: np.ndarray, truth: np.ndarray) -> None:
    """Write `validation.json`: the results without test, with the calibrated log loss of the validation photos."""
    calibrated = calibrated_probabilities(logits, results["calibration"]["temperature"])
    log_loss = float(-np.log(calibrated[np.arange(len(truth)), truth]).mean())
    results["validation"] = {**results["validation"], "log_loss_calibrated": log_loss}
    (folder / VALIDATION_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"{validation_line(results)}; to score the test photos, run the same command without --skip_test")


def _draw_figures(folder: Path, trainer: ImageTrainer, splits: Splits, logits: np.ndarray, results: dict) -> None:
    folder.mkdir(exist_ok=True)
    test, temperature = results["test"], results["calibration"]["temperature"]
    title = f"Test: accuracy {test['accuracy']:.3f}, {test['n']} photos"
    draw_confusion_matrix(folder / "confusion_matrix.png", test["confusion_matrix"], splits.labels, title)
    draw_training_curves(folder / "training_curves.png", trainer.state.log_history, trainer.kept_step)
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
