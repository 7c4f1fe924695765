"""Which facts of a run stand in its results beside the scores?"""

import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from agritransfer.data.dataset import SPLITS, Splits
from agritransfer.runtime.profiling import PeakMemory
from agritransfer.training.learning_curve import still_rising
from agritransfer.training.trainer import ImageTrainer

PACKAGES = ("torch", "transformers", "datasets", "peft", "accelerate")


def data_facts(splits: Splits, shift: Splits | None, broken: list[str]) -> dict[str, Any]:
    """The entries `dataset`, `selection` and `splits`; `broken` are the photos that were skipped."""
    # Streamed train photos are not read before training.
    into_shift = {
        "found": None if splits.stream else splits.shift_leaks,
        "dropped": splits.shift_leaks if splits.leaks_dropped else 0,
    }
    return {
        "dataset": {
            "name": splits.name,
            "revision": splits.revision,
            "config": splits.config,
            "fingerprint": splits.fingerprint,
            "labels": splits.labels,
            "counts": {split: splits.label_counts(split) for split in SPLITS},
            "streamed": splits.stream is not None,
            "notes": list(splits.notes),
        },
        "selection": {**asdict(splits.selection), "photos_over_limits": splits.over_limits},
        "splits": {
            "method": splits.method,
            "seed": splits.seed,
            "leakage": {
                "found": None if splits.stream else len(splits.leaked),
                "dropped": len(splits.leaked) if splits.leaks_dropped else 0,
                **({"shift": into_shift} if shift else {}),
            },
            "broken": {"found": len(broken), "skipped": len(broken)},
        },
    }


def training_facts(trainer: ImageTrainer, total_parameters: int, memory: PeakMemory) -> dict[str, Any]:
    """The entry `training`; seconds and photos per second are those of this session."""
    state = trainer.state
    # Filling a cache and fitting a head first are part of the training time.
    seconds = sum(trainer.times.seconds.values())
    # A stream holds the share of one process.
    photos = state.epoch * len(trainer.train_dataset) * (trainer.args.world_size if trainer.stream else 1)
    on_gpu = trainer.args.device.type == "cuda"
    chosen_by = None if state.best_global_step is None else trainer.args.metric_for_best_model.removeprefix("eval_")
    best_step = trainer.kept_step
    # A linear probe has penalties in place of steps.
    penalties = {entry["step"]: entry["penalty"] for entry in state.log_history if "penalty" in entry}
    return {
        "epochs": round(state.epoch, 4),
        "steps": state.global_step,
        "best_step": best_step,
        # The validation score that chose this step; None for the last step of a run that chose none.
        "chosen_by": "log_loss" if penalties else chosen_by,
        "penalty": penalties.get(best_step),
        # Whether more epochs would probably have helped.
        "still_rising": still_rising(state.log_history),
        "seconds": round(seconds, 1),
        "images_per_second": round(photos / seconds, 2),
        "peak_memory_bytes": memory.highest(on_gpu),
        "trainable_parameters": trainer.trainable_parameters,
        "total_parameters": total_parameters,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "num_processes": trainer.args.world_size,
    }


def environment_facts() -> dict[str, str | None]:
    """The entry `environment`: versions, and the commit of this code."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "git_commit": _commit(),
    }


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        # A downloaded archive has no git history.
        return None
