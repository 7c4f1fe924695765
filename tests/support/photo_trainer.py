"""A trainer of any network on the photos of a split."""

from pathlib import Path

from torch import nn
from transformers import TrainingArguments, ViTImageProcessor

from agritransfer.data.dataset import Splits
from agritransfer.images.augmentation import build_augmentation
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.images.preprocessing import describe_processor
from agritransfer.training.trainer import ImageTrainer

PROCESSOR = describe_processor(ViTImageProcessor(size={"height": 32, "width": 32}))


def trainer_of(model: nn.Module, splits: Splits, folder: Path, augmentation: str = "light", **changes) -> ImageTrainer:
    defaults = {"num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none"}
    defaults |= {"eval_strategy": "no", "save_strategy": "no", "logging_strategy": "epoch", "disable_tqdm": True}
    defaults |= {"use_cpu": True, "dataloader_pin_memory": False, "remove_unused_columns": False}
    args = TrainingArguments(output_dir=str(folder), label_names=["labels"], **defaults | changes)
    store = PixelStore("off", 0)
    return ImageTrainer(
        model=model,
        args=args,
        settings={},
        processor=PROCESSOR,
        train_dataset=splits.training_photos(PROCESSOR, augmentation, store),
        eval_dataset=splits.dataset("validation", PROCESSOR, store),
        augment=build_augmentation(augmentation, 32, 3),
        class_weights=None,
        early_stopping_patience=None,
    )


class Calls:
    """Counts the photos that go through the first layer of a module."""

    def __init__(self, module: nn.Module):
        self.photos = 0
        first = next(part for part in module.modules() if not list(part.children()))
        first.register_forward_hook(self.count)

    def count(self, _module, given, _output):
        self.photos += len(given[0])
