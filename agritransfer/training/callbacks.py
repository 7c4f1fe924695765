"""Which callbacks run during training?"""

import math
import time

import numpy as np
import transformers
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback

from agritransfer.runtime.profiling import duration


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
            tqdm.write(
                f"epoch {state.epoch:g}/{state.num_train_epochs}  loss {self.loss:.3f}  validation: "
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
