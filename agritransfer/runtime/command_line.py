"""How do flags, recipes and the hardware become arguments?

A recipe is a saved command line. Flags on the command line override the recipe, which overrides the defaults.
torch is imported only after our own flags have been checked, so that `--help` is fast.
"""

import dataclasses
import difflib
import sys
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from agritransfer.arguments import ModelArguments
from agritransfer.errors import UsageError
from agritransfer.ranges import check_numbers
from agritransfer.runtime.flag_checks import (
    BY_PHOTOS,
    CHECKS,
    check_device,
    check_solved_head,
    check_words,
    choose_augmentation,
    choose_patience,
    choose_start,
    flag_names,
    leave_to_photos,
    point_scheduler,
    repeated_flags,
)
from agritransfer.runtime.help_format import HelpFormatter
from agritransfer.runtime.process import available_cores, begin_process, say
from agritransfer.runtime.recipes import recipe_flags
from agritransfer.runtime.trainer_flags import RANGES, REPLACED, USELESS, check_usable, check_values
from agritransfer.strategies import STRATEGIES

# Defaults of every strategy; each can be overridden on the command line or in a recipe.
SHARED_DEFAULTS = {
    "per_device_eval_batch_size": 64,
    "weight_decay": 0.05,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "macro_f1",
    "hub_strategy": "end",
}
# The headings of `--help`, in their order.
GROUPS = ("data", "model", "training and evaluation", "images and speed", "publishing", "run")


class FlagParser(HfArgumentParser):
    """`HfArgumentParser` with our flags in groups; `--some-flag` is accepted for `--some_flag` but not listed."""

    def __init__(self, argument_classes: Sequence[type], **options: Any):
        self.groups: dict[str, Any] = {}
        # An abbreviated flag is an error: `--see 3` must not set the seed.
        super().__init__(argument_classes, formatter_class=HelpFormatter, allow_abbrev=False, **options)

    def add_argument(self, *names: str, group: str | None = None, no_help: str | None = None, **options: Any) -> Action:
        """Add a flag; `group` is one of `GROUPS`, `no_help` the text of its negative form."""
        # The range is checked for all flags at once, after the recipe and the command line have been joined.
        options.pop("allowed", None)
        if options.get("action") == "store_false" and no_help is not None:
            options["help"] = no_help
        if options.get("type") is string_to_bool:
            options["type"] = true_or_false
        if group is None:
            action = super().add_argument(*names, **options)
        else:
            self.groups = self.groups or {title: self.add_argument_group(title) for title in GROUPS}
            action = self.groups[group].add_argument(*names, **options)
        # The dashed spelling stays known to the parser.
        action.option_strings = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        return action


def true_or_false(text: str | bool) -> bool:
    """The argparse type of a flag that is on or off, in the words of YAML and of Python."""
    word = str(text).lower()
    if word not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        raise ArgumentTypeError(f"expected true or false; found '{text}'")
    return word in ("true", "yes", "on", "1")


def parse_args(argument_classes: Sequence[type], story: str, argv: Sequence[str] | None = None) -> tuple:
    """Parse a script's flags; returns one object for each class, then the `TrainingArguments`.

    `story` is the script's docstring, the description in `--help`. The last class is that of the strategy.
    Exits with code 0 after `--help` and with code 2 if a flag is wrong.
    """
    begin_process()
    argv = list(sys.argv[1:] if argv is None else argv)
    # For `--help`, before the flags are parsed: those of fine-tuning, not of feature extraction.
    shown = SHARED_DEFAULTS | STRATEGIES[argument_classes[-1]().strategy].defaults
    parser = _build_parser(argument_classes, story, shown)
    if "--help_all" in argv:
        from transformers import TrainingArguments

        argv, parser = ["--help"], _build_parser((*argument_classes, TrainingArguments), story, shown)
        parser.set_defaults(**shown)
    try:
        flags = _recipe_of(argv) + argv
        given = _given(flags)
        # Our own flags first, before torch is imported, which takes seconds.
        *ours, others = parser.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
        _check_ours(ours)

        from transformers import TrainingArguments

        everything = _build_parser((*argument_classes, TrainingArguments), story, shown)
        _refuse_unknown_words(others, everything)
        defaults = SHARED_DEFAULTS | STRATEGIES[ours[-1].strategy].defaults | _output_default(ours)
        defaults |= _machine_defaults(everything.parse_args(flags))
        words = _as_flags(defaults) + flags
        _check_chosen(given, everything.parse_args(words), everything)
        parsed = _training_arguments(words, everything)
        _finish(given, *parsed)
        for note in repeated_flags(argv):
            say(note)
    except UsageError as error:
        parser.error(str(error))
    return parsed


def _recipe_of(argv: list[str]) -> list[str]:
    """The flags of the recipe that is named on the command line, if one is."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?", const="")
    recipe = parser.parse_known_args(argv)[0].recipe
    return [] if recipe is None else recipe_flags(recipe)


def _given(flags: list[str]) -> set[str]:
    """The names of the given flags, after the checks that need nothing but the words."""
    check_usable(flag_names(flags))
    check_words(flags)
    return {name.removeprefix("no_") for name in flag_names(flags)}


def _check_ours(ours: Sequence[Any]) -> None:
    if ours[0].dataset_name is None:
        raise UsageError("--dataset_name is missing; try --dataset_name sample/leaves")
    for arguments in ours:
        if isinstance(arguments, ModelArguments) and arguments.model_name_or_path is None:
            raise UsageError("--model_name_or_path is missing; try --model_name_or_path sample/vit")
        ranges = {field.name: field.metadata.get("allowed") for field in dataclasses.fields(arguments)}
        check_numbers(vars(arguments), {name: allowed for name, allowed in ranges.items() if allowed is not None})


def _check_chosen(given: set[str], chosen: Namespace, everything: FlagParser) -> None:
    """The checks of all values, before they become `TrainingArguments`."""
    # A default needs no check: with `--max_steps -1` the number of epochs decides.
    changed = {name for name, value in vars(chosen).items() if value != everything.get_default(name)}
    check_numbers(vars(chosen), {name: allowed for name, allowed in RANGES.items() if name in changed})
    for check in CHECKS:
        check(given, chosen)
    check_values(given, chosen)


def _training_arguments(words: list[str], everything: FlagParser) -> tuple:
    try:
        return everything.parse_args_into_dataclasses(words, look_for_args_file=False)
    except ValueError as error:
        # TrainingArguments checks its own values, with messages of several lines.
        raise UsageError(" ".join(str(error).split()) + "; correct or remove that flag") from error


def _finish(given: set[str], data: Any, *others: Any) -> None:
    """Set what follows from other arguments, and what must never differ."""
    *_, strategy, training = others
    choose_augmentation(data, strategy)
    choose_start(data, strategy)
    leave_to_photos(given, training)
    choose_patience(data, strategy, training)
    check_solved_head(given, data, strategy, training)
    point_scheduler(training)
    check_device(training)
    # By default, Trainer drops unknown columns, the photos' among them.
    training.remove_unused_columns = False
    # The signature of a PEFT model hides the labels from Trainer.
    training.label_names = ["labels"]
    # Early stopping keeps counting after a restart.
    training.restore_callback_states_from_checkpoint = True
    # By default, Trainer reports the loss as 0 after a NaN.
    training.logging_nan_inf_filter = False


def _build_parser(argument_classes: Sequence[type], story: str, defaults: dict[str, Any]) -> FlagParser:
    """A parser of these classes' flags; `defaults` are those of the Trainer's flags, for `--help`."""
    parser = FlagParser(argument_classes, description=story)
    # An error repeats the usage, which is one line rather than thirty.
    parser.usage = "%(prog)s [--flag VALUE ...]   (--help lists the flags)"
    parser.epilog = (
        "The flags of transformers.TrainingArguments are accepted as well; defaults here: --learning_rate "
        f"{defaults['learning_rate']:g}, --num_train_epochs and --per_device_train_batch_size by the number of photos. "
        "--help_all lists them all."
    )
    return parser


def _as_flags(values: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def _refuse_unknown_words(others: Sequence[str], everything: HfArgumentParser) -> None:
    known = [name for name in everything._option_string_actions if name.startswith("--")]
    for name in flag_names(others):
        if f"--{name}" not in known:
            usable = [flag for flag in known if flag[2:] not in REPLACED | USELESS]
            near = difflib.get_close_matches(f"--{name}", usable, n=1, cutoff=0.75)
            raise UsageError(f"unknown flag --{name}" + (f"; did you mean {near[0]}?" if near else "; see --help_all"))


def _machine_defaults(chosen: Namespace) -> dict[str, Any]:
    """Defaults that depend on the hardware: progress bars on a terminal; with a GPU bf16, tf32 and loader workers."""
    import torch

    on_gpu = torch.cuda.is_available() and not chosen.use_cpu
    defaults: dict[str, Any] = {"disable_tqdm": not sys.stderr.isatty(), "dataloader_pin_memory": on_gpu}
    if on_gpu:
        # Older GPUs, such as the T4, emulate bf16, which is slower.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        defaults["bf16"] = has_bf16 and not chosen.fp16
        defaults["tf32"] = has_bf16 and torch.version.hip is None
        # Stored pixels are read without workers, whatever is set here.
        defaults["dataloader_num_workers"] = min(8, available_cores())
        defaults["dataloader_persistent_workers"] = True
    return defaults


def _output_default(ours: Sequence[Any]) -> dict[str, str]:
    return {"output_dir": f"runs/{Path(ours[0].dataset_name).name}-{ours[-1].strategy}"}


def settings_line(*parsed: Any) -> str:
    """The settings of a run in one line: what was given and what was chosen."""
    *ours, training = parsed
    shown: dict[str, Any] = {"strategy": ours[-1].strategy}
    for arguments in ours:
        told = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments)}
        defaults = {f.name: f.default for f in dataclasses.fields(arguments)}
        shown |= {name: value for name, value in told.items() if value != defaults[name]}
    for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "seed", "output_dir"):
        shown[name] = getattr(training, name)
    for name in ("num_train_epochs", "per_device_train_batch_size"):
        if shown[name] == BY_PHOTOS:
            # Printed once the photos have been counted.
            del shown[name]
    return "settings: " + " ".join(f"{name}={value}" for name, value in shown.items())
