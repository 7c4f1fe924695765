"""Rank pretrained networks on your photos before any training: LogME, nearest neighbours and a linear probe.

    python -m agritransfer rank photos --models facebook/dinov2-small microsoft/resnet-50 timm/vit_tiny_patch16_224

The networks stay frozen. The probe learns from the train photos and is scored on the validation photos; the test stays
unseen. With --runs, finished runs of these networks, it says how well its order agrees with theirs.
"""

import argparse
import json
from pathlib import Path

SCORES = {"probe_macro_f1": "linear probe", "knn_accuracy": "neighbours", "logme": "LogME"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("dataset", help="Hub id or folder, as --dataset_name of the training scripts")
    parser.add_argument("--models", nargs="+", required=True, help="Hub ids or folders of pretrained networks")
    parser.add_argument("--image_size", type=int, help="side of every network's input in pixels")
    parser.add_argument("--split_seed", type=int, default=0, help="seed of the cut, as in the training scripts")
    parser.add_argument("--max_train_samples", type=int, help="let the probe learn from this many photos at most")
    parser.add_argument("--batch_size", type=int, default=64, help="photos of one forward pass")
    parser.add_argument(
        "--runs", nargs="+", type=Path, default=[], help="finished runs of these networks to agree with"
    )
    parser.add_argument("--output", type=Path, help="where to write the rows as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Rank, print the table; returns 0."""
    from agritransfer.data.dataset import load_splits
    from agritransfer.errors import UsageError
    from agritransfer.evaluation.backbone_ranking import rank_backbones

    if len(set(arguments.models)) < 2:
        raise UsageError("--models needs at least two networks to rank")
    if arguments.output is not None and not arguments.output.parent.is_dir():
        raise UsageError(f"there is no folder '{arguments.output.parent}' for --output; make it first")
    splits = load_splits(
        arguments.dataset, split_seed=arguments.split_seed, max_train_samples=arguments.max_train_samples
    )
    trained = _scores_after_training(arguments.runs, splits)
    rows = rank_backbones(
        list(dict.fromkeys(arguments.models)),
        splits,
        arguments.image_size,
        arguments.batch_size,
        report=lambda row: print(f"{row['model']}: looked at in {row['seconds']:.0f} s", flush=True),
    )
    for row in rows:
        row["test_macro_f1"] = trained.get(_last_part(row["model"]))
    print(_table(rows, len(splits.of("train")), len(splits.of("validation"))))
    if arguments.runs:
        print(_agreement(rows))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def _last_part(name: str) -> str:
    return Path(name).name


def _scores_after_training(runs: list[Path], splits) -> dict[str, float]:
    """The mean test macro F1 of the runs of each network."""
    import numpy as np

    from agritransfer.errors import DataError, UsageError
    from agritransfer.evaluation.results import read_results

    scores: dict[str, list[float]] = {}
    for run_folder in runs:
        if not (run_folder / "results.json").is_file():
            raise UsageError(f"'{run_folder}' is no finished run; leave it out of --runs")
        results = read_results(run_folder)
        if results["dataset"]["fingerprint"] != splits.fingerprint:
            raise DataError(f"'{run_folder}' was trained on other photos than '{splits.name}'; leave it out of --runs")
        if results["base_model"] is not None:
            scores.setdefault(_last_part(results["base_model"]["name"]), []).append(results["test"]["macro_f1"])
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _table(rows: list[dict], train: int, validation: int) -> str:
    width = max(len(_last_part(row["model"])) for row in rows) + 2
    titles = (
        f"{'network':<{width}}{'linear probe':>13}{'neighbours':>12}{'LogME':>9}{'photos/s':>10}{'weights':>9}{'MB':>7}"
    )
    lines = ["", titles + ("   after training" if any(row["test_macro_f1"] is not None for row in rows) else "")]
    for row in rows:
        trained = "" if row["test_macro_f1"] is None else f"{row['test_macro_f1']:>17.3f}"
        lines.append(
            f"{_last_part(row['model']):<{width}}{row['probe_macro_f1']:>13.3f}{row['knn_accuracy']:>12.3f}"
            f"{row['logme']:>9.3f}{row['photos_per_second']:>10.1f}{row['parameters'] / 1e6:>7.1f} M"
            f"{row['memory_bytes'] / 1e6:>7.0f}{trained}"
        )
    seconds = sum(row["seconds"] for row in rows)
    lines.append(
        f"probe (macro F1) and neighbours (accuracy) on {validation} validation photos, "
        f"learned from {train} train photos; {seconds:.0f} s in all"
    )
    return "\n".join(lines)


def _agreement(rows: list[dict]) -> str:
    from agritransfer.errors import UsageError
    from agritransfer.evaluation.backbone_ranking import order_agreement

    known = [row for row in rows if row["test_macro_f1"] is not None]
    if len(known) < 3:
        raise UsageError(
            f"--runs holds runs of {len(known)} of these networks; an order to agree with needs at least 3"
        )
    lines = [f"agreement with the order after training, {len(known)} networks, Kendall's tau (95 %):"]
    for score, title in SCORES.items():
        tau, (low, high) = order_agreement([row[score] for row in known], [row["test_macro_f1"] for row in known])
        lines.append(f"  {title:<13}{tau:+.2f} [{low:+.2f}, {high:+.2f}]")
    return "\n".join(lines)
