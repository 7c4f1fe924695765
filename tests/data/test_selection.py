"""A selection keeps the classes and the number of train photos that were asked for, and counts the others."""

import json

import pytest
from class_folders import counts, put_classes

from agritransfer.__main__ import main
from agritransfer.data.dataset import counts_table, load_shift_photos, load_splits, write_splits_file
from agritransfer.errors import DataError, UsageError


@pytest.fixture
def crops(tmp_path):
    folder = tmp_path / "crops"
    put_classes(folder / "Tomato", rust=12, healthy=14)
    put_classes(folder / "Potato", blight=10, healthy=11)
    put_classes(folder / "Corn", smut=1)
    return folder


def test_patterns_choose_classes_and_the_others_are_counted(crops):
    splits = load_splits(str(crops), classes=["Tomato/*", "Potato/bl?ght"])
    assert splits.labels == ["Potato/blight", "Tomato/healthy", "Tomato/rust"]
    assert len(splits.found) == len(splits.photos) == 36
    assert splits.selection.classes == ("Tomato/*", "Potato/bl?ght")
    # The class with one photo, which no split could be cut from, is not in the way.
    assert splits.selection.classes_left_out == {"Corn/smut": 1, "Potato/healthy": 11}
    assert "left out: 12 photos of 2 classes by --classes" in counts_table(splits)


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        (["tomato*"], UsageError, r"--classes 'tomato\*' matches no label; the labels are Corn/smut, Potato/blight"),
        (["Tomato*", "Rice"], UsageError, "--classes 'Rice' matches no label"),
        (["*rust"], DataError, "only one class was found"),
    ],
)
def test_a_selection_that_cannot_be_trained_on_is_refused(crops, patterns, error, message):
    with pytest.raises(error, match=message):
        load_splits(str(crops), classes=patterns)


def test_train_photos_of_each_class_are_limited_and_smaller_limits_are_nested(crops):
    whole = load_splits(str(crops), classes=["Tomato*", "Potato*"])
    limited = {
        limit: load_splits(str(crops), classes=["Tomato*", "Potato*"], max_photos_per_class=limit) for limit in (2, 4)
    }
    for limit, splits in limited.items():
        assert counts(splits, "train") == dict.fromkeys(splits.labels, limit)
        for split in ("validation", "test"):
            assert splits.of(split) == whole.of(split)
        assert splits.over_limits == len(whole.photos) - len(splits.photos) > 0
    assert set(limited[2].of("train")) < set(limited[4].of("train")) < set(whole.of("train"))
    assert limited[2].fingerprint != limited[4].fingerprint
    other = load_splits(str(crops), classes=["Tomato*", "Potato*"], max_photos_per_class=2, split_seed=1)
    assert other.of("train") != limited[2].of("train")
    with pytest.raises(UsageError, match="--max_photos_per_class must be at least 1; found 0"):
        load_splits(str(crops), max_photos_per_class=0)


def test_the_field_set_and_a_splits_file_follow_the_selection(crops, tmp_path):
    put_classes(tmp_path / "field/Tomato", rust=3, healthy=2)
    put_classes(tmp_path / "field/Corn", smut=4)
    chosen = load_splits(str(crops), classes=["Tomato*", "Potato*"])
    _, shift = load_shift_photos(str(tmp_path / "field"), chosen, classes=["Tomato*", "Potato*"])
    assert counts(shift, "shift") == {"Tomato/healthy": 2, "Tomato/rust": 3}
    assert shift.selection.classes_left_out == {"Corn/smut": 4}
    with pytest.raises(DataError, match=r"has none of the --classes; it has Corn/smut, Tomato/healthy and Tomato/rust"):
        load_shift_photos(str(tmp_path / "field"), chosen, classes=["Potato*"])
    write_splits_file(tmp_path / "splits.csv", chosen)
    again = load_splits(str(crops), splits_file=str(tmp_path / "splits.csv"), classes=["Tomato*"])
    assert again.of("test") == [photo for photo in chosen.of("test") if photo.label.startswith("Tomato")]


def test_the_audit_looks_at_the_chosen_classes_alone(crops, tmp_path, capsys):
    (crops / "Potato/healthy/broken.png").write_bytes(b"no photo")
    output = str(tmp_path / "audit.json")
    assert main(["audit", str(crops), "--output", output]) == 3
    assert main(["audit", str(crops), "--classes", "Tomato*", "Potato/blight", "--output", output]) == 0
    report = json.loads((tmp_path / "audit.json").read_text())
    assert (report["files_found"], report["faults"]) == (36, [])
    assert report["left_out"] == ["13 photos of 2 classes by --classes"]
