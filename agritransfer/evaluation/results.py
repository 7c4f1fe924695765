"""What are the results of a run, and how are they printed?"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agritransfer.evaluation.calibration import calibrated_probabilities, expected_calibration_error
from agritransfer.evaluation.intervals import accuracy_interval, class_average_intervals, f1_intervals
from agritransfer.evaluation.metrics import scores_of
from agritransfer.evaluation.novelty import Known, load_known
from agritransfer.evaluation.selective import answered_scores, calibrate, never_sure, promise, verdicts
from agritransfer.strategies import STRATEGIES

if TYPE_CHECKING:
    from agritransfer.data.dataset import Splits

KNOWN_FILE = "known_features.safetensors"
# Of a run that was scored on the validation photos only.
VALIDATION_FILE = "validation.json"


def score(logits: np.ndarray, truth: np.ndarray, labels: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    """The entry of a split in `results.json`; logits (photos, classes), true label indices, groups ("" for none)."""
    scores = scores_of(logits, truth)
    answers = logits.argmax(axis=1)
    averages = class_average_intervals(answers, truth, len(labels), groups)
    of_class = zip(labels, scores.pop("per_class"), f1_intervals(answers, truth, len(labels), groups), strict=True)
    per_class = [{"label": label, **row, "f1_ci95": interval} for label, row, interval in of_class]
    matrix = scores.pop("confusion_matrix")
    return {
        "n": len(truth),
        "accuracy": scores.pop("accuracy"),
        "accuracy_ci95": accuracy_interval(answers == truth, groups),
        "macro_f1": scores.pop("macro_f1"),
        "macro_f1_ci95": averages["macro_f1"],
        "balanced_accuracy": scores.pop("balanced_accuracy"),
        "balanced_accuracy_ci95": averages["balanced_accuracy"],
        **scores,
        "per_class": per_class,
        "confusion_matrix": matrix,
    }


def score_splits(
    outputs: Mapping[str, tuple[np.ndarray, np.ndarray]], sources: "Mapping[str, Splits]", target_error: float
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], Known | None]:
    """The entries of the scored splits and of `calibration` in `results.json`, and the reference features.

    `outputs` has the logits (photos, classes) and features (photos, width) of each split, validation among them.
    """
    truth = {split: np.array(sources[split].label_indices(split)) for split in outputs}
    groups = {split: [photo.group for photo in sources[split].of(split)] for split in outputs}
    calibration, known = calibrate(
        *outputs["validation"], truth["validation"], groups["validation"], target_error=target_error
    )
    scores = {}
    for split, (logits, features) in outputs.items():
        raw, calibrated = (calibrated_probabilities(logits, t) for t in (1.0, calibration["temperature"]))
        scores[split] = {
            **score(logits, truth[split], sources[split].labels, groups[split]),
            "ece": expected_calibration_error(raw, truth[split]),
            "ece_calibrated": expected_calibration_error(calibrated, truth[split]),
            "answered": answered_scores(
                verdicts(logits, features, calibration, known), logits.argmax(axis=1) == truth[split]
            ),
        }
    return scores, calibration, known


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def read_validation(folder: Path) -> dict[str, Any]:
    """The results without test of a run with `--skip_test`."""
    return json.loads((folder / VALIDATION_FILE).read_text(encoding="utf-8"))


def validation_line(results: dict[str, Any]) -> str:
    """The validation score and the seconds of a run in one line."""
    scores, seconds = results["validation"], results["training"]["seconds"]
    return f"validation macro F1 {interval_text(scores, 'macro_f1')}; trained in {seconds:.0f} s"


def read_calibration(folder: Path) -> tuple[dict[str, Any], Known | None] | None:
    """The calibration of a run and its reference features; None without a finished run."""
    if not (folder / "results.json").is_file():
        return None
    calibration = read_results(folder)["calibration"]
    return calibration, load_known(folder / KNOWN_FILE) if calibration["unknown"] else None


def results_table(results: dict[str, Any]) -> str:
    """The scores of a run as text: lab and field, the weakest classes, and when it answers "not sure"."""
    training, base = results["training"], results["base_model"]
    title = STRATEGIES[results["strategy"]].title
    start = f", from {base['name']}" if base else ""
    # Runs of earlier versions do not have it.
    if architecture := results.get("architecture"):
        start = f", random weights in the architecture of {architecture['name']}"
    lines = [f"\n{title} on {results['dataset']['name']}{start}"]
    if reason := never_sure(results["calibration"]):
        lines.append(f'every answer of this model will be "not sure": {reason}')
    lines.append(f"{'':<12}{'photos':>7}   {'accuracy (95% CI)':<24}{'macro F1 (95% CI)':<24}{'balanced':>8}")
    for split in ("validation", "test", "shift"):
        if row := results[split]:
            cells = [interval_text(row, name) for name in ("accuracy", "macro_f1")]
            lines.append(f"{split:<12}{row['n']:>7}   {cells[0]:<24}{cells[1]:<24}{row['balanced_accuracy']:>8.3f}")
    worst = sorted((c for c in results["test"]["per_class"] if c["n"]), key=lambda c: c["f1"])[:3]
    lines.append(
        "weakest classes on the test: " + ", ".join(f"{c['label']} F1 {c['f1']:.3f} (n={c['n']})" for c in worst)
    )
    if results["shift"]:
        lines.append("F1 from test to shift: " + ", ".join(_drop_text(drop) for drop in class_drops(results)))
    lines += _calibration_lines(results)
    lines.append(_training_line(training))
    return "\n".join(lines)


def _training_line(training: dict[str, Any]) -> str:
    # Runs of earlier versions do not have it.
    if training.get("penalty") is None:
        done, kept = f"trained for {epochs_text(training)}", "the weights of step {best_step} of {steps}"
        if training["best_step"] == 0:
            kept = "the weights that training started from, since no epoch was better on the validation photos"
    else:
        done, kept = "fitted", "the best of {steps} penalties, C={penalty:g}"
    weights = "{trainable_parameters:,} of {total_parameters:,} weights"
    speed = "{images_per_second:.1f} photos/s on {num_processes} x {device}"
    return f"{weights} {done} in {{seconds:.0f}} s ({speed}); kept {kept}".format(**training)


def epochs_text(training: dict[str, Any]) -> str:
    """The epochs of a run, such as `1 epoch` or `2.5 epochs`."""
    return f"{training['epochs']:g} {'epoch' if training['epochs'] == 1 else 'epochs'}"


def class_drops(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The F1 {label, test, shift, drop} of each class that is in both sets, largest drop first."""
    rows = zip(results["test"]["per_class"], results["shift"]["per_class"], strict=True)
    drops = [
        {"label": test["label"], "test": test["f1"], "shift": shift["f1"], "drop": test["f1"] - shift["f1"]}
        for test, shift in rows
        if test["n"] and shift["n"]
    ]
    return sorted(drops, key=lambda drop: -drop["drop"])


def _drop_text(drop: dict[str, Any]) -> str:
    return "{label} {test:.3f} -> {shift:.3f}".format(**drop)


def _calibration_lines(results: dict[str, Any]) -> list[str]:
    calibration, test = results["calibration"], results["test"]
    lines = [
        f"calibration on the test: temperature {calibration['temperature']:.2f}, expected calibration error "
        f"{test['ece']:.3f} before, {test['ece_calibrated']:.3f} after"
    ]
    if calibration["threshold"] is None:
        return lines
    lines.append(f'"not sure" below a probability of {calibration["threshold"]:.2f}, "unknown" for unfamiliar photos;')
    lines.append(f"{promise(calibration)}:")
    for split in ("test", "shift"):
        if row := results[split]:
            answered = row["answered"]
            error = "" if answered["error"] is None else f" with an error of {answered['error']:.1%}"
            lines.append(
                f"  {split}: answers {answered['coverage']:.1%} of the photos{error}; {answered['unknown']} unknown"
            )
    return lines


def interval_text(scores: dict[str, Any], name: str) -> str:
    """A score with its 95% interval, such as `0.912 [0.858, 0.947]`."""
    low, high = scores[f"{name}_ci95"]
    return f"{scores[name]:.3f} [{low:.3f}, {high:.3f}]"
