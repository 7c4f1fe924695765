"""How do flags, recipes and the hardware become arguments?

A recipe is a saved command line. Flags on the command line override the recipe, which overrides the defaults.
torch is imported only after the flags have been checked, so that `--help` is fast.
"""

import dataclasses
import difflib
import sys
from argparse import Action
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from agritransfer.arguments import DataArguments, ModelArguments
from agritransfer.runtime.help_format import HelpFormatter
from agritransfer.runtime.process import available_cores, begin_process
from agritransfer.strategies import STRATEGIES

# Defaults of every strategy; each can be overridden on the command line or in a recipe.
SHARED_DEFAULTS = {
    "per_device_train_batch_size": 32,
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
OLD_FLAGS = {
    "overwrite_output_dir": "--restart",
    "warmup_ratio": "--warmup_steps (a value below 1 is a share of all steps: --warmup_steps 0.1)",
    "evaluation_strategy": "--eval_strategy",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "push_to_hub_model_id": "--hub_model_id",
    "no_cuda": "--use_cpu",
    "train_dir": "--dataset_name FOLDER",
    "validation_dir": "--dataset_name FOLDER (with FOLDER/train and FOLDER/validation)",
    "train_val_split": "--validation_fraction",
    "freeze_backbone": "--train_layers head",
    "save_safetensors": "nothing: safetensors is the only format",
    "group_by_length": "nothing: all photos have the same length",
    "remove_unused_columns": "nothing: it is always off, since the photo columns are needed",
    "resume_from_checkpoint": "nothing: the same command resumes from the newest complete checkpoint",
    "save_only_model": "nothing: the run folder holds the model alone, and checkpoints must be resumable",
    "ignore_data_skip": "nothing: a resumed run sees each photo as often as an uninterrupted one",
    "enable_jit_checkpoint": "nothing: SIGTERM and SIGUSR1 always save a checkpoint",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "nothing: scores are always computed in float32"),
    "hub_token": "the environment variable HF_TOKEN (a flag would be saved in the checkpoints)",
}
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
        if options.get("action") == "store_false" and no_help is not None:
            options["help"] = no_help
        if group is None:
            action = super().add_argument(*names, **options)
        else:
            self.groups = self.groups or {title: self.add_argument_group(title) for title in GROUPS}
            action = self.groups[group].add_argument(*names, **options)
        # The dashed spelling stays known to the parser.
        action.option_strings = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        return action


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
    flags = _recipe_flags(argv, parser) + argv
    _refuse_old_flags(flags, parser)
    *ours, others = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True, look_for_args_file=False)
    _require_names(ours, parser)
    if ours[0].streaming:
        _refuse_what_cannot_be_streamed(flags, parser)

    from transformers import TrainingArguments

    everything = _build_parser((*argument_classes, TrainingArguments), story, shown)
    _refuse_unknown_flags(others, everything)
    defaults = (
        SHARED_DEFAULTS | STRATEGIES[ours[-1].strategy].defaults | _machine_defaults(flags) | _output_default(ours)
    )
    try:
        parsed = everything.parse_args_into_dataclasses(_as_flags(defaults) + flags, look_for_args_file=False)
    except ValueError as error:
        # TrainingArguments checks its own values, usually with a message of one line.
        everything.error(str(error).splitlines()[0])
    _choose_augmentation(parsed[0], parsed[-2], parser)
    _check_head_metric(parsed[0], *parsed[-2:], parser)
    _point_scheduler(parsed[-1], parser)
    _check_training(parsed[0], parsed[-1], parser)
    if parsed[-1].fp16 and parsed[-1].device.type == "cpu":
        # accelerate would train in float32 without saying so.
        parser.error("--fp16 has no effect on a CPU; remove it, or use --bf16 true")
    # By default, Trainer drops unknown columns, the photos' among them.
    parsed[-1].remove_unused_columns = False
    # The signature of a PEFT model hides the labels from Trainer.
    parsed[-1].label_names = ["labels"]
    # Early stopping keeps counting after a restart.
    parsed[-1].restore_callback_states_from_checkpoint = True
    # By default, Trainer reports the loss as 0 after a NaN.
    parsed[-1].logging_nan_inf_filter = False
    return parsed


def _build_parser(argument_classes: Sequence[type], story: str, defaults: dict[str, Any]) -> FlagParser:
    """A parser of these classes' flags; `defaults` are those of the Trainer's flags, for `--help`."""
    parser = FlagParser(argument_classes, description=story)
    # An error repeats the usage, which is one line rather than thirty.
    parser.usage = "%(prog)s [--flag VALUE ...]   (--help lists the flags)"
    named = ("learning_rate", "num_train_epochs", "per_device_train_batch_size")
    shown = ", ".join(f"--{name} {defaults[name]:g}" for name in named)
    parser.epilog = (
        f"The flags of transformers.TrainingArguments are accepted as well; defaults here: {shown}. "
        "--help_all lists them all."
    )
    return parser


def _as_flags(values: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in values.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def _recipe_flags(argv: list[str], parser: HfArgumentParser) -> list[str]:
    if "--recipe" not in argv:
        return []
    path = Path(argv[argv.index("--recipe") + 1]) if argv[-1] != "--recipe" else Path("")
    if not path.is_file():
        parser.error(f"no recipe at '{path}'; sample recipes are in recipes/")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(recipe, dict) or None in recipe.values():
        parser.error(f"the recipe '{path}' must hold one 'flag: value' per line, without empty values")
    return _as_flags(recipe)


def _flag_names(flags: Sequence[str]) -> list[str]:
    return [flag[2:].split("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")]


def _refuse_old_flags(flags: Sequence[str], parser: HfArgumentParser) -> None:
    for name in _flag_names(flags):
        if name in OLD_FLAGS:
            parser.error(f"--{name} cannot be used here; use {OLD_FLAGS[name]}")


def _refuse_what_cannot_be_streamed(flags: Sequence[str], parser: HfArgumentParser) -> None:
    for name in _flag_names(flags):
        if name in NOT_STREAMED:
            parser.error(f"--{name} cannot be used with --streaming: {NOT_STREAMED[name]}; remove one of them")


def _refuse_unknown_flags(others: Sequence[str], everything: HfArgumentParser) -> None:
    known = [name for name in everything._option_string_actions if name.startswith("--")]
    for name in _flag_names(others):
        if f"--{name}" not in known:
            near = difflib.get_close_matches(f"--{name}", known, n=1)
            everything.error(f"unknown flag --{name}" + (f"; did you mean {near[0]}?" if near else "; see --help_all"))


def _require_names(ours: Sequence[Any], parser: HfArgumentParser) -> None:
    if ours[0].dataset_name is None:
        parser.error("--dataset_name is missing; try --dataset_name sample/leaves")
    if not 0 < ours[0].target_error < 1:
        parser.error(f"--target_error {ours[0].target_error} is not a share of answers; give a number between 0 and 1")
    for arguments in ours:
        if isinstance(arguments, ModelArguments) and arguments.model_name_or_path is None:
            parser.error("--model_name_or_path is missing; try --model_name_or_path sample/vit")


def _choose_augmentation(data: DataArguments, strategy: Any, parser: HfArgumentParser) -> None:
    """Set the default that depends on the strategy, and refuse flags that exclude each other."""
    head = strategy.strategy == "head"
    if data.cached_views is not None and data.cached_views < 1:
        parser.error(f"--cached_views must be at least 1; found {data.cached_views}")
    if head and strategy.head_first:
        parser.error("--train_layers head includes --head_first; remove one of them")
    if data.augmentation is None:
        solved = head and data.cached_views is None and not data.streaming
        data.augmentation = "none" if solved else "light"


def _check_head_metric(data: DataArguments, strategy: Any, training: Any, parser: HfArgumentParser) -> None:
    """Refuse a metric that a linear probe would ignore."""
    fitted = strategy.strategy == "head" and strategy.solves_head(data)
    if fitted and training.metric_for_best_model.removeprefix("eval_") != "macro_f1":
        parser.error(
            f"--metric_for_best_model {training.metric_for_best_model} has no effect on a linear probe, whose penalty "
            "is chosen by macro_f1; remove it, or add --augmentation light to train the head by gradient descent"
        )


def _check_training(data: DataArguments, training: Any, parser: HfArgumentParser) -> None:
    if training.learning_rate <= 0:
        parser.error(f"--learning_rate {training.learning_rate:g} would train nothing; use a rate above 0")
    if data.early_stopping_patience is None:
        return
    if data.early_stopping_patience < 1:
        parser.error(f"--early_stopping_patience must be at least 1; found {data.early_stopping_patience}")
    if training.eval_strategy == "no":
        parser.error("--early_stopping_patience needs a validation score; remove it or --eval_strategy no")


def _point_scheduler(training: Any, parser: HfArgumentParser) -> None:
    """Let a scheduler that follows the validation score know its direction; by default it would wait for a fall."""
    if training.lr_scheduler_type not in ("reduce_lr_on_plateau", "greedy"):
        return
    mode, given = "max" if training.greater_is_better else "min", training.lr_scheduler_kwargs or {}
    if given.get("mode", mode) != mode:
        parser.error(
            f"--lr_scheduler_kwargs: mode {given['mode']} is wrong for {training.metric_for_best_model}; remove it"
        )
    training.lr_scheduler_kwargs = given | {"mode": mode}


def _machine_defaults(flags: Sequence[str]) -> dict[str, Any]:
    """Defaults that depend on the hardware: progress bars on a terminal; with a GPU bf16, tf32 and loader workers."""
    import torch

    on_gpu = torch.cuda.is_available() and "use_cpu" not in _flag_names(flags)
    defaults: dict[str, Any] = {"disable_tqdm": not sys.stderr.isatty(), "dataloader_pin_memory": on_gpu}
    if on_gpu:
        # Older GPUs, such as the T4, emulate bf16, which is slower.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        defaults["bf16"] = has_bf16 and "fp16" not in _flag_names(flags)
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
    return "settings: " + " ".join(f"{name}={value}" for name, value in shown.items())
