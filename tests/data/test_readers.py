"""Tests that every photo gets the label and the split that its folder, its table or the Hub says, or is named."""

import pytest
from class_folders import counts, put_classes, put_photos, put_table

from agritransfer.data.dataset import SPLITS, counts_table, load_splits
from agritransfer.errors import DataError, UsageError


def test_nested_labels_of_one_last_name_stay_two_classes(tmp_path):
    put_classes(tmp_path / "Tomato", healthy=5, rust=5)
    put_classes(tmp_path / "Corn", healthy=5)
    assert load_splits(str(tmp_path)).labels == ["Corn/healthy", "Tomato/healthy", "Tomato/rust"]


@pytest.mark.parametrize("label", ["soil_test", "test", "training", "val_2024"])
def test_a_class_called_like_a_split_stays_a_class(label, tmp_path):
    put_classes(tmp_path, healthy=10, rust=10, **{label: 10})
    put_photos(tmp_path, "healthy/img_train_1.jpg", "rust/test.jpg")
    splits = load_splits(str(tmp_path))
    assert splits.labels == sorted(["healthy", "rust", label])
    assert len(splits.found) == len(splits.photos) == 32
    assert splits.method == "stratified"


@pytest.mark.parametrize("folders", [("train", "validation", "test"), ("Train", "VALID", "Testing"), SPLITS[::-1]])
def test_folders_of_splits_are_kept_whatever_their_case(folders, tmp_path):
    for folder in folders:
        put_classes(tmp_path / folder, healthy=len(folder), **{"Corn/rust": 3})
    splits = load_splits(str(tmp_path))
    assert splits.labels == ["Corn/rust", "healthy"]
    for split in SPLITS:
        folder = next(folder for folder in folders if folder.lower().startswith(split[:3]))
        assert counts(splits, split) == {"healthy": len(folder), "Corn/rust": 3}
        assert all(photo.file.startswith(f"{folder}/") for photo in splits.of(split))
    assert (splits.method, splits.seed) == ("official", None)


def test_class_folders_may_be_links(tmp_path):
    put_classes(tmp_path / "store", blight=10, rust=10)
    put_classes(tmp_path / "data", healthy=10)
    for label in ("blight", "rust"):
        (tmp_path / "data" / label).symlink_to(tmp_path / "store" / label)
    splits = load_splits(str(tmp_path / "data"))
    assert splits.labels == ["blight", "healthy", "rust"]
    assert len(splits.photos) == 30


def test_files_that_are_not_used_are_named(tmp_path):
    put_classes(tmp_path, healthy=10, rust=10)
    put_photos(tmp_path, "healthy/._00.png", "rust/.ipynb_checkpoints/00-checkpoint.png", "rust/IMG_1.HEIC")
    (tmp_path / "notes.txt").write_text("taken in May")
    splits = load_splits(str(tmp_path), max_train_samples=12)
    assert (len(splits.found), len(splits.of("train"))) == (21, 12)
    table = counts_table(splits).splitlines()
    assert [line.split() for line in table[1:4]] == [
        ["train", "validation", "test"],
        ["healthy", *f"{counts(splits, 'train')['healthy']} / 7 2 / 2 1 / 1".split()],
        ["rust", *f"{counts(splits, 'train')['rust']} / 7 2 / 2 2 / 2".split()],
    ]
    assert table[4:] == [
        "left out: notes.txt (not a photo)",
        "left out: healthy/._00.png (hidden)",
        "left out: rust/.ipynb_checkpoints (hidden, 1 file)",
        "left out: 2 photos over --max_photos_per_class, --max_train_samples or --max_eval_samples",
        "note: 1 photo with PNG content but the suffix .HEIC, such as rust/IMG_1.HEIC",
    ]
    # What names photos is printed, and not published with the results.
    assert len(splits.warnings) == 1 and splits.notes == ()


def test_a_table_gives_labels_splits_and_groups(tmp_path):
    put_photos(tmp_path, *(f"{i:02d}.png" for i in range(13)))
    rows = [
        f"{i:02d}.png,{'healthy' if i % 2 else 'rust'},{['Train', 'dev', 'test'][i % 3]},plant{i}" for i in range(12)
    ]
    put_table(tmp_path, "file_name,label,split,group", rows)
    splits = load_splits(str(tmp_path))
    assert splits.labels == ["healthy", "rust"]
    assert [len(splits.of(split)) for split in SPLITS] == [4, 4, 4]
    for photo in splits.photos:
        i = int(photo.file[:2])
        assert (photo.label, photo.split) == (["rust", "healthy"][i % 2], SPLITS[i % 3])
        assert photo.group == f"plant{i}"
    assert splits.method == "official"
    assert splits.left_out == ("12.png (not in metadata.csv)",)


def test_a_table_of_labels_alone_is_cut_by_class(tmp_path):
    put_photos(tmp_path, *(f"photos/{i:02d}.png" for i in range(40)))
    put_table(tmp_path, "label,file_name", [f"{'ab'[i % 2]},photos/{i:02d}.png" for i in range(40)])
    splits = load_splits(str(tmp_path))
    assert counts(splits, "validation") == counts(splits, "test") == {"a": 3, "b": 3}
    assert splits.method == "stratified"


REFUSED_FOLDERS = {
    r"contains no photos; add class folders such as .*/healthy/leaf.jpg": ["notes.txt"],
    r"'stray.png' is not in a class folder; move it to .*/CLASS/": ["a/1.png", "b/1.png", "stray.png"],
    r"'train/stray.png' is not in a class folder": ["train/a/1.png", "test/a/1.png", "train/stray.png"],
    r"only one class was found: \['a'\]": ["a/1.png", "a/2.png", "a/3.png"],
    r"classes without train photos: \['b'\]": [f"{s}/a/1.png" for s in SPLITS] + ["test/b/2.png"],
    r"the train split contains no photos": ["test/a/1.png", "test/b/1.png"],
    r"has several folders for one split: \['train', 'val', 'valid'\]": [
        "train/a/1.png",
        "val/a/1.png",
        "valid/a/1.png",
    ],
    r"folders that may be splits: new \(1 photo\), .*; if they are splits, move 'new' into a split folder": [
        "train/a/1.png",
        "test/a/1.png",
        "new/1.png",
    ],
}


@pytest.mark.parametrize("reason", REFUSED_FOLDERS)
def test_a_folder_that_cannot_be_trained_on_is_refused(reason, tmp_path):
    put_photos(tmp_path, *REFUSED_FOLDERS[reason])
    with pytest.raises(DataError, match=reason):
        load_splits(str(tmp_path))


REFUSED_TABLES = {
    r"needs rows with the columns file_name,label": "file,label\n1.png,a\n",
    r"lists 1 missing photo, such as '7.png'": "file_name,label\n1.png,a\n7.png,b\n",
    r"has 1 row without a label, such as '2.png'": "file_name,label\n1.png,a\n2.png,\n",
    r"lists 1 photo more than once, such as '1.png'": "file_name,label,split\n1.png,a,train\n1.png,a,test\n",
    r"has the split 'field'; use train, validation or test": "file_name,label,split\n1.png,a,field\n2.png,b,test\n",
    r"gives a split to only some of the photos": "file_name,label,split\n1.png,a,train\n2.png,b,\n",
    r"too few photos for train, val": "file_name,label,group\n1.png,a,x\n2.png,b,x\n3.png,a,y\n4.png,b,x\n",
    r"is not UTF-8": "file_name,label\n1.png,é\n",
}


@pytest.mark.parametrize("reason", REFUSED_TABLES)
def test_a_table_that_cannot_be_right_is_refused(reason, tmp_path):
    put_photos(tmp_path, "1.png", "2.png", "3.png", "4.png")
    (tmp_path / "metadata.csv").write_text(REFUSED_TABLES[reason], encoding="latin-1")
    with pytest.raises(DataError, match=reason):
        load_splits(str(tmp_path))


def test_a_name_that_is_no_data_set_is_refused(tmp_path):
    (tmp_path / "leaves.pkl").touch()
    (tmp_path / "leaves.txt").touch()
    with pytest.raises(DataError, match="is a pickle, which can run code when it is read"):
        load_splits(str(tmp_path / "leaves.pkl"))
    for name in (tmp_path / "nothing", tmp_path / "leaves.txt", "leaves"):
        with pytest.raises(UsageError, match="is neither a folder nor a Hub id") as refused:
            load_splits(str(name))
        assert refused.value.exit_code == 2
