"""How much does each strategy lose from the lab to the field? One figure from the results of finished runs.

    python -m benchmarks.lab_and_field runs/compare-cardamom_lab/*-seed? --output docs/images/lab_and_field.png

Reads only the results.json of each run. A dot is the mean macro F1 over the seeds, a tick is one seed, and a bar is the
95% interval. All runs must use the same photos; each strategy may have several seeds.
"""

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

# The order of the rows, and the names of the strategies in the course.
STRATEGIES = {"scratch": "From scratch", "head": "Feature extraction", "finetune": "Fine-tuning", "lora": "LoRA"}
LAB, FIELD, INK, MUTED = "#2f7d4f", "#c0562f", "#20302a", "#66756d"


@dataclass(frozen=True)
class Score:
    """The macro F1 of one strategy on one split: its mean over the seeds, a 95% interval, and every seed."""

    mean: float
    low: float
    high: float
    seeds: list[float]


def read_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The results of finished runs that were scored on the same lab and field photos; raises `ValueError` otherwise."""
    runs = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if run["shift"] is None:
            raise ValueError(f"{folder} has no field scores; train it with --shift_dataset_name")
        if _photos(run) != _photos(runs[0]):
            raise ValueError(f"{folder} was scored on other photos than {folders[0]}")
    return runs


def _photos(run: dict[str, Any]) -> tuple:
    return run["dataset"]["fingerprint"], run["test"]["n"], run["shift"]["name"], run["shift"]["n"]


def mean_score(runs: Sequence[dict[str, Any]], split: str) -> Score:
    """Mean over the seeds, with an interval over photos and seeds.

    All seeds score the same photos, so the interval over photos is the mean of the intervals of the runs. Student's
    interval of the mean over the seeds is added to it in quadrature.
    """
    seeds = [run[split]["macro_f1"] for run in runs]
    mean = statistics.mean(seeds)
    ends = np.mean([run[split]["macro_f1_ci95"] for run in runs], axis=0)
    several = len(seeds) > 1
    of_seeds = t.ppf(0.975, len(seeds) - 1) * statistics.stdev(seeds) / len(seeds) ** 0.5 if several else 0.0
    low, high = np.hypot(ends - mean, of_seeds)
    return Score(mean, max(0.0, mean - float(low)), min(1.0, mean + float(high)), seeds)


def describe(runs: Sequence[dict[str, Any]]) -> str:
    """What was compared, in one or two lines: photos, backbone, image size, epochs, seeds."""
    first = runs[0]
    lab, field = (Path(name).name for name in (first["dataset"]["name"], first["shift"]["name"]))
    seeds = sorted({_flag(run, "seed", "0") for run in runs}, key=int)
    backbones = sorted({Path(run["base_model"]["name"]).name for run in runs if run["base_model"]})
    sizes = sorted({size for run in runs if (size := _flag(run, "image_size", ""))})
    photos = f"{first['test']['n']} test photos of {lab} and {first['shift']['n']} photos of {field}"
    parts = [", ".join(backbones) + (f" at {sizes[0]} px" if len(sizes) == 1 else "")]
    if size := next((_flag(run, "model_size", "tiny") for run in runs if run["strategy"] == "scratch"), ""):
        kind = next(_flag(run, "model_type", "vit") for run in runs if run["strategy"] == "scratch")
        parts.append(f"from scratch: {kind.replace('vit', 'ViT')} {size}")
    # A linear probe has no epochs.
    if len(epochs := {run["training"]["epochs"] for run in runs if run["strategy"] != "head"}) == 1:
        parts.append(f"{epochs.pop():g} epochs")
    parts.append(f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"one seed ({seeds[0]})")
    return f"{photos}\n{'; '.join(parts)}"


def _flag(run: dict[str, Any], name: str, default: str) -> str:
    found = re.search(rf"--{name}[ =](\S+)", run["command"])
    return found[1] if found else default


def draw(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Draw a row for each strategy: the lab score and the field score with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {name: [run for run in runs if run["strategy"] == name] for name in STRATEGIES}
    rows = {name: of for name, of in rows.items() if of}
    figure, axes = plt.subplots(figsize=(8.4, 1.75 + 0.72 * len(rows)))
    for place, of in enumerate(rows.values()):
        lab, field = mean_score(of, "test"), mean_score(of, "shift")
        for score, color, side in ((lab, LAB, -0.16), (field, FIELD, 0.16)):
            axes.hlines(place + side, score.low, score.high, color=color, lw=7, alpha=0.25)
            if len(score.seeds) > 1:
                axes.plot(
                    score.seeds, [place + side] * len(score.seeds), "|", color=color, ms=9, mew=1.2, clip_on=False
                )
            axes.plot(score.mean, place + side, "o", color=color, ms=8, zorder=3, clip_on=False)
            text = f"{score.mean:.2f}  [{score.low:.2f}, {score.high:.2f}]"
            axes.text(1.03, place + side, text, color=color, va="center", fontsize=10)
    for name, color, side in (("lab", LAB, -0.16), ("field", FIELD, 0.16)):
        score = mean_score(next(iter(rows.values())), "test" if name == "lab" else "shift")
        axes.text(score.mean, 2.45 * side, name, color=color, ha="center", va="center", fontsize=10, fontweight="bold")
    axes.set_yticks(range(len(rows)), [STRATEGIES[name] for name in rows], fontsize=11, color=INK)
    axes.set(xlim=(0, 1.0), ylim=(len(rows) - 0.45, -0.6))
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    several = len({_flag(run, "seed", "0") for run in runs}) > 1
    shown = "mean, 95% interval, one tick per seed" if several else "score and 95% interval"
    axes.set_xlabel(f"macro F1: {shown}", color=INK, fontsize=10)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.tick_params(axis="x", colors=MUTED, labelsize=9)
    axes.grid(axis="x", color=INK, alpha=0.12, lw=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    top = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.19, right=0.79, top=1 - 0.95 / top, bottom=0.55 / top)
    figure.text(0.02, 1 - 0.1 / top, "From the lab to the field", fontsize=14, fontweight="bold", color=INK, va="top")
    figure.text(0.02, 1 - 0.42 / top, describe(runs), fontsize=9.5, color=MUTED, va="top", linespacing=1.35)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


def main() -> None:
    """Read the runs, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs with field scores")
    parser.add_argument("--output", type=Path, default=Path("docs/images/lab_and_field.png"), help="path of the figure")
    arguments = parser.parse_args()
    try:
        draw(arguments.output, read_runs(arguments.runs))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{len(arguments.runs)} runs drawn to {arguments.output}")


if __name__ == "__main__":
    main()
