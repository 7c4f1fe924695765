"""How do flags, recipes and what the machine has become arguments?

A recipe is a saved command line: proven defaults < recipe < what the user typed, the last one wins.
Nothing here imports torch before the flags are known to be good, so that `--help` answers at once.
"""

import dataclasses
import difflib
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from agritransfer.arguments import DataArguments, ModelArguments
from agritransfer.runtime.process import available_cores, begin_process
from agritransfer.strategies import STRATEGIES

# What every strategy shares; each of them can be set on the command line or in a recipe.
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
    "greater_is_better": True,
    "hub_strategy": "end",
}
OLD_FLAGS = {
    "overwrite_output_dir": "--restart",
    "warmup_ratio": "--warmup_steps (below 1 it is a share of all steps: --warmup_steps 0.1)",
    "evaluation_strategy": "--eval_strategy",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "push_to_hub_model_id": "--hub_model_id",
    "no_cuda": "--use_cpu",
    "train_dir": "--dataset_name FOLDER",
    "validation_dir": "--dataset_name FOLDER (a folder that holds train/ and validation/)",
    "train_val_split": "--validation_fraction",
    "freeze_backbone": "--train_layers head",
    "save_safetensors": "nothing: safetensors is the only format",
    "group_by_length": "nothing: photos have one length",
    "remove_unused_columns": "nothing: photos need their columns, it is always off",
    "resume_from_checkpoint": "nothing: the same command goes on from the newest complete checkpoint",
    "save_only_model": "nothing: the run folder holds the model alone, a checkpoint is there to go on from",
    "ignore_data_skip": "nothing: a run that goes on sees each photo as often as one that was not cut off",
    "enable_jit_checkpoint": "nothing: SIGTERM and SIGUSR1 always leave a checkpoint",
    "hub_token": "the environment variable HF_TOKEN (a flag would be written into the checkpoints)",
}
# What needs the list of the train photos, which a stream does not have.
NOT_STREAMED = {
    **dict.fromkeys(
        ("validation_fraction", "test_fraction", "split_seed", "splits_file", "group_column_name", "group_pattern"),
        "a stream is never cut, it comes with its own validation and test",
    ),
    "max_train_samples": "the stream is read to its end; --max_steps N ends the training sooner",
    "on_leakage": "streamed train photos are not looked at beforehand, so copies among them are not found",
    **dict.fromkeys(("cached_views", "head_first"), "what is computed once for each photo needs them all at hand"),
    "download_only": "a stream is read while it is trained on, there is nothing to fetch before",
}


def parse_args(argument_classes: Sequence[type], story: str, argv: Sequence[str] | None = None) -> tuple:
    """Parse a script's flags; returns one object for each class, then the `TrainingArguments`.

    `story` is the script's docstring and stands on top of `--help`. The last class is the strategy's.
    Ends the process with exit code 0 after `--help` and 2 when a flag is wrong.
    """
    begin_process()
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _build_parser(argument_classes, story)
    if "--help_all" in argv:
        from transformers import TrainingArguments

        argv, parser = ["--help"], _build_parser((*argument_classes, TrainingArguments), story)
    flags = _recipe_flags(argv, parser) + argv
    _refuse_old_flags(flags, parser)
    *ours, others = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True, look_for_args_file=False)
    _require_names(ours, parser)
    if ours[0].streaming:
        _refuse_what_cannot_be_streamed(flags, parser)

    from transformers import TrainingArguments

    everything = _build_parser((*argument_classes, TrainingArguments), story)
    _refuse_unknown_flags(others, everything)
    defaults = (
        SHARED_DEFAULTS | STRATEGIES[ours[-1].strategy].defaults | _machine_defaults(flags) | _output_default(ours)
    )
    try:
        parsed = everything.parse_args_into_dataclasses(_as_flags(defaults) + flags, look_for_args_file=False)
    except ValueError as error:
        # TrainingArguments checks its own values, in one line as a rule.
        everything.error(str(error).splitlines()[0])
    _choose_augmentation(parsed[0], parsed[-2], parser)
    # Trainer drops unknown columns unless told not to, and would drop the photos' own.
    parsed[-1].remove_unused_columns = False
    # The signature of a PEFT model hides the labels from Trainer.
    parsed[-1].label_names = ["labels"]
    # Early stopping counts on after a restart.
    parsed[-1].restore_callback_states_from_checkpoint = True
    # Trainer reports the loss as 0 after a NaN unless told not to.
    parsed[-1].logging_nan_inf_filter = False
    return parsed


def _build_parser(argument_classes: Sequence[type], story: str) -> HfArgumentParser:
    # A shortened flag is an error: `--see 3` must not set the seed.
    parser = HfArgumentParser(
        argument_classes, description=story, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    # An error repeats the usage; two lines are read, thirty are not.
    parser.usage = "%(prog)s --flag value ... (--help lists the flags)"
    parser.epilog = "--help_all adds the Trainer's flags (learning_rate, num_train_epochs, seed, report_to, ...)."
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
        parser.error(f"no recipe at '{path}'; those that come with us are in recipes/")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(recipe, dict) or None in recipe.values():
        parser.error(f"the recipe '{path}' must hold one 'flag: value' a line, without empty values")
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
            parser.error(f"--{name} cannot be used with --streaming: {NOT_STREAMED[name]}; leave one of the two out")


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
        parser.error(f"--target_error {ours[0].target_error} is no share of answers; give one between 0 and 1")
    for arguments in ours:
        if isinstance(arguments, ModelArguments) and arguments.model_name_or_path is None:
            parser.error("--model_name_or_path is missing; try --model_name_or_path sample/vit")


def _choose_augmentation(data: DataArguments, strategy: Any, parser: HfArgumentParser) -> None:
    """Set the default that depends on the strategy, and refuse what excludes each other."""
    head = strategy.strategy == "head"
    if data.cached_views is not None and data.cached_views < 1:
        parser.error(f"--cached_views begins at 1; found {data.cached_views}")
    if head and strategy.head_first:
        parser.error("--head_first is what --train_layers head does anyway; leave one of them out")
    if data.augmentation is None:
        solved = head and data.cached_views is None and not data.streaming
        data.augmentation = "none" if solved else "light"


def _machine_defaults(flags: Sequence[str]) -> dict[str, Any]:
    """What the machine at hand asks for: bars only where someone watches; beside a GPU bf16, tf32, loader workers."""
    import torch

    on_gpu = torch.cuda.is_available() and "use_cpu" not in _flag_names(flags)
    defaults: dict[str, Any] = {"disable_tqdm": not sys.stderr.isatty(), "dataloader_pin_memory": on_gpu}
    if on_gpu:
        # An older GPU, such as a T4, emulates bf16 and is slower for it.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        defaults["bf16"] = has_bf16 and "fp16" not in _flag_names(flags)
        defaults["tf32"] = has_bf16 and torch.version.hip is None
        # Where pixels are stored there are none, whatever is said here.
        defaults["dataloader_num_workers"] = min(8, available_cores())
        defaults["dataloader_persistent_workers"] = True
    return defaults


def _output_default(ours: Sequence[Any]) -> dict[str, str]:
    return {"output_dir": f"runs/{Path(ours[0].dataset_name).name}-{ours[-1].strategy}"}


def settings_line(*parsed: Any) -> str:
    """One line of what a run was told and what was chosen for it."""
    *ours, training = parsed
    shown: dict[str, Any] = {"strategy": ours[-1].strategy}
    for arguments in ours:
        told = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments)}
        defaults = {f.name: f.default for f in dataclasses.fields(arguments)}
        shown |= {name: value for name, value in told.items() if value != defaults[name]}
    for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "seed", "output_dir"):
        shown[name] = getattr(training, name)
    return "settings: " + " ".join(f"{name}={value}" for name, value in shown.items())
