"""What may the user choose?

Our own flags are the dataclasses below; every other flag belongs to `transformers.TrainingArguments`.
A recipe is a saved command line: proven defaults < recipe < what the user typed, the last one wins.
Nothing here imports torch before the flags are known to be good, so that `--help` answers at once.
"""

import dataclasses
import difflib
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser

from agritransfer.processes import available_cores, begin_process


def _flag(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class DataArguments:
    """Which photos, how they are split and what happens to their pixels."""

    dataset_name: str | None = _flag(
        None,
        "Hub id, or a folder: of class folders; of train/ validation/ test/ with class folders; or with metadata.csv "
        "(file_name,label[,split][,group]). Example: sample/leaves",
    )
    shift_dataset_name: str | None = _flag(
        None, "A second test set with the same labels, such as field photos; scored, never trained on."
    )
    dataset_revision: str | None = _flag(None, "Branch, tag or commit of a Hub dataset.")
    image_column_name: str | None = _flag(None, "Column of the photos in a Hub dataset; found when there is only one.")
    label_column_name: str | None = _flag(None, "Column of the labels in a Hub dataset; found when there is only one.")
    group_column_name: str | None = _flag(
        None, "Column of what must stay in one split, such as the plant or the field; `group` in a metadata.csv."
    )
    group_pattern: str | None = _flag(
        None, "The same from file names: a regular expression, its parentheses name the group. Example: (plant\\d+)_"
    )
    validation_fraction: float = _flag(0.15, "Share of the photos for validation, where the data has none of its own.")
    test_fraction: float = _flag(0.15, "Share of the photos for the test, where the data has none of its own.")
    split_seed: int = _flag(0, "Seed of the cut; the same seed gives the same split.")
    splits_file: str | None = _flag(None, "A splits.csv of an earlier run: the same split again.")
    on_broken: Literal["stop", "skip"] = _flag(
        "stop", "A photo that cannot be decoded stops the run (exit 3), or is left out and counted."
    )
    on_leakage: Literal["drop", "keep", "stop"] = _flag(
        "drop",
        "A train photo that is also in the data's own validation or test is left out and counted, kept, or stops "
        "the run (exit 3).",
    )
    max_train_samples: int | None = _flag(None, "Train on this many photos at most, drawn with --split_seed.")
    max_eval_samples: int | None = _flag(None, "Score this many photos of each split at most; for trying things out.")
    image_size: int | None = _flag(None, "Side of the model's input in pixels; changes model and processor together.")
    augmentation: Literal["none", "crop", "light", "strong"] | None = _flag(
        None,
        "crop: flips, and a crop of the model's own size (fastest on a CPU). light: flips, and crops of several sizes. "
        "strong: adds wide crops, TrivialAugmentWide, mixup, cutmix, erasing. By default light, and none for a head "
        "alone, which is then solved rather than trained by epochs.",
    )
    cached_views: int | None = _flag(
        None,
        "Compute what is frozen once, for this many augmented views of each train photo, and train on them in turn "
        "(4 is usual); for the last blocks, for LoRA in them, and for a head alone.",
    )
    pixel_store: Literal["auto", "off"] = _flag(
        "auto",
        "auto: photos are decoded once, into the cache of `datasets`, for this run and later ones; off: each time.",
    )
    pixel_store_gb: float = _flag(
        16,
        "Most that all stored pixels may take on the disk, and again all cached views, in 10^9 bytes; those unused for "
        "a day make room.",
    )
    class_weights: Literal["none", "balanced"] = _flag("none", "balanced: rare classes weigh more in the loss.")
    early_stopping_patience: int | None = _flag(
        None, "Stop after this many evaluations without a better validation score."
    )
    target_error: float = _flag(
        0.05, 'Answers that may be wrong; the model says "not sure" wherever this would be broken on validation.'
    )
    share_splits: bool = _flag(True, "Publish splits.csv too: the names of the files, never the photos.")
    license: str | None = _flag(None, "Licence of the published weights, such as apache-2.0; without it the card asks.")
    recipe: str | None = _flag(None, "A YAML file of flags, such as recipes/sample_lora.yaml; later flags win.")
    streaming: bool = _flag(
        False,
        "Read the train photos from their shards in every epoch, for sets that no disk holds: parquet or WebDataset "
        "that comes with train, validation and test.",
    )
    shuffle_buffer: int = _flag(1000, "Photos, as files, that a stream holds in memory to draw the next one from.")
    download_only: bool = _flag(
        False, "Fetch photos and model, look at every photo and end; then HF_HUB_OFFLINE=1 trains without a network."
    )
    restart: bool = _flag(False, "Put an earlier run in --output_dir aside and begin again.")

    def split_options(self) -> dict[str, Any]:
        """What `load_splits` wants to know beside the name of the data set."""
        names = ("group_column_name", "group_pattern", "validation_fraction", "test_fraction", "split_seed")
        names += ("splits_file", "max_train_samples", "streaming", "shuffle_buffer")
        return {
            "revision": self.dataset_revision,
            **{name: getattr(self, name) for name in names},
            **self.shift_options(),
        }

    def shift_options(self) -> dict[str, Any]:
        """What `load_shift_photos` wants to know beside name and labels."""
        names = ("image_column_name", "label_column_name", "on_broken", "on_leakage", "max_eval_samples")
        return {name: getattr(self, name) for name in names}


@dataclass
class ModelArguments:
    """Where the pretrained weights come from."""

    model_name_or_path: str | None = _flag(
        None, "Hub id or local folder of a pretrained model; safetensors only, no remote code. Example: sample/vit"
    )
    model_revision: str | None = _flag(None, "Branch, tag or commit of a Hub model.")


@dataclass
class FinetuneArguments:
    """Which pretrained weights move, and how fast."""

    train_layers: str = _flag(
        "all",
        "all: every weight moves. head: feature extraction, only the new head; it is solved, unless there is "
        "augmentation without --cached_views. N: the last N blocks and the head.",
    )
    head_first: bool = _flag(
        False, "Solve the head on the frozen features before anything moves, then fine-tune from it (LP-FT)."
    )
    layer_decay: float = _flag(
        1.0, "Each block below the head learns at this share of the rate of the block above it; 0.75 is usual."
    )
    head_learning_rate: float | None = _flag(
        None, "Rate of the head; by default 10 times --learning_rate, and that rate itself after --head_first."
    )

    @property
    def strategy(self) -> str:
        """The name in `results.json`: feature extraction is `head`."""
        return "head" if self.train_layers == "head" else "finetune"

    def solves_head(self, data: DataArguments) -> bool:
        """Whether the head is all that is learnt and its features are known beforehand."""
        once = data.augmentation == "none" or data.cached_views is not None
        return self.train_layers == "head" and once and not data.streaming

    def head_rate(self, learning_rate: float) -> float:
        """The rate of the head: as told; alone or solved, the rate itself; new on a body, 10 times its."""
        if self.head_learning_rate is not None:
            return self.head_learning_rate
        return learning_rate if self.train_layers == "head" or self.head_first else 10 * learning_rate

    def training_defaults(self) -> dict[str, Any]:
        """What fits this strategy: a new head learns fast, pretrained weights slowly (course: 1e-3, 1e-5 to 1e-4)."""
        return {"learning_rate": 5e-3 if self.train_layers == "head" else 1e-4, "num_train_epochs": 10}


@dataclass
class LoraArguments:
    """The low-rank adapters."""

    lora_r: int = _flag(16, "Rank of the adapters.")
    lora_alpha: int = _flag(32, "Scale of the adapters; usually once or twice the rank.")
    lora_dropout: float = _flag(0.0, "Dropout in front of each adapter.")
    lora_target_modules: list[str] | None = _flag(
        None, "Names of the layers to adapt, such as q_proj v_proj; found by structure and printed when not given."
    )
    lora_layers: str = _flag("all", "all: adapters in every block. N: in the last N blocks only.")
    use_dora: bool = _flag(False, "DoRA: adapt direction and magnitude apart.")
    use_rslora: bool = _flag(False, "rsLoRA: scale by alpha / sqrt(r), for large ranks.")

    strategy = "lora"

    def training_defaults(self) -> dict[str, Any]:
        """Adapters start at zero and need a far higher rate than the weights that they adapt."""
        return {"learning_rate": 2e-3, "num_train_epochs": 10}


@dataclass
class ScratchArguments:
    """The network that starts from random weights."""

    model_type: Literal["vit", "convnextv2"] = _flag("vit", "Kind of network.")
    model_size: Literal["nano", "tiny", "small"] = _flag("tiny", "About 0.8, 2.7 or 6.4 M weights for a ViT.")

    strategy = "scratch"

    def training_defaults(self) -> dict[str, Any]:
        """Random weights have everything to learn: a high rate and more passes."""
        return {"learning_rate": 1e-3, "num_train_epochs": 30}


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
    defaults = SHARED_DEFAULTS | ours[-1].training_defaults() | _machine_defaults(flags) | _output_default(ours)
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
    if data.cached_views is not None and data.augmentation == "strong":
        parser.error("--cached_views keeps photos apart, --augmentation strong mixes them; use --augmentation light")
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
