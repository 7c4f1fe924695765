"""Train all strategies on the same split with the same budget and recommend one, with its uncertainty.

    agritransfer compare photos --model_name_or_path facebook/dinov2-small
    agritransfer compare photos --model_name_or_path facebook/dinov2-small \\
        --seeds 5 --budget_epochs 20 --shift_dataset_name field_photos
    agritransfer compare --runs runs/*

Each run calls a training script. Further flags are passed on to the scripts; a flag that only one
strategy has, such as --lora_r, goes to that strategy. Interrupted? Rerun the same command: finished
runs are kept. --runs trains nothing and compares existing runs.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from agritransfer.cli.outputs import is_report
from agritransfer.cli.scripts import as_typed, flags_for, last_line, make_folder, run_script
from agritransfer.errors import UsageError
from agritransfer.strategies import STRATEGIES

# What a comparison writes beside the runs.
WRITTEN = ("comparison.json", "report.md", "report.html", "figures/scores.png", "figures/costs.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "dataset", nargs="?", help="Hub dataset ID or folder, as for --dataset_name of the training scripts"
    )
    parser.add_argument("--model_name_or_path", help="Hub ID or folder of the pretrained model")
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=sorted(STRATEGIES),
        default=list(STRATEGIES),
        metavar="STRATEGY",
        help="strategies to compare",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="runs of each strategy, each with its own seed; one run says nothing about the luck of the seed",
    )
    parser.add_argument(
        "--budget_epochs",
        type=int,
        default=10,
        help="epochs of each run; feature extraction needs one pass",
    )
    parser.add_argument("--shift_dataset_name", help="second test set with the same labels, such as field photos")
    parser.add_argument(
        "--source_dataset_name",
        help="photos of another task, such as the one the backbone was pretrained on, to measure forgetting",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        metavar="FOLDER",
        help="folder of the runs and the report; by default runs/compare-DATASET",
    )
    parser.add_argument(
        "--runs", nargs="+", type=Path, metavar="RUN", help="compare these finished runs and train nothing"
    )


def run(arguments: argparse.Namespace, training_flags: list[str]) -> int:
    """Train the missing runs, compare, write the report, print table and recommendation; returns the exit code."""
    _check(arguments, training_flags)
    name = "comparison" if arguments.runs is not None else f"compare-{Path(arguments.dataset).name}"
    output = arguments.output_dir or Path("runs") / name
    _check_output(output)
    if arguments.runs is not None:
        folders = _finished(arguments.runs)
    else:
        folders, code = _train(arguments, training_flags, output)
        if code:
            return code
    from agritransfer.data.dataset import load_splits
    from agritransfer.evaluation.comparison import compare, measure_forgetting, read_candidates
    from agritransfer.evaluation.recommendation import recommendation
    from agritransfer.evaluation.report import comparison_table, write_report

    candidates = read_candidates(folders)
    comparison = compare(candidates)
    if arguments.source_dataset_name is not None:
        comparison["forgetting"] = measure_forgetting(candidates, load_splits(arguments.source_dataset_name))
    write_report(output, comparison)
    print(f"\n{comparison_table(comparison)}\n\n{recommendation(comparison)}\n\nreport: {output / 'report.html'}")
    return 0


def _check(arguments: argparse.Namespace, training_flags: list[str]) -> None:
    if (arguments.runs is None) == (arguments.dataset is None):
        raise UsageError("give either a dataset to train on, or --runs with finished runs")
    if arguments.runs is not None and training_flags:
        raise UsageError(f"unknown flag {training_flags[0]}; --runs trains nothing, so training flags cannot be used")
    if (
        arguments.dataset is not None
        and arguments.model_name_or_path is None
        and any(STRATEGIES[name].pretrained for name in arguments.strategies)
    ):
        raise UsageError("--model_name_or_path is missing; try --model_name_or_path sample/vit")
    for flag in ("--seed", "--num_train_epochs", "--train_layers", "--restart"):
        if flag in training_flags:
            raise UsageError(f"compare sets {flag} itself; use --seeds, --budget_epochs or --strategies")


def _check_output(folder: Path) -> None:
    """An earlier comparison is replaced, but nobody else's report."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir '{folder}' is a file; choose another folder")
    theirs = [name for name in WRITTEN if (folder / name).exists()]
    if theirs and not is_report(folder / "comparison.json", "rows", "pairs"):
        raise UsageError(f"--output_dir '{folder}' holds {theirs[0]}, which is of no comparison; choose another folder")


def _finished(folders: list[Path]) -> list[Path]:
    finished = [folder for folder in folders if (folder / "results.json").is_file()]
    if not finished:
        raise UsageError(f"--runs {folders[0]} holds no finished run; a finished run has results.json")
    if others := [str(folder) for folder in folders if folder not in finished]:
        print(f"skipped, not finished runs: {', '.join(others)}")
    return finished


def _train(arguments: argparse.Namespace, training_flags: list[str], output: Path) -> tuple[list[Path], int]:
    """Train the runs that are not finished; returns the folders of all runs and the exit code of a failed one, or 0."""
    # All strategies of one seed before the next seed, so that an interrupted comparison is balanced.
    planned = [(strategy, seed) for seed in range(arguments.seeds) for strategy in dict.fromkeys(arguments.strategies)]
    folders = [output / f"{strategy}-seed{seed}" for strategy, seed in planned]
    make_folder(output)
    for number, ((strategy, seed), folder) in enumerate(zip(planned, folders, strict=True), start=1):
        command = _command(arguments, strategy, seed, folder, training_flags)
        if (folder / "results.json").is_file():
            _check_same_command(folder, command)
            print(f"{number}/{len(planned)} {folder.name}: already finished", flush=True)
            continue
        print(f"{number}/{len(planned)} {folder.name}: {as_typed(command)}", flush=True)
        log = output / f"{folder.name}.log"
        code = run_script(command + (["--restart"] if folder.exists() else []), log)
        if code:
            print(f"agritransfer compare: error: {last_line(log)} (full log: {log})", file=sys.stderr)
            return folders, code
        print(f"    {_outcome(folder)}", flush=True)
    return folders, 0


def _command(
    arguments: argparse.Namespace, strategy: str, seed: int, folder: Path, training_flags: list[str]
) -> list[str]:
    chosen = STRATEGIES[strategy]
    command = [chosen.script, "--dataset_name", arguments.dataset]
    if chosen.pretrained:
        command += ["--model_name_or_path", arguments.model_name_or_path]
    command += chosen.flags
    if arguments.shift_dataset_name is not None:
        command += ["--shift_dataset_name", arguments.shift_dataset_name]
    command += ["--num_train_epochs", str(arguments.budget_epochs), "--seed", str(seed), "--output_dir", str(folder)]
    return command + flags_for(strategy, training_flags)


def _check_same_command(folder: Path, command: list[str]) -> None:
    done = json.loads((folder / "results.json").read_text(encoding="utf-8"))["command"]
    if [word for word in shlex.split(done)[1:] if word != "--restart"] != command:
        raise UsageError(f"{folder} holds a run with other flags; choose another --output_dir or delete that folder")


def _outcome(folder: Path) -> str:
    from agritransfer.evaluation.results import interval_text, read_results

    results = read_results(folder)
    field = f", field {interval_text(results['shift'], 'macro_f1')}" if results["shift"] else ""
    seconds = results["training"]["seconds"]
    return f"macro F1: test {interval_text(results['test'], 'macro_f1')}{field}; {seconds:.0f} s"
