"""Turns, ratios, intervals and verdicts of the benchmarks, and that the peer's recipe trains."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, put_photos
from PIL import Image, ImageDraw

from benchmarks.__main__ import MEASUREMENTS
from benchmarks.choice_rules import RULES, losses
from benchmarks.head_first import error_ratio
from benchmarks.lab_and_field import describe, draw, mean_score, read_runs
from benchmarks.resize_modes import cut_out, scores
from benchmarks.runs import Run
from benchmarks.time_to_score import reached
from benchmarks.timing import compare, interval_of_median, table, take_turns


def test_contestants_take_turns_forwards_and_backwards_after_one_warm_up_each():
    called = []
    contestants = {name: lambda name=name: called.append(name) or len(called) for name in "abc"}
    values, first = take_turns(contestants, turns=3)
    assert "".join(called) == "abc" + "abc" + "cba" + "abc"
    assert values == {"a": [4, 9, 10], "b": [5, 8, 11], "c": [6, 7, 12]}
    assert list(first) == ["a", "b", "c"]
    assert take_turns(contestants, turns=1, warm_up=False)[1] == {}


def test_a_ratio_is_above_one_where_ours_is_faster_whatever_is_counted():
    speed = compare("q", ("ours", [300, 100, 90]), ("peer", [100, 50, 10]), "speed", "photos/s", target=3.0)
    assert speed.ratio == pytest.approx(3.0)  # of 3, 2 and 9; the ratio of the medians would be 2
    assert speed.interval == (2, 9)
    assert speed.reached() is False  # the middle alone is not enough
    seconds = compare("q", ("ours", [2.0, 4.0]), ("peer", [10.0, 20.0]), "seconds", "s", target=4.0)
    assert (seconds.ratio, seconds.interval) == (5, (5, 5))
    assert seconds.reached() is True


def test_the_interval_of_a_median_narrows_with_the_number_of_turns_and_holds_what_it_should():
    random = np.random.default_rng(1)
    held, widths = 0, []
    for _ in range(60):
        low, high = interval_of_median(random.normal(10, 1, 25))
        held += low <= 10 <= high
        widths.append(high - low)
    assert 53 <= held <= 60
    # Of a median of n normal values, 2 x 1.96 x 1.25 / sqrt(n).
    assert statistics.mean(widths) == pytest.approx(0.98, abs=0.15)


def test_the_error_ratio_and_its_interval_are_over_seeds_and_photos():
    random = np.random.default_rng(0)
    ours, plain = random.random((5, 400)) < 0.1, random.random((5, 400)) < 0.2
    ratio, (low, high) = error_ratio(ours, plain)
    assert ratio == pytest.approx(ours.sum() / plain.sum())
    assert low < ratio < high < 0.7
    same, (low, high) = error_ratio(plain, plain)
    assert same == 1
    assert low < 1 < high
    assert error_ratio(np.zeros((2, 10), bool), np.zeros((2, 10), bool))[0] == 0


def test_the_time_to_a_score_counts_the_first_time_and_tells_of_turns_without_it():
    theirs = [Run(Path(), 99, [(10, 0.8), (20, 0.95), (30, 0.9)], 0.9)] * 2
    ours = [Run(Path(), 50, [(5, 0.7), (8, 0.9004)], 0.9), Run(Path(), 50, [(5, 0.7)], 0.7)]
    ratio, note = reached("leaves", "ours", ours, "peer", theirs)
    assert (ratio.ours_values, ratio.peer_values, ratio.ratio) == ([8], [20], 2.5)
    assert ratio.guarded is False
    assert "in 1 of 2 turns ours did not reach the score of peer (0.900" in note
    assert reached("leaves", "ours", ours[1:], "peer", theirs[1:])[0] is None


def test_a_rule_loses_what_the_best_of_the_three_has_more_on_the_test():
    def candidate(strategy, macro_f1, log_loss, weights, test):
        scores = {"macro_f1": macro_f1, "macro_f1_ci95": [macro_f1 - 0.04, 1.0], "log_loss": log_loss, "test": test}
        return {"strategy": strategy, "state": "trained", "trainable_parameters": weights, **scores}

    rows = [candidate("head", 0.95, 0.3, 1, 0.90), candidate("lora", 0.94, 0.2, 2, 0.96)]
    rows += [candidate("finetune", 0.90, 0.1, 9, 0.93)]
    lost = {name: round(losses(rule, [rows], "test")[0], 6) for name, rule in RULES.items()}
    # The fewest weights among near ties are the head's; fine-tuning is no near tie.
    assert list(lost.values()) == [6, 3, 0, 6, 0, 0, 3, 6]


def test_the_table_names_what_was_missed_and_what_was_not_the_same_work():
    more = {"target": 3.0, "guard": "accuracy 0.8, peer 0.9", "guarded": False}
    row = table([compare("q", ("ours", [200]), ("peer", [100]), "speed", "photos/s", **more).to_dict()]).splitlines()[
        -1
    ]
    assert row == (
        "| q | ours: 200 photos/s (200 to 200) | peer: 100 photos/s (100 to 100) | **2.00** (2.00 to 2.00) "
        "| 3: missed | accuracy 0.8, peer 0.9 **(no)** |"
    )


@pytest.mark.slow
def test_the_recipe_of_the_documentation_trains_two_steps_and_scores(tmp_path, tiny_vit):
    photos = tmp_path / "photos"
    for seed, split in enumerate(("train", "validation", "test")):
        put_photos(photos / split, seed)
    flags = ["--data_dir", photos, "--model_name_or_path", tiny_vit, "--output_dir", tmp_path / "run", "--use_cpu"]
    flags += ["--train_layers", "1", "--num_train_epochs", "1", "--per_device_train_batch_size", "18"]
    flags += ["--gradient_accumulation_steps", "1", "--report_to", "none"]
    command = [sys.executable, "-m", "benchmarks.peers.recipe", *map(str, flags)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert [score["epoch"] for score in scores["validation"]] == [1.0]
    assert 0 < scores["validation"][0]["seconds"] < scores["seconds"]
    assert 0 <= scores["test"] <= 1
    assert (
        json.loads((next((tmp_path / "run").glob("checkpoint-*")) / "trainer_state.json").read_text())["max_steps"] == 2
    )


@pytest.mark.slow
def test_make_bench_joins_every_measurement_of_its_list(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    joined = json.loads((tmp_path / "results.json").read_text())
    single = [json.loads((tmp_path / f"{name}.json").read_text()) for name, _ in MEASUREMENTS]
    assert joined["ratios"] == [ratio for result in single for ratio in result["ratios"]]
    assert all(min(ratio["ours_values"] + ratio["peer_values"]) > 0 for ratio in joined["ratios"])
    rows = (tmp_path / "results.md").read_text().splitlines()
    assert len([row for row in rows if row.startswith("| ")]) == 1 + len(joined["ratios"])


def test_the_time_to_a_score_is_when_it_was_first_reached_as_it_is_printed():
    # 261 of 264 photos: printed as 0.989, and as such told by our own scripts.
    recipe = Run(Path("recipe"), 60.0, [(20.0, 0.9), (40.0, 261 / 264)], 0.9)
    ours = Run(Path("ours"), 30.0, [(10.0, 0.9), (25.0, 0.989)], 0.9)
    assert recipe.seconds_to(261 / 264) == 40.0 and ours.seconds_to(261 / 264) == 25.0
    assert ours.seconds_to(0.99) is None
    ratio, note = reached("photos", "ours", [ours], "recipe", [recipe])
    assert ratio.ratio == 40 / 25 and note == ""
    ratio, note = reached("photos", "recipe", [recipe], "ours", [Run(Path("best"), 9.0, [(9.0, 1.0)], 1.0)])
    assert ratio is None and "in 1 of 1 turns recipe did not reach the score of ours (1.000 on average)" in note


def put_results(folder: Path, strategy: str, seed: int, lab: float, field: float) -> Path:
    results = {
        "strategy": strategy,
        "base_model": None if strategy == "scratch" else {"name": "models/vit"},
        "dataset": {"name": "data/leaves_lab", "fingerprint": "f"},
        "test": {"n": 40, "macro_f1": lab, "macro_f1_ci95": [lab - 0.1, lab + 0.05]},
        "shift": {"name": "leaves_field", "n": 20, "macro_f1": field, "macro_f1_ci95": [field - 0.1, field + 0.1]},
        "training": {"epochs": 5},
        "command": f"python train.py --image_size 96 --seed {seed}",
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_the_lab_and_field_figure_is_drawn_from_results_with_intervals_over_photos_and_seeds(tmp_path):
    folders = [put_results(tmp_path / f"lora-{seed}", "lora", seed, 0.9, 0.7 + seed / 10) for seed in range(3)]
    folders.append(put_results(tmp_path / "scratch-0", "scratch", 0, 0.5, 0.3))
    runs = read_runs(folders)
    lab, field = mean_score(runs[:3], "test"), mean_score(runs[:3], "shift")
    # Equal seeds: the interval is that over the photos; unequal ones widen it.
    assert (lab.low, lab.mean, lab.high) == pytest.approx((0.8, 0.9, 0.95))
    assert field.mean == pytest.approx(0.8)
    # Student's quantile of two degrees of freedom is 4.3: three seeds that differ by 0.1 say little.
    assert 0.5 < field.low < 0.56 and field.high == 1.0
    said = describe(runs)
    assert "40 test photos of leaves_lab and 20 photos of leaves_field" in said
    assert "vit at 96 px; from scratch: ViT tiny; 5 epochs; mean of 3 seeds" in said
    draw(tmp_path / "images/figure.png", runs)
    assert 5_000 < (tmp_path / "images/figure.png").stat().st_size < 300_000
    other = put_results(tmp_path / "other", "head", 0, 0.9, 0.8)
    changed = json.loads((other / "results.json").read_text()) | {"shift": None}
    (other / "results.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="other has no field scores; train it with --shift_dataset_name"):
        read_runs([*folders, other])


def test_a_leaf_is_cut_out_along_its_main_axis():
    photo = Image.new("RGB", (200, 200))
    ImageDraw.Draw(photo).ellipse((20, 80, 180, 120), fill=(60, 140, 50))
    for angle in (0, 30, 90, 135):
        width, height = cut_out(photo.rotate(angle, Image.Resampling.BICUBIC)).size
        assert abs(width - 160) <= 6 and abs(height - 40) <= 6, (angle, width, height)


def test_features_that_tell_the_classes_apart_score_better_in_every_resplit():
    random = np.random.default_rng(0)
    labels = random.choice(["blight", "rust"], 100)
    far, near = (random.normal(size=(100, 4)) + apart * (labels == "rust")[:, None] for apart in (6.0, 0.5))
    groups = np.arange(100) // 2
    good, poor = scores(far, labels, groups, (far, labels)), scores(near, labels, groups, None)
    assert good.shape == poor.shape == (6, 3)
    assert (good[:, 0] > 0.95).all() and good[:, 1].max() < poor[:, 1].min() and np.isnan(poor[:, 2]).all()
    assert (good[:, 2] > 0.95).all()
