"""When does training end because its minutes are used up?"""

import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from agritransfer.training.preemption import agree
from agritransfer.wording import duration


class TimeLimit(TrainerCallback, ExportableState):
    """Ends training after the epoch after which the next one would exceed the minutes; one epoch is always trained.

    The minutes of earlier sessions are kept in the checkpoints. Validation counts: a photo scored costs about a third
    of a photo trained on, and `evaluated_per_trained` photos are scored after each epoch for one in it.
    """

    def __init__(self, minutes: float, evaluated_per_trained: float):
        self.minutes, self.evaluated_per_trained = minutes, evaluated_per_trained
        self.earlier, self.began = 0.0, time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: its arguments and the seconds so far."""
        arguments = {"minutes": self.minutes, "evaluated_per_trained": self.evaluated_per_trained}
        return {"args": arguments, "attributes": {"earlier": self._spent()}}

    def _spent(self) -> float:
        return self.earlier + time.perf_counter() - self.began

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch_began, self.place = time.perf_counter(), state.epoch or 0.0

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_training_stop:
            return
        # A run that was resumed in mid-epoch has seen only a part of this one.
        epoch = (time.perf_counter() - self.epoch_began) / (state.epoch - self.place)
        validation = epoch * self.evaluated_per_trained / 3
        needed = self._spent() + validation + epoch + validation
        # The clocks of several processes differ.
        (over,) = agree(needed > 60 * self.minutes)
        if over:
            control.should_training_stop = True
            # The end is recorded in a checkpoint with a score, so that a restarted run does not train on.
            control.should_evaluate, control.should_save = args.eval_strategy != "no", args.save_strategy != "no"
            if state.is_world_process_zero:
                tqdm.write(
                    f"--max_minutes {self.minutes:g}: training ends after epoch {state.epoch:g} of "
                    f"{state.num_train_epochs}, since the next one would end at {duration(needed)}"
                )
