"""The running Space: its endpoints, its tools, what hostile requests get, and where corrections go."""

import ast
import asyncio
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from gradio_client import Client, handle_file
from hubserver import Fault, HubServer, hub_environment, serve
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image
from spaceapp import SAMPLE, SpaceApp, data_url, encoded, file_of

import app
from agritransfer.data.sources import read_source

EXAMPLES = sorted((SAMPLE / "examples").glob("*.jpg"))


ANSWER, NOT_SURE, UNKNOWN = EXAMPLES[0], EXAMPLES[4], EXAMPLES[5]


GOOD = ANSWER.read_bytes()


# gradio_client and mcp leave sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.script,
]


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> SpaceApp:
    app = SpaceApp(tmp_path_factory.mktemp("space"))
    yield app
    app.close()


def test_one_photo_by_upload_and_in_the_request(space):
    for photo in (space.upload(GOOD), data_url(GOOD)):
        status, told = space.call("diagnose", photo)
        assert status == 200
        assert list(told) == ["schema", "verdict", "sentence", "answers", "advice", "model"]
        assert (told["verdict"], told["advice"]) == ("answer", [])
        assert told["sentence"] == "This looks like angular leaf spot (99%)."
        assert told["model"] == {"name": "sample", "revision": None}
        first = told["answers"][0]
        assert first == {"label": "angular_leaf_spot", "crop": "", "condition": "angular leaf spot"} | {
            "probability": pytest.approx(0.989, abs=0.01)
        }
        assert sum(answer["probability"] for answer in told["answers"]) == pytest.approx(1, abs=1e-3)


def test_the_sentence_is_in_the_language_that_was_asked_for(space):
    told = space.call("diagnose", data_url(NOT_SURE.read_bytes()), **{"accept-language": "sw-TZ"})[1]
    assert told["verdict"] == "not sure" and told["sentence"].startswith("Sina uhakika. Inaweza kuwa mosaic (")
    assert space.call("diagnose", None, **{"accept-language": "es"}) == (500, "Elija primero una foto.")


def test_many_photos_keep_their_names_and_a_broken_one_stops_nothing(space):
    files = {"a.jpg": GOOD, "b.jpg": b"no photo", "c.jpg": UNKNOWN.read_bytes()}
    status, told = space.call("diagnose_batch", [space.upload(content, name) for name, content in files.items()])
    assert status == 200
    assert [(row["file"], row["verdict"]) for row in told] == [
        *(("a.jpg", "answer"), ("b.jpg", "broken"), ("c.jpg", "unknown"))
    ]
    assert "not a complete photo" in told[1]["reason"] and told[0]["answers"][0]["label"] == "angular_leaf_spot"
    assert space.call("diagnose_batch", [space.upload(GOOD)] * 51) == (
        500,
        "You can send at most 50 photos at once. Choose fewer.",
    )
    assert space.call("diagnose_batch", []) == (500, "Choose a photo first.")


def test_the_labels(space):
    status, told = space.call("labels")
    assert status == 200 and len(told) == 4
    assert told[0] == {"label": "angular_leaf_spot", "crop": "", "condition": "angular leaf spot"}


def test_gradio_client_and_curl_as_the_docs_show_them(space):
    client = Client(space.url, verbose=False)
    assert client.predict(handle_file(ANSWER), api_name="/diagnose")["verdict"] == "answer"
    rows = client.predict([handle_file(path) for path in EXAMPLES], api_name="/diagnose_batch")
    assert [row["verdict"] for row in rows] == ["answer"] * 4 + ["not sure", "unknown"]
    assert [row["file"] for row in rows] == [path.name for path in EXAMPLES]
    assert len(client.predict(api_name="/labels")) == 4
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/diagnose", "/diagnose_batch", "/labels"}
    page = (ROOT / "docs/serving.md").read_text()
    script = page.split("PHOTO=leaf.jpg", 1)[1].split("```")[0]
    script = f"PHOTO={ANSWER}" + script.replace("http://127.0.0.1:7860", space.url)
    said = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, timeout=60)
    assert '"verdict": "answer"' in said.stdout and '"label": "angular_leaf_spot"' in said.stdout, said.stderr


def test_an_mcp_client_lists_and_calls_the_tools(space):
    async def ask() -> tuple[dict, dict]:
        async with (
            streamable_http_client(f"{space.url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            told = await session.call_tool("diagnose", {"photo": data_url(GOOD)["url"]})
            # Gradio's MCP server writes a dict as Python does.
            return tools, ast.literal_eval(told.content[0].text)

    tools, told = asyncio.run(ask())
    assert set(tools) == {"diagnose", "diagnose_batch", "labels"}
    assert "should not be trusted" in tools["diagnose"].description
    assert "photo" in tools["diagnose"].inputSchema["properties"]
    assert told["verdict"] == "answer" and told["answers"][0]["label"] == "angular_leaf_spot"


def large(kind: str, mode: str, **options: object) -> bytes:
    """A file of 39.7 million pixels that takes few bytes."""
    if mode == "I;16":
        return encoded(Image.fromarray(np.zeros((6300, 6300), np.uint16)), kind, **options)
    return encoded(Image.new(mode, (6300, 6300)), kind, **options)


def test_hostile_requests_get_a_reason_and_the_next_photo_the_right_answer(space):
    turned = Image.Exif()
    turned[0x0112] = 6
    bomb, garbage = encoded(Image.new("L", (30_000, 30_000)), "PNG"), os.urandom(5000)
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    torn = GOOD[:2000]
    no_photo, too_large = "not a complete photo", "more than 40 million pixels"
    refused = {
        "bomb": (data_url(bomb, "image/png"), 500, too_large),
        "bomb, uploaded": (space.upload(bomb, "bomb.png"), 500, too_large),
        "garbage": (data_url(garbage), 500, no_photo),
        "garbage, uploaded": (space.upload(garbage), 500, no_photo),
        "torn": (data_url(torn), 500, no_photo),
        "svg": (data_url(svg, "image/svg+xml"), 500, no_photo),
        "svg, uploaded": (space.upload(svg, "leaf.svg"), 500, no_photo),
        "text as base64": ({"url": "data:image/png;base64,@@@"}, 500, no_photo),
        "nothing": (None, 500, "Choose a photo first"),
        "empty": ({}, 500, "Upload the photo"),
        "text": ("leaf.jpg", 500, "validation error"),
        "a file of the server's": (file_of("/etc/passwd"), 500, "was not uploaded"),
        "a way out of the folder": (file_of(f"{space.log.parent}/uploads/../space.log"), 500, "was not uploaded"),
        "an address of the server's": (file_of(f"{space.url}/config"), 400, "photo addresses are not accepted"),
        "an address outside": (file_of("https://example.org/leaf.jpg"), 400, "photo addresses are not accepted"),
        "a file's address": (file_of("file:///etc/passwd"), 400, "photo addresses are not accepted"),
        "an address as url": ({"url": f"{space.url}/config"}, 500, "web addresses and file paths are not accepted"),
        "17 MB in the request": ({"url": "data:image/jpeg;base64," + "A" * 17_000_000}, 413, "at most 12 MB"),
        "12.1 MB in the request": (data_url(b"\xff\xd8\xff" + bytes(12_000_000)), 500, "larger than 12 MB"),
    }
    space.call("diagnose", data_url(GOOD))
    before = space.memory()
    for name, (photo, status, reason) in refused.items():
        told = space.call("diagnose", photo)
        assert told[0] == status and reason in told[1], (name, told)
    allowed = {
        "RGBA": large("PNG", "RGBA"),
        "RGBA, turned": large("PNG", "RGBA", exif=turned),
        "16 bits": large("PNG", "I;16"),
        "palette": large("PNG", "P"),
        "JPEG": large("JPEG", "RGB"),
        "WebP": large("WEBP", "RGB", quality=1, method=0),
    }
    for name, content in allowed.items():
        assert space.call("diagnose", data_url(content))[0] == 200, name
    assert space.client.post("/gradio_api/upload", files={"files": ("a.jpg", bytes(12_000_001))}).status_code == 413
    deep = space.client.post("/gradio_api/call/diagnose", content=b"[" * 100_000)
    assert deep.status_code in (400, 422)
    with ThreadPoolExecutor(30) as pool:
        told = Counter(pool.map(lambda _: space.call("diagnose", data_url(GOOD))[0], range(30)))
    assert set(told) <= {200, 503} and told[200] >= 16 and told.total() == 30
    assert space.process.poll() is None
    assert space.memory() - before < 300
    assert space.call("diagnose", data_url(GOOD))[1]["answers"][0]["label"] == "angular_leaf_spot"


def test_feedback_is_off_by_default(space):
    config = space.client.get("/config").json()
    assert "photo" in {part["props"].get("elem_id") for part in config["components"]}
    assert "correction" not in {part["props"].get("elem_id") for part in config["components"]}


def test_nothing_of_a_visitors_is_kept(space, tmp_path):
    """No history in the browser, and an upload is deleted by its age."""
    assert space.client.get("/config").json()["run_history"] is False
    assert app.KEPT_FOR + app.LOOK_EVERY <= 20 * 60
    impatient = SpaceApp(tmp_path, before="app.LOOK_EVERY = app.KEPT_FOR = 1")
    try:
        stored = Path(impatient.upload(GOOD)["path"])
        assert stored.is_relative_to(tmp_path / "uploads") and stored.read_bytes() == GOOD
        end = time.monotonic() + 20
        while stored.exists() and time.monotonic() < end:
            time.sleep(0.2)
        assert not stored.exists()
    finally:
        impatient.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> HubServer:
    server, _ = serve(tmp_path_factory.mktemp("hub"), lfs_threshold=5_000)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def with_feedback(hub, tmp_path_factory) -> SpaceApp:
    """A Space whose model comes from the Hub, at its first commit, and whose corrections go there."""
    folder = hub.root / "models/user/leaves"
    for path in SAMPLE.rglob("*"):
        if path.is_file() and path.suffix != ".md":
            (folder / path.relative_to(SAMPLE)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(SAMPLE)).write_bytes(path.read_bytes())
    commit = hub.repository("models", "user/leaves").branches["main"]
    (folder / "onnx/model.onnx").write_bytes(b"a later commit, and a broken one")
    hub.repository("models", "user/leaves")
    home = tmp_path_factory.mktemp("feedback")
    names = {"MODEL_ID": "user/leaves", "MODEL_REVISION": commit, "FEEDBACK_REPO": "user/corrections"}
    app = SpaceApp(home, **hub_environment(hub.url, home / "hub"), **names)
    app.commit = commit
    yield app
    app.close()


def correct(space: SpaceApp, photo: dict | None, label: str | None) -> str:
    """Press the button of the page; its event is no endpoint, so it is found by its name in the page's config."""
    (event,) = [event for event in space.client.get("/config").json()["dependencies"] if event["api_name"] == "correct"]
    asked = {"data": [photo, label], "fn_index": event["id"], "session_hash": "visitor"}
    assert space.client.post("/gradio_api/queue/join", json=asked).status_code == 200
    with space.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "visitor"}) as stream:
        for line in stream.iter_lines():
            if '"process_completed"' in line:
                return json.loads(line.removeprefix("data: "))["output"]["data"][0]
    raise AssertionError("no answer")


def test_the_commit_that_was_named_is_served(with_feedback):
    told = with_feedback.call("diagnose", data_url(GOOD))[1]
    assert told["model"] == {"name": "user/leaves", "revision": with_feedback.commit} and told["verdict"] == "answer"


def test_a_correction_reaches_the_private_data_set_bare_and_can_be_trained_on(with_feedback, hub, monkeypatch):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8825] = 6, "maker of a phone", {1: "N", 2: (1.0, 2.0, 3.0)}
    with Image.open(ANSWER) as leaf:
        photo = encoded(leaf.resize((3000, 2400)), "JPEG", exif=exif)
    assert "Choose the correct label first" in correct(with_feedback, with_feedback.upload(photo), None)
    assert "Choose a photo first" in correct(with_feedback, None, "rust")
    repository = hub.repositories["datasets", "user/corrections"]
    assert repository.private and list(repository.files) == [".gitattributes"]
    assert "Thank you" in correct(with_feedback, with_feedback.upload(photo), "rust")
    assert "Thank you" in correct(with_feedback, data_url(UNKNOWN.read_bytes()), "none_of_these")
    names = [name for name in repository.files if name.endswith(".jpg")]
    assert sorted(name.split("/")[0] for name in names) == ["none_of_these", "rust"]
    (stored,) = [name for name in names if name.startswith("rust/")]
    with Image.open(io.BytesIO(repository.files[stored].content)) as kept:
        assert kept.size == (819, 1024) and not kept.getexif()
    assert not hub.has_received(b"maker of a phone")
    (told,) = [name for name in repository.files if name.endswith(".jsonl")]
    lines = [json.loads(line) for line in repository.files[told].content.decode().splitlines()]
    assert lines[0] | {"date": "", "probability": 0} == {
        "file_name": stored,
        "label": "rust",
        "answered": "angular_leaf_spot",
        "probability": 0,
        "verdict": "answer",
        "model": "user/leaves",
        "commit": with_feedback.commit,
        "date": "",
    }
    folder = hub.root / "copy"
    for name, blob in repository.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob.content)
    source = read_source(str(folder))
    assert source.labels == ["none_of_these", "rust"] and len(source.photos) == 2


def test_a_label_that_is_none_is_refused_and_a_hub_that_is_away_is_told(with_feedback, hub):
    before = list(hub.repositories["datasets", "user/corrections"].files)
    with pytest.raises(Exception, match="."):
        correct(with_feedback, data_url(GOOD), "../../etc")
    hub.faults.append(Fault("POST", "/commit/", times=1, status=503))
    assert "could not be stored now" in correct(with_feedback, data_url(GOOD), "healthy")
    assert list(hub.repositories["datasets", "user/corrections"].files) == before
    assert "feedback not stored in user/corrections" in with_feedback.log.read_text()
    # The next attempt takes it along.
    assert "Thank you" in correct(with_feedback, data_url(GOOD), "mosaic")
    after = hub.repositories["datasets", "user/corrections"].files.keys() - set(before)
    assert sorted(Path(name).parent.as_posix() for name in after if name.endswith(".jpg")) == ["healthy", "mosaic"]
    assert "hf_test_write" not in with_feedback.log.read_text()


def test_a_model_or_a_data_set_that_the_hub_refuses_is_told_in_one_line(hub, tmp_path):
    environment = os.environ | hub_environment(hub.url, tmp_path)
    for names in ({"MODEL_ID": "user/none"}, {"FEEDBACK_REPO": "other/corrections"}):
        app = [sys.executable, ROOT / "space/app.py"]
        said = subprocess.run(app, env=environment | names, capture_output=True, text=True, timeout=60)
        assert said.returncode == 2 and "check MODEL_ID" in said.stderr.splitlines()[-1], said.stderr
        assert "Traceback" not in said.stderr
