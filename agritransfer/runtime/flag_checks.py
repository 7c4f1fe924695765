"""Which combinations of flags cannot work?

Each check raises `UsageError` with the remedy. `given` are the names of the flags on the command line and in the
recipe, `chosen` the values of all flags, defaults included.
"""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agritransfer.arguments import DataArguments
from agritransfer.errors import UsageError
from agritransfer.strategies import STRATEGIES

# Flags that need the list of training photos, which a stream does not have.
NOT_STREAMED = {
    **dict.fromkeys(
        ("validation_fraction", "test_fraction", "split_seed", "splits_file", "group_column_name", "group_pattern"),
        "a stream must come with its own validation and test splits",
    ),
    **dict.fromkeys(("classes", "max_photos_per_class"), "a stream is read whole; publish the part that you want"),
    "max_train_samples": "a stream is read to its end; --max_steps N ends training earlier",
    "on_leakage": "streamed training photos are not inspected beforehand, so leaked copies cannot be found",
    **dict.fromkeys(("cached_views", "head_first"), "computing features once needs all training photos on disk"),
    "download_only": "a stream is read during training, so there is nothing to download beforehand",
}
JSON_FLAGS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "early_stop", "debug")
# The value of epochs and batch size until the photos are known; nobody can ask for it.
BY_PHOTOS = 0
# Evaluations without a better score after which training ends by default.
PATIENCE = 5
# Schedulers that follow the validation score, and those that take no options.
FOLLOWING, PLAIN = ("reduce_lr_on_plateau", "greedy"), ("constant", "constant_with_warmup")


def flag_names(flags: Sequence[str]) -> list[str]:
    """The names of the flags among these words, as in the dataclasses."""
    return [flag[2:].split("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")]


def repeated_flags(argv: Sequence[str]) -> list[str]:
    """A note for each flag that is given twice on the command line, as when a script adds its own to the user's."""
    times = Counter(name.removeprefix("no_") for name in flag_names(argv))
    return [f"note: --{name} is given {times[name]} times; the last one counts" for name in times if times[name] > 1]


def check_words(flags: Sequence[str]) -> None:
    """No empty value."""
    name = ""
    for word in flags:
        flag, given, value = word.partition("=") if word.startswith("--") else ("", "", word)
        name = flag or name
        if not value.strip() and (given or not flag):
            raise UsageError(f"{name or 'a word'} is empty; give a value or remove it")


def check_streaming(given: set[str], chosen: Namespace) -> None:
    """No flag that needs the list of all photos with a stream."""
    for name in sorted(given & set(NOT_STREAMED)) if chosen.streaming else ():
        raise UsageError(f"--{name} cannot be used with --streaming: {NOT_STREAMED[name]}; remove one of them")


def check_split(given: set[str], chosen: Namespace) -> None:
    """The splits leave photos to train on, and one flag decides them."""
    validation, test = chosen.validation_fraction, chosen.test_fraction
    if validation + test >= 1:
        raise UsageError(
            f"--validation_fraction {validation} and --test_fraction {test} leave no photo to train on; their sum must "
            "be below 1"
        )
    for name in sorted(given & {"validation_fraction", "test_fraction"}) if chosen.splits_file else ():
        raise UsageError(f"--{name} has no effect with --splits_file, which names each split; remove one of them")


def check_architecture(given: set[str], chosen: Namespace) -> None:
    """One flag names the architecture that is trained from random weights."""
    values = vars(chosen)
    if "model_type" not in values:
        return
    named = [f"--{name} {values[name]}" for name in ("model_type", "model_size") if name in given]
    if chosen.model_name_or_path is not None and named:
        raise UsageError(
            f"--model_name_or_path {chosen.model_name_or_path} and {named[0]} each name an architecture; remove one of "
            "them"
        )
    if chosen.model_revision is not None and chosen.model_name_or_path is None:
        raise UsageError(
            f"--model_revision {chosen.model_revision} belongs to no model; add --model_name_or_path or remove it"
        )


def check_revisions(given: set[str], chosen: Namespace) -> None:
    """No revision of a folder of this disk, which has none."""
    values = vars(chosen)
    for name, revision in (("dataset_name", "dataset_revision"), ("model_name_or_path", "model_revision")):
        if revision in given and Path(values[name]).exists():
            raise UsageError(f"--{revision} has no effect on '{values[name]}', which is on this disk; remove it")


def check_layers(given: set[str], chosen: Namespace) -> None:
    """The layers to train are named or numbered, and no flag of other layers is given."""
    values = vars(chosen)
    for name, words in (("train_layers", ("all", "head")), ("lora_layers", ("all",))):
        layers = values.get(name, "all")
        if layers not in words and not (layers.isascii() and layers.isdecimal() and int(layers) > 0):
            raise UsageError(f"--{name} {layers} is invalid; use {', '.join(words)}, or a number of blocks such as 4")
    if values.get("train_layers") != "head":
        return
    if "head_first" in given:
        raise UsageError("--train_layers head includes --head_first; remove one of them")
    if "layer_decay" in given:
        raise UsageError("--layer_decay has no effect with --train_layers head, which trains one layer; remove one")


def check_strategies(given: set[str], chosen: Namespace) -> None:
    """What needs validation scores has them, and the best weights are saved when they are scored."""
    scored, saved = chosen.eval_strategy, chosen.save_strategy
    if saved == "no" and chosen.skip_test:
        raise UsageError("--skip_test needs a checkpoint for the later test; remove it or --save_strategy no")
    if scored == "no" and chosen.early_stopping_patience:
        raise UsageError("--early_stopping_patience needs a validation score; remove it or --eval_strategy no")
    if scored == "no" and chosen.lr_scheduler_type in FOLLOWING:
        raise UsageError(
            f"--lr_scheduler_type {chosen.lr_scheduler_type} follows the validation score; remove it or "
            "--eval_strategy no"
        )
    if scored == "no" and chosen.eval_on_start:
        raise UsageError("--eval_on_start needs validation; remove it or --eval_strategy no")
    if not chosen.load_best_model_at_end:
        if saved == "best":
            raise UsageError("--save_strategy best needs --load_best_model_at_end true; use --save_strategy epoch")
        return
    if scored == "no":
        raise UsageError(
            "--eval_strategy no gives no score to choose the best weights by; remove it, or keep the last weights with "
            "--load_best_model_at_end false"
        )
    if saved not in (scored, "best"):
        raise UsageError(
            f"--eval_strategy {scored} and --save_strategy {saved} differ, so the best weights could not be kept; set "
            "both to epoch or both to steps, or add --load_best_model_at_end false"
        )


def check_options(given: set[str], chosen: Namespace) -> None:
    """Flags in JSON hold an object, with options that exist where that is known."""
    values = vars(chosen)
    options = {name: _json_object(name, values[name]) for name in JSON_FLAGS if values[name] is not None}
    for name in options.keys() - {"lr_scheduler_kwargs"}:
        if unknown := sorted(set(options[name]) - set(CHECKPOINTING)):
            raise UsageError(f"--{name}: {unknown[0]} is unknown; use {', '.join(CHECKPOINTING)}")
    for option, value in options.get("lr_scheduler_kwargs", {}).items():
        if not isinstance(value, str | int | float):
            raise UsageError(f"--lr_scheduler_kwargs: {option} must be one number or word; found {json.dumps(value)}")
    if options.get("lr_scheduler_kwargs") and chosen.lr_scheduler_type in PLAIN:
        raise UsageError(
            f"--lr_scheduler_kwargs has no effect with --lr_scheduler_type {chosen.lr_scheduler_type}, which has no "
            "options; remove one of them"
        )


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"--{name} {text} is no JSON object; write options such as '{{\"use_reentrant\": false}}'")
    return value


def choose_augmentation(data: DataArguments, strategy: Any) -> None:
    """Set the default that depends on the strategy."""
    if data.augmentation is None:
        solved = strategy.strategy == "head" and data.cached_views is None and not data.streaming
        data.augmentation = "none" if solved else "light"


def choose_start(data: DataArguments, strategy: Any) -> None:
    """No fitted head to start from, if the train photos are a stream or the head is all that is trained."""
    if strategy.strategy == "head" or (data.streaming and strategy.strategy != "scratch"):
        strategy.head_first = False


def leave_to_photos(given: set[str], training: Any) -> None:
    """Let the number of photos decide the epochs and the batch size that are not given."""
    if not given & {"num_train_epochs", "max_steps"}:
        training.num_train_epochs = BY_PHOTOS
    if "per_device_train_batch_size" not in given:
        training.per_device_train_batch_size = BY_PHOTOS


def choose_patience(data: DataArguments, strategy: Any, training: Any) -> None:
    """Set the default of early stopping, which needs a validation score per epoch and the best weights."""
    if data.early_stopping_patience is None and training.eval_strategy == "epoch" and training.load_best_model_at_end:
        data.early_stopping_patience = PATIENCE * STRATEGIES[strategy.strategy].epoch_factor


def check_solved_head(given: set[str], data: DataArguments, strategy: Any, training: Any) -> None:
    """No metric or learning rate that a linear probe would ignore."""
    if strategy.strategy != "head" or not strategy.solves_head(data):
        return
    remedy = "remove it, or add --augmentation light to train the head by gradient descent"
    if "metric_for_best_model" in given and training.metric_for_best_model.removeprefix("eval_") != "log_loss":
        raise UsageError(
            f"--metric_for_best_model {training.metric_for_best_model} has no effect on a linear probe, whose penalty "
            f"is chosen by log_loss; {remedy}"
        )
    if "head_learning_rate" in given:
        raise UsageError(f"--head_learning_rate has no effect on a linear probe, which has no learning rate; {remedy}")


def point_scheduler(training: Any) -> None:
    """Let a scheduler that follows the validation score know its direction; by default it would wait for a fall."""
    if training.lr_scheduler_type not in FOLLOWING:
        return
    mode, given = "max" if training.greater_is_better else "min", training.lr_scheduler_kwargs or {}
    if given.get("mode", mode) != mode:
        raise UsageError(
            f"--lr_scheduler_kwargs: mode {given['mode']} is wrong for {training.metric_for_best_model}; remove it"
        )
    training.lr_scheduler_kwargs = given | {"mode": mode}


def check_device(training: Any) -> None:
    """No half precision that a CPU does not have; accelerate would train in float32 without saying so."""
    if training.fp16 and training.device.type == "cpu":
        raise UsageError("--fp16 has no effect on a CPU; remove it, or use --bf16 true")


CHECKS = (
    check_streaming,
    check_split,
    check_architecture,
    check_revisions,
    check_layers,
    check_strategies,
    check_options,
)
