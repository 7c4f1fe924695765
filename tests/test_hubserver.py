"""Tests that the unmodified Hub clients read models and data sets from the loopback Hub."""

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path

import pytest
from hubserver import HubServer, hub_environment, serve


@dataclass
class Hub:
    """A Hub, and a process whose clients talk to it."""

    server: HubServer
    clients: ProcessPoolExecutor

    def call(self, function: Callable, *arguments: object) -> object:
        """Call a function of this file in the client process; return what it returns, raise what it raises."""
        return self.clients.submit(function, *arguments).result()

    def missing(self) -> set[str]:
        """Return the paths answered with 404, those of files without their repository."""
        return {re.sub(".*/resolve/[^/]+/", "", path) for _, path, status, *_ in self.server.requests if status == 404}


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Serve an empty Hub to one client process, shared because its imports take seconds."""
    server, url = serve(tmp_path_factory.mktemp("hub"))
    environment = hub_environment(url, tmp_path_factory.mktemp("home"))
    # Spawned, not forked: the clients read the environment when imported, and pytest may have imported them already.
    with ProcessPoolExecutor(1, get_context("spawn"), set_environment, (environment,)) as clients:
        yield Hub(server, clients)
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(shared_hub: Hub) -> Hub:
    """Return the shared Hub with an empty log."""
    shared_hub.server.requests.clear()
    return shared_hub


# These functions run in the client process. They import for themselves, so that nothing is imported before
# `set_environment` has run.


def set_environment(variables: dict[str, str]) -> None:
    """Put the address of the Hub into the environment of the client process."""
    os.environ.update(variables)


def save_photos(repository: Path) -> None:
    """Write a data set of two tiny drawn photos a split."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Drawing

    features = Features({"image": Image(), "label": ClassLabel(names=["healthy", "rust"])})
    for split, red in {"train": 50, "test": 100}.items():
        images = [Drawing.new("RGB", (4, 4), (red, green, 0)) for green in (10, 20)]
        photos = Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
        photos.to_parquet(repository / "data" / f"{split}-00000-of-00001.parquet")


def load_photos(name: str) -> dict[str, list[tuple]]:
    """Load a data set; return a pixel and the label of each photo, by split."""
    from datasets import load_dataset
    from huggingface_hub import dataset_info

    # Without a revision, load_dataset also asks a host named datasets-server.127.0.0.1.
    splits = load_dataset(name, revision=dataset_info(name).sha)
    return {
        split: [(row["image"].getpixel((0, 0)), photos.features["label"].int2str(row["label"])) for row in photos]
        for split, photos in splits.items()
    }


def save_vit(repository: Path) -> dict[str, list]:
    """Write a tiny ViT and its image processor; return its weights."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
    model.save_pretrained(repository)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(repository)
    return {name: weight.tolist() for name, weight in model.state_dict().items()}


def load_vit(name: str) -> tuple[dict[str, list], int]:
    """Load a model and its image processor; return the weights and the image height."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(name)
    weights = {name: weight.tolist() for name, weight in model.state_dict().items()}
    return weights, AutoImageProcessor.from_pretrained(name).size["height"]


def download(name: str) -> dict[str, bytes]:
    """Download a whole data set repository; return its files."""
    from huggingface_hub import snapshot_download

    return read_files(Path(snapshot_download(name, repo_type="dataset")))


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def download_error(name: str) -> str:
    """Return the name of the error that a download ends with."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError) as error:
        snapshot_download(name)
    return error.typename


def test_load_dataset(hub: Hub) -> None:
    """A data set of parquet files has its photos, splits and label names."""
    hub.call(save_photos, hub.server.root / "datasets/ns/photos")
    assert hub.call(load_photos, "ns/photos") == {
        "train": [((50, 10, 0), "healthy"), ((50, 20, 0), "rust")],
        "test": [((100, 10, 0), "healthy"), ((100, 20, 0), "rust")],
    }
    assert hub.missing() <= {"README.md", "photos.py", ".huggingface.yaml", "dataset_infos.json"}


def test_from_pretrained(hub: Hub) -> None:
    """A model has the weights it was saved with, and its image processor loads."""
    weights = hub.call(save_vit, hub.server.root / "models/ns/tiny-vit")
    assert hub.call(load_vit, "ns/tiny-vit") == (weights, 8)
    assert hub.missing() <= {"adapter_config.json", "processor_config.json"}


def test_snapshot_download(hub: Hub) -> None:
    """A download brings every file byte for byte, whatever its name and size."""
    files = {"README.md": b"# Leaves\n", "train/rust/leaf 100%.jpg": bytes(range(256)), "train/größe#1?.csv": b""}
    for path, content in files.items():
        file = hub.server.root / "datasets/ns/leaves" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    assert hub.call(download, "ns/leaves") == files
    assert hub.missing() == set()


def test_missing_repository(hub: Hub) -> None:
    """A repository that does not exist raises the error that the real Hub causes."""
    assert hub.call(download_error, "ns/nothing") == "RepositoryNotFoundError"
    assert hub.missing() == {"/api/models/ns/nothing/revision/main"}


def test_answers_on_one_connection(hub: Hub) -> None:
    """Bodies, ranges, headers and errors keep a connection in step."""
    repository = hub.server.root / "models/ns/plain"
    repository.mkdir(parents=True)
    (repository / "ten.txt").write_bytes(b"0123456789")
    file = "/ns/plain/resolve/main/ten.txt"
    connection = HTTPConnection(*hub.server.server_address, timeout=10)

    def answer(method: str, path: str, body: str = "", **headers: str) -> tuple[int, str | None, bytes]:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        # What an error says is for people; a HEAD says nothing.
        return response.status, response.headers["X-Error-Code"], content if response.status < 400 else b""

    unknown = len(hub.server.unknown_paths)
    assert answer("PUT", "/api/unknown", body="GET / HTTP/1.1\r\n\r\n") == (404, "UnknownPath", b"")
    assert answer("HEAD", file) == (200, None, b"")
    assert answer("GET", file) == (200, None, b"0123456789")
    assert answer("GET", file, Range="bytes=7-") == (206, None, b"789")
    assert answer("GET", file, Range="bytes=2-4") == (206, None, b"234")
    assert answer("GET", file, Range="bytes=10-") == (416, None, b"")
    assert answer("GET", "/ns/plain/resolve/other/ten.txt") == (404, "RevisionNotFound", b"")
    assert answer("GET", "/ns/plain/resolve/main/eleven.txt") == (404, "EntryNotFound", b"")
    assert answer("GET", "/api/models/ns/plain/tree/main/folder") == (404, "EntryNotFound", b"")
    # The id is what `git hash-object ten.txt` prints.
    row = {"type": "file", "path": "ten.txt", "size": 10, "oid": "ad471007bd7f5983d273b9584e5629230150fd54"}
    rows = json.dumps([row]).encode()
    assert answer("POST", "/api/models/ns/plain/paths-info/main", body="paths=ten.txt&paths=none") == (200, None, rows)
    connection.close()
    # The test of what no client asks for counts these.
    del hub.server.unknown_paths[unknown:]
    assert [request.status for request in hub.server.requests] == [404, 200, 200, 206, 206, 416, 404, 404, 404, 200]
