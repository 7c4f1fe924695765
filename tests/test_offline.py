"""A login node fetches, a compute node without internet trains."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from conftest import ROOT
from hubserver import hub_environment, serve

pytestmark = pytest.mark.slow


def put_folders(photos: Path, repository: Path) -> None:
    shutil.copytree(photos, repository)


def put_parquet(photos: Path, repository: Path) -> None:
    names = sorted(path.name for path in photos.iterdir())
    files = sorted(photos.rglob("*.jpg"))
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in files],
        "label": [names.index(path.parent.name) for path in files],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    (repository / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(repository / "data/train-00000-of-00001.parquet")


@pytest.mark.parametrize("put", [put_folders, put_parquet])
def test_after_download_only_the_same_command_trains_without_a_network(put, photos, tiny_vit, tmp_path):
    put(photos, tmp_path / "hub/datasets/user/leaves")
    shutil.copytree(tiny_vit, tmp_path / "hub/models/base/tiny-vit")
    server, _ = serve(tmp_path / "hub")
    environment = os.environ | hub_environment(server.url, tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    run = tmp_path / "run"
    flags = ["--dataset_name", "user/leaves", "--model_name_or_path", "base/tiny-vit", "--use_cpu"]
    flags += ["--num_train_epochs", "1", "--output_dir", str(run)]

    def train(*more: str, **changes: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "train_finetune.py"), *flags, *more]
        return subprocess.run(command, capture_output=True, text=True, env=environment | changes, cwd=tmp_path)

    try:
        fetched = train("--download_only")
    finally:
        server.stop()
    assert fetched.returncode == 0, fetched.stderr
    assert "downloaded; to train offline, set HF_HUB_OFFLINE=1" in fetched.stdout and "epoch 1/" not in fetched.stdout
    assert not (run / "results.json").exists()
    trained = train(HF_HUB_OFFLINE="1")
    assert trained.returncode == 0, trained.stderr
    results = json.loads((run / "results.json").read_text())
    assert results["dataset"]["counts"]["train"] == {"blight": 8, "healthy": 8, "rust": 8}
    # Which photos and which weights is known without the network too.
    assert len(results["dataset"]["revision"]) == len(results["base_model"]["revision"]) == 40
