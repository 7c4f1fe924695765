"""How does the Trainer run it?"""

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import transformers
from accelerate import PartialState
from torch import nn
from tqdm import tqdm
from transformers import (
    BaseImageProcessor,
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from agritransfer.arguments import available_cores
from agritransfer.errors import DivergedError
from agritransfer.pixels import collate, normalization
from agritransfer.strategies import count_parameters


def prepare_process(args: TrainingArguments) -> None:
    """Seed this process and give it its share of the cores."""
    # accelerate pins one thread for every process when the configuration says that there may be a GPU.
    torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    transformers.set_seed(args.seed)


def say(*lines: str) -> None:
    """Print once, whatever the number of processes."""
    if PartialState().is_main_process:
        print(*lines, sep="\n", flush=True)


class ImageTrainer(Trainer):
    """Trainer with batch augmentation and strict checkpoint loading.

    It inherits because the Trainer offers no other door to these: batches arrive as uint8 and are augmented and
    normalised on the device, and checkpoints are loaded through `from_pretrained`: the stock Trainer skips the weights
    that transformers renames on saving (ViT, DINOv2, Swin, BEiT), so that its "best" model is a mixture of two steps.
    """

    def __init__(
        self,
        *,
        processor: BaseImageProcessor,
        augment: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        class_weights: torch.Tensor | None,
        early_stopping_patience: int | None,
        args: TrainingArguments,
        parameter_groups: list[dict] | None = None,
        **kwargs: Any,
    ):
        if parameter_groups is not None:
            optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args)
            kwargs["optimizer_cls_and_kwargs"] = (optimizer, options | {"params": parameter_groups})
        super().__init__(
            args=args,
            data_collator=collate,
            compute_loss_func=classification_loss(class_weights, args.label_smoothing_factor),
            **kwargs,
        )
        self.augment = augment
        # Counted now, since merging adapters uses the model up.
        self.trainable_parameters = count_parameters(self.model)[1]
        self.mean, self.std = (statistic.to(args.device) for statistic in normalization(processor))
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(ProgressLines())
        self.add_callback(TimeForecast(len(self.eval_dataset) / len(self.train_dataset)))
        if early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        pixels, labels = inputs["pixel_values"], inputs["labels"]
        pixels, labels = self.augment(pixels, labels) if self.model.training else (pixels.float(), labels)
        return {"pixel_values": (pixels - self.mean) / self.std, "labels": labels}

    def _get_output_dir(self, trial: Any) -> str:
        return os.path.join(self.args.output_dir, "checkpoints")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, PreTrainedModel):
            load_strictly(self.model, resume_from_checkpoint)
        else:
            # An adapter's names are the same on disk; the stock loading is exact.
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if isinstance(self.model, PreTrainedModel):
            load_strictly(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()


def load_strictly(model: PreTrainedModel, checkpoint: str) -> None:
    """Load every weight of a saved model, or raise `RuntimeError`; names are translated by `from_pretrained`."""
    saved, report = type(model).from_pretrained(
        checkpoint, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    # `from_pretrained` would draw these anew, with a warning.
    if lost := sorted(report["missing_keys"]):
        raise RuntimeError(f"the checkpoint '{checkpoint}' lacks {len(lost)} weights, such as {lost[0]}")
    model.load_state_dict(saved.state_dict(), strict=True)


def classification_loss(class_weights: torch.Tensor | None, label_smoothing: float) -> Callable[..., torch.Tensor]:
    """Cross-entropy for whole labels or the shares of mixed photos, summed over all that one optimizer step sees.

    The labels stay out of the model's own forward, which would take shares for a multi-label task and say so in
    its saved configuration.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        logits = outputs["logits"].float()
        weights = None if class_weights is None else class_weights.to(logits.device)
        total = nn.functional.cross_entropy(
            logits, labels, weight=weights, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def class_weights(kind: Literal["none", "balanced"], labels: Sequence[int], num_labels: int) -> torch.Tensor | None:
    """`balanced`: weights of shape (num_labels,), inverse to how often a class occurs, 1 on average over the photos."""
    if kind == "none":
        return None
    counts = torch.bincount(torch.tensor(labels), minlength=num_labels)
    return len(labels) / (num_labels * counts.float())


class ProgressLines(ProgressCallback):
    """The Trainer's progress bar, with one readable line an epoch in place of its dictionaries.

    It inherits the bar; it also stops a run whose loss is no longer a number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss = math.nan

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, desc="training", unit="step", dynamic_ncols=True, disable=args.disable_tqdm
            )
        self.current_step = 0

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = logs.get("loss", self.loss)
        # The summary at the end stands for the steps since the last line.
        latest = logs.get("loss", logs.get("train_loss", 0.0))
        if not math.isfinite(latest):
            raise DivergedError(f"the loss became {latest} by step {state.global_step}; lower --learning_rate")
        if "eval_macro_f1" in logs and state.is_world_process_zero:
            tqdm.write(
                f"epoch {state.epoch:g}/{state.num_train_epochs}  loss {self.loss:.3f}  validation: "
                f"macro F1 {logs['eval_macro_f1']:.3f}, accuracy {logs['eval_accuracy']:.3f}"
            )


class TimeForecast(TrainerCallback):
    """Says after the first steps how long the run will take."""

    FIRST, LAST = 2, 6

    def __init__(self, evaluated_per_trained: float):
        # A photo that is only scored costs about a third of one that is trained on (forward, no backward).
        self.overhead = 1 + evaluated_per_trained / 3
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        if self.steps == self.FIRST:
            self.started = time.perf_counter()
        if self.steps == self.LAST and state.is_world_process_zero:
            a_step = (time.perf_counter() - self.started) / (self.LAST - self.FIRST)
            left = a_step * (state.max_steps - state.global_step) * self.overhead
            tqdm.write(f"forecast: about {_duration(left)} left ({a_step:.2f} s a step, {state.max_steps} steps)")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
