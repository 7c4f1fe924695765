"""Which strategy is best for these photos, and how certain is that?

Finished runs on the same split are compared photo by photo. Runs that differ only in their seed form one candidate, and
its scores are their means; the intervals cover the photos (or their groups) and the seeds.
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from agritransfer.data.dataset import Splits
from agritransfer.errors import DataError, UsageError
from agritransfer.evaluation.frozen_features import probe_answers
from agritransfer.evaluation.intervals import seeded_interval, sign_flip_p_value
from agritransfer.evaluation.metrics import macro_f1
from agritransfer.evaluation.predictions import Predictions, read_predictions
from agritransfer.evaluation.results import class_drops, read_results
from agritransfer.models.loading import load_classifier, load_pretrained, load_processor
from agritransfer.strategies import STRATEGIES
from agritransfer.wording import counted

# Flags that may differ between two runs of one candidate.
RUN_FLAGS = re.compile(r"--(seed|output_dir|restart)\b")


@dataclass(frozen=True)
class Candidate:
    """The runs of one command, one per seed, all scored on the same photos."""

    name: str
    folders: list[Path]
    results: list[dict[str, Any]]
    scored: dict[str, list[Predictions]]

    @property
    def is_scratch(self) -> bool:
        """Whether it started from random weights."""
        return not STRATEGIES[self.results[0]["strategy"]].pretrained

    def answers(self, split: str) -> np.ndarray:
        """The predicted label indices of each run (runs, photos)."""
        return np.stack([predictions.logits.argmax(axis=1) for predictions in self.scored[split]])


def read_candidates(folders: Sequence[Path]) -> list[Candidate]:
    """The finished runs in these folders, grouped by command; scratch first, then by the number of trained weights.

    Raises `UsageError` for a folder without a finished run and `DataError` if splits or photos differ between runs.
    """
    results_of = {}
    for folder in folders:
        if not (folder / "results.json").is_file():
            raise UsageError(f"'{folder}' is not a finished run; finish it or remove it from --runs")
        results_of[folder] = read_results(folder)
    _check_one_split(results_of)
    with_field = _field_is_one(results_of)
    members = defaultdict(list)
    for folder, results in results_of.items():
        members[_kind_of(results)].append(folder)
    names = _names([results_of[group[0]] for group in members.values()])
    candidates = [
        _read_candidate(name, group, [results_of[folder] for folder in group], with_field)
        for name, group in zip(names, members.values(), strict=True)
    ]
    return sorted(candidates, key=lambda c: (not c.is_scratch, c.results[0]["training"]["trainable_parameters"]))


def _kind_of(results: dict[str, Any]) -> str:
    """Strategy and flags of the command, without the flags that may differ between the runs of one candidate."""
    kept, skipping = [results["strategy"]], True
    for word in shlex.split(results["command"]):
        if word.startswith("--"):
            skipping = RUN_FLAGS.match(word) is not None
        if not skipping:
            kept.append(word)
    return shlex.join(kept)


def _names(kinds: list[dict[str, Any]]) -> list[str]:
    """The shortest unique name for each kind of run."""
    strategies = [STRATEGIES[results["strategy"]].title for results in kinds]
    bases = [Path(results["base_model"]["name"]).name if results["base_model"] else "" for results in kinds]
    names = []
    for strategy, base, results in zip(strategies, bases, kinds, strict=True):
        details = [base] if base and len(set(bases) - {""}) > 1 else []
        if [(*pair,) for pair in zip(strategies, bases, strict=True)].count((strategy, base)) > 1:
            details.append(f"{results['training']['trainable_parameters']:,} weights")
        names.append(f"{strategy} ({', '.join(details)})" if details else strategy)
    return [f"{name} {names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _check_one_split(results_of: dict[Path, dict[str, Any]]) -> None:
    first, *others = results_of
    split = (first / "splits.csv").read_text(encoding="utf-8")
    for folder in others:
        if results_of[folder]["dataset"]["fingerprint"] != results_of[first]["dataset"]["fingerprint"]:
            raise DataError(
                f"'{folder}' and '{first}' were trained on different photos; compare runs on the same photos"
            )
        if (folder / "splits.csv").read_text(encoding="utf-8") != split:
            raise DataError(
                f"'{folder}' and '{first}' have different splits; train with --splits_file {first}/splits.csv"
            )


def _field_is_one(results_of: dict[Path, dict[str, Any]]) -> bool:
    """Whether every run has field scores; raises `DataError` if they are of different photos."""
    shifts = {folder: results["shift"] for folder, results in results_of.items() if results["shift"]}
    if len(shifts) < len(results_of):
        return False
    first, *others = shifts
    for folder in others:
        if (shifts[folder]["name"], shifts[folder]["n"]) != (shifts[first]["name"], shifts[first]["n"]):
            raise DataError(
                f"'{folder}' and '{first}' were scored on different field photos; compare runs on the same photos"
            )
    return True


def _read_candidate(name: str, folders: list[Path], results: list[dict[str, Any]], with_field: bool) -> Candidate:
    labels = results[0]["dataset"]["labels"]
    scored = {
        split: [read_predictions(folder / "predictions.csv", split, labels) for folder in folders]
        for split in (("test", "shift") if with_field else ("test",))
    }
    return Candidate(name, folders, results, scored)


def compare(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The content of the report: one row per candidate, gains over scratch, paired tests, drops per class.

    Raises `UsageError` if there is nothing to compare.
    """
    if len(candidates) < 2:
        raise UsageError(f"a comparison needs runs of at least two strategies or settings; found {len(candidates)}")
    first = candidates[0].results[0]
    splits = list(candidates[0].scored)
    return {
        "schema": 1,
        "dataset": first["dataset"],
        "splits": first["splits"],
        "shift": {"name": first["shift"]["name"], "n": first["shift"]["n"]} if "shift" in splits else None,
        "base_models": sorted({r["base_model"]["name"] for c in candidates for r in c.results if r["base_model"]}),
        "photos": {split: len(candidates[0].scored[split][0].files) for split in splits},
        "grouped": any(candidates[0].scored["test"][0].groups),
        "rows": [_row(candidate) for candidate in candidates],
        "pairs": _pairs(candidates, splits),
        "environment": first["environment"],
        "device": first["training"]["device"],
    }


def _row(candidate: Candidate) -> dict[str, Any]:
    training = [results["training"] for results in candidate.results]
    row = {
        "name": candidate.name,
        "strategy": candidate.results[0]["strategy"],
        "runs": [folder.as_posix() for folder in candidate.folders],
        "epochs": training[0]["epochs"],
        "trainable_parameters": training[0]["trainable_parameters"],
        "total_parameters": training[0]["total_parameters"],
        "seconds": float(np.mean([facts["seconds"] for facts in training])),
        "peak_memory_bytes": max(facts["peak_memory_bytes"] for facts in training),
        "bytes_to_publish": bytes_to_publish(candidate.folders[0]),
        "command": candidate.results[0]["command"],
    }
    for split in candidate.scored:
        row[split] = _mean_scores(candidate, split)
        row[split]["coverage"] = float(np.mean([r[split]["answered"]["coverage"] for r in candidate.results]))
    if "shift" in candidate.scored:
        row["class_drops"] = _mean_drops(candidate)
    return row


def bytes_to_publish(folder: Path) -> int:
    """Size of the weights to publish; for LoRA, of the adapter."""
    adapter = folder / "adapter" / "adapter_model.safetensors"
    return (adapter if adapter.exists() else folder / "model.safetensors").stat().st_size


def _mean_scores(candidate: Candidate, split: str) -> dict[str, Any]:
    answers, scored = candidate.answers(split), candidate.scored[split][0]
    num_labels = len(candidate.results[0]["dataset"]["labels"])
    return {
        **mean_macro_f1(answers, scored.truth, scored.groups, num_labels),
        "accuracy": float((answers == scored.truth).mean()),
    }


def mean_macro_f1(answers: np.ndarray, truth: np.ndarray, groups: Sequence[str], num_labels: int) -> dict[str, Any]:
    """Mean macro F1 over the runs with its interval, and the macro F1 of each run; answers (runs, photos)."""

    def mean(drawn: np.ndarray, weights: np.ndarray) -> float:
        return float(np.mean([macro_f1(answers[run], truth, num_labels, weights) for run in drawn]))

    each = [macro_f1(row, truth, num_labels) for row in answers]
    return {
        "macro_f1": float(np.mean(each)),
        "macro_f1_of_seeds": each,
        "macro_f1_ci95": seeded_interval(mean, [len(answers)], groups),
    }


def _mean_drops(candidate: Candidate) -> list[dict[str, Any]]:
    """The drop in F1 of each class from lab to field, averaged over the seeds, largest first."""
    of_class = defaultdict(list)
    for results in candidate.results:
        for drop in class_drops(results):
            of_class[drop["label"]].append(drop)
    drops = [
        {"label": label, **{name: float(np.mean([drop[name] for drop in of])) for name in ("test", "shift", "drop")}}
        for label, of in of_class.items()
    ]
    return sorted(drops, key=lambda drop: -drop["drop"])


def _pairs(candidates: Sequence[Candidate], splits: Sequence[str]) -> list[dict[str, Any]]:
    """For each pair of candidates, the gain of the second over the first and its p-value."""
    pairs = []
    for first, second in combinations(candidates, 2):
        pair: dict[str, Any] = {"first": first.name, "second": second.name, "over_scratch": first.is_scratch}
        for split in splits:
            scored = first.scored[split][0]
            answers = second.answers(split), first.answers(split)
            right = [(rows == scored.truth).mean(axis=0) for rows in answers]
            pair[split] = {
                **gain(*answers, scored.truth, scored.groups, len(first.results[0]["dataset"]["labels"])),
                "p_value": sign_flip_p_value(right[0] - right[1], scored.groups),
            }
        pairs.append(pair)
    for split in splits:
        # Among many pairs some differ by chance: Benjamini-Hochberg correction.
        adjusted = false_discovery_control([pair[split]["p_value"] for pair in pairs])
        for pair, p_value in zip(pairs, adjusted, strict=True):
            pair[split]["p_value_adjusted"] = float(p_value)
    return pairs


def gain(
    answers: np.ndarray, of_other: np.ndarray, truth: np.ndarray, groups: Sequence[str], num_labels: int
) -> dict[str, Any]:
    """The mean gain in macro F1 over another model on the same photos, with its paired interval.

    Answers are label indices of shape (runs, photos), truth (photos,).
    """

    def mean_gain(drawn: np.ndarray, drawn_of_other: np.ndarray, weights: np.ndarray | None = None) -> float:
        ours = np.mean([macro_f1(answers[run], truth, num_labels, weights) for run in drawn])
        theirs = np.mean([macro_f1(of_other[run], truth, num_labels, weights) for run in drawn_of_other])
        return float(ours - theirs)

    runs = [len(answers), len(of_other)]
    return {
        "gain": mean_gain(*(np.arange(count) for count in runs)),
        "gain_ci95": seeded_interval(mean_gain, runs, groups),
    }


def _changes_a_backbone(candidate: Candidate) -> bool:
    strategy = STRATEGIES[candidate.results[0]["strategy"]]
    return strategy.pretrained and strategy.trains_backbone


def measure_forgetting(candidates: Sequence[Candidate], source: Splits, batch_size: int = 64) -> dict[str, Any]:
    """How well a linear probe classifies the source photos on each backbone before and after training.

    Fine-tuning replaces the head of the source task, so a probe is what can be compared. Feature extraction leaves the
    backbone unchanged and training from scratch has none, so both are skipped.
    """
    truth, groups = np.array(source.label_indices("test")), [photo.group for photo in source.of("test")]
    num_labels, before, after = len(source.labels), {}, []
    for candidate in (c for c in candidates if _changes_a_backbone(c)):
        base = candidate.results[0]["base_model"]
        if base["name"] not in before:
            image_size = load_processor(str(candidate.folders[0]), None, None).image_size
            processor = load_processor(base["name"], base["revision"], image_size)
            model = load_pretrained(base["name"], base["revision"], source.labels, image_size)
            before[base["name"]] = probe_answers(model, processor, source, batch_size)[None]
        answers = np.stack(
            [probe_answers(*load_classifier(folder), source, batch_size) for folder in candidate.folders]
        )
        after.append(
            {
                "name": candidate.name,
                **mean_macro_f1(answers, truth, groups, num_labels),
                **gain(answers, before[base["name"]], truth, groups, num_labels),
            }
        )
    return {
        "dataset": source.name,
        "n": len(truth),
        "before": [
            {"name": f"{Path(name).name}, pretrained", **mean_macro_f1(answers, truth, groups, num_labels)}
            for name, answers in before.items()
        ],
        "after": after,
    }


def recommendation(comparison: dict[str, Any]) -> str:
    """Which strategy to use and why, in plain words derived from the numbers, and how certain that is."""
    split = "shift" if comparison["shift"] else "test"
    where = "on the field photos" if split == "shift" else "on the test photos"
    rows = sorted(comparison["rows"], key=lambda row: -row[split]["macro_f1"])
    best, gains = rows[0], _gains_of(comparison, rows[0]["name"], split)
    equals = [best, *(row for row in rows[1:] if gains[row["name"]]["gain_ci95"][0] <= 0)]
    # Random weights are recommended only if every pretrained strategy is clearly worse.
    choices = [row for row in equals if STRATEGIES[row["strategy"]].pretrained] or [best]
    choice = min(choices, key=lambda row: row["trainable_parameters"])
    low, high = choice[split]["macro_f1_ci95"]
    words = [
        f"Use {choice['name']}: its macro F1 {where} is {choice[split]['macro_f1']:.3f} [{low:.3f}, {high:.3f}], "
        f"with {choice['trainable_parameters']:,} trained weights and {choice['seconds']:.0f} s of training."
    ]
    if choice is not best:
        found = gains[choice["name"]]
        words.append(
            f"{_capital(best['name'])} scores {found['gain']:.3f} higher, but the 95% interval of the difference, "
            f"[{found['gain_ci95'][0]:+.3f}, {found['gain_ci95'][1]:+.3f}], includes zero, and it trains "
            f"{best['trainable_parameters']:,} weights."
        )
    elif others := [row for row in equals if row is not best]:
        named = _listed([row["name"] for row in others])
        words.append(f"It has the highest score, but its lead over {named} may be due to chance.")
    else:
        words.append("It scores higher than every other strategy, by more than chance explains.")
    if worse := [row for row in rows if row not in equals]:
        falls = [
            f"{row['name']} {'scores ' if row is worse[0] else ''}{gains[row['name']]['gain']:.3f} lower"
            for row in worse
        ]
        words.append(f"{_capital(_listed(falls))} than {best['name']}.")
    words += _transfer_words(comparison, split, where)
    words += [_rule_words(choice, {row["strategy"] for row in rows}), _doubt_words(comparison, split, gains)]
    return " ".join(words)


def _gains_of(comparison: dict[str, Any], name: str, split: str) -> dict[str, dict[str, Any]]:
    """The gain of one candidate over each of the others."""
    gains = {}
    for pair in comparison["pairs"]:
        if pair["second"] == name:
            gains[pair["first"]] = pair[split]
        elif pair["first"] == name:
            low, high = pair[split]["gain_ci95"]
            gains[pair["second"]] = pair[split] | {"gain": -pair[split]["gain"], "gain_ci95": [-high, -low]}
    return gains


def _transfer_words(comparison: dict[str, Any], split: str, where: str) -> list[str]:
    over_scratch = [pair for pair in comparison["pairs"] if pair["over_scratch"]]
    if not over_scratch:
        return []
    negative = [pair["second"] for pair in over_scratch if pair[split]["gain_ci95"][1] < 0]
    positive = [pair["second"] for pair in over_scratch if pair[split]["gain_ci95"][0] > 0]
    if negative:
        better = f"training from scratch scores higher {where} than {_listed(negative)}"
        return [f"Negative transfer: {better}; try another backbone."]
    if len(positive) == len(over_scratch):
        return [f"Transfer helps: every pretrained strategy scores higher {where} than training from scratch."]
    if positive:
        return [f"Transfer is shown to help {where} only for {_listed(positive)}."]
    return [f"No pretrained strategy is shown to score higher {where} than training from scratch."]


def _rule_words(choice: dict[str, Any], strategies: set[str]) -> str:
    """What the result means for the course's rule of thumb."""
    rule = (
        "The course's rule of thumb: feature extraction if domain and task are similar, fine-tuning otherwise, and "
        "LoRA if compute is limited."
    )
    chosen = STRATEGIES[choice["strategy"]]
    if chosen.pretrained and chosen.trains_backbone and "head" not in strategies:
        return f"{rule} Feature extraction was not compared, so the rule cannot be checked here."
    return f"{rule} {chosen.verdict}"


def _doubt_words(comparison: dict[str, Any], split: str, gains: dict[str, dict[str, Any]]) -> str:
    """How small a difference this comparison could detect."""
    widest = max((found["gain_ci95"][1] - found["gain_ci95"][0]) / 2 for found in gains.values())
    seeds = min(len(row["runs"]) for row in comparison["rows"])
    luck = f"{counted(seeds, 'seed')} per strategy" + (
        ", so variation between seeds is not included" if seeds == 1 else ""
    )
    return (
        f"Uncertainty: {counted(comparison['photos'][split], 'photo')}, {luck}; differences below about {widest:.2f} "
        "cannot be distinguished from chance."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
