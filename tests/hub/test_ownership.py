"""Nothing that others wrote is deleted, and nothing of theirs is overwritten unless the user asked for it."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from hubserver import HubServer
from publishing import TRAIN, exported_run, small_hub

from agritransfer.hub.ownership import CORRECTIONS, INITIAL_TEXT, Branch

CORRECTION = f"answers/{'0a' * 16}.jsonl"
MINE = b"---\nlicense: mit\n---\n# My work\n"
# One name is a pattern that fits another.
OTHERS = {"thesis.txt": b"mine", "figures/a.png": b"mine", "notes [1]/b?.txt": b"mine", "notes 1/bc.txt": b"mine"}

CREATE = """
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

def put(name, kind, files):
    api = HfApi(token="hf_test_write")
    api.create_repo(name, repo_type=kind, private=True, space_sdk="gradio" if kind == "space" else None, exist_ok=True)
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    api.create_commit(name, operations, commit_message="By hand", repo_type=kind)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> HubServer:
    server = small_hub(tmp_path_factory.mktemp("hub"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def trained(client, photos, tiny_vit, tmp_path_factory) -> Path:
    """A finished and exported run."""
    return exported_run(client, photos, tiny_vit, tmp_path_factory.mktemp("runs") / "leaves")


@pytest.fixture
def run(trained, hub, tmp_path) -> Path:
    """A copy of the run, to be changed by a test."""
    hub.requests.clear()
    shutil.copytree(trained, tmp_path / "leaves", ignore=shutil.ignore_patterns("checkpoints", "published.json"))
    return tmp_path / "leaves"


def files_of(hub: HubServer, name: str, kind: str = "models") -> dict[str, bytes]:
    files = hub.repositories[kind, name].files
    return {path: blob.content for path, blob in files.items() if path != ".gitattributes"}


def commits(hub: HubServer, name: str) -> int:
    return sum(request.method == "POST" and f"/{name}/commit/" in request.path for request in hub.requests)


def putting(name: str, kind: str, files: dict[str, bytes]) -> str:
    """Code that puts files into a repository as another client does."""
    return f"{CREATE}\nput({name!r}, {kind!r}, {files!r})"


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_a_repository_with_files_of_others_is_refused_and_nothing_is_changed(kind, run, client, hub, photos):
    name = f"user/others-{kind}"
    publish = ("publish", run, "--repo_id", name if kind == "model" else "user/free")
    command = {
        "model": publish,
        "dataset": ("publish-dataset", photos, "--repo_id", name),
        "space": (*publish, "--hub_private_repo", "false", "--space", name),
    }[kind]
    if kind == "space":
        command = (*command[:3], "user/open", *command[4:])
    before = putting(name, kind, OTHERS | {"README.md": MINE})
    hub.requests.clear()
    said = client.run(*command, before=before)
    assert said["code"] == 2 and said["err"].count("\n") == 1
    assert f"'{name}' holds 5 files (README.md, figures/a.png, " in said["err"]
    assert "not written by agritransfer" in said["err"] and "--replace" in said["err"]
    # The one commit is that of the other client.
    assert sum("/commit/" in request.path for request in hub.requests) == 1
    assert files_of(hub, name, f"{kind}s") == OTHERS | {"README.md": MINE}


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_replace_keeps_what_others_wrote_and_says_what_it_overwrites(kind, run, client, hub, photos):
    name = f"user/replaced-{kind}"
    taken = {"model": "config.json", "dataset": "data/test-00000-of-00001.parquet", "space": "app.py"}[kind]
    command = {
        "model": ("publish", run, "--repo_id", name),
        "dataset": ("publish-dataset", photos, "--repo_id", name),
        "space": ("publish", run, "--repo_id", "user/opened", "--hub_private_repo", "false", "--space", name),
    }[kind]
    others = OTHERS | ({"data/train-more.parquet": b"theirs"} if kind == "dataset" else {})
    before = putting(name, kind, others | {taken: b"theirs", "README.md": MINE})
    said = client.run(*command, "--replace", before=before)
    assert said["code"] == 0, said["err"]
    assert f"overwritten in {name}, not listed as written by agritransfer: README.md, {taken}" in said["out"]
    first = files_of(hub, name, f"{kind}s")
    assert others.items() <= first.items() and first[taken] != b"theirs" and "agritransfer" in str(first["README.md"])
    record = json.loads(first["published.json"])["files"]
    assert record.keys() == first.keys() - others.keys() - {"published.json"} and len(record) >= 4
    # From now on it is ours, and the files of others stay.
    said = client.run(*command)
    assert said["code"] == 0, said["err"]
    assert files_of(hub, name, f"{kind}s") == first and "overwritten" not in said["out"]


def test_only_what_we_wrote_and_nobody_changed_is_deleted_when_it_is_no_longer_written(run, client, hub):
    name = "user/outdated"
    (run / "figures/old [1].png").write_bytes((run / "figures/errors.png").read_bytes())
    (run / "figures/changed.png").write_bytes((run / "figures/errors.png").read_bytes())
    assert client.run("publish", run, "--repo_id", name)["code"] == 0
    assert {"onnx/model.onnx", "figures/old [1].png", "figures/changed.png"} <= files_of(hub, name).keys()
    theirs = OTHERS | {"figures/changed.png": b"better", "figures/old 1.png": b"1", "config.json": b"{}"}
    (run / "figures/old [1].png").unlink()
    (run / "figures/changed.png").unlink()
    shutil.rmtree(run / "onnx")
    said = client.run("publish", run, "--repo_id", name, before=putting(name, "model", theirs))
    assert said["code"] == 0, said["err"]
    files = files_of(hub, name)
    assert "onnx/model.onnx" not in files and "figures/old [1].png" not in files
    del theirs["config.json"]
    assert theirs.items() <= files.items() and json.loads(files["config.json"])
    assert "not listed as written by agritransfer: config.json" in said["out"]


def test_a_repository_of_an_earlier_version_is_published_to_and_nothing_in_it_is_deleted(run, client, hub):
    name = "user/earlier"
    card = b"---\ntags:\n- agritransfer\n---\n# Leaves\n"
    theirs = {"README.md": card, "results.json": b"{}", "figures/former.png": b"1"}
    said = client.run("publish", run, "--repo_id", name, before=putting(name, "model", theirs))
    assert said["code"] == 0, said["err"]
    assert f"overwritten in {name}, not listed as written by agritransfer: README.md, results.json" in said["out"]
    files = files_of(hub, name)
    assert files["figures/former.png"] == b"1" and files["results.json"] != b"{}" and "published.json" in files


def test_files_that_come_between_the_check_and_the_commit_stay(run, client, hub):
    race = """
import agritransfer.hub.client as c
from huggingface_hub import HfApi
stock = HfApi.upload_folder

def late(api, **options):
    HfApi.upload_folder = stock
    put("user/raced", "model", {"thesis.txt": b"mine"})
    return stock(api, **options)

HfApi.upload_folder = late
"""
    said = client.run("publish", run, "--repo_id", "user/raced", before=CREATE + race)
    assert said["code"] == 4 and "'user/raced' holds 1 file (thesis.txt) not written by" in said["err"]
    assert "to retry: agritransfer publish" in said["err"] and files_of(hub, "user/raced") == {"thesis.txt": b"mine"}
    assert commits(hub, "user/raced") == 2


@pytest.mark.parametrize("replace", [(), ("--replace",)])
def test_the_corrections_of_visitors_are_never_mixed_with_a_dataset(replace, client, hub, photos):
    name, corrections = f"user/corrections{len(replace)}", {CORRECTION: b"{}\n", "rust/1.jpg": b"photo"}
    before = putting(name, "dataset", corrections)
    said = client.run("publish-dataset", photos, "--repo_id", name, *replace, before=before)
    assert said["code"] == 2 and said["err"].count("\n") == 1
    assert f"'{name}' holds the corrections of a Space's visitors (1 file ({CORRECTION}))" in said["err"]
    assert files_of(hub, name, "datasets") == corrections


def test_training_ends_before_the_first_step_if_the_repository_is_not_ours(client, hub, photos, tiny_vit, tmp_path):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--output_dir", tmp_path / "run", *TRAIN)
    push = ("--push_to_hub", "--hub_model_id", "user/taken", "--hub_strategy", "checkpoint")
    said = client.run(ROOT / "train_finetune.py", *flags, *push, before=putting("user/taken", "model", OTHERS))
    assert said["code"] == 2 and said["err"].count("\n") == 1 and "epoch 1" not in said["out"]
    assert f"agritransfer publish {tmp_path / 'run'} --repo_id user/taken --replace" in said["err"]
    assert files_of(hub, "user/taken") == OTHERS


def test_checkpoints_leave_what_others_wrote_where_it_is(client, hub, photos, tiny_vit, tmp_path):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--output_dir", tmp_path / "run", *TRAIN)
    push = ("--push_to_hub", "--hub_model_id", "user/kept", "--hub_strategy", "checkpoint")
    assert client.run(ROOT / "train_finetune.py", *flags, *push)["code"] == 0
    before = putting("user/kept", "model", OTHERS)
    said = client.run(ROOT / "train_finetune.py", *flags, *push, "--restart", "--seed", "1", before=before)
    assert said["code"] == 0, said["err"]
    assert OTHERS.items() <= files_of(hub, "user/kept").items()
    branch = {path.split("/")[0] for path in hub.repositories["models", "user/kept"].at("last-checkpoint").files}
    assert {path for path in branch if "checkpoint" in path} == {
        path.name for path in (tmp_path / "run/checkpoints").iterdir()
    }


CARD = "---\ntags:\n- agritransfer\n---\n# Leaves\n"


@pytest.mark.parametrize(
    ("kind", "files", "may_be_used"),
    [
        ("model", {}, True),
        ("model", {"README.md": "---\nlicense: mit\n---\n"}, True),
        ("model", {"README.md": "---\nlicense: mit\n---"}, True),
        ("space", {"README.md": f"---\nsdk: gradio\n---\n\n{INITIAL_TEXT}\n"}, True),
        ("model", {"README.md": "---\nlicense: mit\n---\n# My work\n"}, False),
        ("model", {"README.md": "# My work"}, False),
        ("model", {"README.md": "---\n- [\n---\n# My work"}, False),
        ("model", {"README.md": "---\nlicense: mit\n---\n", "model.safetensors": ""}, False),
        ("model", {"README.md": CARD, "model.safetensors": ""}, True),
        ("dataset", {"README.md": CARD, "data/train-00000-of-00001.parquet": ""}, True),
        ("space", {"README.md": "---\nsdk: gradio\n---\n# Page\n\nMade with agritransfer.\n", "app.py": ""}, True),
        ("model", {"README.md": "# Page\n\nMade with agritransfer.\n", "app.py": ""}, False),
        ("model", {"published.json": '{"written_by": "agritransfer", "files": {}}', "a": ""}, True),
        ("model", {"published.json": '{"written_by": "me"}'}, False),
        ("model", {"published.json": '{"written_by": "agritransfer"}'}, False),
        ("model", {"published.json": "[]"}, False),
        ("model", {"published.json": "no JSON"}, False),
    ],
)
def test_a_repository_may_be_used_if_it_is_empty_or_ours_by_its_list_or_its_card(kind, files, may_be_used, tmp_path):
    class Client:
        def hf_hub_download(self, repo_id, name, **options):
            (tmp_path / name).write_text(files[name])
            return str(tmp_path / name)

    branch = Branch(Client(), "user/thing", kind, "0" * 40, dict.fromkeys(files, "1" * 40))
    assert (branch.obstacle(replace=False) is None) == may_be_used and branch.obstacle(replace=True) is None
    # The card that the Hub writes is nobody's.
    assert (branch.overwritten(dict.fromkeys(files, ("2" * 64, "2" * 40))) == []) == branch.is_empty
    # Nothing of this is deleted: no list says that we wrote it.
    assert branch.outdated({"published.json": ("2" * 64, "2" * 40)}) == []


def test_the_name_of_a_file_of_corrections_is_that_of_the_space():
    text = (ROOT / "space/feedback.py").read_text()
    assert '"answers" / f"{uuid.uuid4().hex}.jsonl"' in text and CORRECTIONS.fullmatch(CORRECTION)
