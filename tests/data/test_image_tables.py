"""Tables of photos on this machine are read as their labels are named, or refused with row, file and remedy."""

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image

from agritransfer.data.dataset import load_shift_photos, load_splits
from agritransfer.data.readers.source import Source
from agritransfer.data.sources import read_source
from agritransfer.errors import DataError, UsageError
from agritransfer.images.decoding import decode_photo

NAMES = ["healthy", "rust"]
ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True, scope="module")
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def png(grey: int) -> bytes:
    opened = io.BytesIO()
    Image.new("RGB", (4, 4), (grey,) * 3).save(opened, "PNG")
    return opened.getvalue()


def put(path: Path, labels: list, names=NAMES, kind=None, image: pa.Array | None = None, feature=None) -> Path:
    """A parquet file with these labels, class numbers unless `kind` is another arrow type; row i has grey i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image is None:
        image = pa.array([{"bytes": png(row), "path": None} for row in range(len(labels))], ENCODED)
    label = (
        datasets.ClassLabel(names=names) if kind is None else datasets.features.features.generate_from_arrow_type(kind)
    )
    features = datasets.Features({"image": feature or datasets.Image(), "label": label})
    table = pa.table({"image": image, "label": pa.array(labels, kind or pa.int64())})
    pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), path)
    return path


def put_splits(folder: Path, **labels: list) -> Path:
    for split, values in labels.items():
        put(folder / f"data/{split}-00000-of-00001.parquet", values)
    return folder


def label_of_grey(source: Source, split: str) -> dict[int, str]:
    photos = [photo for photo in source.photos if photo.split == split]
    greys = [decode_photo(source.images[photo.row]["image"]["bytes"]).getpixel((0, 0))[0] for photo in photos]
    return dict(zip(greys, (photo.label for photo in photos), strict=True))


def test_labels_are_aligned_by_name_between_splits_and_between_files_of_a_split(tmp_path):
    put(tmp_path / "data/train-00000-of-00002.parquet", [0, 1])
    put(tmp_path / "data/train-00001-of-00002.parquet", [1, 0, 0], names=["rust", "healthy"], image=None)
    put(tmp_path / "data/test-00000-of-00001.parquet", [0, 1, 2], names=["mould", "rust", "healthy"])
    source = read_source(str(tmp_path))
    assert source.labels == ["healthy", "rust", "mould"]
    assert [photo.label for photo in source.photos if photo.split == "train"] == [
        "healthy",
        "rust",
        "healthy",
        "rust",
        "rust",
    ]
    assert label_of_grey(source, "test") == {0: "mould", 1: "rust", 2: "healthy"}


def test_labels_of_a_saved_dataset_and_of_a_second_test_set_are_aligned_by_name(tmp_path):
    def table(names: list[str], first: int, rows: int) -> datasets.Dataset:
        random = np.random.default_rng(first)
        pictures = [Image.fromarray(random.integers(0, 255, (9, 9, 3), np.uint8)) for _ in range(rows)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(rows)]}, features=features)

    saved = {"train": table(NAMES, 1, 20), "test": table(NAMES[::-1], 2, 3), "extra": table(NAMES, 3, 5)}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    table(NAMES[::-1], 4, 3).save_to_disk(tmp_path / "field")
    splits = load_splits(str(tmp_path / "saved"))
    assert splits.left_out == ("the split 'extra' (5 photos)",)
    assert splits.label_counts("test") == {"healthy": 1, "rust": 2}
    _, shift = load_shift_photos(str(tmp_path / "field"), splits)
    assert shift.label_counts("shift") == {"healthy": 1, "rust": 2}


@pytest.mark.parametrize(
    ("labels", "kind", "words"),
    [
        ([0, 1, 5], None, "row 2 (counted from 0) of t.parquet has the label 5, but there are 2 class names (0 to 1)"),
        ([0, -2], None, "row 1 (counted from 0) of t.parquet has the label -2, but there are 2 class names"),
        ([0, -5], pa.int32(), "row 1 (counted from 0) of t.parquet has the label -5; use 0 or more"),
        (["a", ""], pa.string(), "row 1 (counted from 0) of t.parquet has an empty label; name its class"),
        (["a", " \t"], pa.string(), "row 1 (counted from 0) of t.parquet has an empty label"),
        (
            ["a", "b\n"],
            pa.string(),
            "row 1 (counted from 0) of t.parquet has the label 'b\\n' with a control character",
        ),
        (["rust", "rust "], pa.string(), "has the labels 'rust' and 'rust ', which differ only in blanks; merge them"),
        ([[0, 2], [1]], pa.list_(pa.int64()), "holds lists, that is several labels per photo (multi-label)"),
        ([0.0, float("nan")], pa.float64(), "holds float64 values; one class per photo"),
        ([b"a", b"b"], pa.binary(), "holds binary values; one class per photo"),
        ([{"x": 1}], pa.struct([("x", pa.int64())]), "holds records of x; one class per photo"),
        ([1, 2], pa.timestamp("s"), "values; one class per photo"),
        ([None, None], pa.string(), "no labeled photos; left out: 2 photos without a label in the split 'train'"),
        ([], None, "has no rows in a train, validation or test split; add photos"),
    ],
)
def test_values_that_name_no_class_are_refused_by_name(labels, kind, words, tmp_path):
    refused_in_one_line(put(tmp_path / "t.parquet", labels, kind=kind), DataError, words)


def test_plain_values_and_hidden_labels_are_read(tmp_path):
    for number, (labels, kind, found) in enumerate(
        [
            ([0, -1, None, 1], None, {"healthy": 1, "rust": 1}),
            ([0, -1, None, 7], pa.int16(), {"0": 1, "7": 1}),
            (["b", None, "a"], pa.large_string(), {"a": 1, "b": 1}),
            ([True, False, True], pa.bool_(), {"True": 2, "False": 1}),
        ]
    ):
        source = read_source(str(put(tmp_path / f"{number}.parquet", labels, kind=kind)))
        assert Counter(photo.label for photo in source.photos) == found
        assert sum(found.values()) + sum(int(line.split()[0]) for line in source.left_out) == len(labels)
    # As pandas writes them: categories, and photos without any description of their own.
    frame = pandas.DataFrame({"photo": [png(1), png(2)], "label": pandas.Categorical(["b", "a"])})
    frame.to_parquet(tmp_path / "pandas.parquet")
    assert label_of_grey(read_source(str(tmp_path / "pandas.parquet")), "") == {1: "b", 2: "a"}


def test_the_readme_names_the_classes_only_of_files_that_do_not(tmp_path):
    names = "\n".join(f"          '{number}': {name}" for number, name in enumerate(["ill", "well"]))
    head = "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n"
    (tmp_path / "README.md").write_text(f"{head}      class_label:\n        names:\n{names}\n---\n")
    put(tmp_path / "t.parquet", [0, 1], kind=pa.int64())
    assert label_of_grey(read_source(str(tmp_path)), "") == {0: "ill", 1: "well"}
    put(tmp_path / "t.parquet", [0, 1])
    refused_in_one_line(tmp_path, DataError, "names the classes of 'label' ['ill', 'well'], but t.parquet names them")


def test_files_whose_labels_or_columns_differ_in_kind_are_refused(tmp_path):
    folder = put_splits(tmp_path / "kinds", train=[0, 1])
    put(folder / "data/test-00000-of-00001.parquet", ["rust"], kind=pa.string())
    refused_in_one_line(folder, DataError, "class names in data/train-00000-of-00001.parquet; text in data/test-00000-")
    put(folder / "data/test-00000-of-00001.parquet", [1], kind=pa.int64())
    refused_in_one_line(folder, DataError, "class names in data/train-00000-of-00001.parquet; whole numbers in data/te")
    pq.write_table(pa.table({"image": [b"x"]}), folder / "data/test-00000-of-00001.parquet")
    refused_in_one_line(folder, DataError, "test-00000-of-00001.parquet in '")


def test_every_parquet_file_is_read_or_named_and_none_is_missing(tmp_path):
    folder = put_splits(tmp_path / "stray", train=[0, 1], test=[1], test_b=[0, 1])
    put(folder / "data/more_photos.parquet", [0, 1, 1])
    source = read_source(str(folder))
    assert source.left_out == ("the split 'test_b' (2 photos)", "data/more_photos.parquet (3 rows, in no split)")
    assert len(source.photos) == 3
    chance = tmp_path / "chance"
    put(chance / "soil_test.parquet", [0, 1])
    put(chance / "corn.parquet", [0, 1])
    refused_in_one_line(chance, DataError, "by their names, soil_test.parquet as test, and corn.parquet is left out")
    gap = tmp_path / "gap"
    for number in (0, 2):
        put(gap / f"data/train-{number:05d}-of-00003.parquet", [0, 1])
    refused_in_one_line(gap, DataError, "lacks 1 shard of the 3 of data/train: number 00001; add the missing files")
    put(gap / "data/train-00000-of-00001.parquet", [0, 1])
    refused_in_one_line(gap, DataError, "several sets of data/train shards, of 00001 and 00003 files")
    twice = put_splits(tmp_path / "twice", train=[0, 1], validation=[1], valid=[1])
    refused_in_one_line(twice, DataError, "several splits for validation: validation and valid; merge them")


def test_a_configuration_is_chosen_by_name(tmp_path):
    folder = put_splits(tmp_path / "two", train=[0, 1, 1], test=[1])
    lab = "- config_name: lab\n  data_files: data/train*\n  default: true\n"
    field = "- config_name: field\n  data_files: data/test*\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{lab}{field}---\n")
    # Not even a default one is taken without being asked for.
    refused_in_one_line(
        folder, UsageError, "several configurations; choose one with --dataset_config_name: ['lab', 'fie"
    )
    refused_in_one_line(
        folder, UsageError, "no configuration 'x' for --dataset_config_name; it has ['lab',", config="x"
    )
    source = read_source(str(folder), config="lab")
    assert (len(source.photos), source.left_out) == (
        3,
        ("data/test-00000-of-00001.parquet (1 row, in no split of 'lab')",),
    )


@pytest.mark.parametrize(
    ("image", "feature", "words"),
    [
        (["a.png"], datasets.Value("string"), "image (string values (paths, addresses or base64)), label (class numb"),
        ([[1, 2]], datasets.List(datasets.Value("int64")), "it has image (lists), label (class numbers): convert one"),
        ([{"x": {"bytes": b"", "path": None}}], {"x": datasets.Image()}, "it has image (records), label"),
        (
            [{"bytes": None, "path": "/etc/hostname"}],
            None,
            "row 0 (counted from 0) of t.parquet holds only a path, '/etc",
        ),
    ],
)
def test_columns_that_hold_no_photos_are_refused(image, feature, words, tmp_path):
    kind = ENCODED if feature is None else datasets.Features({"image": feature}).arrow_schema.field("image").type
    path = put(tmp_path / "t.parquet", [0], image=pa.array(image, kind), feature=feature)
    refused_in_one_line(path, DataError, words)


def test_a_row_without_a_photo_is_a_broken_photo(tmp_path):
    image = pa.array(
        [{"bytes": png(row), "path": None} for row in range(18)] + [{"bytes": None, "path": None}, None], ENCODED
    )
    put(tmp_path / "t.parquet", [0, 1] * 10, image=image)
    with pytest.raises(DataError, match=r"2 broken photos: train/000018 \(the file is empty\); train/000019"):
        load_splits(str(tmp_path))


def test_damaged_files_are_named(tmp_path):
    folder = put_splits(tmp_path / "set", train=[0, 1] * 20, test=[1])
    path = folder / "data/train-00000-of-00001.parquet"
    whole = path.read_bytes()
    chunks = pq.read_metadata(path).row_group(0)
    for place, words in (
        (0, "-of-00001.parquet is damaged ("),
        (2, "the column 'label' of data/train-00000-of-00001."),
    ):
        chunk = chunks.column(place)
        first, last = chunk.data_page_offset, chunk.data_page_offset + 40
        path.write_bytes(whole[:first] + b"\xff" * 40 + whole[last:])
        refused_in_one_line(folder, DataError, words)
    for content in (whole[:500], b"", b"PAR1"):
        path.write_bytes(content)
        refused_in_one_line(folder, DataError, "train-00000-of-00001.parquet of '")
    table = datasets.Dataset.from_dict({"image": [png(1), png(2)], "label": ["a", "b"]})
    table.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-200])
    refused_in_one_line(tmp_path / "saved", DataError, f"{arrow.name} in '")
    arrow.unlink()
    refused_in_one_line(tmp_path / "saved", DataError, f"{arrow.name} in '")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my leaves.zip", "unpack it first: unzip 'my leaves.zip' -d 'my leaves', then --dataset_name 'my leaves'"),
        ("leaves.tar.gz", "mkdir -p leaves && tar -xf leaves.tar.gz -C leaves, then --dataset_name leaves"),
        ("leaves.tar", "if it is a WebDataset shard, give its folder with --streaming"),
        ("leaves.7z", "7z x leaves.7z -oleaves"),
        ("leaves.rar", "unrar x leaves.rar leaves/"),
    ],
)
def test_an_archive_is_refused_with_the_command_that_unpacks_it(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"PK")
    refused_in_one_line(Path(name), UsageError, words)
    Path("folder").mkdir()
    os.replace(name, f"folder/{name}")
    refused_in_one_line(Path("folder"), UsageError, f"holds no photos or parquet files but 1 archive, such as {name}")


@pytest.mark.slow
def test_a_refusal_right_after_reading_labels_ends_with_its_own_exit_code(tmp_path):
    # A file of Python's own, still known to a thread of pyarrow, aborted four of five such processes (code 134).
    path = put(tmp_path / "t.parquet", [0, 5])
    for _ in range(3):
        command = [sys.executable, "-m", "agritransfer", "audit", str(path), "--output", str(tmp_path / "audit.json")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, "the label 5" in done.stderr) == (3, True), done.stderr


def test_photos_beside_a_table_of_photos_and_addresses_are_refused(tmp_path):
    put(tmp_path / "t.parquet", [0, 1])
    (tmp_path / "rust").mkdir()
    (tmp_path / "rust/1.png").write_bytes(png(1))
    refused_in_one_line(
        tmp_path, DataError, "both photos (1, such as rust/1.png) and a table of photos (t.parquet); mov"
    )
    # A table without photos is no rival.
    pq.write_table(pa.table({"area": [1.0]}), tmp_path / "t.parquet")
    assert read_source(str(tmp_path)).left_out == ("t.parquet (not a photo)",)
    refused_in_one_line(tmp_path, UsageError, "has no configurations", config="x")
    for address in ("https://huggingface.co/datasets/user/x", "hf://datasets/user/x", "datasets/user/x/tree/main"):
        with pytest.raises(UsageError, match="is an address; give the Hub id: user/x$"):
            read_source(address)


def refused_in_one_line(path: Path, kind: type[Exception], words: str, **options: str) -> None:
    with pytest.raises(kind) as refused:
        read_source(str(path), **options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
