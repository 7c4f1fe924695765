"""Which strategies are there? One table; scripts, `compare`, card, report and tests ask it."""

from dataclasses import dataclass
from typing import Any

from agritransfer.arguments import FinetuneArguments, LoraArguments, ScratchArguments


@dataclass(frozen=True)
class Strategy:
    """One way to train a classifier.

    `script` with `flags` trains it; `arguments` are its own flags. `defaults` are the training arguments that suit it.
    `pretrained`: it starts from a base model; `trains_backbone`: that model's own weights or outputs change;
    `base_model_relation`: what the Hub calls its relation to the base model, None without one. `verdict` is what the
    course's rule of thumb makes of its being the one to use.
    """

    title: str
    script: str
    arguments: type
    defaults: dict[str, Any]
    verdict: str
    flags: tuple[str, ...] = ()
    pretrained: bool = True
    trains_backbone: bool = True
    base_model_relation: str | None = "finetune"


# Cheapest first, so that a comparison has a first answer early. The names are those in `results.json`.
STRATEGIES = {
    "head": Strategy(
        title="feature extraction",
        script="train_finetune.py",
        arguments=FinetuneArguments,
        flags=("--train_layers", "head"),
        # A new head learns fast, pretrained weights slowly (course: 1e-3, and 1e-5 to 1e-4).
        defaults={"learning_rate": 5e-3, "num_train_epochs": 10},
        trains_backbone=False,
        verdict="Here the frozen features suffice, as they do where source and target are similar.",
    ),
    "scratch": Strategy(
        title="training from scratch",
        script="train_scratch.py",
        arguments=ScratchArguments,
        # Random weights have everything to learn: a high rate and more epochs.
        defaults={"learning_rate": 1e-3, "num_train_epochs": 30},
        pretrained=False,
        base_model_relation=None,
        verdict="It does not foresee this: the backbone's source has little to do with these photos.",
    ),
    "lora": Strategy(
        title="LoRA",
        script="train_lora.py",
        arguments=LoraArguments,
        # Adapters start at zero and need a far higher rate than the weights that they adapt.
        defaults={"learning_rate": 2e-3, "num_train_epochs": 10},
        base_model_relation="adapter",
        verdict="Here frozen features fall short, so the backbone must adapt, and adapters are enough for it.",
    ),
    "finetune": Strategy(
        title="fine-tuning",
        script="train_finetune.py",
        arguments=FinetuneArguments,
        defaults={"learning_rate": 1e-4, "num_train_epochs": 10},
        verdict="Here frozen features fall short, so the backbone must adapt.",
    ),
}
# What the command `agritransfer` calls the scripts: finetune, lora, scratch.
SCRIPTS = {
    strategy.script.removeprefix("train_").removesuffix(".py"): strategy.script for strategy in STRATEGIES.values()
}
