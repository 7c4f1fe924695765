"""How many forward passes does an epoch of training cost, with LoRA and with fine-tuning?

    python -m benchmarks.epoch_costs
    python -m benchmarks.epoch_costs --dataset cardamom_lab --models efficientnet-lite0 dinov2-small-saliency

`agritransfer train` plans its epochs with these factors (`agritransfer/cli/time_plan.py`), from the time of a forward
pass. One photo is trained on with light augmentation in batches of 32, and scored in batches of 64, as by the scripts;
the second pass counts. Seconds of the processor, so that other work on the machine does not count.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from agritransfer.cli.time_plan import FORWARD_PASSES
from agritransfer.data.dataset import Splits, load_splits
from agritransfer.evaluation.inference import predict
from agritransfer.images.augmentation import build_augmentation
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.images.preprocessing import PhotoProcessor
from agritransfer.models.loading import load_pretrained, load_processor
from agritransfer.models.lora import add_lora
from agritransfer.training.trainer import ImageTrainer

LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": None, "use_dora": False, "use_rslora": False}
STORE = PixelStore("auto", 16)


def main() -> None:
    """Print the factor of each strategy for each model, beside the one that is planned with."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--dataset", default="sample/leaves")
    flags.add_argument("--models", nargs="+", default=["sample/vit"])
    flags.add_argument("--image_size", type=int, default=112)
    flags.add_argument("--photos", type=int, default=96)
    flags.add_argument("--turns", type=int, default=3)
    args = flags.parse_args()
    torch.set_num_threads(1)
    splits = load_splits(args.dataset, max_train_samples=args.photos)
    photos = len(splits.of("train"))
    print(f"{photos} train photos at {args.image_size} px, median of {args.turns}; ms of one core per photo")
    for name in args.models:
        processor = load_processor(name, None, args.image_size)
        scoring, training = [], {strategy: [] for strategy in FORWARD_PASSES}
        for _ in range(args.turns):
            scoring.append(forward_seconds(network(name, splits, processor, "finetune"), splits, processor) / photos)
            for strategy, seconds in training.items():
                seconds.append(epoch_seconds(network(name, splits, processor, strategy), splits, processor) / photos)
        once = statistics.median(scoring)
        for strategy, seconds in training.items():
            cost = statistics.median(seconds)
            print(
                f"{name}, {strategy}: scored in {1000 * once:.1f}, trained in {1000 * cost:.1f}, "
                f"{cost / once:.2f} forward passes (planned with {FORWARD_PASSES[strategy]})",
                flush=True,
            )


def network(name: str, splits: Splits, processor: PhotoProcessor, strategy: str) -> PreTrainedModel:
    """The pretrained model, with adapters for LoRA."""
    model = load_pretrained(name, None, splits.labels, processor.image_size)
    return add_lora(model, image_size=processor.image_size, **LORA) if strategy == "lora" else model


def forward_seconds(model: PreTrainedModel, splits: Splits, processor: PhotoProcessor) -> float:
    """The seconds of scoring the train photos once."""
    dataset = splits.dataset("train", processor, STORE)
    predict(model, dataset, 64)
    began = time.process_time()
    predict(model, dataset, 64)
    return time.process_time() - began


def epoch_seconds(model: PreTrainedModel, splits: Splits, processor: PhotoProcessor) -> float:
    """The seconds of the second epoch on the train photos, without validation."""
    watch = LastEpoch()
    trainer = ImageTrainer(
        model=model,
        args=arguments(),
        settings={},
        processor=processor,
        train_dataset=splits.training_photos(processor, "light", STORE),
        eval_dataset=splits.dataset("validation", processor, STORE),
        augment=build_augmentation("light", processor.image_size, len(splits.labels)),
        class_weights=None,
        early_stopping_patience=None,
        callbacks=[watch],
    )
    trainer.train()
    return watch.seconds


def arguments() -> TrainingArguments:
    """Two epochs without validation and checkpoints."""
    without: dict[str, Any] = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none"}
    return TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=2,
        per_device_train_batch_size=32,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        label_names=["labels"],
        **without,
    )


class LastEpoch(TrainerCallback):
    """Seconds of the processor in the last epoch."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Start the clock again."""
        self.began = time.process_time()

    def on_epoch_end(self, args, state, control, **kwargs):
        """Stop the clock."""
        self.seconds = time.process_time() - self.began


if __name__ == "__main__":
    main()
