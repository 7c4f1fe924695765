"""The peer of the training scripts: the image classification recipe of the Hugging Face documentation.

    python -m benchmarks.peers.recipe --data_dir FOLDER --model_name_or_path MODEL --output_dir RUN

It uses imagefolder, set_transform with torchvision (random resized crop, flip, normalize) or timm's own transforms for
a timm model, the Trainer and accuracy. FOLDER contains train/ validation/ test/. The defaults are the learning rate,
epochs and batches of the guide (5e-5, 3, 16, four batches per step); the other flags are the Trainer's. A user of the
recipe would add `--train_layers` and `--image_size` to the code. `evaluate.load("accuracy")` queries the Hub in each
run, so accuracy is computed here. The scores with their times, and the answer for each test photo and each photo of
`--field_dir`, are written to RUN/scores.json.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict, Image, load_dataset
from torch.utils.data import DataLoader
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    HfArgumentParser,
    TimmWrapperImageProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

GUIDE = {
    "learning_rate": "5e-5",
    "num_train_epochs": "3",
    "per_device_train_batch_size": "16",
    "gradient_accumulation_steps": "4",
    "per_device_eval_batch_size": "16",
    "warmup_steps": "0.1",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": "1",
    "load_best_model_at_end": "True",
    "metric_for_best_model": "accuracy",
    "remove_unused_columns": "False",
    "report_to": "none",
}


@dataclass
class RecipeArguments:
    """The values that the guide has in its code."""

    data_dir: str
    model_name_or_path: str
    train_layers: str = "all"
    image_size: int | None = None
    field_dir: str | None = None


def load_photos(folder: Path) -> DatasetDict:
    """The splits of a folder, as imagefolder reads them; splits are given explicitly."""
    files = {split.name: f"{split.absolute()}/**" for split in sorted(folder.iterdir()) if split.is_dir()}
    return load_dataset("imagefolder", data_files=files, drop_labels=False)


def transforms_of(processor: BaseImageProcessor, image_size: int | None) -> tuple[Compose, Compose]:
    """The transforms of training and of evaluation."""
    if isinstance(processor, TimmWrapperImageProcessor):
        if image_size is not None:
            config = processor.data_config | {"input_size": (3, image_size, image_size)}
            processor = TimmWrapperImageProcessor(config, architecture=processor.architecture)
        return processor.train_transforms, processor.val_transforms
    side = image_size or processor.size.get("shortest_edge") or processor.size["height"]
    mean, std = processor.image_mean, processor.image_std
    evaluation = Compose([Resize(side), CenterCrop(side), ToTensor(), Normalize(mean, std)])
    return training_transforms(side, mean, std), evaluation


def training_transforms(side: int, mean: list[float], std: list[float], crop: bool = False) -> Compose:
    """Random resized crop and flip; with `crop`, a crop without resizing from a photo made a seventh larger."""
    crops = [Resize(round(side * 8 / 7)), RandomCrop(side)] if crop else [RandomResizedCrop(side)]
    return Compose([*crops, RandomHorizontalFlip(), ToTensor(), Normalize(mean, std)])


def applied(transform: Compose) -> Callable[[dict], dict]:
    """A transform of one photo, for `set_transform`."""

    def of_a_batch(batch: dict) -> dict:
        batch["pixel_values"] = [transform(image.convert("RGB")) for image in batch["image"]]
        del batch["image"]
        return batch

    return of_a_batch


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Stack pixels and labels."""
    pixels = torch.stack([item["pixel_values"] for item in items])
    return {"pixel_values": pixels, "labels": torch.tensor([item["label"] for item in items])}


def accuracy(predictions: tuple) -> dict[str, float]:
    """The share of correct predictions."""
    logits, labels = predictions
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def batches(
    folder: Path, side: int, batch_size: int, workers: int, mean: list[float], std: list[float], crop: bool = False
) -> DataLoader:
    """The loader that its Trainer makes: normalized float32 pixels; each iteration is one epoch."""
    photos = load_photos(folder)["train"]
    photos.set_transform(applied(training_transforms(side, mean, std, crop)))
    args = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=batch_size,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(torch.nn.Linear(1, 1), args, data_collator=collate, train_dataset=photos)
    return trainer.get_train_dataloader()


def answers(trainer: Trainer, photos: Dataset, folder: Path) -> dict[str, str]:
    """The predicted label of each photo, by its file in the folder."""
    labels = trainer.model.config.id2label
    found = trainer.predict(photos).predictions.argmax(-1)
    files = photos.with_format(None).cast_column("image", Image(decode=False))["image"]
    names = (Path(file["path"]).relative_to(folder.absolute()).as_posix() for file in files)
    return {name: labels[int(label)] for name, label in zip(names, found, strict=True)}


class Clock(TrainerCallback):
    """Records when each validation score was known, in seconds since `started` (of `time.time`)."""

    def __init__(self, started: float):
        self.started, self.scores = started, []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Record the score with its time."""
        seconds = time.time() - self.started
        self.scores.append({"epoch": state.epoch, "seconds": seconds, "accuracy": metrics["eval_accuracy"]})


def main() -> None:
    """Train, keep the best weights and score the test photos."""
    started = time.time()
    parser = HfArgumentParser((RecipeArguments, TrainingArguments))
    parser.set_defaults(**GUIDE)
    ours, args = parser.parse_args_into_dataclasses()
    set_seed(args.seed)

    photos = load_photos(Path(ours.data_dir))
    labels = photos["train"].features["label"].names
    processor = AutoImageProcessor.from_pretrained(ours.model_name_or_path)
    training, evaluation = transforms_of(processor, ours.image_size)
    for split, transform in (("train", training), ("validation", evaluation), ("test", evaluation)):
        photos[split].set_transform(applied(transform))
    model = AutoModelForImageClassification.from_pretrained(
        ours.model_name_or_path,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
    )
    if ours.train_layers != "all":
        # Our function, so that exactly the same weights are trained; a user of the recipe would loop over names.
        from agritransfer.models.freezing import train_layers

        train_layers(model, ours.train_layers)
    clock = Clock(started)
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=collate,
        train_dataset=photos["train"],
        eval_dataset=photos["validation"],
        compute_metrics=accuracy,
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model()
    test = trainer.predict(photos["test"]).metrics["test_accuracy"]
    scores = {"validation": clock.scores, "test": test, "seconds": time.time() - started}
    scores["answers"] = {"test": answers(trainer, photos["test"], Path(ours.data_dir))}
    if ours.field_dir is not None:
        files = {"field": f"{Path(ours.field_dir).absolute()}/**"}
        field = load_dataset("imagefolder", data_files=files, drop_labels=False)["field"]
        field.set_transform(applied(evaluation))
        scores["answers"]["shift"] = answers(trainer, field, Path(ours.field_dir))
    (Path(args.output_dir) / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
