"""Which candidates does `agritransfer train` try, how far did each get, and what is left of it?

`choice.json` is written after every step, so that the same command continues where an earlier one ended.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agritransfer.cli.outputs import is_report
from agritransfer.cli.scripts import flags_for, last_line, make_folder, run_script
from agritransfer.cli.time_plan import FEWEST_EPOCHS, Costs
from agritransfer.errors import DivergedError, UsageError
from agritransfer.runtime.commands import differences
from agritransfer.strategies import STRATEGIES, default_epochs
from agritransfer.training.checkpoints import free_name
from agritransfer.training.run_folder import STATUS, check_folder
from agritransfer.wording import duration

# The fitted head first: it takes a pass over the photos and shows what a pass costs.
ORDER = ("head", "lora", "finetune")
CHOICE, PAGE = "choice.json", "choice.md"
# What a fitted head has no use for.
NOT_OF_HEAD = {"augmentation", "cached_views", "label_smoothing_factor", "metric_for_best_model", "greater_is_better"}
# What stays of a candidate that was not chosen; its log lies beside its folder.
KEPT = ("validation.json", STATUS)


def open_candidates(
    output: Path, command: str, arguments: argparse.Namespace, training_flags: Sequence[str]
) -> "Candidates":
    """The candidates of this command in its folder, new or as an earlier session left them.

    Raises `UsageError` if the folder cannot be used or holds something else.
    """
    if arguments.restart and any((output / name).exists() for name in (CHOICE, STATUS)):
        print(f"the earlier run is renamed to {output.rename(free_name(output))}")
    choice = {"schema": 1, "command": command, "minutes": arguments.minutes, "candidates": []}
    choice |= {"chosen": None, "reason": None, "seconds": None}
    if (output / CHOICE).exists():
        choice = _earlier_choice(output, command) or choice
    else:
        check_folder(output)
        for name in (STATUS, PAGE, "candidates"):
            if (output / name).exists():
                remedy = "choose another --output_dir" + (" or add --restart" if name == STATUS else "")
                raise UsageError(f"--output_dir {output} holds {name}, but no run of agritransfer train; {remedy}")
    make_folder(output / "candidates")
    return Candidates(output, arguments.dataset, arguments.model_name_or_path, tuple(training_flags), choice)


def _earlier_choice(output: Path, command: str) -> dict[str, Any] | None:
    """What an earlier session has reached; None if it trained nothing, as with a wrong flag."""
    if not is_report(output / CHOICE, "candidates", "command", "chosen"):
        raise UsageError(f"{output / CHOICE} is of no run of agritransfer train; choose another --output_dir")
    choice = json.loads((output / CHOICE).read_text(encoding="utf-8"))
    changes = differences(choice["command"], command, ("--output_dir",))
    if not changes:
        return choice
    if any(row["state"] == "trained" for row in choice["candidates"]):
        raise UsageError(
            f"{output} holds a run with other flags: {changes}; choose a new --output_dir or add --restart"
        )
    return None


@dataclass
class Candidates:
    """The strategies that are tried for one dataset and model; `choice` is what `choice.json` holds."""

    output: Path
    dataset: str
    model: str
    training_flags: tuple[str, ...]
    choice: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether one was chosen and its test is scored."""
        return self.choice["seconds"] is not None and (self.output / "results.json").exists()

    @property
    def final_log(self) -> Path:
        """What the script prints that scores the test."""
        return self.output / "train.log"

    def log(self, strategy: str) -> Path:
        """What the script of a candidate prints."""
        return self.output / "candidates" / f"{strategy}.log"

    def row(self, strategy: str) -> dict[str, Any]:
        """The candidate as it stands; planned now if it has not been."""
        for row in self.choice["candidates"]:
            if row["strategy"] == strategy:
                return row
        row = {"strategy": strategy, "seconds": 0.0, **self._plan(strategy)}
        self.choice["candidates"].append(row)
        self._save()
        return row

    def _plan(self, strategy: str) -> dict[str, Any]:
        if strategy == "head":
            return {"state": "planned", "planned_epochs": None}
        costs, spent = self._costs(), self._spent
        left = 60 * self.choice["minutes"] - spent
        epochs = costs.epochs(strategy, left, most=default_epochs(strategy, costs.train))
        if not epochs:
            needed = costs.least(strategy)
            note = f"{FEWEST_EPOCHS} epochs would take about {duration(needed)}; to try it: --restart --minutes "
            return {"state": "not tried", "note": f"{note}{math.ceil((spent + needed) / 60)}"}
        minutes = round(costs.training_seconds(left) / 60, 2)
        needed = costs.start + epochs * costs.epoch(strategy)
        return {"state": "planned", "planned_epochs": epochs, "max_minutes": minutes, "planned_seconds": round(needed)}

    @property
    def _spent(self) -> float:
        return sum(row["seconds"] for row in self.choice["candidates"])

    def _costs(self) -> Costs:
        """What is known from the candidates that are trained; of the fitted head, the time of its whole process."""
        head = self._validation("head")
        seconds, scoring = self.row("head")["seconds"], head["scoring"]
        photos = {split: sum(counts.values()) for split, counts in head["dataset"]["counts"].items()}
        photo = scoring["seconds"] / scoring["photos"]
        end = seconds - head["training"]["seconds"] + photo * scoring["unscored"]
        costs = Costs(photo, photos["train"], photos["validation"], start=seconds, end=end)
        for row in self.choice["candidates"]:
            if row["state"] == "trained" and row["planned_epochs"]:
                # Its epochs have shown the costs better than the scoring of a few photos. A resumed run counts only
                # the seconds since the restart.
                spent = max(self._validation(row["strategy"])["training"]["seconds"], row["seconds"] - costs.start)
                photo = spent / row["epochs"] / costs.forward_passes(row["strategy"])
                costs = Costs(photo, costs.train, costs.validation, costs.start, costs.end)
        return costs

    def _validation(self, strategy: str) -> dict[str, Any]:
        from agritransfer.evaluation.results import read_validation

        return read_validation(self._folder(strategy))

    def _folder(self, strategy: str) -> Path:
        return self.output / "candidates" / strategy

    def plan_text(self, row: dict[str, Any]) -> str:
        """How long a planned candidate will take, to follow its name."""
        if row["planned_epochs"] is None:
            return ""
        return f" ({row['planned_epochs']} epochs, about {duration(row['planned_seconds'])})"

    def train(self, row: dict[str, Any]) -> int:
        """Train a planned candidate; returns the exit code of its script if that ends the command, or 0."""
        from agritransfer.evaluation.choice import validation_scores

        strategy, began = row["strategy"], time.perf_counter()
        code = run_script([*self._command(row, self._folder(strategy)), "--skip_test"], self.log(strategy))
        row["seconds"] = round(row["seconds"] + time.perf_counter() - began, 1)
        if code == 0:
            row |= {"state": "trained", **validation_scores(self._validation(strategy))}
        elif self._can_do_without(strategy, code):
            row |= {"state": "failed", "note": last_line(self.log(strategy))}
            code = 0
        self._save()
        return code

    def _can_do_without(self, strategy: str, code: int) -> bool:
        """Whether a failed candidate is left out: it diverged, or the network does not support it."""
        asked_for = {*flags_for(strategy, self.training_flags)} - {*flags_for("head", self.training_flags)}
        unsupported = code == UsageError.exit_code and not asked_for
        return strategy != "head" and (code == DivergedError.exit_code or unsupported)

    def _command(self, row: dict[str, Any], folder: Path) -> list[str]:
        chosen = STRATEGIES[row["strategy"]]
        command = [chosen.script, "--dataset_name", self.dataset, "--model_name_or_path", self.model, *chosen.flags]
        if row["planned_epochs"]:
            command += ["--num_train_epochs", str(row["planned_epochs"]), "--max_minutes", str(row["max_minutes"])]
        useless = NOT_OF_HEAD if row["strategy"] == "head" else ()
        return [*command, "--output_dir", str(folder), *flags_for(row["strategy"], self.training_flags, useless)]

    def finish(self) -> int:
        """Choose by validation, score the test of the chosen one, delete the others' weights; returns its exit code."""
        from agritransfer.evaluation.choice import choice_page, choose, chosen_from
        from agritransfer.evaluation.results import read_results

        if self.choice["chosen"] is None:
            self.choice["chosen"], self.choice["reason"] = choose(self.choice["candidates"])
            self._save()
        began, chosen = time.perf_counter(), self.choice["chosen"]
        _move_up(self._folder(chosen), self.output)
        if code := run_script(self._command(self.row(chosen), self.output), self.final_log):
            return code
        results = read_results(self.output) | {"chosen_from": chosen_from(self.choice)}
        _write(self.output / "results.json", results)
        (self.output / PAGE).write_text(choice_page(self.choice), encoding="utf-8")
        for strategy in ORDER:
            _delete_weights(self._folder(strategy))
        self.choice["seconds"] = round(self._spent + time.perf_counter() - began, 1)
        self._save()
        return 0

    def _save(self) -> None:
        _write(self.output / CHOICE, self.choice)


def _move_up(folder: Path, output: Path) -> None:
    """Make a candidate's folder the run folder; a move that was interrupted is completed."""
    if folder.exists():
        for path in sorted(folder.iterdir()):
            path.replace(output / path.name)
        folder.rmdir()


def _delete_weights(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in KEPT:
            path.unlink()


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
