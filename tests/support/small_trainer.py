"""A trainer of a small network on photos of noise."""

from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from agritransfer.images.augmentation import build_augmentation
from agritransfer.images.preprocessing import describe_processor
from agritransfer.training.trainer import ImageTrainer

PROCESSOR = describe_processor(
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.2, 0.4, 0.6], image_std=[0.3, 0.2, 0.1])
)


def vit(seed: int = 0, **changes) -> ViTForImageClassification:
    torch.manual_seed(seed)
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**tiny | changes, image_size=32, patch_size=8, num_labels=3))


def photos() -> list[dict]:
    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = (0, 1, 2, 0, 1, 0, 0, 2)
    return [
        {"pixel_values": photo, "labels": label, "files": f"{place}.jpg"}
        for place, (photo, label) in enumerate(zip(pixels, labels, strict=True))
    ]


def arguments(folder: Path, **changes) -> TrainingArguments:
    defaults = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": "none"}
    defaults |= {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}
    defaults |= {"metric_for_best_model": "macro_f1", "disable_tqdm": True, "use_cpu": True}
    # As `parse_args` sets them.
    defaults |= {"dataloader_pin_memory": False, "remove_unused_columns": False, "label_names": ["labels"]}
    defaults |= {"logging_nan_inf_filter": False, "restore_callback_states_from_checkpoint": True}
    return TrainingArguments(output_dir=str(folder), **defaults | changes)


def trainer_of(model: nn.Module, args: TrainingArguments, **changes) -> ImageTrainer:
    defaults = {"processor": PROCESSOR, "train_dataset": photos(), "eval_dataset": photos(), "class_weights": None}
    defaults |= {"augment": build_augmentation("none", 32, 3), "early_stopping_patience": None, "settings": {}}
    defaults |= {"compute_metrics": scores_in_turn(0.1, 0.2, 0.3, 0.4, 0.5)}
    return ImageTrainer(model=model, args=args, **defaults | changes)


class StopAt(TrainerCallback):
    """Ends training once the checkpoint of a step is written; as after a signal, the checkpoint knows of no end."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_save or state.global_step == self.step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def scores_in_turn(*values: float):
    """A metric that says the next of these values at every evaluation."""
    remaining = iter(values)
    return lambda _prediction: {"macro_f1": (value := next(remaining)), "accuracy": value}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}
