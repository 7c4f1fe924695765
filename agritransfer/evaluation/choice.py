"""Which candidate is chosen by the validation photos, and why?

`agritransfer train` tries several strategies and keeps one. Each candidate is a row of `choice.json`: `strategy`,
`state` (trained, not tried, failed), `note` (why not), and for a trained one `macro_f1` with `macro_f1_ci95` and the
calibrated `log_loss` on the validation photos, `epochs`, `seconds` and `trainable_parameters`.
"""

from collections.abc import Sequence
from typing import Any

from agritransfer.evaluation.report import markdown_table
from agritransfer.evaluation.results import interval_text
from agritransfer.strategies import STRATEGIES
from agritransfer.wording import counted

Row = dict[str, Any]
# Half of a 95% interval in standard errors.
HALF_WIDTH = 1.96
# By their test scores where they were near ties on validation: benchmarks/choice_rules.py, docs/strategies.md. The
# penalty of a fitted head is chosen on the validation photos, among many, so that its score there is optimistic.
PREFERENCE = ("lora", "finetune", "head")


def validation_scores(results: dict[str, Any]) -> Row:
    """The entries of a trained candidate, from its `validation.json`."""
    scores, training = results["validation"], results["training"]
    return {
        "macro_f1": scores["macro_f1"],
        "macro_f1_ci95": scores["macro_f1_ci95"],
        "log_loss": scores["log_loss_calibrated"],
        "epochs": training["epochs"],
        "trainable_parameters": training["trainable_parameters"],
    }


def choose(rows: Sequence[Row]) -> tuple[str, str]:
    """The strategy to keep, and the reason in one sentence.

    Scores within one standard error of the highest macro F1 are near ties, and among them the order of `PREFERENCE`
    decides.
    """
    trained = [row for row in rows if row["state"] == "trained"]
    best, error = max(trained, key=lambda row: row["macro_f1"]), standard_error(trained)
    near = [row for row in trained if row["macro_f1"] >= best["macro_f1"] - error]
    chosen = min(near, key=lambda row: PREFERENCE.index(row["strategy"]))
    name = _title(chosen)[0].upper() + _title(chosen)[1:]
    if len(trained) == 1:
        return chosen["strategy"], f"{name} is the only candidate that was trained."
    if chosen is best:
        return chosen["strategy"], f"{name} has the highest validation macro F1, {best['macro_f1']:.3f}."
    order = ", ".join(STRATEGIES[strategy].title for strategy in PREFERENCE)
    return chosen["strategy"], (
        f"{name} has a validation macro F1 of {chosen['macro_f1']:.3f}, within one standard error ({error:.3f}) of the "
        f"highest, {best['macro_f1']:.3f} of {_title(best)}; among near ties the order is {order}."
    )


def standard_error(trained: Sequence[Row]) -> float:
    """That of the highest macro F1, from its 95% interval."""
    best = max(trained, key=lambda row: row["macro_f1"])
    return (best["macro_f1"] - best["macro_f1_ci95"][0]) / HALF_WIDTH


def _title(row: Row) -> str:
    return STRATEGIES[row["strategy"]].title


def candidate_line(row: Row) -> str:
    """What became of a candidate, in one line."""
    if row["state"] != "trained":
        return f"{row['state']}: {row['note']}"
    return (
        f"validation macro F1 {interval_text(row, 'macro_f1')}, log loss {row['log_loss']:.3f}; {row['seconds']:.0f} s"
    )


def choice_page(choice: dict[str, Any]) -> str:
    """The text of `choice.md`: every candidate, the reason and the commands."""
    rows = [
        [
            f"**{_title(row)}**" if row["strategy"] == choice["chosen"] else _title(row),
            *_cells(row),
        ]
        for row in choice["candidates"]
    ]
    headings = ["candidate", "validation macro F1 (95% CI)", "log loss", "epochs", "trained weights", "seconds", ""]
    tried = counted(sum(row["state"] == "trained" for row in choice["candidates"]), "candidate")
    return (
        f"# Which strategy, and why?\n\n{choice['reason']}\n\n{markdown_table(headings, rows)}\n\n"
        f"The validation photos alone decided among {tried}; the test photos were scored once, for the chosen one. "
        f"Log loss: after temperature scaling. Seconds: of the whole candidate, its start included.\n\n"
        f"```bash\n{choice['command']}\n```\n"
    )


def _cells(row: Row) -> list[str]:
    if row["state"] != "trained":
        return ["", "", "", "", "", candidate_line(row)]
    epochs = f"{row['epochs']:g}" if row["planned_epochs"] else "fitted"
    if row["planned_epochs"] and row["epochs"] < row["planned_epochs"]:
        epochs += f" of {row['planned_epochs']}"
    scores = [interval_text(row, "macro_f1"), f"{row['log_loss']:.3f}"]
    return [*scores, epochs, f"{row['trainable_parameters']:,}", f"{row['seconds']:.0f}", ""]


def chosen_from(choice: dict[str, Any]) -> list[Row]:
    """The entry of that name in `results.json`: every candidate, without notes, which may name files of this disk."""
    names = ("strategy", "state", "macro_f1", "macro_f1_ci95", "log_loss", "epochs", "seconds")
    return [{name: row[name] for name in names if name in row} for row in choice["candidates"]]
