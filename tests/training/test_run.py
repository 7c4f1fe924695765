"""The run folder: what is on disk is what was trained, or the run fails."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_trainer import differing
from tf32 import TF32
from transformers import ViTConfig

from agritransfer.evaluation.predictions import read_predictions
from agritransfer.evaluation.results import interval_text, results_table
from agritransfer.hub.model_card import model_card
from agritransfer.images.decoding import decode_photo
from agritransfer.models.loading import load_classifier
from agritransfer.training.saving import _check_labels, _check_same


def test_a_saved_model_that_answers_otherwise_is_refused():
    trained = torch.tensor([[1.0, -2.0]])
    _check_same(trained, trained + 1e-5, "the saved model")
    with pytest.raises(RuntimeError, match="the logits of the adapter differ from the trained model's by 0.1"):
        _check_same(trained, trained + 0.1, "the adapter")


def test_a_saved_model_with_other_names_is_refused():
    labels = ["blight", "healthy"]
    _check_labels(ViTConfig(id2label={1: "healthy", 0: "blight"}), labels, "the saved model")
    with pytest.raises(RuntimeError, match=r"the adapter are named \['healthy', 'blight'\] instead of"):
        _check_labels(ViTConfig(id2label={0: "healthy", 1: "blight"}), labels, "the adapter")


def test_a_run_whose_files_were_tampered_with_is_not_the_trained_model(photos, tiny_vit, tmp_path, run_script):
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--num_train_epochs", "1", "--use_cpu")
    assert run_script("train_lora.py", *flags, "--output_dir", run)[0] == 0
    pixels = torch.zeros(1, 3, 32, 32)
    model = load_classifier(run)[0]
    with torch.no_grad():
        logits = model(pixels).logits
        model.classifier.bias += 1
        _check_same(logits, load_classifier(run)[0](pixels).logits, "the saved model")
        with pytest.raises(RuntimeError, match="do not use it"):
            _check_same(logits, model(pixels).logits, "the saved model")


BF16 = {
    "train_finetune.py": ("--head_first", "--cached_views", "1", "--train_layers", "1"),
    "train_lora.py": ("--learning_rate", "0.1"),
    "train_scratch.py": (),
}


@pytest.mark.parametrize("script", sorted(BF16))
def test_a_run_in_bf16_is_saved_checked_and_scored_in_float32(script, photos, tiny_vit, tmp_path, run_script):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--num_train_epochs", "2", "--use_cpu")
    if script == "train_scratch.py":
        flags = (*flags[:2], "--image_size", "32", *flags[4:])
    # Steps that are large enough for bfloat16 and float32 to give other logits.
    flags += ("--bf16", "true", "--learning_rate", "0.01", *BF16[script], "--output_dir", tmp_path / "run")
    code, _, err = run_script(script, *flags)
    assert (code, "Traceback" in err) == (0, False)
    assert load_classifier(tmp_path / "run")[0].dtype == torch.float32
    assert json.loads((tmp_path / "run/config.json").read_text())["dtype"] == "float32"


def test_a_run_in_tf32_is_scored_in_float32(photos, tiny_vit, tmp_path, run_script):
    run = tmp_path / "run"
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--num_train_epochs", "1", "--use_cpu")
    try:
        # The Trainer refuses --tf32 without a GPU, and sets no more than this with one.
        torch.backends.fp32_precision = "tf32"
        with TF32() as emulated:
            flags += ("--no_head_first", "--learning_rate", "0.01")
            assert run_script("train_finetune.py", *flags, "--output_dir", run)[0] == 0
    finally:
        torch.backends.fp32_precision = "none"
    assert emulated.rounded > 30 and emulated.exact > 30
    model, processor = load_classifier(run)
    results = json.loads((run / "results.json").read_text())
    tested = read_predictions(run / "predictions.csv", "test", results["dataset"]["labels"])
    mean, std = processor.normalization
    files = [decode_photo(photos / file) for file in tested.files]
    pixels = (torch.stack([processor.pixels(photo) for photo in files]) - mean) / std
    with torch.no_grad():
        exact = model(pixels).logits.numpy()
        with TF32():
            torch.backends.fp32_precision = "tf32"
            rough = model(pixels).logits.numpy()
            torch.backends.fp32_precision = "none"
    assert len(exact) > 3 and np.abs(rough - exact).max() > 3e-5
    # The table has six digits.
    assert np.abs(tested.logits - exact).max() < 1e-5


def test_the_table_names_every_split_and_the_weakest_classes(photos, tiny_vit, tmp_path, run_script):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--num_train_epochs", "1", "--use_cpu")
    assert run_script("train_finetune.py", *flags, "--output_dir", tmp_path / "run")[0] == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    table = results_table(results)
    assert interval_text(results["test"], "macro_f1") in table
    weakest = min(results["test"]["per_class"], key=lambda row: row["f1"])
    assert f"weakest classes on the test: {weakest['label']} F1 {weakest['f1']:.3f}" in table
    assert "shift" not in table
    with_shift = results_table(results | {"shift": results["test"]})
    assert with_shift.count("\nshift ") == 1
    assert "F1 from test to shift: " in with_shift


def test_results_hold_what_the_contract_names(photos, tiny_vit, tmp_path, run_script):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--num_train_epochs", "1", "--use_cpu")
    assert run_script("train_finetune.py", *flags, "--output_dir", tmp_path / "run")[0] == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results) == [
        *("schema", "strategy", "base_model", "architecture", "input", "dataset", "selection", "splits"),
        *("validation", "test", "shift", "calibration", "training", "environment", "command"),
    ]
    assert list(results["dataset"]) == [
        "name",
        "revision",
        "config",
        "fingerprint",
        "labels",
        "counts",
        "streamed",
        "notes",
    ]
    assert list(results["test"]) == [
        *("n", "accuracy", "accuracy_ci95", "macro_f1", "macro_f1_ci95", "balanced_accuracy", "balanced_accuracy_ci95"),
        *("top5_accuracy", "log_loss", "per_class", "confusion_matrix", "ece", "ece_calibrated", "answered"),
    ]
    assert list(results["training"]) == [
        *("epochs", "steps", "best_step", "chosen_by", "penalty", "still_rising", "seconds", "images_per_second"),
        *("peak_memory_bytes", "trainable_parameters", "total_parameters", "device", "num_processes"),
    ]
    nothing = {"classes": None, "classes_left_out": {}, "max_photos_per_class": None, "photos_over_limits": 0}
    assert results["selection"] == nothing
    assert results["splits"] == {
        "method": "stratified",
        "seed": 0,
        "leakage": {"found": 0, "dropped": 0},
        "broken": {"found": 0, "skipped": 0},
    }
    assert results["dataset"]["counts"]["train"] == {"blight": 8, "healthy": 8, "rust": 8}
    assert 10**7 < results["training"]["peak_memory_bytes"] < 10**11


@pytest.mark.parametrize(
    ("flags", "chosen_by"),
    [
        ((), "macro_f1"),
        (("--metric_for_best_model", "eval_loss"), "loss"),
        (("--early_stopping_patience", "1", "--load_best_model_at_end", "false"), None),
    ],
)
def test_results_and_card_name_the_step_whose_weights_are_saved(
    flags, chosen_by, photos, tiny_vit, tmp_path, run_script
):
    run = tmp_path / "run"
    shared = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--num_train_epochs", "3", "--use_cpu")
    shared += ("--per_device_train_batch_size", "8", "--learning_rate", "1e-2", "--save_total_limit", "9")
    # A fitted head has learned these photos already.
    shared += ("--no_head_first",)
    code, out, err = run_script("train_finetune.py", *shared, "--output_dir", run, *flags)
    assert code == 0, err
    results = json.loads((run / "results.json").read_text())
    kept, steps = (results["training"][name] for name in ("best_step", "steps"))
    saved = load_file(run / "model.safetensors")
    assert not differing(saved, load_file(run / f"checkpoints/checkpoint-{kept}/model.safetensors"))
    assert f"kept the weights of step {kept} of {steps}" in out
    assert results["training"]["chosen_by"] == chosen_by
    log = json.loads((run / f"checkpoints/checkpoint-{steps}/trainer_state.json").read_text())["log_history"]
    scored = {entry["step"]: entry for entry in log if "eval_loss" in entry}
    if chosen_by is None:
        assert kept == steps
    else:
        of_best = min(
            scored.values(), key=lambda entry: entry["eval_loss"] if chosen_by == "loss" else -entry["eval_macro_f1"]
        )
        assert len(scored) == 3 and kept == of_best["step"]
    card = str(model_card(results, "user/m", (), licence="mit", base_licence=None, adapter_fits_base=True))
    reason = f"the best on the validation photos by `{chosen_by}`" if chosen_by else "the last one"
    assert f"the weights are those of step {kept}, {reason}." in card


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_every_file_of_a_run_has_the_mode_that_the_umask_grants(umask, mode, tmp_path, run_script):
    run = tmp_path / "run"
    before = os.umask(umask)
    try:
        flags = ("--dataset_name", "sample/leaves", "--model_name_or_path", "sample/vit", "--output_dir", run)
        code, _, err = run_script("train_lora.py", *flags, "--max_steps", "1", "--max_train_samples", "8", "--use_cpu")
    finally:
        os.umask(before)
    assert code == 0, err
    modes = {path.relative_to(run).as_posix(): path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()}
    assert len(modes) >= 20
    weights = {"model.safetensors", "known_features.safetensors", "adapter/adapter_model.safetensors"}
    assert {*weights, "checkpoints/checkpoint-1/adapter_model.safetensors"} <= set(modes)
    assert {name: oct(found) for name, found in modes.items() if found != mode} == {}
    folders = {oct(path.stat().st_mode & 0o777) for path in (run, *run.rglob("*")) if path.is_dir()}
    assert folders == {oct(0o777 & ~umask)}
