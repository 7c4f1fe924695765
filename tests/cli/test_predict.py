"""`predict` answers as the pipeline does up to the calibration, keeps the run's rules, and loses no file."""

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from transformers import pipeline

from agritransfer.__main__ import main
from agritransfer.wording import unescaped


def answers(model: Path, *photos: str | Path, output: Path, flags: tuple[str, ...] = ()) -> tuple[int, list[dict]]:
    code = main(["predict", str(model), *map(str, photos), "--output", str(output), *flags])
    with output.open(newline="", encoding="utf-8") as file:
        return code, list(csv.DictReader(file))


def served(model: Path, files: list[str]) -> list[list[dict]]:
    with warnings.catch_warnings():
        # transformers warns of its own argument when a pipeline is built.
        warnings.simplefilter("ignore")
        classifier = pipeline("image-classification", model=str(model))
    return [classifier(file, top_k=3) for file in files]


def test_a_run_answers_as_the_pipeline_does_up_to_its_calibration(
    photos, field_photos, tiny_vit, tmp_path, run_script, capsys
):
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--shift_dataset_name", field_photos, "--model_name_or_path", tiny_vit)
    # 22 validation photos are enough to tell what is strange, but not to promise few wrong answers.
    flags += ("--validation_fraction", "0.6", "--test_fraction", "0.2", "--target_error", "0.5", "--use_cpu")
    flags += ("--learning_rate", "0.01", "--num_train_epochs", "12", "--augmentation", "none")
    code, _, err = run_script("train_finetune.py", *flags, "--output_dir", run)
    assert code == 0, err
    assert (run / "known_features.safetensors").is_file()
    results = json.loads((run / "results.json").read_text())
    assert results["calibration"]["threshold"] is not None

    code, rows = answers(run, field_photos, output=tmp_path / "field.csv")
    assert (code, len(rows)) == (0, 36)
    temperature = results["calibration"]["temperature"]
    for row, chances in zip(rows, served(run, [row["file"] for row in rows]), strict=True):
        shares = np.array([answer["score"] for answer in chances]) ** (1 / temperature)
        assert [row["answer"], row["answer_2"], row["answer_3"]] == [answer["label"] for answer in chances]
        assert [float(row[name]) for name in ("probability", "probability_2", "probability_3")] == pytest.approx(
            shares / shares.sum(), abs=2e-3
        )
    # The very verdicts that the run's own table counted.
    counted = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("answer", "not sure", "unknown")}
    in_results = results["shift"]["answered"]
    assert counted["answer"] / 36 == in_results["coverage"] > 0.5
    assert (counted["not sure"], counted["unknown"]) == (in_results["not_sure"], in_results["unknown"])
    assert "answers need at least" in capsys.readouterr().out


def test_every_file_has_a_row_and_a_broken_one_its_reason(photos, tiny_vit, tmp_path, capsys):
    folder = tmp_path / "new"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(photos / "rust/00.jpg", folder / "deep/good.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((photos / "rust/01.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no photo, and nobody asked")
    # The folder, a pattern and a name that all mean the same photo: one row.
    code, rows = answers(
        tiny_vit, folder, f"{folder}/**/g*.jpg", folder / "deep/good.jpg", output=tmp_path / "table.csv"
    )
    assert code == 0
    assert {Path(row["file"]).name: row["verdict"] for row in rows} == {
        **{"good.jpg": "answer", "empty.jpg": "broken", "cut.jpg": "broken"}
    }
    reasons = {Path(row["file"]).name: row["reason"] for row in rows}
    assert reasons["good.jpg"] == "" and "truncated" in reasons["cut.jpg"].lower() and reasons["empty.jpg"] != ""
    out = capsys.readouterr().out
    assert "3 files: 1 answer, 2 broken; the model has no results.json, so its probabilities are not calibrated" in out
    assert f"passed over, not a photo: 1 ({folder}/notes.txt)" in out
    assert f"passed over, given more than once: 1 ({folder}/deep/good.jpg)" in out
    good = next(row for row in rows if row["verdict"] == "answer")
    (first, second) = served(tiny_vit, [good["file"]])[0]
    assert (good["answer"], good["answer_2"]) == (first["label"], second["label"])
    assert float(good["probability"]) == pytest.approx(first["score"], abs=1e-4)
    # The model has two labels, so that three answers cannot be given.
    assert list(good) == ["file", "verdict", "answer", "probability", "answer_2", "probability_2", "reason"]


def test_more_photos_than_a_batch_keep_their_rows(photos, tiny_vit, tmp_path):
    files = sorted(photos.rglob("*.jpg"))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    _, rows = answers(tiny_vit, *files[:20], broken, *files[20:], output=tmp_path / "table.csv", flags=("--top_k", "1"))
    assert [row["file"] for row in rows] == [str(file) for file in (*files[:20], broken, *files[20:])]
    assert [row["verdict"] for row in rows] == ["answer"] * 20 + ["broken"] + ["answer"] * 16
    chances = [answer[0] for answer in served(tiny_vit, [str(file) for file in files])]
    assert [row["answer"] for row in rows if row["answer"]] == [answer["label"] for answer in chances]


def test_predict_says_in_one_line_what_it_cannot_do(photos, tiny_vit, tmp_path, capsys):
    photo = photos / "rust/00.jpg"
    for words, complaint in (
        ([tiny_vit, tmp_path / "nowhere.jpg"], "no photo at"),
        ([tiny_vit, photo, "--top_k", "0"], "--top_k must be at least 1; found 0"),
        ([tiny_vit, photo, "--output", tmp_path / "no/table.csv"], "make it first"),
        ([photo, photo], "is neither a run folder nor a Hub id"),
        ([photos, photo], "config.json"),
        ([tiny_vit, ""], "a word is empty; give a value or remove it"),
        ([tiny_vit, photo, "--output", tmp_path], "is a folder; give the name of a file"),
        ([tiny_vit, photo, "--output", tmp_path / f"{'n' * 252}.csv"], "is too long"),
        ([tiny_vit, photo, "--output", photo], "exists already; add --overwrite or choose another name"),
        ([tiny_vit, photo, "--output", photo, "--overwrite"], "is one of the photos; choose another name"),
        ([tiny_vit, photo, "--overwrite"], "add --output FILE"),
    ):
        assert main(["predict", *map(str, words)]) == 2, words
        err = capsys.readouterr().err
        assert complaint in err and err.count("\n") == 1, err
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    assert main(["predict", str(tiny_vit), str(broken), "--output", str(tmp_path / "table.csv")]) == 3
    assert "1 file, none of which can be decoded; the reasons are in" in capsys.readouterr().err


@pytest.mark.parametrize("error", [TypeError, MemoryError])
def test_whatever_a_decoder_raises_is_the_reason_of_that_photo(error, photos, tiny_vit, tmp_path, monkeypatch):
    def fail_once(self: Image.Image) -> None:
        if self.fp is not None and self.fp.name.endswith("01.jpg"):
            raise error("of one photo")
        return load(self)

    load = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", fail_once)
    code, rows = answers(tiny_vit, *sorted(photos.glob("rust/0[0-2].jpg")), output=tmp_path / "table.csv")
    assert (code, [row["verdict"] for row in rows]) == (0, ["answer", "broken", "answer"])
    assert rows[1]["reason"] != ""


def test_no_file_appears_unless_asked_and_an_existing_table_is_kept(photos, tiny_vit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(tiny_vit), str(photos)]) == 0
    out = capsys.readouterr().out
    # Every answer is printed.
    assert sum(line.startswith(str(photos)) for line in out.splitlines()) == 36
    assert list(tmp_path.iterdir()) == []
    table = tmp_path / "table.csv"
    table.write_text("field notes of a whole summer")
    command = ["predict", str(tiny_vit), str(photos / "rust"), "--output", str(table)]
    assert main(command) == 2
    assert "exists already; add --overwrite or choose another name" in capsys.readouterr().err
    assert table.read_text() == "field notes of a whole summer"
    assert main([*command, "--overwrite"]) == 0
    assert len(table.read_text().splitlines()) == 13


def test_a_folder_is_read_as_the_audit_reads_it(photos, tiny_vit, tmp_path, capsys):
    folder = shutil.copytree(photos, tmp_path / "photos")
    for name in ("._a.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/rust/a.jpg", "rust/moving.gif", "rust/new.avif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "rust/00.jpg", folder / name)
    (folder / "rust/gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (folder / "everything").symlink_to(folder)
    code, rows = answers(tiny_vit, folder, output=tmp_path / "table.csv")
    reasons = {Path(row["file"]).name: row["reason"] for row in rows if row["verdict"] == "broken"}
    assert (code, len(rows)) == (0, 39)
    assert reasons == {
        "gone.jpg": "a link to a missing file",
        "moving.gif": "GIF is not read here; convert it to JPEG or PNG",
        "new.avif": "AVIF is not read here; convert it to JPEG or PNG",
    }
    out = capsys.readouterr().out
    assert "39 files: 36 answers, 3 broken;" in out
    assert f"passed over, hidden: 2 ({folder}/._a.jpg, {folder}/.ipynb_checkpoints (1 file))" in out
    assert f"passed over, system folder: 1 ({folder}/__MACOSX (1 file))" in out
    assert f"passed over, a link to a folder that is listed already: 1 ({folder}/everything)" in out
    # The audit finds the same photos: one that cannot be decoded, and two in other formats, which it leaves out.
    assert main(["audit", str(folder), "--output", str(tmp_path / "audit.json")]) == 3
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert audit["files_found"] == 37 and len(audit["left_out"]) == 2 + 4


def test_any_file_name_reaches_the_table_and_nothing_in_it_runs_in_a_spreadsheet(photos, tiny_vit, tmp_path, capsys):
    model = shutil.copytree(tiny_vit, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    labels = {"0": "=cmd|' /C calc'!A0", "1": "-0.5"}
    (model / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    names = [b"=1+1.jpg", b"@cell.jpg", b"+1.jpg", b"-1.jpg", b"'=1.jpg", b"\t.jpg", b"leaf \xe9.jpg", b"a\nb.jpg"]
    names += ["Zürich 葉.jpg".encode(), b"q\"u,o;t'e.jpg", rb"back\slash\xe9.jpg", b"n" * 251 + b".jpg"]
    folder = tmp_path / "new"
    folder.mkdir()
    for name in names:
        shutil.copy(photos / "rust/00.jpg", folder / os.fsdecode(name))
    code, rows = answers(model, folder, output=tmp_path / "table.csv")
    assert (code, len(rows)) == (0, len(names))
    assert {os.fsencode(unescaped(row["file"])) for row in rows} == {
        os.fsencode(folder) + b"/" + name for name in names
    }
    # An apostrophe keeps a label from being run; a number stays one.
    assert {row["answer"] for row in rows} | {row["answer_2"] for row in rows} == {"'=cmd|' /C calc'!A0", "-0.5"}
    assert f"{folder}/leaf \\xe9.jpg: " in capsys.readouterr().out


def test_file_names_that_begin_a_formula_are_guarded(photos, tiny_vit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.jpg", "@a.jpg", "+1.jpg", "-1.jpg", "'=1.jpg", " =1.jpg", "plain.jpg"]
    for name in names:
        shutil.copy(photos / "rust/00.jpg", name)
    _, rows = answers(tiny_vit, "*.jpg", output=Path("table.csv"))
    assert sorted(row["file"] for row in rows) == sorted([*(f"'{name}" for name in names[:-1]), "plain.jpg"])


def test_a_print_never_ends_the_command(photos, tiny_vit, tmp_path):
    name = os.fsdecode("葉 ".encode() + b"\xe9.jpg")
    shutil.copy(photos / "rust/00.jpg", tmp_path / name)
    # The sample model is answered without torch, so that this process starts fast.
    command = [sys.executable, "-m", "agritransfer", "predict", str(ROOT / "space/model"), str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u8449 \xe9.jpg: " in done.stdout


def test_a_file_given_by_name_is_tried_whatever_it_is_called(photos, tiny_vit, tmp_path):
    for name in (".hidden.jpg", "__MACOSX/a.jpg", "photo.gif", "photo", "leaf[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(photos / "rust/00.jpg", tmp_path / name)
    (tmp_path / "animal.gif").write_bytes(b"GIF89a")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    given = [".hidden.jpg", "__MACOSX/a.jpg", "photo.gif", "photo", "leaf[1].jpg", "animal.gif", "gone.jpg", "pipe.jpg"]
    _, rows = answers(tiny_vit, *(tmp_path / name for name in given), output=tmp_path / "table.csv")
    assert [row["verdict"] for row in rows] == ["answer"] * 5 + ["broken"] * 3
    assert [row["reason"] for row in rows[5:]] == [
        "GIF is not read here; convert it to JPEG or PNG",
        "a link to a missing file",
        "not a regular file",
    ]
