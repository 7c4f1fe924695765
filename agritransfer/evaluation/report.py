"""How is a comparison reported? A table on the screen; a report in Markdown and HTML with figures."""

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from agritransfer.evaluation.plots import draw_compared_scores, draw_costs
from agritransfer.evaluation.recommendation import p_text, recommendation, seed_note
from agritransfer.evaluation.results import interval_text
from agritransfer.wording import as_code, counted, escaped, in_markdown, listed

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
    """One line per strategy, for the screen: scores with intervals, gain over scratch, costs."""
    split = "shift" if comparison["shift"] else "test"
    headings = [
        "",
        "validation",
        "test macro F1 (95% CI)",
        "gain over scratch (95% CI)",
        "trained weights",
        "seconds",
        "memory",
        "size",
    ]
    if split == "shift":
        headings.insert(3, "field macro F1 (95% CI)")
        headings[4] = "field gain over scratch"
    gains = {pair["second"]: pair[split] for pair in comparison["pairs"] if pair["over_scratch"]}
    lines = [headings]
    for row in comparison["rows"]:
        cells = [row["name"], f"{row['validation']['macro_f1']:.3f}", interval_text(row["test"], "macro_f1")]
        cells += [interval_text(row["shift"], "macro_f1")] if split == "shift" else []
        cells += [_gain_text(gains[row["name"]]) if row["name"] in gains else ""]
        cells += [f"{row['trainable_parameters']:,}", f"{row['seconds']:.0f}"]
        cells += [f"{row['peak_memory_bytes'] / 1e6:,.0f} MB", f"{row['bytes_to_publish'] / 1e6:.1f} MB"]
        lines.append(cells)
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    table = ["".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    seeds = sorted({len(row["runs"]) for row in comparison["rows"]})
    photos = listed([counted(n, f"{name} photo") for name, n in _photos_of(comparison).items()])
    seeds_of_each = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    note = (
        f"{photos}; {seeds_of_each} per strategy; validation: macro F1, by which the strategy is chosen; size: of the "
        "published weights (LoRA: its adapter)"
    )
    return "\n".join([*table, note])


def _photos_of(comparison: dict[str, Any]) -> dict[str, int]:
    return {_called(split): n for split, n in comparison["photos"].items()}


def _gain_text(found: dict[str, Any]) -> str:
    low, high = found["gain_ci95"]
    return f"{found['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"


def write_report(folder: Path, comparison: dict[str, Any]) -> None:
    """Write comparison.json, report.md, report.html (self-contained) and the figures."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    # First, since by this file the next comparison knows the others as its own.
    (folder / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    title = f"{_last_part(comparison['dataset']['name'])}, {comparison['photos']['test']} test photos"
    draw_compared_scores(figures / "scores.png", {row["name"]: row for row in comparison["rows"]}, title)
    draw_costs(figures / "costs.png", {row["name"]: _costs(row) for row in comparison["rows"]})
    text = report_text(comparison)
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(_as_html(_title(comparison), text, folder), encoding="utf-8")


def _costs(row: dict[str, Any]) -> dict[str, float]:
    return {
        "training time, s": row["seconds"],
        "peak memory, MB": row["peak_memory_bytes"] / 1e6,
        "trained weights, M": row["trainable_parameters"] / 1e6,
        "published size, MB": row["bytes_to_publish"] / 1e6,
    }


def _title(comparison: dict[str, Any]) -> str:
    return f"Which strategy for {_last_part(comparison['dataset']['name'])}?"


def _last_part(name: str) -> str:
    return escaped(Path(name).name)


def _as_html(title: str, text: str, folder: Path) -> str:
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for picture in sorted((folder / "figures").glob("*.png")):
        inline = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="figures/{picture.name}"', f'src="data:image/png;base64,{inline}"')
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}</body></html>\n"
    )


def report_text(comparison: dict[str, Any]) -> str:
    """The report as Markdown: recommendation, setup, scores, differences, lab to field, forgetting, costs, commands."""
    parts = [
        f"# {in_markdown(_title(comparison))}",
        recommendation(comparison),
        "## Setup",
        _what_was_compared(comparison),
        "## Scores",
        _scores(comparison),
        "![Macro F1 of each strategy with its 95% interval](figures/scores.png)",
        "## Pairwise differences",
        _pairs(comparison),
    ]
    if comparison["shift"]:
        parts += ["## From lab to field, by class", _class_drops(comparison)]
    parts += ["## Forgetting", _forgetting(comparison)]
    parts += ["## Costs", _cost_table(comparison), "![Costs of each strategy](figures/costs.png)"]
    parts += ["## Commands", _commands(comparison)]
    return "\n\n".join(parts) + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    # A name may contain the column separator, unless it has been escaped before, or a line break.
    return " ".join(re.sub(r"(?<!\\)\|", r"\|", text).split())


def _what_was_compared(comparison: dict[str, Any]) -> str:
    # WebDataset shards do not list their labels.
    counts = {split: sum(of.values()) if of else "streamed" for split, of in comparison["dataset"]["counts"].items()}
    splits = comparison["splits"]
    leakage, broken = splits["leakage"], splits["broken"]
    official = splits["method"] == "official"
    cut = "official splits" if official else f"{splits['method']} split, seed {splits['seed']}"
    if leakage["found"] is None:
        cut += "; training photos were streamed and not checked for leakage"
    else:
        cut += f"; {counted(leakage['found'], 'leaked photo')} found, {leakage['dropped']} dropped"
    cut += f"; {counted(broken['skipped'], 'broken photo')} skipped"
    unit = "groups of photos (copies of a photo and given groups)" if comparison["grouped"] else "photos"
    field = ""
    if comparison["shift"]:
        name, photos = as_code(Path(comparison["shift"]["name"]).name), counted(comparison["shift"]["n"], "photo")
        field = f" Field: {photos} of {name}, never trained on."
    bases = ", ".join(as_code(Path(name).name) for name in comparison["base_models"]) or "none"
    versions = ", ".join(f"{name} {comparison['environment'][name]}" for name in ("torch", "transformers", "peft"))
    return (
        f"Photos: {counts['train']} for training, {counts['validation']} for validation, {counts['test']} for testing "
        f"({cut}).{field} Labels: {len(comparison['dataset']['labels'])}. Backbone: {bases}. All runs used the same "
        f"split. Intervals are 95% intervals over {unit} and seeds. "
        f"Device: {comparison['device']}; {versions}."
    )


def _scores(comparison: dict[str, Any]) -> str:
    splits = list(comparison["photos"])
    columns = [f"{_called(split)} {name}" for split in splits for name in ("macro F1", "accuracy", "answered")]
    rows = []
    for row in comparison["rows"]:
        cells = [row["name"], str(len(row["runs"])), f"{row['epochs']:g}"]
        for split in splits:
            scores = row[split]
            cells += [interval_text(scores, "macro_f1"), f"{scores['accuracy']:.3f}", f"{scores['coverage']:.0%}"]
        rows.append(cells)
    note = '"Answered" is the share of photos for which the model is sure enough to answer.'
    return f"{markdown_table(['strategy', 'seeds', 'epochs', *columns], rows)}\n\n{note}"


def _pairs(comparison: dict[str, Any]) -> str:
    splits = list(comparison["photos"])
    headings = ["", *(h for s in splits for h in (f"{_called(s)} macro F1, difference", f"{_called(s)} p"))]
    rows = []
    for pair in comparison["pairs"]:
        cells = [f"{pair['second']} vs. {pair['first']}"]
        for split in splits:
            cells += [_gain_text(pair[split]), p_text(pair[split])]
        rows.append(cells)
    notes = [
        "Differences are of the mean macro F1 over the seeds, paired on the same photos, with their 95% intervals. p: "
        "the same difference tested against zero, counting photos and seeds, and corrected for the number of pairs "
        "(Holm). An interval is for one pair alone, so it may exclude zero while the corrected p is not below 0.05.",
        *seed_note(comparison["rows"]),
        "The validation photos decide which strategy is recommended; they chose the checkpoints too, so scores on "
        "them are too good. A negative difference to training from scratch is negative transfer.",
    ]
    return f"{markdown_table(headings, rows)}\n\n{' '.join(notes)}"


def _called(split: str) -> str:
    return {"validation": "validation", "test": "test", "shift": "field"}[split]


def _class_drops(comparison: dict[str, Any]) -> str:
    rows = [
        [
            row["name"],
            in_markdown(drop["label"]),
            f"{drop['test']:.3f}",
            f"{drop['shift']:.3f}",
            f"{-drop['drop']:+.3f}",
        ]
        for row in comparison["rows"]
        for drop in row["class_drops"]
    ]
    return markdown_table(["strategy", "class (largest drop first)", "test F1", "field F1", "change"], rows)


def _forgetting(comparison: dict[str, Any]) -> str:
    found = comparison.get("forgetting")
    if found is None:
        return "Not measured. To measure it, add `--source_dataset_name` with photos of another task."
    rows = [[row["name"], interval_text(row, "macro_f1"), ""] for row in found["before"]]
    rows += [[row["name"], interval_text(row, "macro_f1"), _gain_text(row)] for row in found["after"]]
    return (
        f"Scores of a linear probe on frozen features of {as_code(Path(found['dataset']).name)}, "
        f"which was not trained on here; {counted(found['n'], 'test photo')}.\n\n"
        f"{markdown_table(['backbone', 'macro F1 of the probe', 'change'], rows)}\n\n"
        "Feature extraction leaves the backbone unchanged."
    )


def _cost_table(comparison: dict[str, Any]) -> str:
    headings = ["strategy", "trained weights", "total weights", "seconds per run", "peak memory", "published size"]
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
        + "\n\nThe published size of LoRA is that of its adapter; the merged model is as large as the others."
    )


def _commands(comparison: dict[str, Any]) -> str:
    return "\n".join(f"- {row['name']}: {as_code(row['command'])}" for row in comparison["rows"])
