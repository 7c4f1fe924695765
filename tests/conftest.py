"""Small photos, a tiny pretrained network, the real scripts in this process, and no network but the loopback."""

import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

ROOT = Path(__file__).parent.parent
# Where stored pixels and earlier looks go, of the tests in this process and of those that they start.
CACHE = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = CACHE.name
datasets.config.HF_DATASETS_CACHE = Path(CACHE.name)
# Fixtures that run a script or start a process; a test that asks for one gets the marker `script`.
RUNNERS = {"answers", "client", "finished_run", "run_script", "shared_hub"}
COLOURS = {"blight": (150, 90, 40), "healthy": (40, 140, 40), "rust": (200, 120, 30)}


# First, because pytest's own hook deselects by marker.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if RUNNERS & set(item.fixturenames):
            item.add_marker("script")


@pytest.fixture(autouse=True, scope="session")
def only_loopback():
    """A test that reaches for the internet fails at once and says where to."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test reached for {address}")
        return connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect


@pytest.fixture(autouse=True)
def one_thread():
    """A tiny network loses more to threads than it gains, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of class folders: 12 noisy photos of 40 x 30 pixels for each of three colours."""
    return put_photos(tmp_path_factory.mktemp("data") / "photos", seed=0)


@pytest.fixture(scope="session")
def field_photos(tmp_path_factory) -> Path:
    """Other photos of the same classes."""
    return put_photos(tmp_path_factory.mktemp("data") / "field", seed=1)


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """A process that runs the project's commands against the loopback Hub of a test file, its fixture `hub`."""
    # It imports this file.
    from hubclient import HubClient

    client = HubClient(hub.url, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


def put_photos(folder: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(random.normal(colour, 40, size=(30, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.jpg")
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory) -> Path:
    """A pretrained network of 2 blocks for photos of 32 x 32 pixels and two labels of its own."""
    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a training script in this process; gives (exit code, what it printed, what it complained of)."""

    def run(script: str, *flags: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, flags)])
        monkeypatch.chdir(ROOT)
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
