"""Strategies are compared on the same photos, over seeds; validation decides which one is recommended."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from agritransfer.__main__ import main
from agritransfer.cli.scripts import flags_for
from agritransfer.data.dataset import load_splits
from agritransfer.data.readers.source import Photo
from agritransfer.errors import DataError, UsageError
from agritransfer.evaluation.comparison import compare, measure_forgetting, read_candidates
from agritransfer.evaluation.metrics import macro_f1
from agritransfer.evaluation.predictions import read_predictions, write_predictions
from agritransfer.evaluation.recommendation import recommendation
from agritransfer.evaluation.report import comparison_table, report_text, write_report
from agritransfer.models.loading import load_pretrained, load_processor

LABELS = ["blight", "healthy", "rust"]


WEIGHTS = {"scratch": 800_000, "head": 516, "lora": 66_000, "finetune": 837_000}


SCRIPT = {"scratch": "train_scratch.py", "head": "train_finetune.py --train_layers head", "lora": "train_lora.py"}


def put_run(
    folder: Path,
    strategy: str,
    seed: int,
    test: float,
    shift: float | None = None,
    validation: float | None = None,
    photos: int = 240,
    names: str = "",
    **changes,
) -> Path:
    """A run folder as far as a comparison reads it, with this share of right answers; by default validation as test.

    `names` is put before the file names of the field photos.
    """
    (folder).mkdir(parents=True)
    random = np.random.default_rng([seed, *strategy.encode()])
    scored, entries = {}, {}
    shares = {"validation": test if validation is None else validation, "test": test, "shift": shift}
    for split, share in shares.items():
        if share is None:
            entries[split] = None
            continue
        truth = np.arange(photos) % 3
        # Exactly this share is right; which photos they are is drawn.
        right = random.permutation(photos) < round(share * photos)
        answers = np.where(right, truth, (truth + 1) % 3)
        place = f"{names}{split}" if split == "shift" else split
        scored_photos = [Photo(i, f"{place}/{i}.jpg", LABELS[label], split) for i, label in enumerate(truth)]
        scored[split] = (scored_photos, np.eye(3)[answers].astype(np.float32))
        f1 = [macro_f1(answers == label, truth == label, 2) for label in range(3)]
        entries[split] = {
            **{"name": "field", "n": photos, "macro_f1": macro_f1(answers, truth, 3), "macro_f1_ci95": [0, 1]},
            "per_class": [{"label": label, "n": 80, "f1": of} for label, of in zip(LABELS, f1, strict=True)],
            "answered": {"coverage": 0.5},
        }
    write_predictions(folder / "predictions.csv", scored, LABELS)
    (folder / "splits.csv").write_text("file,label,split,group\n0.jpg,rust,test,\n")
    (folder / "model.safetensors").write_bytes(b"0" * 3_400_000)
    if strategy == "lora":
        (folder / "adapter").mkdir()
        (folder / "adapter/adapter_model.safetensors").write_bytes(b"0" * 300_000)
    script = SCRIPT.get(strategy, "train_finetune.py")
    results = {
        "strategy": strategy,
        "base_model": None if strategy == "scratch" else {"name": "models/vit", "revision": None},
        "dataset": {
            "name": "data/leaves",
            "fingerprint": "f",
            "labels": LABELS,
            "counts": {s: {"rust": 9} for s in ("train", "validation", "test")},
        },
        "splits": {
            "method": "stratified",
            "seed": 0,
            "leakage": {"found": 2, "dropped": 2},
            "broken": {"found": 0, "skipped": 0},
        },
        **entries,
        "training": {
            **{"epochs": 3, "seconds": 10.0 + seed, "peak_memory_bytes": 10**9, "device": "cpu"},
            **{"trainable_parameters": WEIGHTS[strategy], "total_parameters": 837_252},
        },
        "environment": {"torch": "2", "transformers": "5", "peft": "0"},
        "command": f"python {script} --dataset_name data/leaves --seed {seed} --output_dir {folder}",
    } | changes
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def runs(tmp_path: Path, shares: dict[str, tuple[float | None, ...]], seeds: int = 3) -> list[Path]:
    return [
        put_run(tmp_path / f"{strategy}-{seed}", strategy, seed, *share)
        for strategy, share in shares.items()
        for seed in range(seeds)
    ]


def test_runs_that_differ_by_their_seed_are_one_candidate_and_scratch_comes_first(tmp_path):
    folders = runs(
        tmp_path, {"finetune": (0.8, None), "lora": (0.8, None), "scratch": (0.4, None), "head": (0.7, None)}
    )
    candidates = read_candidates(folders)
    assert [c.name for c in candidates] == ["training from scratch", "feature extraction", "LoRA", "fine-tuning"]
    assert all(len(c.folders) == 3 for c in candidates)
    comparison = compare(candidates)
    by_hand = [json.loads((folder / "results.json").read_text())["test"]["macro_f1"] for folder in folders[:3]]
    row = comparison["rows"][3]
    assert row["test"]["macro_f1"] == pytest.approx(np.mean(by_hand))
    assert row["test"]["macro_f1_of_seeds"] == pytest.approx(by_hand)
    assert (row["seconds"], row["bytes_to_publish"]) == (11.0, 3_400_000)
    assert comparison["rows"][2]["bytes_to_publish"] == 300_000


def test_commands_that_differ_in_more_than_the_seed_are_candidates_of_their_own(tmp_path):
    run = put_run(tmp_path / "a", "finetune", 0, 0.8)
    command = json.loads((run / "results.json").read_text())["command"] + " --train_layers 4"
    training = json.loads((run / "results.json").read_text())["training"] | {"trainable_parameters": 300_000}
    other = put_run(tmp_path / "b", "finetune", 0, 0.8, command=command, training=training)
    names = [candidate.name for candidate in read_candidates([run, other])]
    assert names == ["fine-tuning (300,000 weights)", "fine-tuning (837,000 weights)"]


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path):
    good = put_run(tmp_path / "good", "lora", 0, 0.8, 0.6)
    with pytest.raises(UsageError, match="is not a finished run"):
        read_candidates([good, tmp_path])
    with pytest.raises(UsageError, match="a comparison needs runs of at least two strategies or settings; found 1"):
        compare(read_candidates([good]))
    facts = json.loads((good / "results.json").read_text())
    other = put_run(tmp_path / "other", "head", 0, 0.8, 0.6, dataset=facts["dataset"] | {"fingerprint": "g"})
    with pytest.raises(DataError, match="were trained on different photos"):
        read_candidates([good, other])
    cut = put_run(tmp_path / "cut", "head", 0, 0.8, 0.6)
    (cut / "splits.csv").write_text("file,label,split,group\n0.jpg,rust,train,\n")
    with pytest.raises(DataError, match=r"different splits; train with --splits_file .*good/splits\.csv"):
        read_candidates([good, cut])
    # As many field photos of a set with the same name, but other photos.
    field = put_run(tmp_path / "field", "head", 0, 0.8, 0.6, names="new ")
    with pytest.raises(DataError, match="scored on different field photos"):
        read_candidates([good, field])
    fewer = put_run(tmp_path / "fewer", "head", 0, 0.8, 0.6, photos=120)
    with pytest.raises(DataError, match="scored on different validation photos"):
        read_candidates([good, fewer])
    write_predictions(cut / "predictions.csv", {}, LABELS)
    (cut / "splits.csv").write_text((good / "splits.csv").read_text())
    with pytest.raises(DataError, match="has no predictions for validation photos; train it again"):
        read_candidates([good, cut])
    # A copy of a run is no second seed: it would hide the variation between seeds.
    again = put_run(tmp_path / "again", "lora", 0, 0.8, 0.6)
    with pytest.raises(UsageError, match="repeats the command and the seed of"):
        read_candidates([good, again])
    # A run without field photos leaves the test alone to compare.
    alone = put_run(tmp_path / "alone", "scratch", 0, 0.4)
    assert compare(read_candidates([good, alone]))["shift"] is None


def test_predictions_are_read_as_they_were_written(tmp_path):
    photos = [Photo(0, "a,1.jpg", "rust", "test", "plant 1"), Photo(1, "b.jpg", "blight", "test")]
    logits = np.array([[0.5, -1, 2], [3, 0, 0]], np.float32)
    write_predictions(tmp_path / "p.csv", {"validation": ([], np.zeros((0, 3))), "test": (photos, logits)}, LABELS)
    read = read_predictions(tmp_path / "p.csv", "test", LABELS)
    assert (read.files, read.groups, read.truth.tolist()) == (["a,1.jpg", "b.jpg"], ["plant 1", ""], [2, 0])
    assert np.array_equal(read.logits, logits)
    assert read_predictions(tmp_path / "p.csv", "shift", LABELS).logits.shape == (0, 3)


def advice(tmp_path: Path, seeds: int = 3, **shares: tuple[float | None, ...]) -> str:
    return recommendation(compare(read_candidates(runs(tmp_path, shares, seeds))))


def test_the_cheapest_of_those_that_cannot_be_told_apart_is_advised(tmp_path):
    text = advice(tmp_path, scratch=(0.4, 0.3), head=(0.8, 0.8), lora=(0.82, 0.81), finetune=(0.5, 0.6))
    assert text.startswith("Use feature extraction, chosen on the 240 validation photos: its macro F1 there is 0.")
    assert re.search(
        r"LoRA scores 0\.0\d\d higher there, but that is not significant \(p = [\d.]+\), and it trains 66,000 weights",
        text,
    )
    assert re.search(
        r"On the field photos, its macro F1 is 0\.8\d\d \[0\.\d+, 0\.\d+\]\. Training from scratch scores", text
    )
    assert re.search(r"Training from scratch scores 0\.\d+ lower \(p < 0\.001\) and fine-tuning 0\.2\d\d lower", text)
    assert (
        "Transfer helps: every pretrained strategy scores higher on the field photos than training from scratch."
        in text
    )
    assert "Frozen features are sufficient here" in text and "240 photos, 3 seeds per strategy" in text
    assert "luck of its seed" not in text


def test_a_strategy_that_is_better_by_more_than_chance_is_advised(tmp_path):
    text = advice(tmp_path, scratch=(0.4, None), head=(0.5, None), lora=(0.7, None), finetune=(0.95, None))
    assert text.startswith("Use fine-tuning, chosen on the 240 validation photos: its macro F1 there is 0.9")
    assert "There it is significantly better than every other strategy." in text
    assert "Frozen features are not sufficient here: the backbone must adapt" in text


def test_the_choice_is_made_on_validation_whatever_test_and_field_say(tmp_path):
    shares = {"head": (0.6, 0.52, 0.9), "lora": (0.9, 0.95, 0.7)}
    comparison = compare(read_candidates(runs(tmp_path, shares)))
    assert comparison["recommended"] == "feature extraction"
    text = recommendation(comparison)
    assert text.startswith("Use feature extraction, chosen on the 240 validation photos: its macro F1 there is 0.9")
    assert re.search(r"On the test photos, its macro F1 is 0\.6\d\d \[.*?\]\. LoRA scores 0\.3\d\d higher \(p", text)
    assert re.search(r"On the field photos, its macro F1 is 0\.5\d\d \[.*?\]\. LoRA scores 0\.4\d\d higher \(p", text)
    assert text.count("The choice was not made on these photos") == 2
    assert "consider LoRA and confirm that on new photos" in text


def test_with_one_seed_the_luck_of_the_seed_is_said_to_be_missing(tmp_path):
    words = "the luck of its seed is not in the intervals and p-values"
    comparison = compare(read_candidates(runs(tmp_path / "one", {"head": (0.6, None), "lora": (0.9, None)}, seeds=1)))
    assert f"There is one run of each strategy: {words}" in recommendation(comparison)
    text = report_text(comparison)
    assert text.split("## Pairwise differences")[1].count(words) == 1 and text.count(words) == 2
    three = runs(tmp_path / "mixed", {"lora": (0.9, None)})
    mixed = compare(read_candidates([*three, put_run(tmp_path / "head", "head", 0, 0.6)]))
    assert f"There is one run of feature extraction: {words}" in recommendation(mixed)


def test_negative_transfer_is_called_by_its_name(tmp_path):
    text = advice(tmp_path, scratch=(0.9, None), head=(0.5, None), lora=(0.6, None))
    assert text.startswith("Use training from scratch, ")
    assert (
        "Negative transfer: training from scratch scores higher on the test photos than feature extraction and LoRA"
        in text
    )


def test_scratch_that_only_equals_the_others_is_not_advised(tmp_path):
    text = advice(tmp_path, scratch=(0.81, None), lora=(0.8, None))
    assert text.startswith("Use LoRA, ") and "No pretrained strategy is shown to score higher" in text
    assert "No other strategy differs significantly from it there." in text


def test_p_values_are_of_the_gain_and_corrected_for_the_number_of_pairs(tmp_path):
    comparison = compare(
        read_candidates(runs(tmp_path, {"scratch": (0.7, None), "head": (0.72, None), "lora": (0.8, None)}))
    )
    checked = 0
    for pair in comparison["pairs"]:
        for split in ("validation", "test"):
            low, high = pair[split]["gain_ci95"]
            assert (pair[split]["p_value"] < 0.05) == (low > 0 or high < 0)
            checked += 1
    assert checked == 6
    smallest = min((pair["test"] for pair in comparison["pairs"]), key=lambda found: found["p_value"])
    assert smallest["p_value_adjusted"] == pytest.approx(3 * smallest["p_value"])


def test_the_report_holds_every_number_and_is_complete_in_itself(tmp_path):
    folders = runs(tmp_path / "runs", {"scratch": (0.4, 0.3), "head": (0.8, 0.7), "lora": (0.9, 0.8)})
    comparison = compare(read_candidates(folders))
    comparison["forgetting"] = {
        **{
            "dataset": "data/apple",
            "n": 30,
            "before": [{"name": "vit, pretrained", "macro_f1": 0.9, "macro_f1_ci95": [0.8, 1]}],
        },
        "after": [
            {"name": "LoRA", "macro_f1": 0.7, "macro_f1_ci95": [0.6, 0.8], "gain": -0.2, "gain_ci95": [-0.3, -0.1]}
        ],
    }
    write_report(tmp_path, comparison)
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"][0]["name"] == "training from scratch"
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert text == report_text(comparison) and text.split("\n\n")[1] == recommendation(comparison)
    lora = comparison["rows"][2]
    for words in (
        f"{lora['test']['macro_f1']:.3f} [{lora['test']['macro_f1_ci95'][0]:.3f}",
        "| LoRA vs. feature extraction | +0.",
        "| LoRA | 0.700 [0.600, 0.800] | -0.200 [-0.300, -0.100] |",
        "2 leaked photos found, 2 dropped",
        "| LoRA | 66,000 | 837,252 | 11 | 1,000 MB | 0.3 MB |",
    ):
        assert words in text, words
    assert page.count("<table>") == 5 and page.count("data:image/png;base64,") == 2 and 'src="figures' not in page
    # The worst class of each strategy comes first.
    drops = [drop["drop"] for drop in lora["class_drops"]]
    assert drops == sorted(drops, reverse=True) and len(drops) == 3
    assert (tmp_path / "figures/scores.png").stat().st_size > 10_000
    lines = comparison_table(comparison).splitlines()
    assert lines[0].split("  ")[0] == "" and "field gain over scratch" in lines[0]
    assert lines[1].startswith("training from scratch") and lines[3].startswith("LoRA") and "[+0." in lines[3]


def test_a_label_cannot_break_the_table_or_the_page(tmp_path):
    folders = runs(tmp_path / "runs", {"head": (0.8, 0.7), "lora": (0.9, 0.8)}, seeds=1)
    comparison = compare(read_candidates(folders))
    comparison["rows"][0]["class_drops"][0]["label"] = "a|b <script>alert(1)</script> ![x](http://x/x.png)"
    comparison["dataset"]["name"] = os.fsdecode(b"data/$\\frac$ \xe9`x")
    write_report(tmp_path, comparison)
    report = (tmp_path / "report.html").read_text()
    assert "<script>" not in report and "http://x/x.png" in report and 'src="http' not in report
    assert "a\\|b" in (tmp_path / "report.md").read_text()


def test_finished_runs_are_compared_by_the_command(tmp_path, capsys):
    folders = runs(tmp_path / "runs", {"scratch": (0.4, 0.3), "lora": (0.9, 0.8)}, seeds=1)
    assert main(["compare", "--runs", *map(str, folders), "--output_dir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "Use LoRA, chosen on the 240 validation photos: " in out and f"report: {tmp_path / 'out/report.html'}" in out
    left = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left == {"comparison.json", "report.html", "report.md", "figures/scores.png", "figures/costs.png"}
    # An earlier comparison is replaced; a report of anyone else is kept.
    command = ["compare", "--runs", *map(str, folders), "--output_dir"]
    assert main([*command, str(tmp_path / "out")]) == 0
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/report.md").write_text("A summer in the field")
    for output, complaint in (
        (tmp_path / "theirs", "holds report.md, which is of no"),
        (folders[0] / "results.json", "is a file"),
    ):
        assert main([*command, str(output)]) == 2
        err = capsys.readouterr().err
        assert complaint in err and err.count("\n") == 1, err
    assert (tmp_path / "theirs/report.md").read_text() == "A summer in the field"


def test_the_command_says_in_one_line_what_it_cannot_do(tmp_path, capsys):
    run = put_run(tmp_path / "run", "lora", 0, 0.8)
    for words, complaint in (
        ([], "give either a dataset to train on, or --runs"),
        (["photos", "--runs", run], "give either a dataset to train on, or --runs"),
        (["photos"], "--model_name_or_path is missing"),
        (
            ["photos", "--model_name_or_path", "m", "--seeds", "0"],
            "--seeds 0 is out of range; give a number",
        ),
        (
            ["photos", "--model_name_or_path", "m", "--budget_epochs", "0"],
            "--budget_epochs 0 is out of range; give a number of at least 1",
        ),
        (["photos", "--model_name_or_path", "m", "--seed", "3"], "--seed"),
        (["--runs", run, "--use_dora"], "unknown flag --use_dora; --runs trains nothing"),
        (["--runs", tmp_path], "holds no finished run"),
    ):
        assert main(["compare", *map(str, words)]) == 2, words
        err = capsys.readouterr().err
        assert complaint in err and err.count("\n") == 1, err


def test_a_flag_of_one_strategy_goes_to_that_one():
    flags = ["--lora_r", "4", "--model_size=nano", "--image_size", "64", "--learning_rate", "-1", "--fp16"]
    assert flags_for("lora", flags) == ["--lora_r", "4", "--image_size", "64", "--learning_rate", "-1", "--fp16"]
    assert flags_for("scratch", flags) == ["--model_size=nano", *flags[3:]]
    of_model = ["--model_revision", "main", *flags[3:]]
    assert flags_for("finetune", of_model) == flags_for("lora", of_model) == of_model
    assert flags_for("scratch", of_model) == flags[3:]
    assert flags_for("head", flags) == flags[3:]
    assert flags_for("head", ["--layer_decay", "0.75", "--seed", "1"]) == ["--seed", "1"]
    assert flags_for("head", ["--lora-r", "4", "--seed", "1"]) == ["--seed", "1"]
    assert flags_for("scratch", ["--no_head_first", "--seed", "1"]) == ["--seed", "1"]
    assert flags_for("lora", ["--no_head_first", "--seed", "1"]) == ["--no_head_first", "--seed", "1"]
    assert flags_for("head", ["--augmentation", "strong", "--seed", "1"], {"augmentation"}) == ["--seed", "1"]


def backbone(folder: Path, tiny_vit: Path, photos: Path, blind: bool) -> Path:
    """A trained run of tiny_vit as far as its weights: as they were, or blind to what is in a photo."""
    model = load_pretrained(str(tiny_vit), None, ["blight", "healthy", "rust"], 32)
    if blind:
        model.vit.embeddings.patch_embeddings.projection.weight.data.zero_()
    model.save_pretrained(folder)
    load_processor(str(tiny_vit), None, 32).save(folder)
    return folder


def test_a_backbone_that_went_blind_has_forgotten_and_one_that_did_not_move_has_not(photos, tiny_vit, tmp_path):
    base = {"name": str(tiny_vit), "revision": None}
    for name, strategy, blind in (("same", "lora", False), ("blind", "finetune", True)):
        backbone(put_run(tmp_path / name, strategy, 0, 0.9, base_model=base), tiny_vit, photos, blind)
    put_run(tmp_path / "head", "head", 0, 0.9, base_model=base)
    candidates = read_candidates([tmp_path / name for name in ("head", "same", "blind")])
    found = measure_forgetting(candidates, load_splits(str(photos), test_fraction=0.4))
    assert found["n"] == 15 and [entry["name"] for entry in found["after"]] == ["LoRA", "fine-tuning"]
    before, (same, blind) = found["before"][0]["macro_f1"], found["after"]
    # Means of noise of three colours: even random weights tell them apart.
    assert before > 0.7
    assert same["gain"] == 0 and same["macro_f1"] == before
    low, high = same["gain_ci95"]
    assert low == -high < 0
    # Blind, all photos get one answer: F1 of 0.5 for one class of three.
    assert blind["macro_f1"] == pytest.approx(0.5 / 3) and blind["gain"] == pytest.approx(0.5 / 3 - before)
    assert blind["gain_ci95"][1] < 0


@pytest.mark.slow
def test_a_comparison_is_trained_once_stopped_and_taken_up_again(photos, field_photos, tiny_vit, tmp_path, capsys):
    output = tmp_path / "out"
    flags = ["compare", str(photos), "--model_name_or_path", str(tiny_vit), "--shift_dataset_name", str(field_photos)]
    flags += ["--strategies", "head", "lora", "--seeds", "2", "--output_dir", str(output)]
    more = ["--budget_epochs", "1", "--lora_r", "2", "--use_cpu"]
    assert main([*flags, *more, "--no_such_flag", "1"]) == 2
    complaint = capsys.readouterr().err
    assert "--no_such_flag" in complaint and str(output / "head-seed0.log") in complaint
    assert main([*flags, *more]) == 0
    first = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((output / "comparison.json").read_text())["rows"]}
    assert rows["feature extraction"]["trainable_parameters"] == 16 * 3 + 3
    assert rows["LoRA"]["trainable_parameters"] == 2 * 4 * (2 * 16 * 2) + 16 * 3 + 3
    assert [len(row["runs"]) for row in rows.values()] == [2, 2]
    # One run is lost: it alone is trained again, and the same seed gives the same numbers.
    before = (output / "comparison.json").read_text()
    (output / "lora-seed1/results.json").unlink()
    kept = (output / "head-seed0/results.json").stat().st_mtime_ns
    assert main([*flags, *more]) == 0
    again = capsys.readouterr().out
    assert again.count("already finished") == 3 and "already finished" not in first
    assert (output / "head-seed0/results.json").stat().st_mtime_ns == kept
    of_seeds = [
        [row["test"]["macro_f1_of_seeds"] for row in json.loads(text)["rows"]]
        for text in (before, (output / "comparison.json").read_text())
    ]
    assert of_seeds[0] == of_seeds[1]
    assert main([*flags, "--budget_epochs", "2", "--lora_r", "2", "--use_cpu"]) == 2
    assert "holds a run with other flags" in capsys.readouterr().err
