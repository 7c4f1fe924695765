"""Which rule chooses best among strategies by their validation scores? For `agritransfer train`.

    python -m benchmarks.choice_rules runs/*/

The runs are those of feature extraction, LoRA and fine-tuning on the same photos, split and seed; sets with fewer than
three are passed over. Each rule chooses one of the three by its validation scores alone. Printed is what it loses on
the test and on the field photos: the macro F1, in points, of the best of the three less that of the chosen one.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agritransfer.evaluation.calibration import calibrated_probabilities
from agritransfer.evaluation.choice import PREFERENCE, choose, standard_error
from agritransfer.evaluation.predictions import read_predictions
from agritransfer.evaluation.report import markdown_table
from agritransfer.evaluation.results import read_results

Row = dict[str, Any]


def near(rows: Sequence[Row]) -> list[Row]:
    """Those within one standard error of the best."""
    highest = max(row["macro_f1"] for row in rows)
    return [row for row in rows if row["macro_f1"] >= highest - standard_error(rows)]


RULES: dict[str, Callable[[Sequence[Row]], Row]] = {
    "highest macro F1": lambda rows: max(rows, key=lambda row: (row["macro_f1"], -row["log_loss"])),
    "lowest log loss": lambda rows: min(rows, key=lambda row: row["log_loss"]),
    "near ties: lowest log loss": lambda rows: min(near(rows), key=lambda row: row["log_loss"]),
    "near ties: fewest trained weights": lambda rows: min(near(rows), key=lambda row: row["trainable_parameters"]),
    f"near ties: {', '.join(PREFERENCE)}": lambda rows: next(row for row in rows if row["strategy"] == choose(rows)[0]),
    **{
        f"always {name}": lambda rows, name=name: next(row for row in rows if row["strategy"] == name)
        for name in PREFERENCE
    },
}


def main() -> None:
    """Print the table of the rules."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", nargs="+", type=Path)
    groups = read_groups([folder for folder in flags.parse_args().runs if (folder / "results.json").is_file()])
    fields = [rows for rows in groups if rows[0]["shift"] is not None]
    print(f"{len(groups)} sets of runs, {len(fields)} with field photos\n")
    headings = ["rule", "lost on the test (most)", "lost in the field (most)", *PREFERENCE]
    print(markdown_table(headings, [[name, *cells(rule, groups, fields)] for name, rule in RULES.items()]))


def cells(rule: Callable[[Sequence[Row]], Row], groups: list[list[Row]], fields: list[list[Row]]) -> list[str]:
    """The row of a rule: what it loses, and how often it chooses each strategy."""
    lost = [losses(rule, of, split) for of, split in ((groups, "test"), (fields, "shift"))]
    chosen = [rule(rows)["strategy"] for rows in groups]
    return [
        *(f"{np.mean(of):.2f} ({max(of):.1f})" if of else "" for of in lost),
        *(str(chosen.count(name)) for name in PREFERENCE),
    ]


def losses(rule: Callable[[Sequence[Row]], Row], groups: list[list[Row]], split: str) -> list[float]:
    """The points that a rule loses in each set of runs."""
    return [100 * (max(row[split] for row in rows) - rule(rows)[split]) for rows in groups]


def read_groups(folders: Sequence[Path]) -> list[list[Row]]:
    """The candidates of each set of runs: the same photos, split, seed and base model."""
    groups = defaultdict(list)
    for folder in folders:
        results = read_results(folder)
        if results["strategy"] not in PREFERENCE:
            continue
        words = results["command"].split()
        seed = words[words.index("--seed") + 1] if "--seed" in words else None
        split = (results["splits"]["seed"], str(results["dataset"]["counts"]))
        groups[(results["dataset"]["fingerprint"], split, seed)].append(row_of(folder, results))
    return [rows for rows in groups.values() if sorted(row["strategy"] for row in rows) == sorted(PREFERENCE)]


def row_of(folder: Path, results: dict[str, Any]) -> Row:
    """A candidate as in `choice.json`, with its macro F1 on the test and in the field."""
    found = read_predictions(folder / "predictions.csv", "validation", results["dataset"]["labels"])
    calibrated = calibrated_probabilities(found.logits, results["calibration"]["temperature"])
    shift = results["shift"]
    return {
        "strategy": results["strategy"],
        "state": "trained",
        **{name: results["validation"][name] for name in ("macro_f1", "macro_f1_ci95")},
        "log_loss": float(-np.log(calibrated[np.arange(len(found.truth)), found.truth]).mean()),
        "trainable_parameters": results["training"]["trainable_parameters"],
        "test": results["test"]["macro_f1"],
        "shift": shift["macro_f1"] if shift else None,
    }


if __name__ == "__main__":
    main()
