"""What may the user choose?

Our own flags are the dataclasses below; every other flag belongs to `transformers.TrainingArguments`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


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
    augmentation: str | None = _flag(
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


@dataclass
class ScratchArguments:
    """The network that starts from random weights."""

    model_type: Literal["vit", "convnextv2"] = _flag("vit", "Kind of network.")
    model_size: Literal["nano", "tiny", "small"] = _flag("tiny", "About 0.8, 2.7 or 6.4 M weights for a ViT.")

    strategy = "scratch"
