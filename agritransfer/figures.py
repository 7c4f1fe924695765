"""What does that look like? Pictures of the scores, the training and the errors, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

# No screen is needed; this must stand before pyplot is loaded.
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

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
    }
)


def draw_confusion_matrix(path: Path, matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> None:
    """Rows are the truth, columns the answers; colours are shares of a row, numbers are photos."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.55 * len(labels)
    figure, axes = plt.subplots(figsize=(side + 0.8, side))
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="answer", ylabel="truth", title=title)
    # Above about 25 classes the numbers would be dust.
    if len(labels) <= 25:
        for row, column in np.ndindex(counts.shape):
            ink = "white" if shares[row, column] > 0.6 else (INK if counts[row, column] else "#b9c4bd")
            axes.text(column, row, counts[row, column], ha="center", va="center", color=ink)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _save(figure, path)


def draw_training_curves(path: Path, log_history: Sequence[dict[str, Any]], best_step: int) -> None:
    """Losses and validation scores over the epochs, with the epoch whose weights were kept."""
    scored = [entry for entry in log_history if "eval_loss" in entry]
    figure, (losses, scores) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    marker = "o" if len(scored) < 30 else None

    def draw(axes: plt.Axes, name: str, label: str, colour: str) -> None:
        entries = [entry for entry in log_history if name in entry]
        values = [entry[name] for entry in entries]
        axes.plot([entry["epoch"] for entry in entries], values, color=colour, label=label, marker=marker, ms=3)

    draw(losses, "loss", "training", SOFT)
    draw(losses, "eval_loss", "validation", ACCENT)
    draw(scores, "eval_accuracy", "accuracy", SOFT)
    draw(scores, "eval_macro_f1", "macro F1", ACCENT)
    for best in (entry["epoch"] for entry in scored if entry["step"] == best_step):
        for axes in (losses, scores):
            axes.axvline(best, color=INK, lw=0.8, ls=":", label="weights kept")
    losses.set(xlabel="epoch", title="Loss", ylim=(0, None))
    scores.set(xlabel="epoch", title="Validation score", ylim=(None, 1.01))
    for axes in (losses, scores):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        axes.grid(alpha=0.2)
    _save(figure, path)


def draw_reliability(path: Path, bins_of: Mapping[str, Sequence[tuple[float, float, int]]]) -> None:
    """How often answers of a confidence are right; bins of (mean confidence, accuracy, photos), the area is photos."""
    figure, grid = plt.subplots(
        1, len(bins_of), figsize=(4.2 * len(bins_of), 4), sharey=True, squeeze=False, constrained_layout=True
    )
    for axes, (title, bins) in zip(grid.flat, bins_of.items(), strict=True):
        sure, right, photos = (np.array(column) for column in zip(*bins, strict=True))
        axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
        axes.vlines(sure, np.minimum(sure, right), np.maximum(sure, right), color=SOFT, lw=1.5, alpha=0.6)
        axes.scatter(sure, right, s=20 + 280 * photos / photos.sum(), color=ACCENT, alpha=0.85, zorder=3)
        axes.set(title=title, xlabel="confidence", xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
        axes.grid(alpha=0.2)
    grid[0, 0].set_ylabel("share of right answers")
    _save(figure, path)


def draw_errors(path: Path, errors: Sequence[tuple[Image.Image, str, str, float]], title: str) -> None:
    """A gallery of (photo, truth, answer, confidence), at most 12, in the order given."""
    errors = errors[:12]
    columns = min(4, max(1, len(errors)))
    rows = max(1, -(-len(errors) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(2.5 * columns + 0.4, 2.9 * rows + 0.5), squeeze=False)
    figure.suptitle(title)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (photo, truth, answer, confidence) in zip(grid.flat, errors, strict=False):
        axes.imshow(photo)
        axes.set_anchor("NW")
        axes.set_title(f"answer: {answer} ({confidence:.0%})", color=SOFT, fontsize=9, pad=16, loc="left")
        axes.text(0, 1.02, f"truth: {truth}", transform=axes.transAxes, color=ACCENT, fontsize=9, va="bottom")
    if not errors:
        grid[0, 0].text(0.5, 0.5, "no errors", ha="center", va="center")
    figure.tight_layout()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
