"""Rank pretrained backbones on your photos before any training: LogME, nearest neighbors and a linear probe.

    agritransfer rank photos --models facebook/dinov2-small microsoft/resnet-50
    agritransfer rank photos --models facebook/dinov2-small --image_size 112 224 --resize_mode processor squash

The backbones stay frozen. The probe is fitted on the training photos and scored on the validation
photos; the test photos are not used. Every backbone is tried with every size and resize mode. With
--runs, the ranking is compared with the test scores of finished runs that started from these
backbones.
"""

import argparse
import itertools
import json
import shlex
from pathlib import Path
from typing import get_args

from agritransfer.arguments import ResizeMode
from agritransfer.cli.dataset_flags import SOURCE_FLAGS, SPLIT_FLAGS, add_dataset_flags, load_options
from agritransfer.wording import counted

SCORES = {"probe_macro_f1": "linear probe", "knn_accuracy": "neighbors", "logme": "LogME"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_dataset_flags(parser, *SOURCE_FLAGS, *SPLIT_FLAGS, "max_train_samples")
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="Hub model IDs or folders")
    parser.add_argument(
        "--image_size", type=int, nargs="+", metavar="N", help="sides of the input in pixels (default: the model's own)"
    )
    parser.add_argument(
        "--resize_mode",
        nargs="+",
        choices=get_args(ResizeMode),
        default=["processor"],
        metavar="MODE",
        help="how photos become squares, as in training: processor, squash, letterbox, crop (default: processor)",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="photos per forward pass")
    parser.add_argument(
        "--runs", nargs="+", type=Path, default=[], metavar="RUN", help="finished runs to compare the ranking with"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the ranking as JSON; an earlier ranking is replaced"
    )


def run(arguments: argparse.Namespace) -> int:
    """Rank the backbones and print the table; returns 0."""
    from agritransfer.cli.outputs import check_report
    from agritransfer.data.dataset import load_splits
    from agritransfer.errors import UsageError
    from agritransfer.evaluation.backbone_ranking import rank_backbones

    sizes = arguments.image_size or [None]
    inputs = list(dict.fromkeys(itertools.product(arguments.models, sizes, arguments.resize_mode)))
    if len(inputs) < 2:
        raise UsageError(
            "there is nothing to compare; give two or more different --models, or several of --image_size or "
            "--resize_mode"
        )
    if arguments.runs and len({given[1:] for given in inputs}) > 1:
        raise UsageError("--runs compares backbones; give one --image_size and one --resize_mode")
    if arguments.output is not None:
        check_report(arguments.output, *SCORES)
    splits = load_splits(arguments.dataset, **load_options(arguments, *SOURCE_FLAGS, *SPLIT_FLAGS, "max_train_samples"))
    trained = _scores_after_training(arguments.runs, splits)
    rows = rank_backbones(
        inputs,
        splits,
        arguments.batch_size,
        report=lambda row: print(f"{row['model']}, {_input(row)}: scored in {row['seconds']:.0f} s", flush=True),
    )
    for row in rows:
        row["test_macro_f1"] = trained.get(_last_part(row["model"]))
    print(_table(rows, len(splits.of("train")), len(splits.of("validation"))))
    print(_best_flags(rows[0]))
    if arguments.runs:
        print(_agreement(rows))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def _last_part(name: str) -> str:
    return Path(name).name


def _input(row: dict) -> str:
    return f"{row['image_size']} px, {row['resize_mode']}"


def _best_flags(row: dict) -> str:
    """The best row as the flags of a training command."""
    flags = ["--model_name_or_path", row["model"], "--image_size", str(row["image_size"])]
    return f"best: {shlex.join([*flags, '--resize_mode', row['resize_mode']])}"


def _scores_after_training(runs: list[Path], splits) -> dict[str, float]:
    """The mean test macro F1 of the runs of each backbone."""
    import numpy as np

    from agritransfer.errors import DataError, UsageError
    from agritransfer.evaluation.results import read_results

    scores: dict[str, list[float]] = {}
    for run_folder in runs:
        if not (run_folder / "results.json").is_file():
            raise UsageError(f"'{run_folder}' is not a finished run; remove it from --runs")
        results = read_results(run_folder)
        if results["dataset"]["fingerprint"] != splits.fingerprint:
            raise DataError(f"'{run_folder}' was not trained on the photos of '{splits.name}'; remove it from --runs")
        if results["base_model"] is not None:
            scores.setdefault(_last_part(results["base_model"]["name"]), []).append(results["test"]["macro_f1"])
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _table(rows: list[dict], train: int, validation: int) -> str:
    width = max(len("backbone"), *(len(_last_part(row["model"])) for row in rows)) + 2
    titles = (
        f"{'backbone':<{width}}{'input':<18}{'linear probe':>13}{'neighbors':>12}{'LogME':>9}{'photos/s':>10}"
        f"{'weights':>9}{'MB':>7}"
    )
    lines = ["", titles + ("   after training" if any(row["test_macro_f1"] is not None for row in rows) else "")]
    for row in rows:
        trained = "" if row["test_macro_f1"] is None else f"{row['test_macro_f1']:>17.3f}"
        lines.append(
            f"{_last_part(row['model']):<{width}}{_input(row):<18}"
            f"{row['probe_macro_f1']:>13.3f}{row['knn_accuracy']:>12.3f}"
            f"{row['logme']:>9.3f}{row['photos_per_second']:>10.1f}{row['parameters'] / 1e6:>7.1f} M"
            f"{row['memory_bytes'] / 1e6:>7.0f}{trained}"
        )
    seconds = sum(row["seconds"] for row in rows)
    lines.append(
        f"linear probe (macro F1) and neighbors (accuracy): fitted on {counted(train, 'training photo')}, "
        f"scored on {counted(validation, 'validation photo')}; {seconds:.0f} s in total"
    )
    return "\n".join(lines)


def _agreement(rows: list[dict]) -> str:
    from agritransfer.errors import UsageError
    from agritransfer.evaluation.backbone_ranking import order_agreement

    known = [row for row in rows if row["test_macro_f1"] is not None]
    if len(known) < 3:
        raise UsageError(
            f"--runs holds runs of {len(known)} of these backbones; a comparison of rankings needs at least 3"
        )
    lines = [f"agreement with the ranking after training, {len(known)} backbones, Kendall's tau (95% interval):"]
    for score, title in SCORES.items():
        tau, (low, high) = order_agreement([row[score] for row in known], [row["test_macro_f1"] for row in known])
        lines.append(f"  {title:<13}{tau:+.2f} [{low:+.2f}, {high:+.2f}]")
    return "\n".join(lines)
