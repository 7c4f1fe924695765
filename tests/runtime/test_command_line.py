"""Flags: what wins, what is refused, and what the refusal says."""

import dataclasses
import re

import pytest
from commandline import FINETUNE, LORA, NAMED, SCRATCH, refusal, write_recipe
from conftest import ROOT

from agritransfer.arguments import FinetuneArguments, LoraArguments, ScratchArguments
from agritransfer.runtime.command_line import GROUPS, parse_args, settings_line
from agritransfer.runtime.flag_checks import BY_PHOTOS, PATIENCE
from agritransfer.runtime.trainer_flags import REPLACED


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_default(tmp_path):
    recipe = write_recipe(tmp_path, learning_rate=3e-4, num_train_epochs=7, dataset_name="a", model_name_or_path="b")
    *_, training = parse_args(FINETUNE, "", ["--recipe", recipe, "--num_train_epochs", "2", "--use_cpu"])
    assert training.learning_rate == 3e-4
    assert training.num_train_epochs == 2
    assert training.per_device_eval_batch_size == 64


@pytest.mark.parametrize(
    ("classes", "flags", "rate"),
    [
        (FINETUNE, NAMED, 1e-4),
        (FINETUNE, [*NAMED, "--train_layers", "head"], 5e-3),
        (LORA, NAMED, 1e-3),
        (SCRATCH, [NAMED[0], NAMED[1], "--use_cpu"], 1e-3),
    ],
)
def test_each_strategy_has_a_learning_rate_of_its_own_and_prints_it(classes, flags, rate):
    parsed = parse_args(classes, "", flags)
    assert parsed[-1].learning_rate == rate
    assert f"learning_rate={rate}" in settings_line(*parsed)


def test_a_new_head_learns_ten_times_faster_than_the_pretrained_layers_unless_told_or_solved():
    told = [{"head_first": False}, {"train_layers": "head"}, {}, {"head_learning_rate": 0.5}]
    told += [{"head_first": False, "head_learning_rate": 0.5}]
    assert [FinetuneArguments(**flags).head_rate(1e-4) for flags in told] == [1e-3, 1e-4, 1e-4, 0.5, 0.5]


@pytest.mark.parametrize(
    ("classes", "flags", "head_first"),
    [
        (FINETUNE, [], True),
        (FINETUNE, ["--no_head_first"], False),
        # Adapters did no better with a fitted head (docs/strategies.md).
        (LORA, [], False),
        (LORA, ["--head_first"], True),
        (FINETUNE, ["--train_layers", "head"], False),
        # The features of a stream cannot be computed beforehand.
        (FINETUNE, ["--streaming"], False),
        (LORA, ["--streaming"], False),
    ],
)
def test_training_starts_from_a_fitted_head_where_it_can(classes, flags, head_first):
    assert parse_args(classes, "", [*NAMED, *flags])[2].head_first is head_first


@pytest.mark.parametrize(
    ("flags", "patience"),
    [
        ([], PATIENCE),
        (["--early_stopping_patience", "0"], 0),
        (["--early_stopping_patience", "2"], 2),
        (["--load_best_model_at_end", "false"], None),
        (["--load_best_model_at_end", "false", "--eval_strategy", "no"], None),
        (["--eval_strategy", "steps", "--eval_steps", "3", "--save_strategy", "steps", "--save_steps", "3"], None),
    ],
)
def test_early_stopping_is_on_where_validation_runs_once_per_epoch_and_chooses_the_weights(flags, patience):
    assert parse_args(FINETUNE, "", [*NAMED, *flags])[0].early_stopping_patience == patience


def test_training_from_scratch_is_given_more_patience():
    assert parse_args(SCRATCH, "", NAMED[:2])[0].early_stopping_patience == 3 * PATIENCE


@pytest.mark.parametrize(
    ("flags", "epochs", "batch"),
    [
        ([], BY_PHOTOS, BY_PHOTOS),
        (["--num_train_epochs", "3"], 3, BY_PHOTOS),
        (["--max_steps", "9", "--per_device_train_batch_size", "4"], 3, 4),
    ],
)
def test_epochs_and_batches_follow_from_the_photos_unless_they_are_given(flags, epochs, batch):
    *parsed, training = parse_args(FINETUNE, "", [*NAMED, *flags])
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (epochs, batch)
    shown = settings_line(*parsed, training)
    assert ("num_train_epochs" in shown, "batch_size" in shown) == (bool(epochs), bool(batch))


@pytest.mark.parametrize(
    ("classes", "flags", "augmentation", "solved"),
    [
        (FINETUNE, [], "light", False),
        (FINETUNE, ["--train_layers", "2", "--cached_views", "4"], "light", False),
        (FINETUNE, ["--train_layers", "head"], "none", True),
        (FINETUNE, ["--train_layers", "head", "--cached_views", "4"], "light", True),
        (FINETUNE, ["--train_layers", "head", "--augmentation", "light"], "light", False),
        (LORA, [], "light", None),
    ],
)
def test_a_head_alone_has_no_augmentation_unless_told_and_is_then_solved(classes, flags, augmentation, solved):
    data, _, strategy, training = parse_args(classes, "", [*NAMED, *flags])
    assert data.augmentation == augmentation
    assert f"augmentation={augmentation}" in settings_line(data, strategy, training)
    assert solved is None or strategy.solves_head(data) is solved


def test_what_trainer_must_never_do_with_photos_is_off_even_when_asked_in_a_recipe():
    training = parse_args(FINETUNE, "", NAMED)[-1]
    assert training.remove_unused_columns is False
    assert training.logging_nan_inf_filter is False
    assert training.label_names == ["labels"]
    assert (training.load_best_model_at_end, training.metric_for_best_model) == (True, "macro_f1")


@pytest.mark.parametrize(
    ("metric", "mode"), [("macro_f1", "max"), ("loss", "min"), ("eval_loss", "min"), ("log_loss", "min")]
)
def test_early_stopping_choice_and_scheduler_follow_the_direction_of_the_metric(metric, mode):
    flags = [*NAMED, "--metric_for_best_model", metric, "--lr_scheduler_type", "reduce_lr_on_plateau"]
    training = parse_args(FINETUNE, "", [*flags, "--lr_scheduler_kwargs", '{"patience": 2}'])[-1]
    assert training.greater_is_better == (mode == "max")
    assert training.lr_scheduler_kwargs == {"patience": 2, "mode": mode}


def test_the_three_flags_that_people_bring_from_old_tutorials_get_their_new_names():
    assert REPLACED["overwrite_output_dir"] == "--restart"
    assert "--warmup_steps 0.1" in REPLACED["warmup_ratio"]
    assert REPLACED["evaluation_strategy"] == "--eval_strategy"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model_name_or_path", "m"], "--dataset_name is missing; try --dataset_name sample/leaves"),
        (["--dataset_name", "d"], "--model_name_or_path is missing; try --model_name_or_path sample/vit"),
        ([*NAMED, "--learning_rat", "1"], "unknown flag --learning_rat; did you mean --learning_rate?"),
        ([*NAMED, "--see", "1"], "unknown flag --see"),
        ([*NAMED, "--learning_rate", "fast"], "invalid float value: 'fast'"),
        ([*NAMED, "--head_first", "maybe"], "--head_first: expected true or false; found 'maybe'"),
        ([*NAMED, "--train_layers", "head", "--head_first"], "remove one of them"),
        ([*NAMED, "--fp16", "true"], "--fp16 has no effect on a CPU; remove it, or use --bf16 true"),
        (
            [*NAMED, "--early_stopping_patience", "1", "--eval_strategy", "no", "--load_best_model_at_end", "false"],
            "--early_stopping_patience needs a validation score; remove it or --eval_strategy no",
        ),
        (
            [*NAMED, "--train_layers", "head", "--metric_for_best_model", "loss"],
            "penalty is chosen by log_loss; remove",
        ),
        (
            [*NAMED, "--lr_scheduler_type", "reduce_lr_on_plateau", "--lr_scheduler_kwargs", '{"mode": "min"}'],
            "--lr_scheduler_kwargs: mode min is wrong for macro_f1; remove it",
        ),
    ],
)
def test_a_wrong_flag_ends_with_code_2_and_the_remedy(flags, words, capsys):
    assert words in refusal(capsys, FINETUNE, flags)


def test_help_all_adds_the_flags_of_the_trainer(capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(LORA, "story", ["--help_all"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "--lora_r" in shown and "--adam_beta1" in shown and "story" in shown


def help_of(capsys, classes, flag="--help") -> str:
    with pytest.raises(SystemExit):
        parse_args(classes, "story", [flag])
    return capsys.readouterr().out


def test_help_has_groups_defaults_and_one_spelling_of_each_flag(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = help_of(capsys, LORA)
    assert re.findall(r"^([a-z ]+):$", shown, re.MULTILINE) == ["options", *GROUPS]
    assert max(map(len, shown.splitlines())) <= 100
    assert not re.findall(r"--\w+-\w+", shown)
    assert "(default: 0.15)" in shown and "(default: None)" not in shown
    words = " ".join(shown.split())
    assert "--share_splits [true|false] Publish splits.csv" in words
    assert "--no_share_splits Do not publish splits.csv." in words
    assert "--learning_rate 0.001, --num_train_epochs and --per_device_train_batch_size by the number" in words
    # With all flags, the defaults of the Trainer's are those of the strategy.
    words = " ".join(help_of(capsys, SCRATCH, "--help_all").split())
    assert re.search(r"--learning_rate X [^(]*\(default: 0\.001\)", words)


def test_every_flag_of_ours_has_a_group_and_a_dashed_spelling():
    checked = 0
    for arguments in (*FINETUNE, LoraArguments, ScratchArguments):
        for field in dataclasses.fields(arguments):
            assert field.metadata["group"] in GROUPS and field.metadata["help"]
            assert (field.default is True) == ("no_help" in field.metadata)
            checked += 1
    assert checked >= 40
    data, *_ = parse_args(SCRATCH, "", ["--dataset-name", "d", "--no-share-splits", "--use_cpu"])
    assert (data.dataset_name, data.share_splits) == ("d", False)


def test_every_recipe_parses_for_the_script_that_it_names():
    classes = {"train_finetune.py": FINETUNE, "train_lora.py": LORA, "train_scratch.py": SCRATCH}
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert len(recipes) >= 4
    for recipe in recipes:
        header = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
        words = {line[2:].split(":")[0]: line for line in header if ":" in line}
        assert {"Run", "Took", "Gave"} <= set(words), recipe.name
        script = next(word for word in words["Run"].split() if word.startswith("train_"))
        assert f"recipes/{recipe.name}" in words["Run"]
        *_, training = parse_args(classes[script], "", ["--recipe", str(recipe), "--use_cpu"])
        assert training.output_dir.startswith("runs/")
