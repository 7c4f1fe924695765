"""`predict` answers as the pipeline does up to the calibration, keeps the run's rules, and loses no file."""

import csv
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from transformers import pipeline

from agritransfer.__main__ import main


def answers(model: Path, *photos: str | Path, output: Path, flags: tuple[str, ...] = ()) -> tuple[int, list[dict]]:
    code = main(["predict", str(model), *map(str, photos), "--output", str(output), *flags])
    with output.open(newline="") as file:
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
