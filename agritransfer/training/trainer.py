"""How is the Trainer of transformers extended?"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import rotate_checkpoints

from agritransfer.data.streaming import StreamedPhotos, collate_stream
from agritransfer.errors import DivergedError, StorageError, UsageError
from agritransfer.images.photo_dataset import PhotoDataset, collate
from agritransfer.images.pixel_cache import StoredPixels
from agritransfer.images.preprocessing import PhotoProcessor
from agritransfer.models.freezing import batchnorm_of_single_values
from agritransfer.models.layer_decay import decaying_parameters
from agritransfer.models.structure import count_parameters
from agritransfer.runtime.process import say
from agritransfer.runtime.profiling import Times
from agritransfer.training.callbacks import MovementCheck, PassOver, ProgressLines, SaveBest, SeededSteps, TimeForecast
from agritransfer.training.checkpoints import MANIFEST, TRAINER_STATE, fault_of, follow_umask, write_manifest
from agritransfer.training.losses import classification_loss
from agritransfer.training.preemption import SafeStop, ignore_signals
from agritransfer.training.time_limit import TimeLimit
from agritransfer.wording import counted

SETTINGS = "settings.json"


class ImageTrainer(Trainer):
    """Trainer with batch augmentation, complete checkpoints and strict loading of them.

    Public methods are overridden where they suffice: batches arrive as uint8 and are augmented and normalized on the
    device, a stream is split among the processes before accelerate sees it, and each stage is timed. Four private
    methods have no public counterpart: checkpoints lie in a folder of their own, one is valid only once its manifest
    is written, and older ones are deleted only after that; and checkpoints are loaded through `from_pretrained`, since
    the stock Trainer skips the weights that transformers renames on saving (ViT, DINOv2, Swin, BEiT), so that its
    "best" model mixes the weights of two steps.

    `settings` is saved in every checkpoint and compared with the settings of the run that resumes from it.
    """

    def __init__(
        self,
        *,
        processor: PhotoProcessor,
        augment: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]],
        class_weights: torch.Tensor | None,
        early_stopping_patience: int | None,
        settings: dict[str, Any],
        args: TrainingArguments,
        train_dataset: Dataset,
        max_minutes: float | None = None,
        parameter_groups: list[dict] | None = None,
        **kwargs: Any,
    ):
        if parameter_groups is not None:
            optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args)
            kwargs["optimizer_cls_and_kwargs"] = (optimizer, options | {"params": parameter_groups})
        if isinstance(train_dataset, PhotoDataset) and train_dataset.stored is not None:
            _load_without_workers(args, train_dataset.stored)
        _check_workers(args)
        stream = train_dataset if isinstance(train_dataset, StreamedPhotos) else None
        if stream is not None:
            say(stream.share_out(args))
        super().__init__(
            args=args,
            train_dataset=train_dataset,
            data_collator=collate,
            compute_loss_func=classification_loss(class_weights, args.label_smoothing_factor),
            **kwargs,
        )
        self.augment, self.settings, self.times = augment, settings, Times()
        self.processor, self.class_weights, self.stream = processor, class_weights, stream
        # Hidden from the Trainer, which would delete an old checkpoint before the new one is complete.
        self.checkpoints_kept, args.save_total_limit = args.save_total_limit, None
        # Counted now, since merging the adapters consumes the model.
        self.trainable_parameters = count_parameters(self.model)[1]
        self.mean, self.std = (statistic.to(args.device) for statistic in processor.normalization)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(ProgressLines())
        trained = len(self.train_dataset) * (args.world_size if stream else 1)
        self.add_callback(TimeForecast(len(self.eval_dataset) / trained))
        if early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience))
        if max_minutes is not None:
            self.add_callback(TimeLimit(max_minutes, len(self.eval_dataset) / trained))
        self.add_callback(MovementCheck())
        if args.load_best_model_at_end:
            self.add_callback(SaveBest())
        self.add_callback(SeededSteps())
        if stream is not None:
            self.add_callback(PassOver())
        self.safe_stop = SafeStop(stream is not None and stream.stream.on_broken == "skip")

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, self.model_inputs(inputs, augmented=self.model.training), *args, **kwargs)

    def model_inputs(self, batch: dict[str, Any], augmented: bool) -> dict[str, torch.Tensor]:
        """The model's input for a batch, on the device: normalized pixels (batch, 3, side, side) and labels.

        A batch of cached activations is passed on unchanged: pixels are uint8, activations are not.
        """
        batch = send_to_device(batch, self.args.device)
        pixels, labels = batch["pixel_values"], batch["labels"]
        if pixels.is_floating_point():
            return {"pixel_values": pixels.float(), "labels": labels}
        with self.times.spent("augmentation"):
            pixels, labels = self.augment(batch) if augmented else (pixels.float(), labels)
        # In place: allocating a batch of floats costs more than the arithmetic.
        return {"pixel_values": pixels.sub_(self.mean).div_(self.std), "labels": labels}

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decaying_parameters(model)

    def get_batch_samples(self, *args: Any) -> Any:
        with self.times.spent("waiting for photos"):
            try:
                return super().get_batch_samples(*args)
            except (ConnectionError, EOFError) as error:
                # The kernel closes the files of a killed worker before it notifies torch, which otherwise reports this.
                raise RuntimeError(
                    "a loader worker was killed by signal; run the same command again to resume"
                ) from error

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        with self.times.spent("forward and backward"):
            loss = super().training_step(model, inputs, *args)
            self.safe_stop.watch(loss, inputs["files"], inputs.get("faults", ()))
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.times.spent("validation"):
            metrics = super().evaluate(*args, **kwargs)
        if self.is_in_train and self.state.global_step == 0 and self.args.load_best_model_at_end:
            self._keep_start(metrics)
        return metrics

    def _keep_start(self, metrics: dict[str, float]) -> None:
        """Save the weights that training starts from, which the Trainer scores but would not keep if they are best."""
        score = metrics[f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"]
        # With the same score, trained weights are kept: they have seen augmented photos.
        self.state.best_metric = float(np.nextafter(score, -np.inf if self.args.greater_is_better else np.inf))
        self.state.best_global_step = 0
        self.state.best_model_checkpoint = os.path.join(self._get_output_dir(None), "checkpoint-0")
        self._save_checkpoint(self.model, None)

    @property
    def kept_step(self) -> int:
        """The step whose weights are kept; 0 is the start."""
        best = self.state.best_global_step
        return self.state.global_step if best is None else best

    def train(self, resume_from_checkpoint: str | None = None) -> Any:
        if resume_from_checkpoint is not None and has_ended(Path(resume_from_checkpoint)):
            return self._take_up(resume_from_checkpoint)
        self._refuse_too_few_photos()
        # The last callback, so that a checkpoint is uploaded before `SafeStop` ends the run.
        self.add_callback(self.safe_stop)
        try:
            with self.times.spent("optimizer and the rest"):
                output = super().train(resume_from_checkpoint)
        finally:
            self.remove_callback(self.safe_stop)
        if not (self.args.load_best_model_at_end and self.state.best_model_checkpoint):
            # The weights are those of the last step, so no other step may be named the best.
            self.state.best_global_step = None
        return output

    def _take_up(self, checkpoint: str) -> None:
        """Take the log and the weights of a run whose training had ended; the Trainer would train on after a stop."""
        say("training had ended; nothing is trained again")
        with self.times.spent("reading the weights"):
            self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE))
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
                self._load_best_model()
            else:
                self._load_from_checkpoint(checkpoint)
                self.state.best_global_step = None

    def _refuse_too_few_photos(self) -> None:
        """Raise `UsageError` if dropping the last batch of an epoch would drop every photo."""
        # A stream is already split among the processes.
        processes, photos = 1 if self.stream else self.args.world_size, len(self.train_dataset)
        needed = self.args.train_batch_size * processes
        if self.args.dataloader_drop_last and photos < needed:
            several = f" x {processes} processes" if processes > 1 else ""
            raise UsageError(
                f"--dataloader_drop_last would drop all {counted(photos, 'training photo')}, which do not fill a batch "
                f"of {self.args.train_batch_size}{several}; remove it or lower --per_device_train_batch_size"
            )

    def get_train_dataloader(self) -> DataLoader:
        with self._no_batch_of_one():
            return self._train_loader()

    @contextmanager
    def _no_batch_of_one(self) -> Iterator[None]:
        """Inside, a loader drops a last batch of one photo if BatchNorm cannot normalize it."""
        dropped, photos, batch = self.args.dataloader_drop_last, len(self.train_dataset), self._train_batch_size
        # accelerate fills the last batches of several processes up; a stream is split before that.
        ends_with_one = photos % batch == 1 and (self.stream is not None or self.args.world_size == 1)
        if batch == 1 or (ends_with_one and not dropped):
            pixels = self.model_inputs(collate([self.eval_dataset[0]]), augmented=False)["pixel_values"]
            layer = batchnorm_of_single_values(self.model, pixels)
            if layer is not None and 1 in (batch, photos):
                raise UsageError(
                    f"BatchNorm ({layer}) cannot normalize a batch of one photo; use a --per_device_train_batch_size "
                    "of 2 or more, at least 2 train photos, or a larger --image_size"
                )
            if layer is not None:
                say(
                    f"1 of {photos:,} train photos is left out of each epoch, not always the same one: BatchNorm "
                    f"({layer}) cannot normalize a last batch of one photo"
                )
                self.args.dataloader_drop_last = True
        try:
            yield
        finally:
            self.args.dataloader_drop_last = dropped

    def _train_loader(self) -> DataLoader:
        if self.stream is None:
            return _ignoring_signals(super().get_train_dataloader())
        loader = DataLoader(
            self.stream,
            batch_size=self._train_batch_size,
            collate_fn=collate_stream,
            # One reader per process: several would each shuffle their own share and end with a partial batch.
            num_workers=min(1, self.args.dataloader_num_workers),
            pin_memory=self.args.dataloader_pin_memory,
            drop_last=self.args.dataloader_drop_last,
            worker_init_fn=ignore_signals,
        )
        # As for one process: the stream is already split, and accelerate would let the first process read all of it.
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, put_on_device=True, dispatch_batches=False
        )

    def get_eval_dataloader(self, *args: Any) -> DataLoader:
        # Dropping is for training: validation scores every photo.
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return _ignoring_signals(super().get_eval_dataloader(*args))
        finally:
            self.args.dataloader_drop_last = drops

    def num_examples(self, dataloader: DataLoader) -> int:
        mine = super().num_examples(dataloader)
        return mine * self.args.world_size if dataloader.dataset is self.stream else mine

    def _get_output_dir(self, trial: Any) -> str:
        return os.path.join(self.args.output_dir, "checkpoints")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.times.spent("checkpoints"):
            self._save_whole_checkpoint(model, trial)

    def _save_whole_checkpoint(self, model: nn.Module, trial: Any) -> None:
        parent = Path(self._get_output_dir(trial))
        checkpoint = parent / f"checkpoint-{self.state.global_step}"
        if (checkpoint / MANIFEST).exists():
            # Already saved at this step; while it was being overwritten, there would be no complete checkpoint.
            return
        _check_finite(self.model, self.state.global_step)
        with _whole_or_gone(checkpoint):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with _whole_or_gone(checkpoint):
                # A pickle of all arguments, which nothing reads.
                (checkpoint / "training_args.bin").unlink()
                (checkpoint / SETTINGS).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
                follow_umask(checkpoint)
                write_manifest(checkpoint)
            rotate_checkpoints(str(parent), self.checkpoints_kept, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, PreTrainedModel):
            load_strictly(self.model, resume_from_checkpoint)
        else:
            # The names of adapter weights are the same on disk, so the stock loading is exact.
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if (fault := fault_of(Path(best))) is not None:
            raise StorageError(f"the best weights are lost: {best} {fault}; run the same command again to resume")
        self._load_from_checkpoint(best)
        self.state.best_global_step = int(Path(best).name.removeprefix("checkpoint-"))


def _ignoring_signals(loader: DataLoader) -> DataLoader:
    """Let the workers of a loader ignore signals; the Trainer's seeding is replaced, as our workers draw nothing."""
    loader.base_dataloader.worker_init_fn = ignore_signals
    return loader


def _load_without_workers(args: TrainingArguments, stored: StoredPixels) -> None:
    # Fetching is one copy in memory, which is cheaper than passing data between processes.
    args.dataloader_num_workers = 0
    if args.device.type == "cuda" and stored.move_to_gpu(args.device):
        args.dataloader_pin_memory = False


def _check_workers(args: TrainingArguments) -> None:
    """Reset the flags that torch refuses without loader workers; raise `UsageError` for values that it never takes."""
    if args.dataloader_num_workers == 0:
        args.dataloader_persistent_workers = False
        args.dataloader_prefetch_factor = args.dataloader_multiprocessing_context = None
    known = torch.multiprocessing.get_all_start_methods()
    if args.dataloader_num_workers < 0:
        raise UsageError(f"--dataloader_num_workers {args.dataloader_num_workers} is negative; use 0 or more")
    if args.dataloader_prefetch_factor is not None and args.dataloader_prefetch_factor < 1:
        raise UsageError(f"--dataloader_prefetch_factor {args.dataloader_prefetch_factor} is too small; use 1 or more")
    if args.dataloader_multiprocessing_context not in (None, *known):
        unknown = args.dataloader_multiprocessing_context
        raise UsageError(f"--dataloader_multiprocessing_context {unknown} is unknown; use {', '.join(known)}")


def has_ended(checkpoint: Path) -> bool:
    """Whether training was over at this checkpoint: all steps done, stopped early, or out of time."""
    state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    return state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]


def load_strictly(model: PreTrainedModel, checkpoint: str) -> None:
    """Load every weight of a saved model or raise `RuntimeError`; `from_pretrained` translates renamed weights."""
    saved, report = type(model).from_pretrained(
        checkpoint, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    # `from_pretrained` would initialize these at random, with a warning.
    if missing := sorted(report["missing_keys"]):
        raise RuntimeError(f"the checkpoint '{checkpoint}' lacks the weights {', '.join(missing[:5])}")
    model.load_state_dict(saved.state_dict(), strict=True)


@contextmanager
def _whole_or_gone(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise StorageError(
            f"{checkpoint} could not be written ({str(error).splitlines()[0]}) and was deleted; earlier checkpoints "
            "are intact: free some disk space and run the same command again to resume"
        ) from error


def _check_finite(model: nn.Module, step: int) -> None:
    """Keep NaN weights out of the checkpoints: the next rotation would delete the last good checkpoint."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise DivergedError(f"{name} has NaN or infinite weights after step {step}; lower --learning_rate")
