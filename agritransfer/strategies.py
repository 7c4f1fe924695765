"""Which strategies are there? One table for scripts, `compare`, model card, report and tests."""

from dataclasses import dataclass
from typing import Any

from agritransfer.arguments import FinetuneArguments, LoraArguments, ScratchArguments


@dataclass(frozen=True)
class Strategy:
    """One way to train a classifier.

    `script` with `flags` trains it; `arguments` is the class of its own flags, `defaults` are its training arguments,
    `epoch_factor` multiplies the epochs that a pretrained network gets by default.
    `pretrained`: it starts from a base model; `trains_backbone`: it changes the weights or outputs of that model;
    `base_model_relation`: the Hub's name for the relation to the base model, None without one. `verdict`: what it
    means for the course's rule of thumb if this strategy is the one to use.
    """

    title: str
    script: str
    arguments: type
    defaults: dict[str, Any]
    verdict: str
    flags: tuple[str, ...] = ()
    epoch_factor: int = 1
    pretrained: bool = True
    trains_backbone: bool = True
    base_model_relation: str | None = "finetune"


# Cheapest first, so that a comparison shows its first result early. The names are those in `results.json`.
STRATEGIES = {
    "head": Strategy(
        title="feature extraction",
        script="train_finetune.py",
        arguments=FinetuneArguments,
        flags=("--train_layers", "head"),
        # A new head learns fast, pretrained weights slowly (course: 1e-3, and 1e-5 to 1e-4).
        defaults={"learning_rate": 5e-3},
        trains_backbone=False,
        verdict="Frozen features are sufficient here, as the rule predicts for a similar domain and task.",
    ),
    "scratch": Strategy(
        title="training from scratch",
        script="train_scratch.py",
        arguments=ScratchArguments,
        # Random weights need a high learning rate and more epochs.
        defaults={"learning_rate": 1e-3},
        epoch_factor=3,
        pretrained=False,
        base_model_relation=None,
        verdict="The rule does not predict this: the pretraining data has little in common with these photos.",
    ),
    "lora": Strategy(
        title="LoRA",
        script="train_lora.py",
        arguments=LoraArguments,
        # Adapters start at zero and need a much higher learning rate than the weights that they adapt.
        defaults={"learning_rate": 1e-3},
        base_model_relation="adapter",
        verdict="Frozen features are not sufficient here: the backbone must adapt, and adapters are enough for that.",
    ),
    "finetune": Strategy(
        title="fine-tuning",
        script="train_finetune.py",
        arguments=FinetuneArguments,
        defaults={"learning_rate": 1e-4},
        verdict="Frozen features are not sufficient here: the backbone must adapt.",
    ),
}
# Over all epochs, a pretrained network sees about this many photos, in no fewer and no more epochs than these.
PHOTOS_SEEN, FEWEST_EPOCHS, MOST_EPOCHS = 10_000, 5, 20


def default_epochs(strategy: str, photos: int | None) -> int:
    """The epochs for this number of train photos: few photos are shown more often. None is a stream, which has many."""
    wanted = PHOTOS_SEEN // photos if photos else FEWEST_EPOCHS
    return min(max(wanted, FEWEST_EPOCHS), MOST_EPOCHS) * STRATEGIES[strategy].epoch_factor


# Photos per step and process, and below how many train photos: few photos in large batches would be few steps.
BATCH_SIZES = {8: 500, 16: 3200}
LARGEST_BATCH = 32


def default_batch_size(photos: int | None) -> int:
    """The photos per step and process for this number of train photos; None is a stream, which has many."""
    return next((size for size, below in BATCH_SIZES.items() if photos and photos < below), LARGEST_BATCH)


# The scripts by their names in the command `agritransfer`: finetune, lora, scratch.
SCRIPTS = {
    strategy.script.removeprefix("train_").removesuffix(".py"): strategy.script for strategy in STRATEGIES.values()
}
