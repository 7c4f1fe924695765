"""Which strategy is best for these photos, and how certain is that?

Finished runs on the same split are compared photo by photo. Runs that differ only in their seed form one candidate, and
its scores are their means; intervals and tests cover the photos (or their groups) and the seeds. The validation photos
decide which candidate is recommended, and the test and field photos say how good that one is.
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from agritransfer.data.dataset import Splits
from agritransfer.errors import DataError, UsageError
from agritransfer.evaluation.frozen_features import probe_answers
from agritransfer.evaluation.predictions import Predictions, read_predictions
from agritransfer.evaluation.recommendation import choose
from agritransfer.evaluation.results import class_drops, read_results
from agritransfer.evaluation.significance import gain, holm, mean_macro_f1
from agritransfer.models.loading import load_classifier, load_pretrained, load_processor
from agritransfer.strategies import STRATEGIES

# Flags that may differ between two runs of one candidate.
RUN_FLAGS = re.compile(r"--(seed|output_dir|restart)\b")
SEED = re.compile(r"--seed[ =](\S+)")


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

    Raises `UsageError` for a folder without a finished run or a seed that occurs twice, and `DataError` if splits or
    photos differ between runs.
    """
    results_of = {}
    for folder in folders:
        if not (folder / "results.json").is_file():
            raise UsageError(f"'{folder}' is not a finished run; finish it or remove it from --runs")
        results_of[folder] = read_results(folder)
    _check_one_split(results_of)
    with_field = all(results["shift"] for results in results_of.values())
    members = defaultdict(list)
    for folder, results in results_of.items():
        members[_kind_of(results)].append(folder)
    _check_seeds(members.values(), results_of)
    names = _names([results_of[group[0]] for group in members.values()])
    candidates = [
        _read_candidate(name, group, [results_of[folder] for folder in group], with_field)
        for name, group in zip(names, members.values(), strict=True)
    ]
    _check_same_photos(candidates)
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


def _check_seeds(members: Iterable[list[Path]], results_of: dict[Path, dict[str, Any]]) -> None:
    """Two runs with the same seed are one run twice: they would hide the variation between seeds."""
    for folders in members:
        found: dict[str, Path] = {}
        for folder in folders:
            seed = SEED.search(results_of[folder]["command"])
            other = found.setdefault(seed[1] if seed else "", folder)
            if other is not folder:
                raise UsageError(f"'{folder}' repeats the command and the seed of '{other}'; remove one from --runs")


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


def _read_candidate(name: str, folders: list[Path], results: list[dict[str, Any]], with_field: bool) -> Candidate:
    labels = results[0]["dataset"]["labels"]
    scored = {
        split: [read_predictions(folder / "predictions.csv", split, labels) for folder in folders]
        for split in ("validation", "test", *(("shift",) if with_field else ()))
    }
    return Candidate(name, folders, results, scored)


def _check_same_photos(candidates: Sequence[Candidate]) -> None:
    """Whether all runs were scored on the same photos with the same labels, which pairing takes for granted."""
    first = candidates[0]
    called = {"validation": "validation", "test": "test", "shift": "field"}
    for candidate in candidates:
        for split, of_runs in candidate.scored.items():
            expected = first.scored[split][0]
            for folder, found in zip(candidate.folders, of_runs, strict=True):
                if not found.files:
                    raise DataError(f"'{folder}' has no predictions for {called[split]} photos; train it again")
                if found.files != expected.files or not np.array_equal(found.truth, expected.truth):
                    raise DataError(
                        f"'{folder}' and '{first.folders[0]}' were scored on different {called[split]} photos; compare "
                        "runs on the same photos"
                    )


def compare(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The content of the report: one row per candidate, the recommended one, paired tests, drops per class.

    Raises `UsageError` if there is nothing to compare.
    """
    if len(candidates) < 2:
        raise UsageError(f"a comparison needs runs of at least two strategies or settings; found {len(candidates)}")
    first = candidates[0].results[0]
    splits = list(candidates[0].scored)
    rows, pairs = [_row(candidate) for candidate in candidates], _pairs(candidates, splits)
    return {
        "schema": 1,
        "dataset": first["dataset"],
        "splits": first["splits"],
        "shift": {"name": first["shift"]["name"], "n": first["shift"]["n"]} if "shift" in splits else None,
        "base_models": sorted({r["base_model"]["name"] for c in candidates for r in c.results if r["base_model"]}),
        "photos": {split: len(candidates[0].scored[split][0].files) for split in splits},
        "grouped": any(candidates[0].scored["test"][0].groups),
        "rows": rows,
        "pairs": pairs,
        "recommended": choose(rows, pairs)["name"],
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
            scored, num_labels = first.scored[split][0], len(first.results[0]["dataset"]["labels"])
            answers = second.answers(split), first.answers(split)
            pair[split] = gain(*answers, scored.truth, scored.groups, num_labels)
        pairs.append(pair)
    for split in splits:
        # Among many pairs some differ by chance.
        for pair, p_value in zip(pairs, holm([pair[split]["p_value"] for pair in pairs]), strict=True):
            pair[split]["p_value_adjusted"] = p_value
    return pairs


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
            # With the size and the geometry that the run was trained with.
            processor = load_processor(str(candidate.folders[0]), None, None)
            model = load_pretrained(base["name"], base["revision"], source.labels, processor.image_size)
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
