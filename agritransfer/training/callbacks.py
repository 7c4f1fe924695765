"""Which callbacks run during training?"""

import math
import time

import numpy as np
import torch
import transformers
from torch import nn
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainingArguments

from agritransfer.errors import UsageError
from agritransfer.models.structure import find_blocks, find_head
from agritransfer.runtime.profiling import duration
from agritransfer.wording import counted


class SeededSteps(TrainerCallback):
    """Seeds every step by its number, so that interruptions change neither augmentation nor dropout."""

    def on_step_begin(self, args, state, control, **kwargs):
        place = np.random.SeedSequence([args.seed, state.global_step, args.process_index])
        transformers.set_seed(int(place.generate_state(1)[0]))


class PassOver(TrainerCallback):
    """Lets a resumed stream skip the photos it was already trained on without decoding them."""

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        steps_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        epoch, steps = divmod(state.global_step, steps_per_epoch)
        batches = steps * args.gradient_accumulation_steps
        train_dataloader.dataset.pass_over(epoch, batches * train_dataloader.batch_size)


class MovementCheck(TrainerCallback):
    """Ends training if, after the first steps, the head or a block that should move has not moved at all.

    A whole block is judged, since single weights may rightly stay where they are (a mask token, an unused pooler).
    Weight decay does not count: some weight must have a gradient and differ after the step. A step without a learning
    rate, or one that the scaler of fp16 skipped, is not counted.
    """

    # The adapters begin at zero and the first rates of a warm-up are small.
    STEPS = 5
    # Enough values of each weight to see it move; a second copy of the network would cost memory.
    SAMPLE = 1024

    def __init__(self) -> None:
        self.still: dict[str, list[nn.Parameter]] = {}
        self.before: dict[str, list[tuple[nn.Parameter, torch.Tensor]]] = {}
        self.rates: dict[int, float] = {}
        self.counted = 0
        self.reached: set[str] = set()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # A run that is resumed later was judged before; its last rates may be too small to move anything.
        self.still, self.counted = _moving_parts(model) if state.global_step < self.STEPS else {}, 0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.reached |= {
            part for part, weights in self.still.items() if any(weight.grad is not None for weight in weights)
        }
        self.before = {
            part: [
                (weight, self._sample(weight).clone())
                for weight in weights
                if weight.grad is not None and self._sample(weight.grad).any()
            ]
            for part, weights in self.still.items()
        }

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        moved = {
            part
            for part, pairs in self.before.items()
            if any(not torch.equal(self._sample(weight), sample) for weight, sample in pairs)
        }
        self.still = {part: weights for part, weights in self.still.items() if part not in moved}
        rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
        if self.still and not optimizer.step_was_skipped and any(rate > 0 for rate in rates.values()):
            self.rates, self.counted = rates, self.counted + 1
            if self.counted == self.STEPS:
                self._refuse_still(args)

    def on_train_end(self, args, state, control, **kwargs):
        if self.counted:
            self._refuse_still(args)

    def _sample(self, values: torch.Tensor) -> torch.Tensor:
        return values.detach().reshape(-1)[: self.SAMPLE]

    def _refuse_still(self, args: TrainingArguments) -> None:
        """Raise `UsageError` if a part has not moved, unless its own rate is zero or the network does not use it."""
        still = {
            part for part, weights in self.still.items() if any(self.rates.get(id(weight), 1) > 0 for weight in weights)
        }
        if not _is_reentrant(args):
            # The logits do not depend on it, as on the attention pooling of SigLIP: it has no gradient, not even zero.
            still &= self.reached
        if still:
            parts, steps = counted(len(still), "part"), counted(self.counted, "step")
            raise UsageError(
                f"{parts} of the network should be trained but did not move in {steps}, such as {min(still)}: "
                + _remedy(args)
            )


def _is_reentrant(args: TrainingArguments) -> bool:
    return args.gradient_checkpointing and bool((args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))


def _remedy(args: TrainingArguments) -> str:
    if _is_reentrant(args):
        return (
            'reentrant checkpointing passes no gradient on to layers behind frozen ones; set "use_reentrant": false in '
            "--gradient_checkpointing_kwargs or --activation_checkpointing_kwargs"
        )
    return (
        "no gradient reaches them, or it is too small; check --learning_rate and --max_grad_norm, or train other layers"
    )


def _moving_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable weights of the head, of each block, and of the whole network where no blocks are known."""
    names = [find_head(model)[0], *find_blocks(model)]
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    parts = {part: [weight for name, weight in moving.items() if name.startswith(part + ".")] for part in names}
    if len(names) == 1:
        parts["the backbone"] = [weight for name, weight in moving.items() if not name.startswith(names[0] + ".")]
    return {part: weights for part, weights in parts.items() if weights}


class SaveBest(TrainerCallback):
    """Saves the weights of every new best score, which may fall between two regular saves."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        # Called before the Trainer compares the score.
        score, best = metrics[f"eval_{args.metric_for_best_model.removeprefix('eval_')}"], state.best_metric
        if best is None or (score > best if args.greater_is_better else score < best):
            control.should_save = True


class ProgressLines(ProgressCallback):
    """The Trainer's progress bar, with one readable line per epoch in place of its dictionaries."""

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
        if "eval_macro_f1" in logs and state.is_world_process_zero:
            epoch = f"epoch {state.epoch:g}/{state.num_train_epochs}  loss {self.loss:.3f}"
            tqdm.write(
                f"{epoch if state.global_step else 'before training'}  validation: "
                f"macro F1 {logs['eval_macro_f1']:.3f}, accuracy {logs['eval_accuracy']:.3f}"
            )


class TimeForecast(TrainerCallback):
    """Estimates after the first steps how long the run will take."""

    FIRST, LAST = 2, 6

    def __init__(self, evaluated_per_trained: float):
        # Scoring a photo costs about a third of training on it (forward, no backward).
        self.overhead = 1 + evaluated_per_trained / 3
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        if self.steps == self.FIRST:
            self.started = time.perf_counter()
        if self.steps == self.LAST and state.is_world_process_zero:
            a_step = (time.perf_counter() - self.started) / (self.LAST - self.FIRST)
            left = a_step * (state.max_steps - state.global_step) * self.overhead
            tqdm.write(f"forecast: about {duration(left)} left ({a_step:.2f} s per step, {state.max_steps} steps)")
