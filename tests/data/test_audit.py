"""What is unfit to train on is found before training, told in one line each, and ends with exit code 3."""

import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from class_folders import put_photos
from conftest import ROOT
from PIL import Image, ImageOps

from agritransfer.__main__ import main
from agritransfer.data.audit import class_faults, photo_warnings
from agritransfer.data.dataset import counts_table, load_shift_photos, load_splits
from agritransfer.data.examination import examine
from agritransfer.data.sources import read_source
from agritransfer.errors import DataError


def drawn(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


def put(folder: Path, **counts: int) -> Path:
    """A folder of class folders with so many photos each, all of them different."""
    seed = 0
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            drawn(seed := seed + 1).save(folder / label / f"{number:02d}.png")
    return folder


def audit(folder: Path, capsys, *flags: str) -> tuple[int, dict, str]:
    capsys.readouterr()
    code = main(["audit", str(folder), "--output", str(folder.parent / "audit.json"), *flags])
    return code, json.loads((folder.parent / "audit.json").read_text()), capsys.readouterr().out


def test_a_sound_set_has_nothing_to_fix(tmp_path, capsys):
    code, report, table = audit(put(tmp_path / "data", healthy=12, rust=12), capsys)
    assert code == 0
    assert (report["files_found"], report["files_used"], report["broken"], report["faults"]) == (24, 24, [], [])
    assert report["duplicates"] == {"groups": [], "across_splits": [], "conflicting_labels": []}
    assert "24 photos found, 24 usable" in table and "must be fixed" not in table


def bomb() -> bytes:
    """A PNG of a few kilobytes that claims 20,000 x 9,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 9_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(2**20)))
        + chunk(b"IEND", b"")
    )


def test_every_kind_of_broken_file_is_named_with_its_reason(tmp_path, capsys):
    folder = put(tmp_path / "data", healthy=12, rust=12)
    jpeg = io.BytesIO()
    drawn(99).save(jpeg, "JPEG")
    for name, content in {
        "truncated.jpg": jpeg.getvalue()[:-200],
        "text.jpg": b"this is no photo",
        "empty.png": b"",
        "bomb.png": bomb(),
    }.items():
        (folder / "rust" / name).write_bytes(content)
    (folder / ".DS_Store").write_bytes(b"\0")
    code, report, table = audit(folder, capsys)
    reasons = {entry["file"]: entry["reason"] for entry in report["broken"]}
    assert code == 3 and (report["files_found"], report["files_used"]) == (28, 24)
    assert set(reasons) == {f"rust/{name}" for name in ("truncated.jpg", "text.jpg", "empty.png", "bomb.png")}
    assert "truncated" in reasons["rust/truncated.jpg"].lower() and "empty" in reasons["rust/empty.png"]
    assert "not a photo in any of the formats" in reasons["rust/text.jpg"]
    assert "over 64 million pixels" in reasons["rust/bomb.png"]
    assert "must be fixed: 4 broken photos: rust/bomb.png (" in table
    assert report["left_out"] == [".DS_Store (hidden)"]


@pytest.mark.slow
def test_bombs_cost_no_memory(tmp_path):
    folder = put(tmp_path / "data", healthy=12, rust=12)
    for number in range(12):
        (folder / f"rust/bomb{number}.png").write_bytes(bomb())
    script = (
        "import resource, sys; from agritransfer.__main__ import main; "
        "import agritransfer.data.audit; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        f"code = main(['audit', {str(folder)!r}, '--output', {str(tmp_path / 'audit.json')!r}]); "
        "print('grew by', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 3, done.stderr
    # One of them decoded would be 540 MB.
    assert int(done.stdout.split("grew by")[1]) < 100_000


def photo_with_gps() -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8825)[2] = (12.0, 30.0, 1.5)
    file = io.BytesIO()
    drawn(98).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_what_the_files_tell_beside_their_pixels_is_counted(tmp_path, capsys):
    folder = put(tmp_path / "data", healthy=12, rust=12, img_train=3)
    (folder / "rust/gps.jpg").write_bytes(photo_with_gps())
    drawn(97).save(folder / "rust/really_a_png.jpg", "PNG")
    drawn(96).convert("CMYK").save(folder / "rust/printer.jpg", "JPEG")
    Image.fromarray(np.random.default_rng(5).integers(65536, size=(30, 40), dtype=np.uint16)).save(
        folder / "rust/16.png"
    )
    code, report, table = audit(folder, capsys)
    assert code == 0
    for words in (
        "1 photo with a GPS position in the EXIF data (remove it before sharing), such as rust/gps.jpg",
        "1 photo with PNG content but the suffix .jpg, such as rust/really_a_png.jpg",
        "1 photo with CMYK colors, converted to RGB, such as rust/printer.jpg",
        "1 photo with 16 bits per channel, scaled to 8, such as rust/16.png",
        "classes with fewer than 10 photos, whose scores will be unreliable: {'img_train': 3}",
        "'img_train' is read as a class; if it is not one, move the photos out",
    ):
        assert any(words in warning for warning in report["warnings"]), words
        assert f"note: {words}" in table


@pytest.mark.parametrize("names", [("Rust", "rust"), ("caf\u00e9", "cafe\u0301"), ("leaf rust", "leaf rust ")])
def test_class_names_that_a_reader_takes_for_one_are_refused(names, tmp_path, capsys):
    folder = put(tmp_path / "data", healthy=12, **dict.fromkeys(names, 12))
    assert audit(folder, capsys)[0] == 3
    with pytest.raises(DataError, match="class names that differ only by case, spaces or Unicode form"):
        load_splits(str(folder))


def test_an_empty_class_folder_and_one_class_alone_are_refused(tmp_path, capsys):
    folder = put(tmp_path / "data", healthy=12, rust=12)
    (folder / "blight").mkdir()
    code, report, _ = audit(folder, capsys)
    assert code == 3 and report["faults"] == [
        "class folders without photos: ['blight']; add photos or remove the folders"
    ]
    alone = put(tmp_path / "alone", healthy=12)
    assert class_faults(read_source(str(alone)))[0].startswith("only one class was found: ['healthy']")
    assert audit(alone, capsys)[0] == 3


@pytest.mark.parametrize("content", [{}, {"healthy": 1}])
def test_no_photo_and_one_photo_end_with_3_and_one_line(content, tmp_path, capsys):
    put(tmp_path / "data", **content)
    (tmp_path / "data").mkdir(exist_ok=True)
    code = main(["audit", str(tmp_path / "data"), "--output", str(tmp_path / "audit.json")])
    printed = capsys.readouterr()
    assert code == 3
    if not content:
        assert printed.err.startswith("agritransfer audit: error: ") and len(printed.err.strip().splitlines()) == 1


def test_a_class_that_a_split_lacks_is_named(tmp_path):
    put(tmp_path / "train", healthy=12, rust=12)
    put(tmp_path / "validation", healthy=3, rust=3)
    put(tmp_path / "test", healthy=4)
    source = read_source(str(tmp_path))
    examination = examine(source.images, source.photos, str(tmp_path))
    assert "classes without photos in test: ['rust']" in photo_warnings(examination)


def test_the_rows_of_a_hub_set_are_no_folders_with_a_note(tmp_path):
    put_photos(tmp_path, *(f"a/{number}.png" for number in range(20)))
    source = read_source(str(tmp_path))
    rows = [replace(photo, file=f"train/{photo.row:06d}") for photo in source.photos]
    assert photo_warnings(examine(source.images, rows, "user/photos")) == []


def test_what_is_left_out_adds_up(tmp_path, capsys):
    put_photos(tmp_path / "data", *(f"{label}/{number}.png" for label in "ab" for number in range(10)))
    for number in range(12):
        (tmp_path / f"data/{number:02d}.txt").touch()
    table = audit(tmp_path / "data", capsys)[2]
    assert table.count("left out: ") == 11 and "left out: 2 more, listed in the report\n" in table


def put_splits(folder: Path, **counts: dict[str, int]) -> None:
    for split, classes in counts.items():
        for label, count in classes.items():
            put_photos(folder, *(f"{split}/{label}/{number}.png" for number in range(count)))


# Each makes a set that training refuses.
UNFIT = {
    "a class only in the test": lambda data: put_splits(data, train={"a": 3, "b": 3}, test={"a": 2, "b": 2, "c": 2}),
    "a class only in the test, cut": lambda data: put_splits(data, train={"a": 3}, validation={"a": 2}, test={"b": 2}),
    "no train split": lambda data: put_splits(data, validation={"a": 3, "b": 3}, test={"a": 2, "b": 2}),
    "the test alone": lambda data: put_splits(data, test={"a": 3, "b": 3}),
    "a class of one photo": lambda data: put_photos(data, *(f"a/{n}.png" for n in range(9)), "b/0.png"),
    "a class of two photos": lambda data: put_photos(data, *(f"a/{n}.png" for n in range(9)), "b/0.png", "b/1.png"),
    "one class": lambda data: put_photos(data, "a/0.png", "a/1.png", "a/2.png"),
    "one photo": lambda data: put_photos(data, "a/0.png"),
    "no photos": lambda data: data.mkdir(),
    "an empty class": lambda data: (
        put_photos(data, *(f"{c}/{n}.png" for c in "ab" for n in range(9))),
        put(data, c=0),
    ),
    "an empty split": lambda data: (put_splits(data, train={"a": 9, "b": 9}), (data / "test").mkdir()),
    "class names alike": lambda data: put_photos(data, *(f"{c}/{n}.png" for c in ("a", "A ") for n in range(9))),
    "photos in no class": lambda data: put_photos(data, "a/0.png", "b/0.png", "0.png"),
    "photos without labels": lambda data: (put_splits(data, train={"a": 9, "b": 9}), put_photos(data, "test/0.png")),
    "splits or classes": lambda data: put_splits(data, train={"a": 9, "b": 9}, val_set={"a": 3, "b": 3}),
    "all broken": lambda data: (
        put_photos(data, "a/0.png", "b/0.png"),
        [p.write_text("") for p in data.rglob("*.png")],
    ),
    "a broken photo": lambda data: (
        put_photos(data, *(f"{c}/{n}.png" for c in "ab" for n in range(9))),
        (data / "a/0.png").write_text("no photo"),
    ),
    "all train photos leak": lambda data: (
        put_splits(data, train={"a": 2, "b": 2}, validation={"a": 2, "b": 2}),
        shutil.copytree(data / "train", data / "test"),
    ),
    "a metadata.csv without labels": lambda data: (
        put_photos(data, "0.png"),
        (data / "metadata.csv").write_text("file_name,label\n0.png,\n"),
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_the_audit_refuses_what_training_refuses_in_the_same_words(case, tmp_path, capsys):
    UNFIT[case](tmp_path / "data")
    with pytest.raises(DataError) as refused:
        load_splits(str(tmp_path / "data"))
    code = main(["audit", str(tmp_path / "data"), "--output", str(tmp_path / "audit.json")])
    printed = capsys.readouterr()
    assert code == refused.value.exit_code == 3
    assert f"must be fixed: {refused.value}\n" in printed.out or printed.err.endswith(f"error: {refused.value}\n")


@pytest.mark.parametrize(
    "fit",
    [
        lambda data: put_photos(data, *(f"{c}/{n}.png" for c in "ab" for n in range(3))),
        lambda data: put_splits(data, train={"a": 1, "b": 1}, validation={"a": 1}, test={"b": 1}),
        lambda data: put_splits(data, train={"a": 3, "b": 3}, test={"a": 1}),
    ],
)
def test_the_audit_passes_what_training_accepts(fit, tmp_path, capsys):
    fit(tmp_path / "data")
    assert set(load_splits(str(tmp_path / "data")).labels) == {"a", "b"}
    code, report, _ = audit(tmp_path / "data", capsys)
    assert (code, report["faults"]) == (0, [])


def test_what_training_does_with_a_fault_that_it_accepts_is_said(tmp_path, capsys):
    put_splits(tmp_path / "data", train={"a": 3, "b": 3}, test={"a": 2, "b": 2})
    shutil.copy(tmp_path / "data/test/a/0.png", tmp_path / "data/train/b/leak.png")
    assert len(load_splits(str(tmp_path / "data")).leaked) == 1
    code, report, _ = audit(tmp_path / "data", capsys)
    assert code == 3 and report["faults"] == [
        "1 group of copies with different labels; choose one label for each (training only notes them)",
        "1 group of copies in more than one split; keep each in one (training uses the copy in test, "
        "or else in validation; see --on_leakage)",
    ]


def split_folder(tmp_path: Path) -> Path:
    """A set that came split; train/healthy/leak.jpg is a mirrored, re-encoded and smaller copy of a test photo."""
    seed = 0
    for split, count in (("train", 12), ("validation", 5), ("test", 5)):
        for label in ("healthy", "rust"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(count):
                drawn(seed := seed + 1).save(tmp_path / "data" / split / label / f"{number}.png")
    with Image.open(tmp_path / "data/test/healthy/3.png") as photo:
        ImageOps.mirror(photo).resize((40, 30)).save(tmp_path / "data/train/healthy/leak.jpg", quality=70)
    return tmp_path / "data"


def test_a_leak_into_the_test_is_dropped_kept_or_stops_the_run(tmp_path, capsys):
    folder = split_folder(tmp_path)
    dropped = load_splits(str(folder))
    where = {"train/healthy/leak.jpg": "is also in test as test/healthy/3.png"}
    assert dropped.leaked == where and dropped.leaks_dropped
    assert "train/healthy/leak.jpg" not in {photo.file for photo in dropped.photos}
    assert "left out, leaked: train/healthy/leak.jpg is also in test as test/healthy/3.png" in counts_table(dropped)

    kept = load_splits(str(folder), on_leakage="keep")
    assert kept.leaked == where and not kept.leaks_dropped and len(kept.photos) == len(dropped.photos) + 1
    assert "kept although leaked: train/healthy/leak.jpg" in counts_table(kept)

    with pytest.raises(DataError, match=r"leak\.jpg is also in test as test/healthy/3\.png"):
        load_splits(str(folder), on_leakage="stop")

    code, report, table = audit(folder, capsys)
    assert code == 3 and report["duplicates"]["across_splits"] == [["test/healthy/3.png", "train/healthy/leak.jpg"]]
    assert "must be fixed: 1 group of copies in more than one split; keep each in one" in table


def test_a_leak_is_counted_in_the_results_of_a_run(tmp_path, tiny_vit, run_script):
    folder = split_folder(tmp_path)
    flags = ("--dataset_name", folder, "--model_name_or_path", tiny_vit, "--num_train_epochs", "1", "--use_cpu")
    counted = {}
    for choice in ("drop", "keep"):
        assert (
            run_script("train_finetune.py", *flags, "--on_leakage", choice, "--output_dir", tmp_path / choice)[0] == 0
        )
        results = json.loads((tmp_path / choice / "results.json").read_text())
        counted[choice] = (results["splits"]["leakage"], sum(results["dataset"]["counts"]["train"].values()))
    assert counted == {"drop": ({"found": 1, "dropped": 1}, 24), "keep": ({"found": 1, "dropped": 0}, 25)}
    code, _, err = run_script("train_finetune.py", *flags, "--on_leakage", "stop", "--output_dir", tmp_path / "stop")
    assert code == 3 and len(err.strip().splitlines()) == 1


def test_copies_never_lie_on_both_sides_of_a_cut(tmp_path):
    folder = put(tmp_path / "data", healthy=30, rust=30)
    for number in range(20):
        with Image.open(folder / f"rust/{number:02d}.png") as photo:
            photo.transpose(Image.Transpose.ROTATE_180).save(folder / f"rust/copy{number:02d}.jpg", quality=90)
    for seed in range(3):
        splits = load_splits(str(folder), split_seed=seed)
        split_of = {photo.file: photo.split for photo in splits.photos}
        for number in range(20):
            assert split_of[f"rust/{number:02d}.png"] == split_of[f"rust/copy{number:02d}.jpg"]
        assert splits.method == "group"
        assert "20 groups of copies with 40 photos" in counts_table(splits)
        assert set(split_of.values()) == {"train", "validation", "test"}


def test_groups_that_share_a_copy_become_one(tmp_path):
    folder = put(tmp_path / "data", healthy=24, rust=24)
    with Image.open(folder / "rust/03.png") as photo:
        photo.save(folder / "rust/plant9_copy.jpg", quality=90)
    splits = load_splits(str(folder), group_pattern=r"(plant\d)_|(?:rust/0[0-4])")
    group_of = {photo.file: photo.group for photo in splits.photos}
    assert group_of["rust/03.png"] == group_of["rust/plant9_copy.jpg"] != ""


def test_equal_photos_with_different_labels_are_told(tmp_path, capsys):
    folder = put(tmp_path / "data", healthy=12, rust=12)
    (folder / "healthy/again.png").write_bytes((folder / "rust/05.png").read_bytes())
    code, report, table = audit(folder, capsys)
    assert code == 3 and report["duplicates"]["conflicting_labels"] == [["healthy/again.png", "rust/05.png"]]
    assert "copies with different labels: 1\n  healthy/again.png = rust/05.png" in table
    assert "1 group of copies with different labels, such as" in counts_table(load_splits(str(folder)))


def field_of(folder: Path, shift: int = 1000) -> Path:
    """A folder of 20 drawn photos of two classes."""
    put(folder, healthy=0, rust=0)
    for number in range(20):
        drawn(shift + number).save(folder / f"{'rust' if number % 2 else 'healthy'}/{number}.png")
    return folder


def test_a_train_photo_of_the_field_set_is_left_out(tmp_path):
    lab, field = put(tmp_path / "lab", healthy=20, rust=20), field_of(tmp_path / "field")
    splits = load_splits(str(lab))
    copied, resized = (photo.file for photo in splits.of("train")[:2])
    validation, test = (splits.of(split)[0].file for split in ("validation", "test"))
    (field / "rust/bytes.jpg").write_bytes((lab / copied).read_bytes())
    for name, file in {"looks": resized, "validation": validation, "test": test}.items():
        with Image.open(lab / file) as photo:
            ImageOps.mirror(photo).resize((50, 40)).save(field / f"rust/{name}.jpg")
    without, shift = load_shift_photos(str(field), splits)
    names = {copied: "bytes", resized: "looks", validation: "validation"}
    assert without.leaked == {file: f"is also in {field} as rust/{name}.jpg" for file, name in names.items()}
    assert len(without.photos) == len(splits.photos) - 3 and len(shift.photos) == 24 and without.shift_leaks == 3
    assert f"left out, leaked: {copied} is also in {field} as rust/bytes.jpg" in counts_table(without)
    kept, _ = load_shift_photos(str(field), replace(splits, leaks_dropped=False), on_leakage="keep")
    assert len(kept.photos) == len(splits.photos) and kept.shift_leaks == 3
    assert f"kept although leaked: {resized} is also in" in counts_table(kept)
    with pytest.raises(DataError, match=r"is also in .*field as rust/(bytes|looks|validation)\.jpg"):
        load_shift_photos(str(field), splits, on_leakage="stop")


def test_leaks_into_the_field_set_are_counted_and_its_photos_have_a_fingerprint(tmp_path, tiny_vit, run_script):
    lab = put(tmp_path / "lab", healthy=20, rust=20)
    leaked = lab / load_splits(str(lab)).of("train")[0].file
    results = {}
    for name, shift in {"field": 1000, "moved/field": 1000, "other/field": 2000}.items():
        (field := tmp_path / name).parent.mkdir(exist_ok=True)
        (field_of(field, shift) / "rust/leak.jpg").write_bytes(leaked.read_bytes())
        run = tmp_path / f"run{len(results)}"
        flags = ("--dataset_name", lab, "--shift_dataset_name", field, "--model_name_or_path", tiny_vit)
        code, _, err = run_script(
            "train_finetune.py", *flags, "--train_layers", "head", "--output_dir", run, "--use_cpu"
        )
        assert code == 0, err
        results[name] = json.loads((run / "results.json").read_text())
        assert results[name]["splits"]["leakage"] == {"found": 1, "dropped": 1, "shift": {"found": 1, "dropped": 1}}
        assert results[name]["shift"]["n"] == 21
    marks = [each["shift"]["fingerprint"] for each in results.values()]
    # The pictures count: not the name of the folder, nor the number of photos.
    assert marks[0] == marks[1] != marks[2]


def test_a_model_finds_what_is_alike_and_labels_that_do_not_fit(photos, tiny_vit, tmp_path, capsys):
    folder = tmp_path / "data"
    for photo in photos.rglob("*.jpg"):
        target = folder / photo.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
    (folder / "healthy/05.jpg").rename(folder / "rust/wrong.jpg")
    code, report, table = audit(folder, capsys, "--model_name_or_path", str(tiny_vit))
    assert code == 0
    suspects = {entry["file"]: entry["suggested"] for entry in report["suspected_mislabels"]}
    assert suspects.get("rust/wrong.jpg") == "healthy" and len(suspects) <= 4
    assert "labels to check" in table
    with Image.open(tmp_path / "suspects.png") as sheet:
        assert sheet.width > 200
    assert all(-1 <= pair["similarity"] <= 1.001 for pair in report["near"])


def test_an_audit_says_in_one_line_what_it_cannot_do(tmp_path, capsys):
    assert main(["audit", str(tmp_path / "nowhere")]) == 2
    assert "is neither a folder nor a Hub id" in capsys.readouterr().err
    put(tmp_path / "data", healthy=12, rust=12)
    assert main(["audit", str(tmp_path / "data"), "--output", str(tmp_path / "no/audit.json")]) == 2
    assert "make it first" in capsys.readouterr().err
    for theirs in ("notes.txt", "data"):
        (tmp_path / "notes.txt").write_text("{}")
        assert main(["audit", str(tmp_path / "data"), "--output", str(tmp_path / theirs)]) == 2
        err = capsys.readouterr().err
        assert ("is no report of this command" in err or "is a folder" in err) and err.count("\n") == 1, err
    (tmp_path / "suspects.png").touch()
    flags = ["--output", str(tmp_path / "audit.json"), "--model_name_or_path", "sample/vit"]
    assert main(["audit", str(tmp_path / "data"), *flags]) == 2
    assert "suspects.png' exists already and would be replaced" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["audit", str(tmp_path / "data"), "--modle", "x"])
    assert end.value.code == 2 and "unknown flag --modle" in capsys.readouterr().err
