"""A short training whose run is published."""

from pathlib import Path

from conftest import ROOT
from hubclient import HubClient
from hubserver import HubServer, User, serve

# 22 validation photos are enough to tell what is strange.
TRAIN = ("--validation_fraction", "0.6", "--test_fraction", "0.2", "--num_train_epochs", "2", "--use_cpu")


def small_hub(folder: Path, **others: User) -> HubServer:
    """A loopback Hub on which `hf_test_write` may create Spaces too."""
    users = {"hf_test_write": User("user", pro=True), **others}
    return serve(folder, users=users, lfs_threshold=5_000)[0]


def exported_run(client: HubClient, photos: Path, model: Path, run: Path) -> Path:
    """A finished and exported run."""
    flags = ("--dataset_name", photos, "--model_name_or_path", model, "--train_layers", "head")
    said = client.run(ROOT / "train_finetune.py", *flags, "--output_dir", run, *TRAIN)
    assert said["code"] == 0, said["err"]
    assert client.run("export", run)["code"] == 0
    return run
