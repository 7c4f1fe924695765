"""What may the user choose?

The dataclasses below hold our own flags; all other flags are those of `transformers.TrainingArguments`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from agritransfer.ranges import COUNT, SEED, SHARE, Range

# How a photo becomes the square that a network takes.
ResizeMode = Literal["processor", "squash", "letterbox", "crop"]


def _flag(group: str, default: Any, help_text: str, **options: Any) -> Any:
    """A field that becomes a flag; `group` is its heading in `--help`, `allowed` the range of its numbers."""
    return field(default=default, metadata={"group": group, "help": help_text, **options})


@dataclass
class DataArguments:
    """Which photos, how they are split, how they are read, and what is published of them."""

    dataset_name: str | None = _flag(
        "data",
        None,
        "Hub dataset ID or local folder: class folders; train/, validation/ and test/ with class folders; photos "
        "with metadata.csv (file_name,label[,split][,group]) or an export of Roboflow, COCO or Label Studio; such a "
        "table itself; or parquet files with the photos. Example: sample/leaves",
    )
    shift_dataset_name: str | None = _flag(
        "data",
        None,
        "Second test set with the same labels but other conditions, such as field photos. It is scored and never "
        "trained on.",
    )
    dataset_revision: str | None = _flag("data", None, "Branch, tag or commit of a Hub dataset.")
    dataset_config_name: str | None = _flag(
        "data", None, "Configuration of a Hub dataset or parquet folder. Needed only if there are several."
    )
    image_column_name: str | None = _flag(
        "data",
        None,
        "Column of the photos in a Hub dataset or parquet file, or of their paths in a table (`file_name` by default).",
    )
    label_column_name: str | None = _flag(
        "data",
        None,
        "Column of the labels in a Hub dataset, a parquet file or a table (`label` by default). Needed only if there "
        "are several candidates.",
    )
    group_column_name: str | None = _flag(
        "data",
        None,
        "Column of the group (plant, field, day) that must not be divided between splits. The column `group` of a "
        "metadata.csv is used by default.",
    )
    group_pattern: str | None = _flag(
        "data",
        None,
        "Regular expression that finds the group in the file name; the group is the part in parentheses. "
        "Example: (plant\\d+)_",
    )
    validation_fraction: float = _flag(
        "data", 0.15, "Share of the photos used for validation if the dataset has no validation split.", allowed=SHARE
    )
    test_fraction: float = _flag(
        "data", 0.15, "Share of the photos used for testing if the dataset has no test split.", allowed=SHARE
    )
    split_seed: int = _flag("data", 0, "Random seed of the split.", allowed=SEED)
    splits_file: str | None = _flag("data", None, "splits.csv of an earlier run; reuses its split.")
    on_broken: Literal["stop", "skip"] = _flag(
        "data", "stop", "What to do with photos that cannot be decoded: stop with exit code 3, or skip and count them."
    )
    on_leakage: Literal["drop", "keep", "stop"] = _flag(
        "data",
        "drop",
        "What to do with training photos that are also in the validation or test split: drop and count them, keep "
        "them, or stop with exit code 3.",
    )
    classes: list[str] | None = _flag(
        "data",
        None,
        "Use only the photos whose label matches one of these patterns. Example: 'Tomato*' Potato/healthy",
    )
    max_photos_per_class: int | None = _flag(
        "data", None, "Train on at most N photos of each class, drawn with --split_seed.", allowed=COUNT
    )
    max_train_samples: int | None = _flag(
        "data", None, "Train on at most N photos, drawn with --split_seed.", allowed=COUNT
    )
    max_eval_samples: int | None = _flag(
        "data", None, "Score at most N photos of each split, for quick trials.", allowed=COUNT
    )
    image_size: int | None = _flag(
        "images and speed",
        None,
        "Side of the model input in pixels; model and image processor are changed together. By default, the "
        "model's own size.",
        allowed=Range(least=1, most=4096),
    )
    resize_mode: ResizeMode = _flag(
        "images and speed",
        "processor",
        "How a photo becomes a square. processor: as the model's own image processor makes it, often a center crop. "
        "squash: resize the whole photo. letterbox: resize its longer side and pad the rest. crop: resize its shorter "
        "side and crop the center, without a margin. Saved with the model.",
    )
    augmentation: str | None = _flag(
        "images and speed",
        None,
        "none. crop: flips and crops of one size (fastest on a CPU). light: flips and crops of varying size. strong: "
        "adds wider crops, TrivialAugmentWide, mixup, CutMix and random erasing. By default light; none for "
        "--train_layers head.",
    )
    cached_views: int | None = _flag(
        "images and speed",
        None,
        "Run the frozen layers only once on N augmented views of each training photo (4 is usual) and train on the "
        "cached outputs. For --train_layers head or N, and for --lora_layers N.",
        allowed=COUNT,
    )
    pixel_store: Literal["auto", "off"] = _flag(
        "images and speed",
        "auto",
        "auto: decode each photo once and keep its pixels in the cache of `datasets` for this and later runs. "
        "off: decode it whenever it is used.",
    )
    pixel_store_gb: float = _flag(
        "images and speed",
        16,
        "Disk space limit in GB (10^9 bytes) for all stored pixels, and again for all cached views. Entries that "
        "were not used for a day are deleted when space is needed.",
        allowed=Range(above=0),
    )
    class_weights: Literal["none", "balanced"] = _flag(
        "training and evaluation", "none", "balanced: weight the loss of each class by its inverse frequency."
    )
    early_stopping_patience: int | None = _flag(
        "training and evaluation",
        None,
        "Stop training after N evaluations without a better validation score; 0: never. By default 5 (15 from "
        "scratch) if validation runs once per epoch and the best weights are kept.",
        allowed=Range(least=0),
    )
    max_minutes: float | None = _flag(
        "training and evaluation",
        None,
        "End training after the epoch after which the next one would exceed N minutes of training, and keep the best "
        "weights so far. The minutes before an interruption count.",
        allowed=Range(above=0),
    )
    target_error: float = _flag(
        "training and evaluation",
        0.05,
        'Share of the answers that may be wrong. The model answers "not sure" below the lowest probability for which '
        "the validation photos show, with 90%% certainty, that no more are; 0.05 takes 45 of them, 0.1 takes 22.",
        allowed=SHARE,
    )
    share_splits: bool = _flag(
        "publishing",
        True,
        "Publish splits.csv, which holds file names but no photos. This is the default.",
        no_help="Do not publish splits.csv.",
    )
    license: str | None = _flag(
        "publishing",
        None,
        "License of the published weights, such as apache-2.0. Without it the model card tells readers to ask you.",
    )
    recipe: str | None = _flag(
        "run", None, "YAML file of flags, such as recipes/sample_lora.yaml. Flags on the command line take precedence."
    )
    streaming: bool = _flag(
        "data",
        False,
        "Stream the training photos from their shards in every epoch, for datasets larger than your disk. Needs "
        "Parquet or WebDataset files with train, validation and test splits.",
    )
    shuffle_buffer: int = _flag(
        "data", 1000, "Number of encoded photos that --streaming keeps in memory to shuffle.", allowed=COUNT
    )
    download_only: bool = _flag(
        "run",
        False,
        "Download photos and model, check every photo and exit. Then HF_HUB_OFFLINE=1 trains without a network.",
    )
    skip_test: bool = _flag(
        "run",
        False,
        "Score the validation photos only and write validation.json, to choose among runs by validation. The same "
        "command without this flag then scores the test and field photos; it does not train again.",
    )
    restart: bool = _flag(
        "run",
        False,
        "Start over: move an earlier run in --output_dir aside. Without this flag the same command resumes it.",
    )

    def split_options(self) -> dict[str, Any]:
        """The keyword arguments of `load_splits`."""
        names = ("group_column_name", "group_pattern", "validation_fraction", "test_fraction", "split_seed")
        names += ("splits_file", "max_photos_per_class", "max_train_samples", "streaming", "shuffle_buffer")
        return {
            "revision": self.dataset_revision,
            "config_name": self.dataset_config_name,
            **{name: getattr(self, name) for name in names},
            **self.shift_options(),
        }

    def shift_options(self) -> dict[str, Any]:
        """The keyword arguments of `load_shift_photos`, apart from name and labels."""
        names = ("image_column_name", "label_column_name", "classes", "on_broken", "on_leakage", "max_eval_samples")
        return {name: getattr(self, name) for name in names}


@dataclass
class ModelArguments:
    """Where the pretrained weights come from."""

    model_name_or_path: str | None = _flag(
        "model",
        None,
        "Hub model ID or local folder of a pretrained model. Safetensors weights only; remote code is never run. "
        "Example: sample/vit",
    )
    model_revision: str | None = _flag("model", None, "Branch, tag or commit of a Hub model.")


@dataclass
class FinetuneArguments:
    """Which pretrained weights are trained, and how fast."""

    train_layers: str = _flag(
        "training and evaluation",
        "all",
        "all: train every weight. head: feature extraction, train only the new head; it is fitted as a logistic "
        "regression on the frozen features unless --augmentation is given without --cached_views. N: train the last N "
        "blocks and the head.",
    )
    head_first: bool = _flag(
        "training and evaluation",
        True,
        "Fit the head on the frozen features first, then fine-tune from there (LP-FT). This is the default, except "
        "with --streaming.",
        no_help="Start from a random head.",
    )
    layer_decay: float | None = _flag(
        "training and evaluation",
        None,
        "Layer-wise learning rate decay: each block learns at this multiple of the rate of the block above it; 1: all "
        "at one rate. By default 0.75, or 1 in a network whose blocks are not found.",
        allowed=Range(above=0, most=1),
    )
    head_learning_rate: float | None = _flag(
        "training and evaluation",
        None,
        "Learning rate of the head. By default --learning_rate itself; with --no_head_first, 10 times as much.",
        allowed=Range(above=0),
    )

    @property
    def strategy(self) -> str:
        """The name in `results.json`: feature extraction is `head`."""
        return "head" if self.train_layers == "head" else "finetune"

    def solves_head(self, data: DataArguments) -> bool:
        """Whether only the head is trained and its input features can be computed beforehand."""
        once = data.augmentation == "none" or data.cached_views is not None
        return self.train_layers == "head" and once and not data.streaming

    def head_rate(self, learning_rate: float) -> float:
        """The learning rate of the head: the given one; 10 times the backbone's for a new head on a moving backbone."""
        if self.head_learning_rate is not None:
            return self.head_learning_rate
        return learning_rate if self.train_layers == "head" or self.head_first else 10 * learning_rate


@dataclass
class LoraArguments:
    """The low-rank adapters."""

    head_first: bool = _flag(
        "training and evaluation",
        False,
        "Fit the head on the frozen features first, then train the adapters from there.",
    )
    lora_r: int = _flag("training and evaluation", 16, "Rank of the adapters.", allowed=Range(least=1, most=4096))
    lora_alpha: int = _flag(
        "training and evaluation", 32, "Scaling of the adapters; usually one or two times the rank.", allowed=COUNT
    )
    lora_dropout: float = _flag(
        "training and evaluation", 0.0, "Dropout before each adapter.", allowed=Range(least=0, below=1)
    )
    lora_target_modules: list[str] | None = _flag(
        "training and evaluation",
        None,
        "Names of the layers to adapt, such as q_proj v_proj. By default they are found from the structure of the "
        "model and printed.",
    )
    lora_layers: str = _flag(
        "training and evaluation", "all", "all: adapt every block. N: adapt only the last N blocks."
    )
    use_dora: bool = _flag(
        "training and evaluation", False, "DoRA: adapt direction and magnitude of the weights separately."
    )
    use_rslora: bool = _flag("training and evaluation", False, "rsLoRA: scale by alpha / sqrt(r), for large ranks.")

    strategy = "lora"


@dataclass
class ScratchArguments:
    """The network that starts from random weights."""

    model_type: Literal["vit", "convnextv2"] | None = _flag("model", None, "Architecture. By default vit.")
    model_size: Literal["nano", "tiny", "small"] | None = _flag(
        "model", None, "About 0.8, 2.7 or 6.4 million weights for a ViT. By default tiny."
    )
    model_name_or_path: str | None = _flag(
        "model",
        None,
        "Instead of --model_type and --model_size: the architecture of this Hub model or local folder, without its "
        "weights, to compare transfer learning with. Example: sample/vit",
    )
    model_revision: str | None = _flag("model", None, "Branch, tag or commit of --model_name_or_path on the Hub.")

    strategy = "scratch"
