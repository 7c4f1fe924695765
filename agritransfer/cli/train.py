"""Try what the time allows, keep the strategy that is best on the validation photos, and score its test once.

    agritransfer train photos --model_name_or_path facebook/dinov2-small
    agritransfer train photos --model_name_or_path facebook/dinov2-small \\
        --minutes 30 --image_size 224 --shift_dataset_name field_photos

Feature extraction comes first. Then LoRA and fine-tuning get the epochs that fit into --minutes; what does not fit
is not tried, and a line says how long it would take. The result is one run folder, as of a training script, with
choice.md, which says why. Further flags are passed on to the training scripts; a flag that only one strategy has,
such as --lora_r, goes to that strategy. Interrupted? Rerun the same command: finished candidates are kept.
"""

import argparse
import shlex
import sys
from pathlib import Path

from agritransfer.cli.candidates import ORDER, Candidates, open_candidates
from agritransfer.cli.scripts import last_line
from agritransfer.errors import UsageError
from agritransfer.runtime.flag_checks import flag_names
from agritransfer.strategies import STRATEGIES

# Flags that this command sets itself, or that leave it nothing to choose from, and what to do instead.
REFUSED = {
    "dataset_name": "the dataset comes first: agritransfer train DATASET",
    **dict.fromkeys(("num_train_epochs", "max_steps", "max_minutes"), "use --minutes, from which the epochs follow"),
    "train_layers": "use agritransfer finetune to train some of the layers",
    "skip_test": "the test photos are scored once, for the chosen candidate",
    "recipe": "a recipe belongs to one strategy; give its flags, or use the training script",
    "streaming": "the number of train photos must be known; use a training script",
    "download_only": "use it with a training script",
    "push_to_hub": "publish the finished run: agritransfer publish RUN --repo_id USER/NAME",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("dataset", help="Hub dataset ID or folder, as for --dataset_name of the training scripts")
    parser.add_argument("--model_name_or_path", required=True, help="Hub ID or folder of the pretrained model")
    parser.add_argument("--minutes", type=float, default=10, help="time for the whole command")
    parser.add_argument(
        "--output_dir", type=Path, metavar="FOLDER", help="the run folder; by default runs/train-DATASET"
    )
    parser.add_argument("--restart", action="store_true", help="move an earlier run in --output_dir aside, start over")


def run(arguments: argparse.Namespace, training_flags: list[str]) -> int:
    """Train the candidates, choose one, score its test and print the results; returns the exit code."""
    _check(training_flags)
    output = arguments.output_dir or Path("runs") / f"train-{Path(arguments.dataset).name}"
    command = ["agritransfer", "train", arguments.dataset, "--model_name_or_path", arguments.model_name_or_path]
    command += ["--minutes", f"{arguments.minutes:g}", "--output_dir", str(output), *training_flags]
    candidates = open_candidates(output, shlex.join(command), arguments, training_flags)
    try:
        code = 0 if candidates.finished else _try_all(candidates)
    except KeyboardInterrupt:
        return _say_interrupted(130)
    if code:
        return code
    _print_result(candidates)
    return 0


def _check(training_flags: list[str]) -> None:
    if training_flags and not training_flags[0].startswith("-"):
        raise UsageError(f"'{training_flags[0]}' belongs to no flag; give one dataset, and put other words after flags")
    for name in flag_names(training_flags):
        if remedy := REFUSED.get(name.removeprefix("no_")):
            raise UsageError(f"train takes no --{name}: {remedy}")


def _try_all(candidates: Candidates) -> int:
    """Train what is not trained yet, choose, and score the test; returns the exit code of a failed script, or 0."""
    from agritransfer.evaluation.choice import candidate_line

    for number, strategy in enumerate(ORDER, start=1):
        row = candidates.row(strategy)
        lead = f"{number}/{len(ORDER)} {STRATEGIES[strategy].title}"
        if row["state"] == "planned":
            print(lead + candidates.plan_text(row), end=": ", flush=True)
            lead = ""
            if code := candidates.train(row):
                print("ended early", flush=True)
                return _say_failed(code, candidates.log(strategy))
        print(f"{lead}: {candidate_line(row)}" if lead else candidate_line(row), flush=True)
    if code := candidates.finish():
        return _say_failed(code, candidates.final_log)
    return 0


def _say_failed(code: int, log: Path) -> int:
    if code > 128:
        return _say_interrupted(code)
    # A preempted script says how to resume.
    kind = "" if code == 75 else "error: "
    print(f"agritransfer train: {kind}{last_line(log)} (full log: {log})", file=sys.stderr)
    return code


def _say_interrupted(code: int) -> int:
    print("agritransfer train: interrupted; run the same command again to resume", file=sys.stderr)
    return code


def _print_result(candidates: Candidates) -> None:
    from agritransfer.evaluation.results import read_results, results_table

    output, choice = candidates.output, candidates.choice
    print(f"{results_table(read_results(output))}\n\n{choice['reason']}")
    minutes = f"{choice['seconds'] / 60:.1f} of {choice['minutes']:g} minutes"
    print(f"{minutes}; the run is in {output}, why in {output}/choice.md")
    print(f"use it: agritransfer predict {output} PHOTOS")
