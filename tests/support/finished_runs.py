"""What a run of a script needs, and what it leaves."""

import csv
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

EVERY_RUN = {
    "config.json",
    "figures/confusion_matrix.png",
    "figures/errors.png",
    "figures/reliability.png",
    "figures/training_curves.png",
    "model.safetensors",
    "predictions.csv",
    "preprocessor_config.json",
    "results.json",
    "splits.csv",
    "status.json",
}


SHORT = ("--num_train_epochs", "2", "--per_device_train_batch_size", "8", "--use_cpu")


def files_of(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith("checkpoints/")}


def predictions_of(folder: Path, split: str) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def check_run(folder: Path, photos: Path, strategy: str) -> dict:
    """What holds for every finished run: status, results that agree with predictions, and pipeline's own answers."""
    assert json.loads((folder / "status.json").read_text()) == {"state": "done", "exit_code": 0}
    results = json.loads((folder / "results.json").read_text())
    test = predictions_of(folder, "test")
    assert results["strategy"] == strategy
    assert results["test"]["n"] == len(test) == 6
    assert results["test"]["accuracy"] == np.mean([row["label"] == row["predicted"] for row in test])
    low, high = results["test"]["accuracy_ci95"]
    assert low <= results["test"]["accuracy"] <= high
    with warnings.catch_warnings():
        # transformers warns of its own argument when a pipeline is built.
        warnings.simplefilter("ignore")
        classifier = pipeline("image-classification", model=str(folder))
    for row in test:
        answer = classifier(str(photos / row["file"]), top_k=1)[0]
        logits = np.array([float(row[f"logit_{label}"]) for label in results["dataset"]["labels"]])
        assert answer["label"] == row["predicted"]
        assert answer["score"] == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), abs=1e-4)
    return results


def clean_environment(**more: str) -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1"} | more
