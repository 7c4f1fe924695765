"""Tests that datasets on the Hub are read with their own labels and splits, and that none of them runs code here."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from hubserver import hub_environment, serve
from PIL import Image

ROOT = Path(__file__).parent.parent


NAMES = ["rust", "blight", "healthy"]


# Runs in a process of its own, because the clients read the address of the Hub when they are imported.
CLIENT = """
import json, sys
import huggingface_hub
from agritransfer.data import load_splits
from agritransfer.images.decoding import decode_photo

def read(name, options):
    if name == "user/unreachable":
        huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
    try:
        splits = load_splits(name, **options)
    except ValueError as error:
        return {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
    grey = {p.file: decode_photo(splits.images[p.row]["image"]["bytes"] or splits.images[p.row]["image"]["path"])
            .getpixel((0, 0))[0] for p in splits.photos}
    photos = {p.file: [p.label, p.split, grey[p.file]] for p in splits.photos}
    return {"labels": splits.labels, "photos": photos, "revision": splits.revision, "method": splits.method,
            "left_out": splits.left_out}

for line in sys.stdin:
    print("ANSWER", json.dumps(read(*json.loads(line))))
"""


ASKED = {
    "leaves": ("user/leaves", {}),
    "tag": ("user/leaves", {"revision": "no-such-tag"}),
    "secret": ("user/secret", {}),
    "one_split": ("user/one_split", {}),
    "other_splits": ("user/other_splits", {}),
    "two_images": ("user/two_images", {}),
    "chosen": ("user/two_images", {"image_column_name": "leaf", "label_column_name": "plant"}),
    "mistyped": ("user/two_images", {"image_column_name": "lef"}),
    "folders": ("user/folders", {}),
    "script": ("user/script", {}),
    "pickle": ("user/pickle", {}),
    "configurations": ("user/configurations", {}),
    "unknown": ("user/unknown", {}),
    "impossible": ("../photos", {}),
    "unreachable": ("user/unreachable", {}),
}


def grey_photo(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def put_parquet(repository: Path, split: str, **columns: list) -> None:
    """Write one split; a list of numbers called `image` or `leaf` becomes photos of that grey."""
    kinds = {"image": datasets.Image(), "leaf": datasets.Image(), "labels": datasets.ClassLabel(names=NAMES)}
    features = {name: kinds.get(name, datasets.Value("string")) for name in columns}
    for name in {"image", "leaf"} & set(columns):
        columns[name] = [{"bytes": grey_photo(value), "path": None} for value in columns[name]]
    (repository / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(repository / "data" / f"{split}-00000-of-00001.parquet")


def put_repositories(root: Path) -> None:
    put_parquet(root / "leaves", "train", image=[10, 11, 12, 13], labels=[2, 0, 1, 2])
    put_parquet(root / "leaves", "validation", image=[20, 21], labels=[0, 1])
    put_parquet(root / "leaves", "test", image=[30, 31, 32], labels=[2, 1, 0])
    put_parquet(root / "secret", "train", image=list(range(40)), labels=[-1, *([0, 1] * 20)[:39]])
    put_parquet(root / "secret", "test", image=[100, 101, 102], labels=[-1, -1, -1])
    put_parquet(root / "one_split", "train", image=list(range(20)), labels=[0, 2] * 10)
    put_parquet(root / "other_splits", "lab", image=[1, 2], labels=[0, 1])
    put_parquet(root / "other_splits", "field", image=[1, 2], labels=[0, 1])
    put_parquet(root / "configurations", "train", image=[1, 2], labels=[0, 1])
    configs = [f"- config_name: {name}\n  data_files: data/*.parquet" for name in ("colour", "grey")]
    (root / "configurations" / "README.md").write_text("\n".join(["---", "configs:", *configs, "---"]))
    plants = ["maize", "bean"] * 10
    put_parquet(root / "two_images", "train", image=[200] * 20, leaf=list(range(20)), plant=plants, label=["x"] * 20)
    folders = [f"{label}/{i}.png" for label in ("soil_test", "Tomato/healthy", "Corn/healthy") for i in range(5)]
    for grey, name in enumerate(folders):
        path = root / "folders" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grey_photo(grey))
    for repository, files in {"folders": ["README.md"], "script": ["script.py"], "pickle": ["data/rows.PKL"]}.items():
        for file in files:
            (root / repository / file).parent.mkdir(parents=True, exist_ok=True)
            (root / repository / file).write_text("raise SystemExit('code of the dataset ran')")


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict]:
    """What one process got for all that is asked of one loopback Hub."""
    root = tmp_path_factory.mktemp("hub")
    put_repositories(root / "datasets" / "user")
    server, url = serve(root)
    environment = os.environ | hub_environment(url, tmp_path_factory.mktemp("home")) | {"PYTHONPATH": str(ROOT)}
    asked = "\n".join(json.dumps(question) for question in ASKED.values())
    process = subprocess.run(
        [sys.executable, "-c", CLIENT], input=asked, env=environment, capture_output=True, text=True, cwd=ROOT
    )
    server.shutdown()
    server.server_close()
    answered = [json.loads(line[7:]) for line in process.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(answered) == len(ASKED), process.stderr
    return dict(zip(ASKED, answered, strict=True))


def test_parquet_keeps_the_names_the_splits_and_the_photos_of_its_labels(answers):
    leaves = answers["leaves"]
    assert leaves["labels"] == NAMES
    assert leaves["photos"] == {
        "train/000000": ["healthy", "train", 10],
        "train/000001": ["rust", "train", 11],
        "train/000002": ["blight", "train", 12],
        "train/000003": ["healthy", "train", 13],
        "validation/000000": ["rust", "validation", 20],
        "validation/000001": ["blight", "validation", 21],
        "test/000000": ["healthy", "test", 30],
        "test/000001": ["blight", "test", 31],
        "test/000002": ["rust", "test", 32],
    }
    assert leaves["method"] == "official"
    assert len(leaves["revision"]) == 40


def test_photos_whose_label_is_kept_secret_are_left_out_and_counted(answers):
    secret = answers["secret"]
    assert secret["left_out"] == [
        "1 photo without a label in the split 'train'",
        "3 photos without a label in the split 'test'",
    ]
    # The first row has no label; every other photo still has its own, and the test is cut from them.
    assert {file: [label, grey] for file, (label, _, grey) in secret["photos"].items()} == {
        f"train/{i:06d}": [NAMES[(i - 1) % 2], i] for i in range(1, 40)
    }
    assert [split for _, split, _ in secret["photos"].values()].count("test") == 6
    assert secret["labels"] == ["rust", "blight"]


def test_a_single_split_is_cut_and_a_name_without_photos_is_no_class(answers):
    one_split = answers["one_split"]
    assert one_split["labels"] == ["rust", "healthy"]
    assert {split for _, split, _ in one_split["photos"].values()} == {"train", "validation", "test"}
    assert one_split["method"] == "stratified"


def test_a_repository_of_class_folders_keeps_every_class(answers):
    folders = answers["folders"]
    assert folders["labels"] == ["Corn/healthy", "Tomato/healthy", "soil_test"]
    assert len(folders["photos"]) == 15
    assert all(file == f"{label}/{file[-5]}.png" for file, (label, _, _) in folders["photos"].items())
    assert folders["left_out"] == ["README.md (not a photo)"]
    assert len(folders["revision"]) == 40


def test_columns_may_be_chosen(answers):
    chosen = answers["chosen"]
    assert chosen["labels"] == ["bean", "maize"]
    assert sorted(grey for _, _, grey in chosen["photos"].values()) == list(range(20))


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ("two_images", "UsageError", "has ['image', 'leaf'] image columns; name one with --image_column_name"),
        ("mistyped", "UsageError", "has no column 'lef' for --image_column_name; it has ['image', 'leaf', 'plant'"),
        (
            "other_splits",
            "DataError",
            "has no labeled photos in a train, validation or test split; left out: [\"the split '",
        ),
        ("script", "DataError", "'user/script' has a loading script (script.py), which would run code here"),
        ("pickle", "DataError", "'user/pickle' contains the pickle data/rows.PKL, which can run code when it is read"),
        ("unknown", "UsageError", "'user/unknown' could not be read: 404 Client Error. Repository Not Found"),
        ("tag", "UsageError", "'user/leaves' could not be read: 404 Client Error. Revision Not Found"),
        ("configurations", "UsageError", "pick one among the available configs: ['colour', 'grey']"),
        ("impossible", "UsageError", "the Hub dataset '../photos' could not be read: Repo id must use"),
        ("unreachable", "UsageError", "Connection refused; check the name and HF_TOKEN"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(asked, kind, message, answers):
    refused = answers[asked]
    assert message in refused["message"]
    assert "\n" not in refused["message"]
    assert (refused["error"], refused["exit_code"]) == (kind, {"UsageError": 2, "DataError": 3}[kind])
