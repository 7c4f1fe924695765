"""How are the model, the photos and the flags combined into a training session?"""

from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from agritransfer.data.dataset import Splits
from agritransfer.evaluation.trainer_metric import check_selection, compute_metrics
from agritransfer.images.augmentation import build_augmentation
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.images.preprocessing import PhotoProcessor
from agritransfer.images.resize_modes import cut_off_line
from agritransfer.runtime.flag_checks import BY_PHOTOS
from agritransfer.runtime.process import say
from agritransfer.strategies import default_batch_size, default_epochs
from agritransfer.training.activation_cache import frozen_prefix
from agritransfer.training.learning_curve import say_whether_rising
from agritransfer.training.losses import class_weights
from agritransfer.training.resume import checkpoint_to_resume, run_settings
from agritransfer.training.run import Run
from agritransfer.training.trainer import ImageTrainer
from agritransfer.training.trainer_checks import check_checkpointing


def build_trainer(
    run: Run,
    model: PreTrainedModel,
    processor: PhotoProcessor,
    splits: Splits,
    store: PixelStore,
    base_model: dict[str, Any] | None,
    parameter_groups: list[dict] | None = None,
) -> ImageTrainer:
    """The Trainer for a run on these splits; their photos are decoded once into the store."""
    data_args = run.data_args
    check_selection(run.training_args, len(splits.labels))
    check_checkpointing(run.training_args, model)
    _fit_to_photos(run.training_args, run.strategy, None if splits.stream else len(splits.of("train")))
    train_photos = splits.training_photos(processor, data_args.augmentation, store)
    validation_photos = splits.dataset("validation", processor, store)
    say(store.line())
    if line := cut_off_line(processor, [inspection.size for inspection in splits.inspections]):
        say(line)
    return ImageTrainer(
        model=model,
        args=run.training_args,
        settings=run_settings(splits, base_model, *run.arguments),
        processor=processor,
        train_dataset=train_photos,
        eval_dataset=validation_photos,
        augment=build_augmentation(data_args.augmentation, processor.image_size, len(splits.labels)),
        class_weights=class_weights(data_args.class_weights, splits.label_counts("train")),
        early_stopping_patience=data_args.early_stopping_patience or None,
        max_minutes=data_args.max_minutes,
        parameter_groups=parameter_groups,
        compute_metrics=compute_metrics,
    )


def _fit_to_photos(args: TrainingArguments, strategy: str, photos: int | None) -> None:
    """Set the epochs and the batch size that the number of train photos decides; None is a stream, which has many."""
    if args.num_train_epochs == BY_PHOTOS:
        args.num_train_epochs = default_epochs(strategy, photos)
    if args.per_device_train_batch_size == BY_PHOTOS:
        args.per_device_train_batch_size = default_batch_size(photos)


def train(run: Run, trainer: ImageTrainer, splits: Splits, store: PixelStore) -> None:
    """Train, resuming from the last complete checkpoint if any; with `--cached_views` frozen layers run only once."""
    args, views, augmentation = trainer.args, run.data_args.cached_views, run.data_args.augmentation
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"at most {args.num_train_epochs:g} epochs"
    say(f"training: {length}, {args.per_device_train_batch_size} photos per step and process")
    with frozen_prefix(trainer, splits, views, augmentation, store.limit):
        trainer.train(resume_from_checkpoint=checkpoint_to_resume(args, trainer.settings))
    say_whether_rising(trainer.state.log_history, trainer.state.num_train_epochs)
