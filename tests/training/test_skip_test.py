"""A run with `--skip_test` is scored on the validation photos; the same command without it scores the rest."""

import json

import pytest
from finished_runs import EVERY_RUN, SHORT, files_of


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--push_to_hub", "true"), "--push_to_hub publishes the test scores, which --skip_test leaves out"),
        (
            ("--save_strategy", "no", "--load_best_model_at_end", "false"),
            "--skip_test needs a checkpoint for the later test; remove it or --save_strategy no",
        ),
    ],
)
def test_what_cannot_be_scored_later_is_refused(flags, complaint, photos, tiny_vit, tmp_path, run_script):
    first = (
        "--dataset_name",
        photos,
        "--model_name_or_path",
        tiny_vit,
        "--output_dir",
        tmp_path / "run",
        "--skip_test",
    )
    code, _, err = run_script("train_lora.py", *first, "--use_cpu", *flags)
    assert code == 2 and complaint in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "epochs"),
    [
        ("train_finetune.py", ("--train_layers", "head"), 1),
        ("train_finetune.py", ("--max_minutes", "0.0001"), 1),
        # At this rate no score rises after the first epoch.
        ("train_lora.py", ("--early_stopping_patience", "1", "--learning_rate", "1e-9"), 2),
        ("train_scratch.py", ("--model_size", "nano", "--image_size", "32"), 6),
    ],
)
def test_the_test_is_scored_later_with_the_same_weights(script, flags, epochs, photos, tiny_vit, tmp_path, run_script):
    run = tmp_path / "run"
    base = () if script == "train_scratch.py" else ("--model_name_or_path", tiny_vit)
    command = (script, "--dataset_name", photos, *base, *SHORT, "--num_train_epochs", "6", *flags, "--output_dir", run)
    code, out, err = run_script(*command, "--skip_test")
    assert code == 0, err
    assert "validation macro F1" in out and "run the same command without --skip_test" in out
    unscored = {"results.json", "predictions.csv", "splits.csv", "known_features.safetensors"}
    assert not unscored & files_of(run) and not (run / "figures").exists()
    validation = json.loads((run / "validation.json").read_text())
    assert "test" not in validation and "shift" not in validation and validation["training"]["epochs"] == epochs
    assert validation["validation"]["n"] == 6 and validation["scoring"]["unscored"] == 6
    weights = (run / "model.safetensors").read_bytes()
    code, out, _ = run_script(*command, "--skip_test")
    assert code == 0 and f"the run in {run} is finished; validation macro F1" in out
    code, _, err = run_script(*command, "--seed", "7")
    assert code == 2 and "holds another finished run: --seed was not given, is 7" in err

    code, out, err = run_script(*command)
    assert code == 0, err
    assert (run / "model.safetensors").read_bytes() == weights
    assert epochs == 1 or "training had ended; nothing is trained again" in out
    results = json.loads((run / "results.json").read_text())
    assert results["training"] == validation["training"] and results["test"]["n"] == 6
    assert results["validation"]["macro_f1"] == validation["validation"]["macro_f1"]
    assert files_of(run) >= EVERY_RUN and "--skip_test" not in results["command"]
    # Once the test is scored, it stays so.
    assert run_script(*command, "--skip_test")[1].count("\ntest ") == 1
