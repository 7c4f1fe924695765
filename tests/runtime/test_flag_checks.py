"""Numbers out of range, flags without effect, and flags that exclude each other: refused before torch trains anything.

The parser alone decides here; `test_every_trainer_flag.py` runs the script.
"""

import dataclasses

import pytest
from commandline import FINETUNE, LORA, NAMED, SCRATCH, refusal, write_recipe
from transformers import TrainingArguments

from agritransfer.arguments import LoraArguments, ScratchArguments
from agritransfer.errors import UsageError
from agritransfer.ranges import LARGEST, SEED, SHARE, Range, check_number
from agritransfer.runtime.command_line import parse_args
from agritransfer.runtime.flag_checks import NOT_STREAMED
from agritransfer.runtime.trainer_flags import NEEDED, RANGES, REPLACED, USELESS

# Values of our own flags that are in no range, for each flag with a number.
OURS = {
    "validation_fraction": ("0", "1", "-0.1", "nan", "inf"),
    "test_fraction": ("0", "1", "1.5", "nan"),
    "split_seed": ("-1", str(2**32)),
    "max_photos_per_class": ("0", "-3"),
    "max_train_samples": ("0", "-1", str(2**40)),
    "max_eval_samples": ("0", "-1"),
    "image_size": ("0", "-16", "100000"),
    "cached_views": ("0", "-1"),
    "pixel_store_gb": ("0", "-1", "nan", "inf"),
    "early_stopping_patience": ("-1", str(2**40)),
    "max_minutes": ("0", "-1", "nan", "inf"),
    "target_error": ("0", "1", "-1", "nan"),
    "shuffle_buffer": ("0", "-1"),
    "layer_decay": ("0", "-1", "1.5", "nan"),
    "head_learning_rate": ("0", "-1", "inf", "nan"),
}
OURS_OF_LORA = {"lora_r": ("0", "-1"), "lora_alpha": ("0", "-1"), "lora_dropout": ("1", "-0.1", "nan")}


def numbers_of(classes) -> set[str]:
    """The flags of these classes that take numbers."""
    return {
        field.name
        for arguments in classes
        for field in dataclasses.fields(arguments)
        if field.type in (int, float, int | None, float | None, "int", "float", "int | None", "float | None")
    }


def test_every_number_of_ours_has_a_range_and_is_tried():
    assert numbers_of(FINETUNE) == set(OURS)
    assert numbers_of([LoraArguments]) == set(OURS_OF_LORA)
    assert not numbers_of([ScratchArguments])
    tried = 0
    for classes, values in ((FINETUNE, OURS), (LORA, OURS_OF_LORA)):
        for field in (field for arguments in classes for field in dataclasses.fields(arguments)):
            for value in values.get(field.name, ()):
                assert float(value) not in field.metadata["allowed"], (field.name, value)
                tried += 1
            assert field.name not in values or field.default is None or field.default in field.metadata["allowed"]
    assert tried >= 40


@pytest.mark.parametrize("name", [*OURS, *OURS_OF_LORA])
def test_a_number_of_ours_out_of_range_is_refused_with_what_is_allowed(name, capsys):
    classes, value = (LORA, OURS_OF_LORA[name][0]) if name in OURS_OF_LORA else (FINETUNE, OURS[name][0])
    line = refusal(capsys, classes, [*NAMED, f"--{name}", value])
    assert f"--{name} {value} is out of range; give a number " in line


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_number_of_the_trainer_out_of_range_is_refused_with_what_is_allowed(name, capsys):
    line = refusal(capsys, FINETUNE, [*NAMED, f"--{name}", "-7"])
    assert f"--{name} -7 is out of range; give a number {RANGES[name]}" in line


def test_every_number_of_the_trainer_has_a_range():
    numbers = {
        field.name
        for field in dataclasses.fields(TrainingArguments)
        if field.type in (int, float, int | None, float | None)
    }
    assert numbers - set(USELESS) == set(RANGES)
    assert len(numbers) >= 28


@pytest.mark.parametrize("name", sorted(REPLACED | USELESS))
def test_flags_that_cannot_be_used_are_refused_with_what_to_do(name, capsys, tmp_path):
    remedy = f"; use {REPLACED[name]}" if name in REPLACED else f": {USELESS[name]}; remove it"
    for flags in ([f"--{name}", "1"], ["--recipe", write_recipe(tmp_path, **{name: 1})]):
        assert f"--{name} cannot be used here{remedy}" in refusal(capsys, FINETUNE, [*NAMED, *flags])
    assert not set(REPLACED) & set(USELESS)


def test_ranges_say_what_they_hold():
    for number, allowed in ((0.5, SHARE), (0, SEED), (2**32 - 1, SEED), (LARGEST, Range(least=1))):
        check_number("--x", number, allowed)
    check_number("--x", None, SHARE)
    refused = [
        (0.0, SHARE, "--x 0 is out of range; give a number above 0 and below 1"),
        (float("nan"), SHARE, "--x nan is out of range; give a number above 0 and below 1"),
        (float("inf"), Range(above=0), "--x inf is out of range; give a number above 0"),
        (2**31, Range(least=1), "--x 2147483648 is out of range; give a number of at most 2147483647"),
        (-1, SEED, "--x -1 is out of range; give a number of at least 0 and of at most 4294967295"),
    ]
    for number, allowed, words in refused:
        with pytest.raises(UsageError) as error:
            check_number("--x", number, allowed)
        assert str(error.value) == words


VALUE = {"hub_private_repo": "true", "hub_strategy": "end", "dataloader_persistent_workers": "true"}
VALUE |= {"adam_beta1": "0.5", "adam_beta2": "0.5"}
# The default of these is what the flag belongs to.
OTHER = {"adam": ["--optim", "sgd"], "warmup": ["--lr_scheduler_type", "constant"]}
VALUE |= {"ddp_backend": "gloo", **dict.fromkeys(("ddp_find_unused_parameters", "ddp_static_graph"), "true")}
VALUE |= {"ddp_broadcast_buffers": "true"}
VALUE |= {"dataloader_multiprocessing_context": "spawn"}
VALUE |= {"gradient_checkpointing_kwargs": "{}", "activation_checkpointing_kwargs": "{}"}


@pytest.mark.parametrize("name", [name for names in NEEDED for name in names])
def test_a_flag_without_the_one_that_it_belongs_to_is_refused(name, capsys):
    (needed,) = [words for names, (words, _) in NEEDED.items() if name in names]
    more = OTHER.get(name.partition("_")[0], [])
    line = refusal(capsys, FINETUNE, [*NAMED, *more, f"--{name}", VALUE.get(name, "3")])
    assert f"--{name} has no effect without {needed}; add it or remove --{name}" in line


HEAD = ("--train_layers", "head")
STEPS = ("--eval_strategy", "steps", "--save_strategy", "steps")
LAST = ("--load_best_model_at_end", "false")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--license", ""], "--license is empty; give a value or remove it"),
        (["--license="], "--license is empty; give a value or remove it"),
        (["--report_to", "tensorboard", " "], "--report_to is empty"),
        (["--seed", "--split_seed", "1"], "argument --seed: expected one argument"),
        (["--split_seed", "1", "word"], "unrecognized arguments: word"),
        (["--validation_fraction", "0.5", "--test_fraction", "0.5"], "their sum must be below 1"),
        (["--splits_file", "x", "--test_fraction", "0.5"], "--test_fraction has no effect with --splits_file"),
        (["--train_layers", "0"], "--train_layers 0 is invalid; use all, head, or a number of blocks such as 4"),
        (["--train_layers", "two"], "--train_layers two is invalid"),
        ([*HEAD, "--layer_decay", "0.5"], "--layer_decay has no effect with --train_layers head"),
        ([*HEAD, "--head_learning_rate", "0.5"], "--head_learning_rate has no effect on a linear probe"),
        (["--train_sampling_strategy", "batch_rebalance"], "all photos have the same length; use random or sequential"),
        (["--debug", "tpu_metrics_debug"], "it needs a TPU; use underflow_overflow"),
        (["--dataset_revision", "x"], "--dataset_revision has no effect on 'sample/leaves', which is on this disk"),
        (["--model_revision", "x"], "--model_revision has no effect on 'sample/vit', which is on this disk; remove it"),
        (["--warmup_steps", "1.5"], "--warmup_steps 1.5 is no number of steps; give a whole one, or a share below 1"),
        (["--eval_strategy", "no"], "--eval_strategy no gives no score to choose the best weights by; remove it, or"),
        (["--eval_strategy", "steps"], "--eval_strategy steps and --save_strategy epoch differ"),
        (["--save_strategy", "no"], "--eval_strategy epoch and --save_strategy no differ"),
        ([*STEPS, "--eval_steps", "2", "--save_steps", "3"], "not a round multiple of 2.; correct or remove"),
        ([*LAST, "--save_strategy", "best"], "--save_strategy best needs --load_best_model_at_end true"),
        ([*LAST, "--eval_strategy", "no", "--eval_on_start"], "--eval_on_start needs validation"),
        ([*LAST, "--eval_strategy", "no", "--lr_scheduler_type", "greedy"], "greedy follows the validation score"),
        (["--lr_scheduler_kwargs", "text"], "--lr_scheduler_kwargs text is no JSON object; write options such as"),
        (["--lr_scheduler_kwargs", "[1]"], "--lr_scheduler_kwargs [1] is no JSON object"),
        (["--lr_scheduler_kwargs", '{"min_lr": [1]}'], "min_lr must be one number or word; found [1]"),
        (["--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", '{"power": 2}'], "has no effect with"),
        (
            ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"a": 1}'],
            "a is unknown; use use_reentrant",
        ),
    ],
)
def test_what_cannot_work_together_ends_with_code_2_and_the_remedy(flags, words, capsys):
    assert words in refusal(capsys, FINETUNE, [*NAMED, *flags])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--model_type", "vit", "--model_name_or_path", "m"],
            "--model_name_or_path m and --model_type vit each name an",
        ),
        (["--model_size", "nano", "--model_name_or_path", "m"], "and --model_size nano each name an architecture"),
        (
            ["--model_revision", "main"],
            "--model_revision main belongs to no model; add --model_name_or_path or remove it",
        ),
    ],
)
def test_one_flag_names_the_architecture_that_starts_from_random_weights(flags, words, capsys):
    assert words in refusal(capsys, SCRATCH, ["--dataset_name", "d", *flags])


@pytest.mark.parametrize("name", sorted(set(NOT_STREAMED) - {"head_first", "download_only", "on_leakage"}))
def test_a_stream_refuses_what_needs_all_photos(name, capsys):
    line = refusal(
        capsys, SCRATCH, ["--dataset_name", "d", "--streaming", f"--{name}", "0.5" if "frac" in name else "2"]
    )
    assert f"--{name} cannot be used with --streaming" in line


def test_a_repeated_flag_is_noted_and_the_last_one_counts(capsys):
    data, *_, training = parse_args(
        FINETUNE, "", [*NAMED, "--seed", "1", "--no_share_splits", "--share-splits", "--seed=2"]
    )
    assert (training.seed, data.share_splits) == (2, True)
    notes = capsys.readouterr().out.splitlines()
    assert notes == [f"note: --{name} is given 2 times; the last one counts" for name in ("seed", "share_splits")]


def test_flags_that_belong_together_are_taken(tmp_path):
    kept = [*STEPS, "--eval_steps", "2", "--save_steps", "4", "--max_steps", "-1", "--dataloader_num_workers", "1"]
    kept += ["--dataloader_prefetch_factor", "2", "--report_to", "tensorboard", "--run_name", "x", "--use_cpu", "false"]
    training = parse_args(FINETUNE, "", [*NAMED[:4], *kept])[-1]
    assert (training.eval_steps, training.save_steps, training.max_steps, training.run_name) == (2, 4, -1, "x")
