"""How does a comparison read? One table for the screen, one report in Markdown and HTML with its figures."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from agritransfer.evaluation.comparison import recommendation
from agritransfer.evaluation.plots import draw_compared_scores, draw_costs
from agritransfer.evaluation.results import interval_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #20302a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; } img { max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { text-align: left; padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid #d8e0db; white-space: nowrap; }
code { background: #eef3f0; padding: 0.1rem 0.25rem; font-size: 0.85em; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { color: #e6ede9; background: #17201c; } code { background: #26322c; } th, td { border-color: #3a4841; }
  img { background: #fff; border-radius: 4px; }
}
"""


def comparison_table(comparison: dict[str, Any]) -> str:
    """One line a strategy, for the screen: scores with their intervals, the gain over scratch, what it costs."""
    split = "shift" if comparison["shift"] else "test"
    headings = [
        "",
        "test macro F1 (95 %)",
        "gain over scratch (95 %)",
        "weights trained",
        "seconds",
        "memory",
        "publish",
    ]
    if split == "shift":
        headings.insert(2, "field macro F1 (95 %)")
        headings[3] = "field gain over scratch"
    gains = {pair["second"]: pair[split] for pair in comparison["pairs"] if pair["over_scratch"]}
    lines = [headings]
    for row in comparison["rows"]:
        cells = [row["name"], interval_text(row["test"], "macro_f1")]
        cells += [interval_text(row["shift"], "macro_f1")] if split == "shift" else []
        cells += [_gain_text(gains[row["name"]]) if row["name"] in gains else ""]
        cells += [f"{row['trainable_parameters']:,}", f"{row['seconds']:.0f}"]
        cells += [f"{row['peak_memory_bytes'] / 1e6:,.0f} MB", f"{row['bytes_to_publish'] / 1e6:.1f} MB"]
        lines.append(cells)
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    table = ["".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    seeds = sorted({len(row["runs"]) for row in comparison["rows"]})
    photos = " and ".join(f"{n} {name} photos" for name, n in _photos_of(comparison).items())
    return "\n".join([*table, f"{photos}; seeds: {' to '.join(map(str, seeds))}; publish: of LoRA, its adapter"])


def _photos_of(comparison: dict[str, Any]) -> dict[str, int]:
    return {{"test": "test", "shift": "field"}[split]: n for split, n in comparison["photos"].items()}


def _gain_text(found: dict[str, Any]) -> str:
    low, high = found["gain_ci95"]
    return f"{found['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"


def write_report(folder: Path, comparison: dict[str, Any]) -> None:
    """Write comparison.json, report.md, report.html (complete in itself) and the figures."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    title = f"{Path(comparison['dataset']['name']).name}, {comparison['photos']['test']} test photos"
    draw_compared_scores(figures / "scores.png", {row["name"]: row for row in comparison["rows"]}, title)
    draw_costs(figures / "costs.png", {row["name"]: _costs(row) for row in comparison["rows"]})
    text = report_text(comparison)
    (folder / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(_as_html(text, folder), encoding="utf-8")


def _costs(row: dict[str, Any]) -> dict[str, float]:
    return {
        "seconds of training": row["seconds"],
        "peak memory, MB": row["peak_memory_bytes"] / 1e6,
        "weights trained, M": row["trainable_parameters"] / 1e6,
        "size to publish, MB": row["bytes_to_publish"] / 1e6,
    }


def _as_html(text: str, folder: Path) -> str:
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for picture in sorted((folder / "figures").glob("*.png")):
        inline = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="figures/{picture.name}"', f'src="data:image/png;base64,{inline}"')
    title = html.escape(text.splitlines()[0].lstrip("# "))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}</body></html>\n"
    )


def report_text(comparison: dict[str, Any]) -> str:
    """The report as Markdown: what was compared, scores, gains, lab and field, forgetting, costs, which to use."""
    parts = [
        f"# Which strategy for {Path(comparison['dataset']['name']).name}?",
        _what_was_compared(comparison),
        "## Scores",
        _scores(comparison),
        "![Macro F1 of each strategy with its interval](figures/scores.png)",
        "## Who beats whom",
        _pairs(comparison),
    ]
    if comparison["shift"]:
        parts += ["## From lab to field, class by class", _class_drops(comparison)]
    parts += ["## What the backbone forgot", _forgetting(comparison)]
    parts += ["## What it costs", _cost_table(comparison), "![Costs of each strategy](figures/costs.png)"]
    parts += ["## Commands", _commands(comparison), "## Which to use here", recommendation(comparison)]
    return "\n\n".join(parts) + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    # A label may hold the sign that parts the columns.
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _what_was_compared(comparison: dict[str, Any]) -> str:
    # Shards of WebDataset do not tell what they hold.
    counts = {split: sum(of.values()) if of else "streamed" for split, of in comparison["dataset"]["counts"].items()}
    splits = comparison["splits"]
    leakage, broken = splits["leakage"], splits["broken"]
    official = splits["method"] == "official"
    cut = "the data's own splits" if official else f"{splits['method']} cut, seed {splits['seed']}"
    if leakage["found"] is None:
        cut += "; the train photos were streamed, and leaked ones not looked for"
    else:
        cut += f"; {leakage['found']} leaked photos found, {leakage['dropped']} dropped"
    cut += f"; {broken['skipped']} broken photos left out"
    unit = "groups of photos (copies of a photo, or what you gave)" if comparison["grouped"] else "photos"
    field = ""
    if comparison["shift"]:
        field = (
            f" Field: `{Path(comparison['shift']['name']).name}`, {comparison['shift']['n']} photos, never trained on."
        )
    bases = ", ".join(f"`{Path(name).name}`" for name in comparison["base_models"]) or "none"
    versions = ", ".join(f"{name} {comparison['environment'][name]}" for name in ("torch", "transformers", "peft"))
    return (
        f"Photos: {counts['train']} train, {counts['validation']} validation, {counts['test']} test ({cut})."
        f"{field} Labels: {len(comparison['dataset']['labels'])}. Backbone: {bases}. Every run saw the same split. "
        f"Intervals are 95 %, by a bootstrap over {unit} and over the seeds. "
        f"Device: {comparison['device']}; {versions}."
    )


def _scores(comparison: dict[str, Any]) -> str:
    headings = ["strategy", "seeds", "epochs", "test macro F1", "test accuracy", "answered"]
    field = ["field macro F1", "field accuracy", "field answered"] if comparison["shift"] else []
    rows = []
    for row in comparison["rows"]:
        cells = [row["name"], str(len(row["runs"])), f"{row['epochs']:g}"]
        for split in comparison["photos"]:
            scores = row[split]
            cells += [interval_text(scores, "macro_f1"), f"{scores['accuracy']:.3f}", f"{scores['coverage']:.0%}"]
        rows.append(cells)
    note = '"answered" is the share of photos that the model does not answer with "not sure".'
    return f"{markdown_table([*headings, *field], rows)}\n\n{note}"


def _pairs(comparison: dict[str, Any]) -> str:
    splits = list(comparison["photos"])
    headings = ["", *(h for s in splits for h in (f"gain in {_called(s)} macro F1", f"{_called(s)} p"))]
    rows = []
    for pair in comparison["pairs"]:
        cells = [f"{pair['second']} over {pair['first']}"]
        for split in splits:
            cells += [_gain_text(pair[split]), f"{pair[split]['p_value_adjusted']:.4f}"]
        rows.append(cells)
    note = (
        "Paired on the same photos. p: permutation test of the difference in accuracy, corrected for the number of "
        "pairs (Benjamini and Hochberg). A gain over scratch below zero is negative transfer."
    )
    return f"{markdown_table(headings, rows)}\n\n{note}"


def _called(split: str) -> str:
    return {"test": "test", "shift": "field"}[split]


def _class_drops(comparison: dict[str, Any]) -> str:
    rows = [
        [row["name"], drop["label"], f"{drop['test']:.3f}", f"{drop['shift']:.3f}", f"{-drop['drop']:+.3f}"]
        for row in comparison["rows"]
        for drop in row["class_drops"]
    ]
    return markdown_table(["strategy", "class, worst first", "test F1", "field F1", "change"], rows)


def _forgetting(comparison: dict[str, Any]) -> str:
    found = comparison.get("forgetting")
    if found is None:
        return "Not measured: `--source_dataset_name` names photos of the backbone's source task, or any other ones."
    rows = [[row["name"], interval_text(row, "macro_f1"), ""] for row in found["before"]]
    rows += [[row["name"], interval_text(row, "macro_f1"), _gain_text(row)] for row in found["after"]]
    return (
        f"A linear probe on frozen features tells `{Path(found['dataset']).name}` apart, photos that took no part in "
        f"the training here; {found['n']} test photos.\n\n"
        f"{markdown_table(['backbone', 'macro F1 of the probe', 'change'], rows)}\n\n"
        "Feature extraction leaves the backbone as it was."
    )


def _cost_table(comparison: dict[str, Any]) -> str:
    headings = ["strategy", "weights trained", "of", "seconds a run", "peak memory", "size to publish"]
    rows = [
        [
            row["name"],
            f"{row['trainable_parameters']:,}",
            f"{row['total_parameters']:,}",
            f"{row['seconds']:.0f}",
            f"{row['peak_memory_bytes'] / 1e6:,.0f} MB",
            f"{row['bytes_to_publish'] / 1e6:.1f} MB",
        ]
        for row in comparison["rows"]
    ]
    return (
        markdown_table(headings, rows)
        + "\n\nOf LoRA the adapter is published; the merged model is as large as the others."
    )


def _commands(comparison: dict[str, Any]) -> str:
    return "\n".join(f"- {row['name']}: `{row['command']}`" for row in comparison["rows"])
