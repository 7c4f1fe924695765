"""How are scores, training curves and errors drawn?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

# This backend needs no screen.
matplotlib.use("Agg")


INK, ACCENT, SOFT = "#20302a", "#2f7d4f", "#c0562f"


plt.rcParams.update(
    {
        "font.size": 10,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": 150,
        "savefig.bbox": "tight",
        # A dollar sign in the name of a class or a file is no formula.
        "text.parse_math": False,
    }
)


def draw_confusion_matrix(path: Path, matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> None:
    """Rows are true labels, columns predictions; colors show the share of the row, numbers count photos."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.55 * len(labels)
    figure, axes = plt.subplots(figsize=(side + 0.8, side))
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    # With more than about 25 classes the numbers would be illegible.
    if len(labels) <= 25:
        for row, column in np.ndindex(counts.shape):
            ink = "white" if shares[row, column] > 0.6 else (INK if counts[row, column] else "#b9c4bd")
            axes.text(column, row, counts[row, column], ha="center", va="center", color=ink)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _save(figure, path)


def draw_training_curves(path: Path, log_history: Sequence[dict[str, Any]], best_step: int) -> None:
    """Losses and validation scores by epoch, or by penalty for a fitted head; the kept weights are marked."""
    along = "penalty" if any("penalty" in entry for entry in log_history) else "epoch"
    log_history = [entry for entry in log_history if along in entry]
    scored = [entry for entry in log_history if "eval_loss" in entry]
    figure, (losses, scores) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    marker = "o" if len(scored) < 30 else None

    def draw(axes: plt.Axes, name: str, label: str, color: str) -> None:
        entries = [entry for entry in log_history if name in entry]
        values = [entry[name] for entry in entries]
        axes.plot([entry[along] for entry in entries], values, color=color, label=label, marker=marker, ms=3)

    draw(losses, "loss", "training", SOFT)
    draw(losses, "eval_loss", "validation", ACCENT)
    draw(scores, "eval_accuracy", "accuracy", SOFT)
    draw(scores, "eval_macro_f1", "macro F1", ACCENT)
    for best in (entry[along] for entry in scored if entry["step"] == best_step):
        for axes in (losses, scores):
            axes.axvline(best, color=INK, lw=0.8, ls=":", label="weights kept")
    losses.set(title="Loss", ylim=(0, None))
    scores.set(title="Validation score", ylim=(None, 1.01))
    for axes in (losses, scores):
        if along == "penalty":
            axes.set(xlabel="C (a weaker penalty to the right)", xscale="log")
            # The default labels are formulas, which are off so that a class name may hold a dollar sign.
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        else:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        axes.grid(alpha=0.2)
    _save(figure, path)


def draw_reliability(path: Path, bins_of: Mapping[str, Sequence[tuple[float, float, int]]]) -> None:
    """Accuracy by confidence; bins of (mean confidence, accuracy, photos), drawn with an area that counts photos."""
    figure, grid = plt.subplots(
        1, len(bins_of), figsize=(4.2 * len(bins_of), 4), sharey=True, squeeze=False, constrained_layout=True
    )
    for axes, (title, bins) in zip(grid.flat, bins_of.items(), strict=True):
        sure, right, photos = (np.array(column) for column in zip(*bins, strict=True))
        axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
        axes.vlines(sure, np.minimum(sure, right), np.maximum(sure, right), color=SOFT, lw=1.5, alpha=0.6)
        axes.scatter(sure, right, s=20 + 280 * photos / photos.sum(), color=ACCENT, alpha=0.85, zorder=3, clip_on=False)
        axes.set(title=title, xlabel="confidence", xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
        axes.grid(alpha=0.2)
    grid[0, 0].set_ylabel("accuracy")
    _save(figure, path)


def draw_gallery(path: Path, pictures: Sequence[tuple[Image.Image, str, str]], title: str) -> None:
    """Photos in the given order, each below the questioned label in red and the suggested one in green."""
    columns = min(4, max(1, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(2.5 * columns + 0.4, 2.9 * rows + 0.5), squeeze=False)
    figure.suptitle(title)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (photo, doubted, against) in zip(grid.flat, pictures, strict=False):
        axes.imshow(photo)
        axes.set_anchor("NW")
        axes.set_title(doubted, color=SOFT, fontsize=9, pad=16, loc="left")
        axes.text(0, 1.02, against, transform=axes.transAxes, color=ACCENT, fontsize=9, va="bottom")
    if not pictures:
        grid[0, 0].text(0.5, 0.5, "nothing to show", ha="center", va="center")
    figure.tight_layout()
    _save(figure, path)


def draw_compared_scores(path: Path, scores_of: Mapping[str, Mapping[str, dict[str, Any]]], title: str) -> None:
    """Macro F1 with its 95% interval and a tick per seed; for each name, scores of `test` and optionally `shift`."""
    figure, axes = plt.subplots(figsize=(7.5, 1.4 + 0.62 * len(scores_of)), constrained_layout=True)
    for place, scores in enumerate(scores_of.values()):
        for split, color, side in (("test", ACCENT, -0.14), ("shift", SOFT, 0.14)):
            if split in scores:
                low, high = scores[split]["macro_f1_ci95"]
                axes.hlines(place + side, low, high, color=color, lw=2.5, alpha=0.45)
                seeds = scores[split]["macro_f1_of_seeds"]
                axes.plot(seeds, [place + side] * len(seeds), "|", color=color, ms=9)
                label = {"test": "test", "shift": "field"}[split] if place == 0 else None
                axes.plot(scores[split]["macro_f1"], place + side, "o", color=color, ms=6, label=label)
    axes.set_yticks(range(len(scores_of)), list(scores_of))
    axes.invert_yaxis()
    axes.set(xlabel="macro F1: mean, 95% interval, one tick per seed", title=title, xlim=(None, 1.01))
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def draw_costs(path: Path, costs_of: Mapping[str, Mapping[str, float]]) -> None:
    """One panel per kind of cost, one bar per name; all names have the same kinds."""
    kinds = list(next(iter(costs_of.values())))
    figure, panels = plt.subplots(
        1,
        len(kinds),
        figsize=(2.6 * len(kinds) + 1.4, 1.1 + 0.42 * len(costs_of)),
        sharey=True,
        constrained_layout=True,
    )
    for axes, kind in zip(panels, kinds, strict=True):
        values = [costs[kind] for costs in costs_of.values()]
        bars = axes.barh(list(costs_of), values, color=ACCENT, alpha=0.8, height=0.6)
        numbers = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
        axes.bar_label(bars, numbers, padding=3, fontsize=9)
        axes.set_title(kind, fontsize=10)
        axes.set_xlim(0, 1.3 * max(values))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    panels[0].invert_yaxis()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
