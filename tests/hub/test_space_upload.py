"""A Space serves the very commit that was checked, and is said to run only when it does."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from hubclient import HubClient
from hubserver import HubServer, User
from PIL import Image
from publishing import exported_run, small_hub

SPACE_FILES = {
    *(
        "app.py",
        "classifier.py",
        "feedback.py",
        "guard.py",
        "page.py",
        "photos.py",
        "recipe_pixels.py",
        "spreadsheet.py",
    ),
    *("service.py", "README.md", "published.json", "requirements.txt", "style.css", "translations.json"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> HubServer:
    server = small_hub(tmp_path_factory.mktemp("hub"), hf_free=User("free"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def run(client, photos, tiny_vit, tmp_path_factory) -> Path:
    """A finished and exported run."""
    return exported_run(client, photos, tiny_vit, tmp_path_factory.mktemp("runs") / "leaves")


def publish(client: HubClient, run: Path, *flags: str | Path, **environment: str) -> dict:
    open_to_all = ("--hub_private_repo", "false")
    return client.run("publish", run, "--repo_id", "user/leaves", *open_to_all, *flags, **environment)


def test_the_space_names_the_model_and_the_commit_that_was_checked(run, client, hub, photos, tmp_path):
    upright = Image.Exif()
    upright[0x0112], upright[0x010F] = 6, "a maker of phones"
    with Image.open(photos / "rust/00.jpg") as photo:
        photo.save(tmp_path / "try me.jpg", exif=upright)
    said = publish(client, run, "--space", "user/page", "--examples", tmp_path / "try me.jpg", "--license", "mit")
    assert said["code"] == 0, said["err"]
    commit = json.loads((run / "published.json").read_text())["commit"]
    space = hub.repositories["spaces", "user/page"]
    assert space.sdk == "gradio" and not space.private
    assert space.variables == {"MODEL_ID": "user/leaves", "MODEL_REVISION": commit}
    assert space.files.keys() - {".gitattributes"} == SPACE_FILES
    for name in SPACE_FILES - {"README.md", "published.json"}:
        assert space.files[name].content == (ROOT / "space" / name).read_bytes()
    card = space.files["README.md"].content.decode()
    assert re.search(r"^models:\n- user/leaves$", card, re.MULTILINE) and "license: mit" in card
    assert "sdk: gradio" in card and re.search(r"^sdk_version: 6\.\d+\.\d+$", card, re.MULTILINE)
    assert re.search(rf"the Space was running after \d+ s: {hub.url}/spaces/user/page", said["out"])
    # Upright, and nothing of the phone's in it.
    example = hub.repositories["models", "user/leaves"].files["examples/try me.jpg"].content
    with Image.open(io.BytesIO(example)) as photo:
        assert photo.size == (30, 40) and not photo.getexif()


def test_it_is_said_to_run_only_when_it_does(run, client, hub):
    client.run("publish", "none", "--repo_id", "user/none", before="import agritransfer.hub.space as s; s.POLL = 0.01")
    said = publish(client, run, "--space", "user/slow")
    assert "the Space was running after" in said["out"]
    space = hub.repositories["spaces", "user/slow"]
    space.stages = ["BUILDING", "APP_STARTING"]
    said = publish(client, run, "--space", "user/slow")
    assert said["code"] == 0 and not space.stages
    assert sum(request.path.endswith("user/slow/runtime") for request in hub.requests) == 4
    space.stages = ["BUILDING", "BUILD_ERROR"]
    said = publish(client, run, "--space", "user/slow")
    assert said["code"] == 4 and "running after" not in said["out"]
    assert "its stage is BUILD_ERROR" in said["err"] and "/spaces/user/slow" in said["err"]
    again = said["err"].split("to retry: ")[1].strip()
    assert again.endswith("--space user/slow") and "--repo_id user/leaves" in again
    assert client.run(*again.split()[1:])["code"] == 0


def test_what_stands_in_the_way_is_told_before_anything_is_uploaded(run, client, hub, tmp_path):
    before = len(hub.requests)
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("onnx", "checkpoints"))
    without_onnx = publish(client, bare, "--space", "user/page2")
    free = client.run("publish", run, "--repo_id", "free/leaves", "--space", "free/page", HF_TOKEN="hf_free")
    private = client.run("publish", run, "--repo_id", "user/secret", "--space", "user/secret-page")
    no_photo = publish(client, run, "--examples", run / "results.json")
    missing = publish(client, run, "--examples", tmp_path / "none.jpg")
    twice = publish(client, run, "--examples", tmp_path / "a.jpg", tmp_path / "b/a.png")
    refused = (without_onnx, free, private, no_photo, missing, twice)
    assert [said["code"] for said in refused] == [2, 2, 2, 3, 3, 2]
    assert "two photos of --examples have the same name" in twice["err"]
    assert "agritransfer export" in without_onnx["err"]
    assert "PRO accounts" in free["err"] and "python space/app.py --model" in free["err"]
    assert "--hub_private_repo false" in private["err"] and "HF_TOKEN" in private["err"]
    assert "results.json" in no_photo["err"] and "none.jpg" in missing["err"]
    for said in refused:
        assert len(said["err"].strip().splitlines()) == 1
    assert not any("/commit/" in request.path for request in hub.requests[before:])
    # With the secret in place a private model is served.
    hub.repositories["spaces", "user/secret-page"].secrets["HF_TOKEN"] = "hf_reads"
    assert client.run("publish", run, "--repo_id", "user/secret", "--space", "user/secret-page")["code"] == 0
    assert hub.repositories["spaces", "user/secret-page"].private
