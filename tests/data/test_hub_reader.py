"""Tests that datasets on the Hub are read with their own labels and splits, and that none of them runs code here."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from math import inf
from pathlib import Path

import datasets
import pandas
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from hubserver import Fault, hub_environment, serve
from PIL import Image

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
    "configuration": ("user/configurations", {"config_name": "grey"}),
    "no_such_configuration": ("user/configurations", {"config_name": "red"}),
    "configuration_of_folders": ("user/folders", {"config_name": "grey"}),
    "swapped": ("user/swapped", {}),
    "strays": ("user/strays", {}),
    "only_a_path": ("user/only_a_path", {}),
    "saved": ("user/saved", {}),
    "features": ("user/features", {}),
    "zipped": ("user/zipped", {}),
    "empty": ("user/empty", {}),
    "gated": ("user/gated", {}),
    "forbidden": ("user/forbidden", {}),
    "model": ("user/model", {}),
    "address": ("https://huggingface.co/datasets/user/leaves/tree/main", {}),
    "unknown": ("user/unknown", {}),
    "impossible": ("../no-such-photos", {}),
    "unreachable": ("user/unreachable", {}),
}


def grey_photo(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def photos_of(greys: Iterable[int | dict]) -> list[dict]:
    """Rows of an image column; what is no number stays as it is."""
    return [grey if isinstance(grey, dict) else {"bytes": grey_photo(grey), "path": None} for grey in greys]


def put_parquet(repository: Path, split: str, names: list[str] = NAMES, **columns: list) -> None:
    """Write one split; a list of numbers called `image` or `leaf` becomes photos of that grey."""
    kinds = {"image": datasets.Image(), "leaf": datasets.Image(), "labels": datasets.ClassLabel(names=names)}
    features = {name: kinds.get(name, datasets.Value("string")) for name in columns}
    for name in {"image", "leaf"} & set(columns):
        columns[name] = photos_of(columns[name])
    (repository / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    # Not `to_parquet`, which would replace a path by the photo itself.
    pq.write_table(table.data.table, repository / "data" / f"{split}-00000-of-00001.parquet")


def put_repositories(root: Path) -> None:
    put_parquet(root / "leaves", "train", image=[10, 11, 12, 13], labels=[2, 0, 1, 2])
    put_parquet(root / "leaves", "validation", image=[20, 21], labels=[0, 1])
    put_parquet(root / "leaves", "test", image=[30, 31, 32], labels=[2, 1, 0])
    put_parquet(root / "secret", "train", image=list(range(40)), labels=[-1, *([0, 1] * 20)[:39]])
    put_parquet(root / "secret", "test", image=[100, 101, 102], labels=[-1, -1, -1])
    put_parquet(root / "one_split", "train", image=list(range(20)), labels=[0, 2] * 10)
    put_parquet(root / "other_splits", "lab", image=[1, 2], labels=[0, 1])
    put_parquet(root / "other_splits", "field", image=[1, 2], labels=[0, 1])
    put_parquet(root / "configurations", "train", image=list(range(20)), labels=[0, 1] * 10)
    configs = [f"- config_name: {name}\n  data_files: data/*.parquet" for name in ("colour", "grey")]
    (root / "configurations" / "README.md").write_text("\n".join(["---", "configs:", *configs, "---"]))
    plants = ["maize", "bean"] * 10
    put_parquet(root / "two_images", "train", image=[200] * 20, leaf=list(range(20)), plant=plants, label=["x"] * 20)
    folders = [f"{label}/{i}.png" for label in ("soil_test", "Tomato/healthy", "Corn/healthy") for i in range(5)]
    for grey, name in enumerate(folders):
        path = root / "folders" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grey_photo(grey))
    put_parquet(root / "swapped", "train", image=list(range(100, 120)), labels=[0, 1] * 10)
    put_parquet(root / "swapped", "test", NAMES[1::-1], image=[20, 21], labels=[0, 1])
    put_parquet(root / "strays", "train", image=list(range(20)), labels=[0, 1] * 10)
    put_parquet(root / "strays", "train", image=[1, 2, 3], labels=[0, 1, 2])
    (root / "strays/data/train-00000-of-00001.parquet").rename(root / "strays/data/more_photos.parquet")
    put_parquet(root / "strays", "train", image=list(range(20)), labels=[0, 1] * 10)
    (root / "strays/figure.png").write_bytes(grey_photo(1))
    # The file exists on this machine; a dataset must not be able to ask for it.
    secret = [{"bytes": None, "path": str(root / "strays/figure.png")}]
    put_parquet(root / "only_a_path", "train", image=[1, 2, *secret], labels=[0, 1, 0])
    table = datasets.Dataset.from_dict({"image": photos_of(range(20)), "label": ["rust", "blight"] * 10})
    table.cast_column("image", datasets.Image()).save_to_disk(root / "saved")
    (root / "features").mkdir()
    pandas.DataFrame({"file": ["a"], "area": [1.0]}).to_parquet(root / "features/areas.parquet")
    for grey in range(20):
        path = root / "features" / NAMES[grey % 2] / f"{grey}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(grey_photo(grey))
    for repository in ("zipped", "empty", "gated", "forbidden"):
        (root / repository).mkdir()
        (root / repository / "README.md").write_text("photos")
    (root / "zipped/leaves.zip").write_bytes(b"PK")
    (root / "gated/leaf.png").write_bytes(grey_photo(1))
    for repository, files in {"folders": ["README.md"], "script": ["script.py"], "pickle": ["data/rows.PKL"]}.items():
        for file in files:
            (root / repository / file).parent.mkdir(parents=True, exist_ok=True)
            (root / repository / file).write_text("raise SystemExit('code of the dataset ran')")


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict]:
    """What one process got for all that is asked of one loopback Hub."""
    root = tmp_path_factory.mktemp("hub")
    put_repositories(root / "datasets" / "user")
    (root / "models/user/model").mkdir(parents=True)
    (root / "models/user/model/config.json").write_text("{}")
    server, url = serve(root)
    server.faults += [
        Fault("GET|HEAD", "user/gated/resolve", times=inf, status=403, headers={"X-Error-Code": "GatedRepo"}),
        Fault("GET|HEAD", "user/forbidden", times=inf, status=403),
    ]
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


def test_the_labels_of_the_splits_are_aligned_by_name(answers):
    swapped = answers["swapped"]
    assert swapped["labels"] == ["rust", "blight"]
    of_test = {grey: label for label, split, grey in swapped["photos"].values() if split == "test"}
    assert of_test == {20: "blight", 21: "rust"}


def test_every_file_is_used_or_named(answers):
    assert answers["strays"]["left_out"] == [
        "data/more_photos.parquet (3 rows, in no split)",
        "1 photo beside the tables, such as figure.png",
    ]
    assert len(answers["strays"]["photos"]) == 20
    assert answers["features"]["left_out"] == ["areas.parquet (not a photo)"]
    assert len(answers["features"]["photos"]) == 20


def test_a_dataset_saved_to_disk_and_a_chosen_configuration_are_read(answers):
    assert (answers["saved"]["labels"], len(answers["saved"]["photos"])) == (["blight", "rust"], 20)
    assert answers["saved"]["left_out"] == []
    assert answers["configuration"]["labels"] == ["rust", "blight"]
    assert len(answers["configuration"]["photos"]) == 20


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
            "has no rows in a train, validation or test split; left out: the split 'field' (2 photos) and the split '",
        ),
        ("script", "DataError", "'user/script' has a loading script (script.py), which would run code here"),
        ("pickle", "DataError", "'user/pickle' contains the pickle data/rows.PKL, which can run code when it is read"),
        (
            "unknown",
            "UsageError",
            "'user/unknown' does not exist, or is private; check the name, and for a private one",
        ),
        ("tag", "UsageError", "'user/leaves' has no branch, tag or commit 'no-such-tag'; correct --dataset_revision"),
        ("configurations", "UsageError", "choose one with --dataset_config_name: ['colour', 'grey']"),
        (
            "no_such_configuration",
            "UsageError",
            "has no configuration 'red' for --dataset_config_name; it has ['colour'",
        ),
        ("configuration_of_folders", "UsageError", "'user/folders' has no configurations"),
        ("only_a_path", "DataError", "row 2 (counted from 0) of data/train-00000-of-00001.parquet holds only a path"),
        ("zipped", "UsageError", "1 archive, such as leaves.zip; unpack them (hf download user/zipped --repo-type"),
        ("empty", "UsageError", "'user/empty' holds no photos, parquet files or saved dataset; look at http"),
        ("gated", "UsageError", "'user/gated' is gated; accept its terms at http"),
        ("forbidden", "UsageError", "'user/forbidden' may not be read (403); set HF_TOKEN"),
        ("model", "UsageError", "'user/model' does not exist, but a model of this name does"),
        ("address", "UsageError", "is an address; give the Hub id: user/leaves"),
        ("impossible", "UsageError", "the Hub dataset '../no-such-photos' could not be read: Repo id must use"),
        ("unreachable", "UsageError", "Connection refused; check the name, the network and HF_TOKEN"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(asked, kind, message, answers):
    refused = answers[asked]
    assert message in refused["message"]
    assert "\n" not in refused["message"]
    assert (refused["error"], refused["exit_code"]) == (kind, {"UsageError": 2, "DataError": 3}[kind])
