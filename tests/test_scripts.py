"""Each script for real: the flags a user types, the files it leaves, the numbers it tells."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, put_photos
from finished_runs import EVERY_RUN, SHORT, check_run, clean_environment, files_of, predictions_of
from networks import timm
from PIL import Image
from shards import put_parquet
from transformers import AutoConfig, TimmWrapperForImageClassification

from agritransfer.__main__ import main as agritransfer
from agritransfer.errors import UsageError
from agritransfer.hub.client import Destination
from agritransfer.hub.model import publish_run

ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/config.json"}


@pytest.mark.parametrize(("layers", "more"), [("all", ()), ("head", ("--augmentation", "light")), ("1", ())])
def test_finetuning_leaves_a_whole_run_folder_that_pipeline_serves(
    layers, more, photos, field_photos, tiny_vit, tmp_path, run_script
):
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--train_layers", layers, "--output_dir", run)
    code, out, err = run_script("train_finetune.py", *flags, *SHORT, "--shift_dataset_name", field_photos, *more)
    assert code == 0, err
    assert files_of(run) == EVERY_RUN
    results = check_run(run, photos, "head" if layers == "head" else "finetune")
    assert results["shift"]["n"] == 36 and len(predictions_of(run, "shift")) == 36
    assert results["base_model"]["name"] == str(tiny_vit)
    head_only = 16 * 3 + 3
    assert (results["training"]["trainable_parameters"] == head_only) == (layers == "head")
    assert out.count("epoch ") == 2 and "settings: strategy=" in out and "forecast: about" in out
    assert "weakest classes on the test" in out


def test_lora_leaves_merged_weights_and_an_adapter_with_labels(photos, tiny_vit, tmp_path, run_script):
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--output_dir", run, "--lora_r", "2")
    code, out, err = run_script("train_lora.py", *flags, *SHORT)
    assert code == 0, err
    assert files_of(run) == EVERY_RUN | ADAPTER
    results = check_run(run, photos, "lora")
    # Two blocks of four 16 x 16 projections, each with two factors of rank 2; and the head.
    assert results["training"]["trainable_parameters"] == 2 * 4 * (2 * 16 * 2) + 16 * 3 + 3
    assert "q_proj x 2, k_proj x 2, v_proj x 2, o_proj x 2" in out
    assert list(AutoConfig.from_pretrained(run / "adapter").id2label.values()) == ["blight", "healthy", "rust"]


@pytest.mark.parametrize("script", ["train_finetune.py", "train_lora.py"])
def test_a_timm_run_as_base_serves_the_names_of_the_new_run(script, photos, tmp_path, run_script, capsys):
    base, run = tmp_path / "base", tmp_path / "run"
    # The names of an earlier run on the same classes, in another order.
    config = timm("test_efficientnet")
    config.id2label = dict(enumerate(["rust", "blight", "healthy"]))
    TimmWrapperForImageClassification(config).save_pretrained(base)
    flags = ("--dataset_name", photos, "--model_name_or_path", base, "--output_dir", run, "--resize_mode", "squash")
    code, _, err = run_script(script, *flags, *SHORT)
    assert code == 0, err
    check_run(run, photos, "lora" if "lora" in script else "finetune")
    folders = [run, run / "adapter"] if "lora" in script else [run]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        assert config["label_names"] == ["blight", "healthy", "rust"]
        # The resize mode is saved where timm keeps its transform.
        assert (config["pretrained_cfg"]["crop_mode"], config["pretrained_cfg"]["crop_pct"]) == ("squash", 1.0)
    # A run that an earlier version saved with the old names: nothing is answered in silence.
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"label_names": ["rust", "blight", "healthy"]}))
    table = str(tmp_path / "answers.csv")
    for command in (["export", str(run)], ["predict", str(run), str(photos / "rust/00.jpg"), "--output", table]):
        assert agritransfer(command) == 2
        assert "names the classes rust, blight, healthy, but results.json blight, healthy" in capsys.readouterr().err
    with pytest.raises(UsageError, match="names the classes rust, blight, healthy"):
        publish_run(run, Destination("user/leaves", True, "end", True, None))


@pytest.mark.parametrize("model_type", ["vit", "convnextv2"])
def test_scratch_leaves_a_whole_run_folder_that_pipeline_serves(model_type, photos, tmp_path, run_script):
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_type", model_type, "--model_size", "nano", "--image_size", "32")
    code, _, err = run_script("train_scratch.py", *flags, *SHORT, "--output_dir", run, "--augmentation", "strong")
    assert code == 0, err
    assert files_of(run) == EVERY_RUN
    results = check_run(run, photos, "scratch")
    assert results["base_model"] is None
    assert results["training"]["trainable_parameters"] == results["training"]["total_parameters"]
    assert AutoConfig.from_pretrained(run).problem_type is None


def test_the_resize_mode_is_saved_told_and_kept_by_the_run(tiny_vit, tmp_path, run_script):
    photos = put_photos(tmp_path / "strips", seed=0)
    for file in photos.rglob("*.jpg"):
        Image.open(file).resize((80, 20)).save(file)
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--output_dir", run, *SHORT)
    code, out, err = run_script("train_finetune.py", *flags, "--resize_mode", "crop")
    assert code == 0, err
    results = check_run(run, photos, "finetune")
    assert results["input"] == {"image_size": 32, "resize_mode": "crop"}
    assert "--resize_mode crop" in results["command"]
    saved = json.loads((run / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "BitImageProcessor" and saved["size"] == {"shortest_edge": 32}
    assert "36 of 36 photos are at least 1.4 times as long as wide, and the center crop cuts off 75% of them" in out
    code, _, err = run_script("train_finetune.py", *flags, "--resize_mode", "squash")
    assert code == 2 and "holds another finished run: --resize_mode was crop, is squash" in err


def without_times(results: dict) -> dict:
    training = {
        name: value
        for name, value in results["training"].items()
        if name not in ("seconds", "images_per_second", "peak_memory_bytes")
    }
    return results | {"training": training, "command": None}


def test_the_same_seed_gives_the_same_results_and_another_seed_does_not(photos, tiny_vit, tmp_path, run_script):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, *SHORT)
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        assert run_script("train_finetune.py", *flags, "--seed", seed, "--output_dir", tmp_path / name)[0] == 0
    first, again, other = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("first", "again", "other"))
    assert without_times(first) == without_times(again)
    assert first["test"]["log_loss"] != other["test"]["log_loss"]
    assert (tmp_path / "first/predictions.csv").read_bytes() == (tmp_path / "again/predictions.csv").read_bytes()


def test_a_splits_file_of_an_earlier_run_gives_the_same_split(photos, tiny_vit, tmp_path, run_script):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, *SHORT)
    assert run_script("train_finetune.py", *flags, "--split_seed", "7", "--output_dir", tmp_path / "a")[0] == 0
    splits = tmp_path / "a/splits.csv"
    assert run_script("train_finetune.py", *flags, "--splits_file", splits, "--output_dir", tmp_path / "b")[0] == 0
    assert splits.read_text() == (tmp_path / "b/splits.csv").read_text()


def test_a_finished_run_started_again_prints_its_results(photos, tiny_vit, tmp_path, run_script):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, *SHORT, "--output_dir", tmp_path / "run")
    assert run_script("train_finetune.py", *flags)[0] == 0
    before = (tmp_path / "run/model.safetensors").stat().st_mtime_ns
    code, out, _ = run_script("train_finetune.py", *flags)
    assert code == 0 and "is finished; results" in out
    assert (tmp_path / "run/model.safetensors").stat().st_mtime_ns == before

    code, _, err = run_script("train_finetune.py", *flags, "--seed", "5")
    assert code == 2 and "holds another finished run: --seed was not given, is 5; choose" in err and "--restart" in err

    assert run_script("train_finetune.py", *flags, "--seed", "5", "--restart")[0] == 0
    assert (tmp_path / "run.1/results.json").exists() and (tmp_path / "run/results.json").exists()


def test_the_same_command_goes_on_and_other_settings_are_refused_by_name(photos, tiny_vit, tmp_path, run_script):
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, *SHORT, "--output_dir", run)
    assert run_script("train_finetune.py", *flags)[0] == 0
    weights = (run / "model.safetensors").read_bytes()
    (run / "results.json").unlink()
    (run / "model.safetensors").unlink()
    shutil.copytree(run / "checkpoints/checkpoint-6", run / "checkpoints/checkpoint-9")
    (run / "checkpoints/checkpoint-9/optimizer.pt").write_bytes(b"torn")

    seed, batch = ("--seed", "7"), ("--per_device_train_batch_size", "4")
    code, _, err = run_script("train_finetune.py", *flags, *seed, *batch, "--max_train_samples", "20")
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert "seed was 42, is 7" in err and "per_device_train_batch_size was 8, is 4" in err and "photos was" in err
    assert err.strip().endswith("restore them, choose a new --output_dir or add --restart")

    # What is not trained with may differ; the torn checkpoint was put aside by the first look.
    workers = ("--dataloader_num_workers", "2", "--pixel_store", "off")
    code, out, err = run_script("train_finetune.py", *flags, *workers, "--report_to", "none")
    assert code == 0, err
    assert f"resuming from {run}/checkpoints/checkpoint-6" in out
    assert (run / "checkpoints/damaged-checkpoint-9/optimizer.pt").read_bytes() == b"torn"
    assert (run / "model.safetensors").read_bytes() == weights
    check_run(run, photos, "finetune")


def test_a_run_without_a_whole_checkpoint_says_what_is_damaged_and_begins_anew(photos, tiny_vit, tmp_path, run_script):
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, *SHORT, "--output_dir", run)
    (run / "checkpoints/checkpoint-99").mkdir(parents=True)
    code, out, _ = run_script("train_finetune.py", *flags)
    assert code == 0 and "not used: checkpoint-99 was not written completely; renamed to" in out
    assert "no complete checkpoint is left; training starts from the beginning" in out


def test_a_broken_photo_stops_the_run_by_name_or_is_counted(photos, tiny_vit, tmp_path, run_script):
    folder = tmp_path / "broken"
    for path in photos.rglob("*.jpg"):
        target = folder / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (folder / "rust/05.jpg").write_bytes((photos / "rust/05.jpg").read_bytes()[:300])
    flags = ("--dataset_name", folder, "--model_name_or_path", tiny_vit, *SHORT, "--output_dir", tmp_path / "run")
    code, _, err = run_script("train_finetune.py", *flags)
    assert code == 3 and "rust/05.jpg" in err and "--on_broken skip" in err and len(err.strip().splitlines()) == 1
    assert json.loads((tmp_path / "run/status.json").read_text()) == {"state": "failed", "exit_code": 3}

    code, out, _ = run_script("train_finetune.py", *flags, "--on_broken", "skip")
    assert code == 0 and "left out, broken: rust/05.jpg" in out
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["splits"]["broken"] == {"found": 1, "skipped": 1}
    assert sum(results["dataset"]["counts"][split]["rust"] for split in ("train", "validation", "test")) == 11


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model_name_or_path", "no/such-model"], "could not be loaded"),
        (["--augmentation", "wild"], "use one of none, crop, light, strong"),
        (["--train_layers", "some"], "all, head, or a number of blocks"),
        (["--train_layers", "9"], "the model has 2 blocks"),
        (["--image_size", "30"], "use 24 or 32"),
        (["--resize_mode", "stretch"], "choose from 'processor', 'squash', 'letterbox', 'crop'"),
        (["--splits_file", "nowhere.csv"], "no splits file"),
        (["--shift_dataset_name", "no_such_folder"], "neither a folder nor a Hub id"),
        (["--metric_for_best_model", "f1"], "validation scores accuracy, balanced_accuracy, log_loss, loss, macro_f1"),
        (["--metric_for_best_model", "runtime"], "use one of the validation scores"),
        # Always 1 for three classes.
        (["--metric_for_best_model", "top5_accuracy"], "validation scores accuracy, balanced_accuracy"),
        (["--metric_for_best_model", "loss", "--greater_is_better", "true"], "remove --greater_is_better"),
        (["--greater_is_better", "false"], "remove --greater_is_better or set it to true"),
        (["--dataloader_drop_last", "true", "--per_device_train_batch_size", "25"], "drop all 24 training photos"),
    ],
)
def test_a_wrong_value_ends_with_code_2_and_one_line(flags, words, photos, tiny_vit, tmp_path, run_script, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    first = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--output_dir", tmp_path / "run", "--use_cpu")
    code, _, err = run_script("train_finetune.py", *first, *flags)
    # A value that the parser refuses comes with the usage.
    lines = [line for line in err.strip().splitlines() if not line.startswith("usage: ")]
    assert code == 2 and words in err and len(lines) == 1, err


def test_a_stream_of_fewer_photos_than_a_batch_is_refused_with_drop_last(tiny_vit, tmp_path, run_script):
    folder = put_parquet(tmp_path / "shards", [6])
    flags = ("--dataset_name", folder, "--model_name_or_path", tiny_vit, "--output_dir", tmp_path / "run", *SHORT)
    code, _, err = run_script("train_finetune.py", *flags, "--streaming", "--dataloader_drop_last", "true")
    assert code == 2 and "would drop all 6 training photos, which do not fill a batch of 8" in err


def test_trackers_of_the_trainer_get_the_scores(photos, tiny_vit, tmp_path, run_script, monkeypatch):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, *SHORT, "--output_dir", tmp_path / "run")
    assert run_script("train_finetune.py", *flags, "--report_to", "tensorboard")[0] == 0
    events = tensorboard.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/macro_f1")] == [0, 3, 6]


@pytest.mark.slow
def test_trackio_gets_the_scores(photos, tiny_vit, tmp_path):
    flags = ["--dataset_name", photos, "--model_name_or_path", tiny_vit, *SHORT, "--output_dir", tmp_path / "run"]
    command = [sys.executable, ROOT / "train_finetune.py", *flags, "--report_to", "trackio", "--project", "field"]
    subprocess.run(command, check=True, cwd=tmp_path, env=clean_environment(TRACKIO_DIR=str(tmp_path / "trackio")))
    assert list((tmp_path / "trackio").glob("field*.db"))


@pytest.mark.script
@pytest.mark.parametrize("script", ["train_finetune.py", "train_lora.py", "train_scratch.py"])
def test_help_answers_fast_with_an_example_and_without_torch(script):
    # Processor time, so that a busy machine does not fail the test; on a quiet one it is the time that a user waits.
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / script, "--help"], capture_output=True, text=True, check=True
    )
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 3
    assert f"python {script} --dataset_name sample/leaves" in done.stdout
    assert "--shift_dataset_name" in done.stdout and "--adam_beta1" not in done.stdout
    assert "| torch\n" not in done.stderr and "transformers.trainer" not in done.stderr
