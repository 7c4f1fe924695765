"""Tests that every photo gets the label and the split that its folder, its table or the Hub says, or is named."""

import os

import numpy as np
import pytest
import torch
from class_folders import counts, put_classes, put_photos, put_table
from transformers import ViTImageProcessor

from agritransfer.data.dataset import SPLITS, Splits, counts_table, load_shift_photos, load_splits, write_splits_file
from agritransfer.errors import DataError, UsageError
from agritransfer.evaluation.predictions import read_predictions, write_predictions
from agritransfer.images.decoding import decode_photo
from agritransfer.images.preprocessing import describe_processor
from agritransfer.wording import unescaped

LEAVES = {"blight": 40, "healthy": 20, "rust": 10}


def where(splits: Splits) -> dict[str, str]:
    return {photo.file: photo.split for photo in splits.photos}


def test_class_folders_are_cut_into_stratified_splits(tmp_path):
    put_classes(tmp_path, **LEAVES)
    splits = load_splits(str(tmp_path))
    assert splits.labels == ["blight", "healthy", "rust"]
    assert counts(splits, "validation") == {"blight": 6, "healthy": 3, "rust": 2}
    assert counts(splits, "test") == {"blight": 6, "healthy": 3, "rust": 1}
    assert counts(splits, "train") == {"blight": 28, "healthy": 14, "rust": 7}
    assert len(where(splits)) == 70
    assert (splits.method, splits.seed, splits.revision) == ("stratified", 0, None)


def test_the_cut_follows_the_seed_and_the_fractions(tmp_path):
    put_classes(tmp_path, **LEAVES)
    first, again, other = (load_splits(str(tmp_path), split_seed=seed) for seed in (7, 7, 8))
    assert where(first) == where(again)
    assert where(first) != where(other)
    assert (first.seed, other.seed) == (7, 8)
    wide = load_splits(str(tmp_path), validation_fraction=0.3, test_fraction=0.2)
    assert counts(wide, "validation") == {"blight": 12, "healthy": 6, "rust": 3}
    assert counts(wide, "test") == {"blight": 8, "healthy": 4, "rust": 2}


def test_a_class_too_small_to_be_cut_is_named(tmp_path):
    put_classes(tmp_path, blight=3, healthy=10, rust=2)
    with pytest.raises(
        DataError, match=r"too few photos for train, validation and test: \{'rust': 2\}; each class needs 3"
    ):
        load_splits(str(tmp_path))
    put_classes(tmp_path, rust=3)
    splits = load_splits(str(tmp_path))
    assert [counts(splits, split)["rust"] for split in SPLITS] == [1, 1, 1]


def test_an_item_for_training_is_the_photo_and_the_place_of_its_label(tmp_path):
    put_classes(tmp_path, **LEAVES)
    splits = load_splits(str(tmp_path))
    processor = describe_processor(ViTImageProcessor(size={"height": 8, "width": 8}))
    dataset = splits.dataset("validation", processor)
    assert len(dataset) == 11
    for photo, item in zip(splits.of("validation"), (dataset[i] for i in range(11)), strict=True):
        assert splits.labels[item["labels"]] == photo.label == photo.file.split("/")[0]
        assert torch.equal(item["pixel_values"], processor.pixels(decode_photo(tmp_path / photo.file)))


def test_only_the_split_that_is_missing_is_cut_and_the_test_stays_as_it_is(tmp_path):
    put_classes(tmp_path / "train", blight=40, rust=20)
    put_classes(tmp_path / "test", blight=5, rust=4)
    splits = load_splits(str(tmp_path), split_seed=3)
    assert counts(splits, "train") == {"blight": 34, "rust": 17}
    assert counts(splits, "validation") == {"blight": 6, "rust": 3}
    assert {photo.file.split("/")[0] for photo in splits.of("test")} == {"test"}
    assert len(splits.of("test")) == 9
    assert (splits.method, splits.seed) == ("stratified", 3)


def test_photos_of_one_group_never_stand_in_two_splits(tmp_path):
    put_photos(tmp_path, *(f"{i:03d}.png" for i in range(120)))
    # 40 plants of 3 photos, two classes; the last 6 photos belong to no plant.
    rows = [f"{i:03d}.png,{'ab'[i // 3 % 2]},{f'plant{i // 3}' if i < 114 else ''}" for i in range(120)]
    put_table(tmp_path, "file_name,label,group", rows)
    first, again, other = (load_splits(str(tmp_path), split_seed=seed) for seed in (0, 0, 1))
    for splits in (first, other):
        split_of = {}
        for photo in splits.photos:
            assert split_of.setdefault(photo.group or photo.file, photo.split) == photo.split
        for split in ("validation", "test"):
            assert 12 <= len(splits.of(split)) <= 24
            assert min(counts(splits, split).values()) >= 5
        assert splits.method == "group"
    assert where(first) == where(again)
    assert where(first) != where(other)


def test_a_splits_file_gives_the_same_split_again(tmp_path):
    put_classes(tmp_path / "data", **LEAVES)
    splits = load_splits(str(tmp_path / "data"), split_seed=5, max_train_samples=40)
    write_splits_file(tmp_path / "splits.csv", splits)
    again = load_splits(str(tmp_path / "data"), splits_file=str(tmp_path / "splits.csv"))
    assert again.photos == splits.photos
    assert again.fingerprint == splits.fingerprint
    assert sorted(again.left_out) == sorted(
        f"{photo.file} (not in splits.csv)" for photo in splits.found if photo not in splits.photos
    )
    assert len(again.left_out) == 9

    used = splits.photos[0].file
    (tmp_path / "data" / used).rename(tmp_path / "data/rust/new.png")
    with pytest.raises(DataError, match=f"lists 1 photo missing from the dataset, such as '{used}'"):
        load_splits(str(tmp_path / "data"), splits_file=str(tmp_path / "splits.csv"))
    twice = "\nrust/01.png,test"
    with pytest.raises(UsageError, match="there is no splits file"):
        load_splits(str(tmp_path / "data"), splits_file=str(tmp_path / "no.csv"))
    for text in ("file,split\nrust/01.png,field\n", "name,split\nrust/01.png,test\n", f"file,split{2 * twice}\n"):
        (tmp_path / "splits.csv").write_text(text)
        with pytest.raises(
            DataError, match=r"has the splits \['field'\]|needs rows with the columns file,split|more than once"
        ):
            load_splits(str(tmp_path / "data"), splits_file=str(tmp_path / "splits.csv"))


def test_a_splits_file_reads_back_any_name(tmp_path):
    labels = [b"=SUM(1)", b"a,b \"q\" 'x'", b"new\nline \xe9", rb"back\slash \xe9"]
    for label in labels:
        put_classes(tmp_path / "data", **{os.fsdecode(label): 5})
        folder = tmp_path / "data" / os.fsdecode(label)
        for place, name in enumerate((b"-a,b.png", b"\r\n;.png", b"=\xe9.png")):
            sorted(folder.glob("0*.png"))[place].rename(folder / os.fsdecode(name))
    splits = load_splits(str(tmp_path / "data"))
    write_splits_file(tmp_path / "splits.csv", splits)
    again = load_splits(str(tmp_path / "data"), splits_file=str(tmp_path / "splits.csv"))
    assert again.photos == splits.photos and len(splits.photos) == 20
    assert {os.fsencode(unescaped(label)) for label in again.labels} == set(labels)
    scored = {"test": (splits.of("test"), np.eye(4)[splits.label_indices("test")])}
    write_predictions(tmp_path / "predictions.csv", scored, splits.labels)
    predictions = read_predictions(tmp_path / "predictions.csv", "test", splits.labels)
    assert predictions.files == [photo.file for photo in splits.of("test")]
    assert predictions.truth.tolist() == splits.label_indices("test") == predictions.logits.argmax(axis=1).tolist()


def test_broken_photos_stop_the_run_or_are_counted(tmp_path):
    put_classes(tmp_path, healthy=20, rust=20)
    (tmp_path / "healthy/00.png").write_bytes((tmp_path / "healthy/00.png").read_bytes()[:60])
    (tmp_path / "rust/empty.jpg").touch()
    (tmp_path / "rust/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "rust/text.jpg").write_text("leaf")
    with pytest.raises(DataError) as stopped:
        load_splits(str(tmp_path))
    message = str(stopped.value)
    assert message.startswith("4 broken photos: healthy/00.png (")
    assert "rust/empty.jpg (the file is empty); rust/gone.jpg (No such file" in message
    assert "rust/text.jpg (not a photo in any of the formats JPEG" in message
    assert (message.count("\n"), stopped.value.exit_code) == (0, 3)

    splits = load_splits(str(tmp_path), on_broken="skip")
    assert list(splits.broken) == ["healthy/00.png", "rust/empty.jpg", "rust/gone.jpg", "rust/text.jpg"]
    assert (len(splits.found), len(splits.photos)) == (43, 39)
    assert not set(splits.broken) & set(where(splits))
    assert "left out, broken: rust/empty.jpg (the file is empty)" in counts_table(splits).splitlines()


def test_the_fingerprint_is_of_content_and_labels_not_of_names_and_order(tmp_path):
    put_classes(tmp_path / "first", healthy=10, rust=10)
    for name in ("renamed", "relabelled", "retouched"):
        for i, photo in enumerate(sorted((tmp_path / "first").rglob("*.png"), reverse=True)):
            copy = tmp_path / name / photo.parent.name / f"{i}.png"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(photo.read_bytes())
    (tmp_path / "relabelled/rust/0.png").rename(tmp_path / "relabelled/healthy/0.png")
    put_photos(tmp_path / "retouched", "rust/0.png")
    first, renamed, relabelled, retouched = (
        load_splits(str(tmp_path / name), split_seed=seed).fingerprint
        for seed, name in enumerate(["first", "renamed", "relabelled", "retouched"])
    )
    assert first == renamed
    assert len({first, relabelled, retouched}) == 3


def test_a_limit_draws_from_the_whole_split_and_again_the_same(tmp_path):
    put_classes(tmp_path, **LEAVES)
    limited = load_splits(str(tmp_path), max_train_samples=30, max_eval_samples=4)
    assert [len(limited.of(split)) for split in SPLITS] == [30, 4, 4]
    assert limited.labels == ["blight", "healthy", "rust"]
    assert min(counts(limited, "train").values()) >= 1
    assert where(limited) == where(load_splits(str(tmp_path), max_train_samples=30, max_eval_samples=4))
    assert where(limited).items() <= where(load_splits(str(tmp_path))).items()
    with pytest.raises(UsageError, match="must be at least 1; found 0"):
        load_splits(str(tmp_path), max_train_samples=0)


@pytest.mark.parametrize("fractions", [{"test_fraction": 0}, {"validation_fraction": 0.9}, {"test_fraction": -0.1}])
def test_fractions_that_cannot_be_cut_are_refused(fractions, tmp_path):
    put_classes(tmp_path, healthy=10, rust=10)
    with pytest.raises(UsageError, match="cannot be used; each must be above 0, and their sum below 1"):
        load_splits(str(tmp_path), **fractions)


@pytest.fixture
def lab(tmp_path) -> Splits:
    """Splits of 30 photos, 10 of each of blight, healthy and rust."""
    put_photos(tmp_path / "lab", *(f"{label}/lab {i}.png" for label in LEAVES for i in range(10)))
    return load_splits(str(tmp_path / "lab"))


def test_the_labels_of_a_field_set_are_those_that_were_trained(lab, tmp_path):
    put_classes(tmp_path / "field", rust=3, healthy=2)
    same, shift = load_shift_photos(str(tmp_path / "field"), lab)
    assert same == lab
    assert shift.labels == ["blight", "healthy", "rust"]
    assert shift.label_indices("shift") == [1, 1, 2, 2, 2]
    assert shift.of("train") == shift.of("test") == []
    assert (shift.method, shift.seed) == ("official", None)
    assert len(load_shift_photos(str(tmp_path / "field"), lab, max_eval_samples=4)[1].photos) == 4
    put_classes(tmp_path / "field", scab=1)
    with pytest.raises(DataError, match=r"labels that the training set lacks: \['scab'\]; use only \['blight', 'heal"):
        load_shift_photos(str(tmp_path / "field"), lab)


@pytest.mark.parametrize("inside", ["Tomato", "photos/Tomato"])
def test_a_field_set_of_one_crop_has_the_labels_of_a_training_set_of_two(inside, tmp_path):
    put_classes(tmp_path / "lab/Tomato", healthy=6, rust=6)
    put_classes(tmp_path / "lab/Corn", healthy=6)
    put_classes(tmp_path / "field" / inside, healthy=2, rust=1)
    splits = load_splits(str(tmp_path / "lab"))
    assert splits.labels == ["Corn/healthy", "Tomato/healthy", "Tomato/rust"]
    _, shift = load_shift_photos(str(tmp_path / "field"), splits)
    assert counts(shift, "shift") == {"Tomato/healthy": 2, "Tomato/rust": 1}
    assert f"note: read inside '{inside}', which holds everything" in counts_table(shift)


def test_of_a_field_set_with_splits_the_test_alone_is_scored(lab, tmp_path):
    put_classes(tmp_path / "field/train", healthy=4, rust=4)
    put_classes(tmp_path / "field/test", healthy=2, rust=1)
    _, shift = load_shift_photos(str(tmp_path / "field"), lab)
    assert [photo.file for photo in shift.photos] == ["test/healthy/00.png", "test/healthy/01.png", "test/rust/00.png"]
    assert len(shift.found) == 3
    assert counts_table(shift).splitlines()[1].split() == ["shift"]
