"""Tests that the unmodified clients read from and write to the loopback Hub, which is as strict as the real one."""

import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path

import huggingface_hub
import pytest
from hubserver import Fault, HubServer, User, hub_environment, serve
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The client hands its uploads to httpx2 under an old name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


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
    # Spawned, not forked: the clients read the environment when imported, and they are imported here already.
    with ProcessPoolExecutor(1, get_context("spawn")) as clients:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in hub_environment(url, tmp_path_factory.mktemp("home")).items():
                patch.setenv(name, value)
            # The process starts with its first call, and gets the environment of that moment.
            clients.submit(os.getpid).result()
        yield Hub(server, clients)
    server.stop()
    assert server.unknown_paths == []


@pytest.fixture
def hub(shared_hub: Hub) -> Hub:
    """Return the shared Hub with an empty log."""
    shared_hub.server.requests.clear()
    return shared_hub


# These functions run in the client process.


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


def push_and_load(photos: str, base: str) -> tuple[list[dict], list[list]]:
    """Push photos, a model and an adapter of it; return what went and what came of the photos and of the adapter."""
    from datasets import load_dataset
    from huggingface_hub import dataset_info
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForImageClassification

    load_dataset(photos, revision=dataset_info(photos).sha).push_to_hub("user/photos", private=True)
    AutoModelForImageClassification.from_pretrained(base).push_to_hub("user/vit", private=True)
    model, same = (AutoModelForImageClassification.from_pretrained("user/vit") for _ in range(2))
    lora = get_peft_model(model, LoraConfig(target_modules=["value", "v_proj"], init_lora_weights=False))
    lora.push_to_hub("user/adapter")
    adapters = [
        [weight.tolist() for name, weight in adapted.state_dict().items() if "lora_B" in name]
        for adapted in (lora, PeftModel.from_pretrained(same, "user/adapter"))
    ]
    return [load_photos(photos), load_photos("user/photos")], adapters


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


def test_the_libraries_push_what_they_then_load(hub: Hub) -> None:
    """Photos, a model and an adapter come back from private and public repositories as they went in."""
    hub.call(save_photos, hub.server.root / "datasets/ns/pushed")
    hub.call(save_vit, hub.server.root / "models/ns/base")
    photos, adapters = hub.call(push_and_load, "ns/pushed", "ns/base")
    assert photos[0] == photos[1]
    assert adapters[0] == adapters[1]
    assert any(any(row) for row in adapters[0])
    assert hub.server.repository("datasets", "user/photos").private
    pushed = hub.server.repository("models", "user/vit")
    assert pushed.files["model.safetensors"].sha256 and not pushed.files["config.json"].sha256


# From here on the clients run in this process, each test with a Hub of its own.


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serve an empty Hub with three users, which no client may ask for what it does not know."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    server, _ = serve(tmp_path / "hub")
    server.users |= {"hf_other": User("other"), "hf_pro": User("pro", orgs=("farm",), pro=True)}
    yield server
    server.stop()
    huggingface_hub.close_session()
    assert server.unknown_paths == []


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the client wait for nothing between two tries; return how long it would have waited."""
    naps = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", naps.append)
    return naps


def client(server: HubServer, token: str | bool = "hf_test_write") -> HfApi:
    return HfApi(endpoint=server.url, token=token)


def put_repository(server: HubServer, name: str, **contents: bytes) -> HfApi:
    """Create a model with files named after their keys; return the client that did."""
    api = client(server)
    api.create_repo(name)
    if contents:
        push(api, name, **contents)
    return api


def push(api: HfApi, name: str, **contents: bytes) -> str:
    """Commit files; return the id of the commit."""
    additions = [CommitOperationAdd(path, content) for path, content in contents.items()]
    return api.create_commit(name, additions, commit_message="Push", num_threads=1).oid


def refusal(error: type[Exception], call: Callable, *arguments: object, **options: object) -> int:
    """Call what must be refused with exactly this error; return its status."""
    with pytest.raises(HfHubHTTPError) as caught:
        call(*arguments, **options)
    assert caught.type is error
    return caught.value.response.status_code


def ask(server: HubServer, method: str, path: str, body: object = "", **headers: str) -> tuple[int, bytes]:
    """Send one request by hand, as the user with the right to write; return the status and the body."""
    connection = HTTPConnection(*server.server_address, timeout=10)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if not path.startswith("/_lfs"):
        headers.setdefault("Authorization", "Bearer hf_test_write")
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def commit(server: HubServer, name: str, *operations: tuple[str, dict], **header: str) -> tuple[int, bytes]:
    """Send a commit by hand."""
    lines = [("header", {"summary": "By hand", **header}), *operations]
    body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in lines)
    return ask(server, "POST", f"/api/models/{name}/commit/main", body, Content_Type="application/x-ndjson")


def announce(server: HubServer, name: str, sha256: str, size: int) -> str:
    """Ask where to upload a large file; return the path of that address."""
    body = json.dumps({"operation": "upload", "objects": [{"oid": sha256, "size": size}]})
    status, answer = ask(server, "POST", f"/{name}.git/info/lfs/objects/batch", body)
    assert status == 200
    return "/" + json.loads(answer)["objects"][0]["actions"]["upload"]["href"].split("/", 3)[3]


@pytest.mark.parametrize(("kind", "options"), [("model", {}), ("dataset", {}), ("space", {"space_sdk": "static"})])
def test_a_pushed_folder_comes_back_and_is_not_pushed_twice(server, tmp_path, kind, options):
    files = {"README.md": b"---\nlicense: mit\n---\n", "a/photo 1.jpg": bytes(range(256)), "b/.keep": b""}
    for path, content in files.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    api = client(server)
    url = api.create_repo("user/thing", repo_type=kind, private=True, **options)
    assert (url.repo_id, url.repo_type) == ("user/thing", kind)
    push = {"repo_id": "user/thing", "folder_path": tmp_path / "folder", "repo_type": kind}
    first = api.upload_folder(**push)
    assert api.upload_folder(**push).oid == first.oid
    methods = [request.method for request in server.requests]
    assert methods.count("PUT") == 1
    assert [request.path for request in server.requests if "/commit/" in request.path] == [
        f"/api/{kind}s/user/thing/commit/main"
    ]
    got = Path(api.snapshot_download("user/thing", repo_type=kind, cache_dir=tmp_path / "cache"))
    assert got.name == first.oid
    attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    assert read_files(got) == {**files, ".gitattributes": attributes}
    hosts = {(request.path[:6] == "/_lfs/", request.host, request.has_token) for request in server.requests}
    port = server.server_port
    assert hosts == {(True, f"localhost:{port}", False), (False, f"127.0.0.1:{port}", True)}


def test_a_large_file_is_told_from_a_plain_one_by_its_size_and_by_zeros(server):
    server.lfs_threshold = 100
    api = put_repository(server, "user/sizes", plain=b"x" * 99, large=b"x" * 100, zeros=b"\0", nothing=b"")
    sizes = {row.path: row.lfs and row.lfs.size for row in api.list_repo_tree("user/sizes") if row.path[0] != "."}
    assert sizes == {"plain": None, "large": 100, "zeros": 1, "nothing": None}
    siblings = {file.rfilename: file for file in api.model_info("user/sizes", files_metadata=True).siblings}
    assert siblings["large"].lfs.sha256 == hashlib.sha256(b"x" * 100).hexdigest()
    assert siblings["plain"].blob_id == hashlib.sha1(b"blob 99\0" + b"x" * 99).hexdigest()
    # What `git lfs pointer` writes for one zero, as git hashes it.
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1\n"
    pointer %= hashlib.sha256(b"\0").hexdigest().encode()
    assert siblings["zeros"].blob_id == hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()


def test_a_token_writes_only_where_its_user_and_role_may(server):
    api, reader, pro = client(server), client(server, "hf_test_read"), client(server, "hf_pro")
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert [org["name"] for org in pro.whoami()["orgs"]] == ["farm"]
    assert (pro.whoami()["isPro"], api.whoami()["isPro"]) == (True, False)
    api.create_repo("user/one")
    assert refusal(HfHubHTTPError, reader.create_repo, "user/two") == 403
    assert refusal(HfHubHTTPError, api.create_repo, "farm/two") == 403
    pro.create_repo("farm/two")
    assert refusal(HfHubHTTPError, client(server, "hf_unknown").create_repo, "user/two") == 401
    assert refusal(HfHubHTTPError, client(server, "hf_unknown").whoami) == 401
    assert refusal(HfHubHTTPError, client(server, "hf_unknown").model_info, "user/one") == 401
    assert refusal(RepositoryNotFoundError, client(server, False).create_branch, "user/one", branch="b") == 401
    for stranger in (reader, client(server, "hf_other")):
        assert refusal(HfHubHTTPError, push, stranger, "user/one", file=b"1") == 403
        assert refusal(HfHubHTTPError, stranger.create_branch, "user/one", branch="b") == 403
        assert refusal(HfHubHTTPError, stranger.delete_repo, "user/one") in (403, 404)
    assert client(server, False).list_repo_files("user/one") == [".gitattributes"]
    assert refusal(HfHubHTTPError, api.create_repo, "user/one") == 409
    assert api.create_repo("user/one", exist_ok=True).repo_id == "user/one"


def test_a_private_repository_is_hidden_from_strangers(server, tmp_path):
    api = client(server)
    api.create_repo("user/secret", private=True)
    push(api, "user/secret", plain=b"words", large=b"\0\1")
    assert client(server, "hf_test_read").model_info("user/secret").private
    for stranger, status in ((client(server, "hf_other"), 404), (client(server, False), 401)):
        for name in ("user/secret", "user/missing"):
            assert refusal(RepositoryNotFoundError, stranger.model_info, name) == status
            assert refusal(RepositoryNotFoundError, stranger.list_repo_refs, name) == status
            assert refusal(RepositoryNotFoundError, push, stranger, name, file=b"1") == status
            for file in ("plain", "large"):
                with pytest.raises(RepositoryNotFoundError):
                    stranger.hf_hub_download(name, file, cache_dir=tmp_path)
    sha256 = hashlib.sha256(b"\0\1").hexdigest()
    assert ask(server, "GET", f"/_lfs/models/user/secret/{sha256}")[0] == 403


def test_a_gradio_space_asks_for_a_paid_account(server):
    api, pro = client(server), client(server, "hf_pro")
    for sdk in ("gradio", "docker"):
        assert refusal(HfHubHTTPError, api.create_repo, "user/app", repo_type="space", space_sdk=sdk) == 402
    assert refusal(RepositoryNotFoundError, api.space_info, "user/app") == 404
    pro.create_repo("pro/app", repo_type="space", space_sdk="gradio")
    assert pro.get_space_runtime("pro/app").stage == "NO_APP_FILE"
    pro.upload_file(path_or_fileobj=b"1", path_in_repo="app.py", repo_id="pro/app", repo_type="space")
    assert pro.get_space_runtime("pro/app").stage == "RUNNING"
    assert pro.space_info("pro/app").sdk == "gradio"


def test_every_revision_stays_readable_by_branch_tag_and_commit(server, tmp_path):
    api = put_repository(server, "user/versions", file=b"1")
    one = api.model_info("user/versions").sha
    api.create_tag("user/versions", tag="v1")
    api.create_branch("user/versions", branch="exp/1")
    additions = [CommitOperationAdd("file", b"2")]
    two = api.create_commit("user/versions", additions, commit_message="Two", revision="exp/1").oid
    three = push(api, "user/versions", file=b"3")
    read = {}
    for revision in ("main", "exp/1", "v1", one, two, three):
        path = api.hf_hub_download("user/versions", "file", revision=revision, cache_dir=tmp_path)
        read[revision] = Path(path).read_bytes()
    assert read == {"main": b"3", "exp/1": b"2", "v1": b"1", one: b"1", two: b"2", three: b"3"}
    refs = api.list_repo_refs("user/versions")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": three, "exp/1": two}
    assert {ref.ref: ref.target_commit for ref in refs.tags} == {"refs/tags/v1": one}
    history = api.list_repo_commits("user/versions", revision="exp/1")
    assert [(row.title, row.authors) for row in history] == [
        ("Two", ["user"]),
        ("Push", ["user"]),
        ("initial commit", ["user"]),
    ]
    assert refusal(HfHubHTTPError, api.create_branch, "user/versions", branch="exp/1") == 409
    assert refusal(HfHubHTTPError, api.create_tag, "user/versions", tag="v1") == 409
    assert refusal(RevisionNotFoundError, api.create_tag, "user/versions", tag="v2", revision="none") == 404
    api.create_branch("user/versions", branch="old", revision=one)
    api.delete_branch("user/versions", branch="exp/1")
    assert refusal(RevisionNotFoundError, api.model_info, "user/versions", revision="exp/1") == 404
    assert refusal(RevisionNotFoundError, api.delete_branch, "user/versions", branch="exp/1") == 404
    assert refusal(HfHubHTTPError, api.delete_branch, "user/versions", branch="main") == 403
    assert api.model_info("user/versions", revision="old").sha == one
    for revision in ("v1", one, "none"):
        refused = refusal(
            RevisionNotFoundError,
            api.create_commit,
            "user/versions",
            [CommitOperationDelete("file")],
            commit_message="No",
            revision=revision,
        )
        assert refused == 404


def test_a_commit_on_another_parent_changes_nothing(server):
    api = put_repository(server, "user/raced", file=b"1")
    seen = api.model_info("user/raced").sha
    head = push(api, "user/raced", file=b"2")
    late = {"operations": [CommitOperationAdd("file", b"3")], "commit_message": "Late"}
    assert refusal(HfHubHTTPError, api.create_commit, "user/raced", parent_commit=seen, **late) == 412
    assert api.model_info("user/raced").sha == head
    assert server.repository("models", "user/raced").files["file"].content == b"2"
    api.create_commit("user/raced", parent_commit=head, **late)
    assert server.repository("models", "user/raced").files["file"].content == b"3"


def test_files_folders_and_repositories_are_deleted(server):
    api = client(server)
    api.create_repo("user/full")
    additions = [CommitOperationAdd(path, b"1") for path in ("a", "b/c", "b/d", "bb")]
    api.create_commit("user/full", additions, commit_message="Fill")
    assert refusal(RemoteEntryNotFoundError, api.delete_file, "none", "user/full") == 404
    assert refusal(RemoteEntryNotFoundError, api.delete_folder, "a", "user/full") == 404
    api.delete_file("a", "user/full")
    api.delete_folder("b", "user/full")
    assert api.list_repo_files("user/full") == [".gitattributes", "bb"]
    api.delete_repo("user/full")
    assert not api.repo_exists("user/full")
    assert refusal(RepositoryNotFoundError, api.delete_repo, "user/full") == 404


def test_a_folder_is_a_repository_that_can_be_committed_to(server):
    folder = server.root / "models/user/seed"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(b"1")
    (folder / "gone").write_bytes(b"1")
    api = client(server)
    first = api.model_info("user/seed").sha
    assert api.model_info("user/seed").sha == first
    push(api, "user/seed", pushed=b"2", old=b"2")
    (folder / "gone").unlink()
    (folder / "new").write_bytes(b"3")
    files = {path: blob.content for path, blob in server.repository("models", "user/seed").files.items()}
    assert files == {"old": b"2", "pushed": b"2", "new": b"3"}
    assert len(api.list_repo_commits("user/seed")) == 3
    assert api.list_repo_files("user/seed", revision=first) == ["gone", "old"]
    assert sorted(path.name for path in folder.iterdir()) == ["new", "old"]
    api.delete_repo("user/seed")
    assert not folder.exists()


def test_a_commit_is_refused_whole_for_one_bad_operation(server):
    put_repository(server, "user/strict")
    head = server.repository("models", "user/strict").branches["main"]
    good = ("file", {"path": "good", "content": "MQ==", "encoding": "base64"})
    paths = ["../up", "/absolute", ".git/config", "a//b", "a/../b", "./a", "", "a/"]
    bad = [("file", {"path": path, "content": "MQ=="}) for path in paths]
    bad += [("file", {"path": "a", "content": "no base64!"}), ("unknown", {"path": "a"})]
    bad += [("lfsFile", {"path": "a", "algo": "sha256", "oid": "0" * 64, "size": 1})]
    bad += [("deletedFolder", {"path": "../"})]
    assert [commit(server, "user/strict", good, operation)[0] for operation in bad] == [400] * len(bad)
    assert commit(server, "user/strict", good, ("deletedFile", {"path": "none"}))[0] == 404
    assert commit(server, "user/strict", good, summary="")[0] == 400
    assert commit(server, "user/strict", good, parentCommit="0" * 40)[0] == 412
    assert (
        ask(server, "POST", "/api/models/user/strict/commit/main", "{", Content_Type="application/x-ndjson")[0] == 400
    )
    assert ask(server, "POST", "/api/models/user/strict/commit/main", "{}", Content_Type="application/json")[0] == 400
    assert server.repository("models", "user/strict").branches["main"] == head
    assert commit(server, "user/strict", good, parentCommit=head)[0] == 200
    assert server.repository("models", "user/strict").files["good"].content == b"1"


def test_the_storage_keeps_only_what_was_announced(server):
    put_repository(server, "user/large")
    content = b"\0" * 1000
    sha256 = hashlib.sha256(content).hexdigest()
    unannounced = f"/_lfs/models/user/large/{sha256}?key={server.key}"
    assert ask(server, "PUT", unannounced, content)[0] == 400
    address = announce(server, "user/large", sha256, 1000)
    verify = ("POST", "/user/large.git/info/lfs/objects/verify", json.dumps({"oid": sha256, "size": 1000}))
    assert ask(server, *verify)[0] == 404
    assert ask(server, "PUT", address, b"\1" + content[1:])[0] == 400
    assert ask(server, "PUT", address, content[1:])[0] == 400
    assert ask(server, "PUT", address, content, Authorization="Bearer hf_test_write")[0] == 400
    assert ask(server, "PUT", address.split("?")[0], content)[0] == 403
    large = ("lfsFile", {"path": "a", "algo": "sha256", "oid": sha256, "size": 1000})
    assert commit(server, "user/large", large)[0] == 400
    assert ask(server, *verify)[0] == 404
    # Sent in chunks, as a client sends what it does not know the size of.
    assert ask(server, "PUT", address, iter([content[:300], content[300:]]))[0] == 200
    assert ask(server, *verify)[0] == 200
    assert commit(server, "user/large", ("lfsFile", {**large[1], "size": 999}))[0] == 400
    assert commit(server, "user/large", large)[0] == 200
    assert ask(server, "GET", address, Range="bytes=990-") == (206, b"\0" * 10)
    assert ask(server, "GET", address, Authorization="Bearer hf_test_write")[0] == 400
    # Another repository has nothing of it.
    put_repository(server, "user/other")
    assert commit(server, "user/other", large)[0] == 400


def test_a_long_list_comes_in_pages(server):
    server.page_size = 2
    api = put_repository(server, "user/long", **dict.fromkeys("abcd", b"1"))
    server.requests.clear()
    assert [row.path for row in api.list_repo_tree("user/long")] == [".gitattributes", "a", "b", "c", "d"]
    assert len(server.requests) == 3
    assert len(api.list_repo_commits("user/long")) == 2


def test_what_came_in_can_be_searched(server):
    put_repository(server, "user/open", plain=b"x" * 600 + b"in a file", large=b"\0in a large file")
    push(client(server), "user/open", **{"in a name": b"1"})
    for needle in (b"in a file", b"in a large file", b"in a name", b'"summary": "Push"', b"/api/repos/create"):
        assert server.has_received(needle), needle
    assert not server.has_received(b"hf_test_write")
    assert not server.has_received(b"in a folder")
    # A commit that was refused came in as well, and so did a token in another place than its own.
    leak = base64.b64encode(b"/home/user hf_test_write").decode()
    assert commit(server, "user/open", ("file", {"path": "../a", "content": leak}))[0] == 400
    assert server.has_received(b"/home/user")
    assert server.has_received(b"hf_test_write")


def test_the_second_upload_fails_once_and_is_tried_again(server, naps):
    fault = Fault("PUT", "^/_lfs", first=2, status=503)
    server.faults = [fault, Fault("GET", "", status=500, first=math.inf)]
    put_repository(server, "user/flaky", a=b"\0a", b=b"\0b", c=b"\0c")
    assert [request.status for request in server.requests if request.method == "PUT"] == [200, 503, 200, 200]
    assert (fault.seen, fault.hits, naps) == (4, 1, [1])
    assert {blob.content for blob in server.repository("models", "user/flaky").files.values()} > {
        b"\0a",
        b"\0b",
        b"\0c",
    }


def test_a_reset_upload_is_tried_again(server, naps):
    server.faults = [Fault("PUT", "^/_lfs", drop=True, times=2)]
    put_repository(server, "user/reset", a=b"\0a")
    assert [request.status for request in server.requests if request.method == "PUT"] == [0, 0, 200]
    assert naps == [1, 2]


def test_a_commit_can_be_lost_before_or_after_it_happened(server):
    api = put_repository(server, "user/lost", file=b"0")
    for fault, commits in (
        (Fault("POST", "/commit/", status=503), 1),
        (Fault("POST", "/commit/", apply_then_fail=True, status=504), 2),
        (Fault("POST", "/commit/", apply_then_fail=True), 3),
        (Fault("POST", "/commit/", drop=True), 3),
    ):
        server.faults = [fault]
        with pytest.raises(Exception, match="503|504|reset|disconnected"):
            push(api, "user/lost", file=os.urandom(8))
        assert (fault.hits, server.requests[-1].status) == (1, fault.status)
        assert len(api.list_repo_commits("user/lost")) == 1 + commits


def test_the_client_waits_as_long_as_it_is_told(server, naps):
    server.faults = [Fault("POST", "/preupload/", status=429, headers={"RateLimit": '"api";r=0;t=7'})]
    put_repository(server, "user/limited", file=b"1")
    assert naps == [8]
    server.faults = [Fault("POST", "/preupload/", status=429, headers={"Retry-After": "5"}, times=2)]
    push(client(server), "user/limited", file=b"2")
    assert sum(request.status == 429 for request in server.requests) == 3
    assert len(naps) == 3 and min(naps[1:]) >= 5


def test_an_upload_hangs_until_the_hub_stops(server):
    put_repository(server, "user/slow")
    address = announce(server, "user/slow", hashlib.sha256(b"\0").hexdigest(), 1)
    server.faults = [Fault("PUT", "^/_lfs", delay=0.3), Fault("PUT", "^/_lfs", first=2, delay=600)]
    start = time.monotonic()
    assert ask(server, "PUT", address, b"\0")[0] == 200
    assert 0.3 <= time.monotonic() - start < 5
    threading.Timer(0.2, server.stop).start()
    with pytest.raises(OSError):
        ask(server, "PUT", address, b"\0")
    assert 0.5 <= time.monotonic() - start < 5


def test_a_download_can_be_cut_or_corrupted(server, naps, tmp_path, monkeypatch):
    # The client goes on after the last whole chunk that it got.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 300)
    content = b"\0" + bytes(range(256)) * 40
    api = put_repository(server, "user/weights", plain=b"x" * 9, large=content)
    cut = Fault("GET", "^/_lfs", truncate=1000)
    server.faults = [cut]
    path = api.hf_hub_download("user/weights", "large", cache_dir=tmp_path / "cut")
    assert (cut.hits, Path(path).read_bytes() == content) == (1, True)
    assert [request.status for request in server.requests if request.method == "GET"][-2:] == [200, 206]
    server.faults = [Fault("GET", "^/_lfs|/resolve/", corrupt=True, times=2)]
    wrong = Path(api.hf_hub_download("user/weights", "large", cache_dir=tmp_path / "wrong")).read_bytes()
    assert (len(wrong), sum(a != b for a, b in zip(wrong, content, strict=True))) == (len(content), 1)
    wrong = Path(api.hf_hub_download("user/weights", "plain", cache_dir=tmp_path / "wrong")).read_bytes()
    assert wrong == b"xxxxyxxxx"


def test_a_token_can_be_revoked_while_it_is_used(server):
    api = put_repository(server, "user/revoked", file=b"1")
    del server.users["hf_test_write"]
    assert refusal(HfHubHTTPError, push, api, "user/revoked", file=b"2") == 401
    assert server.requests[-1].has_token
    assert server.repository("models", "user/revoked").files["file"].content == b"1"


def test_a_card_can_be_found_wrong(server):
    api = put_repository(server, "user/card")
    server.faults = [Fault("POST", "/validate-yaml", status=400, body=b'{"errors": [{"message": "bad license"}]}')]
    with pytest.raises(ValueError, match="bad license"):
        push(api, "user/card", **{"README.md": b"---\nlicense: x\n---\n"})
    push(api, "user/card", **{"README.md": b"---\nlicense: mit\n---\n"})


def test_a_stopped_hub_answers_nobody(server):
    connection = HTTPConnection(*server.server_address, timeout=10)
    connection.request("GET", "/api/agent-harnesses")
    assert connection.getresponse().read() == b"[]"
    server.stop()
    with pytest.raises(OSError):
        connection.request("GET", "/api/agent-harnesses")
        connection.getresponse()
    connection.close()


XET_CLIENT = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("user/xet")
for _ in range(2):
    api.upload_folder(repo_id="user/xet", folder_path=sys.argv[1])
print(api.snapshot_download("user/xet"))
"""


@pytest.mark.script
def test_a_client_with_xet_pushes_and_downloads(tmp_path):
    (tmp_path / "cas").mkdir()
    (tmp_path / "folder").mkdir()
    content = bytes(range(256)) * 1000
    (tmp_path / "folder/weights.bin").write_bytes(content)
    server, url = serve(tmp_path / "hub", xet_cas=tmp_path / "cas")
    environment = os.environ | hub_environment(url, tmp_path / "home") | {"HF_HUB_DISABLE_XET": "0"}
    command = [sys.executable, "-c", XET_CLIENT, str(tmp_path / "folder")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    server.stop()
    if "local://" in done.stderr:
        pytest.skip(f"hf_xet no longer takes a folder for its storage: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    repository = server.repository("models", "user/xet")
    assert repository.files["weights.bin"].sha256 == hashlib.sha256(content).hexdigest()
    assert len(repository.commits) == 2
    assert Path(done.stdout.split()[-1], "weights.bin").read_bytes() == content
    # Nothing of it went over the plain storage.
    assert not [request for request in server.requests if request.path.startswith("/_lfs")]
