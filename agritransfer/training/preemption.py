"""When and how does a run stop early?

On a signal, when the loss is NaN, or when a streamed photo is broken. During training this takes effect after the
current step, in all processes together; anywhere else immediately.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from agritransfer.errors import DataError, DivergedError, Preempted

# The signals that schedulers send before they preempt a job; Windows has only the first.
SIGNALS = [signal.SIGTERM] if sys.platform == "win32" else [signal.SIGTERM, signal.SIGUSR1]


@contextmanager
def preemptible() -> Iterator[None]:
    """Inside, a signal raises `Preempted` wherever the code is; on exit no loader worker is left."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
    for number in SIGNALS:
        signal.signal(number, _preempt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _end_workers()


def _end_workers() -> None:
    workers = multiprocessing.active_children()
    if workers and sys.platform != "win32":
        # torch treats the end of a worker as a crash and would raise an exception at an arbitrary point.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        # They ignore other signals, see `ignore_signals`.
        worker.kill()
        worker.join()


def _preempt(number: int, _frame: Any) -> None:
    ignore_signals()
    raise Preempted(f"received {signal.Signals(number).name}")


def ignore_signals(_worker: int = 0) -> None:
    """Make this process ignore signals: it ends when it is killed or, as a loader worker, when its parent ends it.

    Schedulers and Ctrl-C signal the whole process group; without its workers, training could not finish its step.
    """
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class SafeStop(TrainerCallback):
    """Ends training after a step: with a checkpoint after a signal or Ctrl-C, without one when the loss is NaN.

    The processes agree after every step, since one that stopped alone would leave the others waiting. At the last step
    of an epoch the validation and the save of the epoch come first, since a resumed run would not repeat them.
    It must be the last callback, since it raises in `on_save` after all others have seen the checkpoint.

    Broken photos of a stream end training too; with `skips_broken` each is reported once and kept in the Trainer's
    state.
    """

    def __init__(self, skips_broken: bool = False) -> None:
        self.skips_broken = skips_broken
        self.asked, self.agreed, self.stopping = "", False, False
        self.losses: list[torch.Tensor] = []
        self.files: list[Sequence[str]] = []
        self.faults: list[str] = []

    def watch(self, loss: torch.Tensor, files: Sequence[str], faults: Sequence[str] = ()) -> None:
        """Record the loss of a batch; losses are checked once per step, so that a GPU need not wait for each batch."""
        self.losses.append(loss.detach())
        self.files.append(files)
        self.faults += faults

    def on_train_begin(self, args, state, control, **kwargs):
        self.handlers = {number: signal.signal(number, self._ask) for number in (*SIGNALS, signal.SIGINT)}

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.asked:
            raise Preempted(f"received {self.asked} as training ended")

    def _ask(self, number: int, _frame: Any) -> None:
        self.asked = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        # A second Ctrl-C ends the process at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not `print`, which the signal may have interrupted.
        os.write(2, f"{self.asked}: stopping after this step, with a checkpoint (Ctrl-C: stop at once)\n".encode())

    def on_step_end(self, args, state, control, **kwargs):
        finite = torch.isfinite(torch.stack(self.losses)).tolist()
        diverging = [file for fine, files in zip(finite, self.files, strict=True) if not fine for file in files]
        self.losses, self.files = [], []
        self.agreed, diverged, faulty = agree(bool(self.asked), bool(diverging), bool(self.faults))
        if faulty:
            self._handle_broken_photos(state)
        if diverged:
            names = ", ".join(gather_object(diverging))
            raise DivergedError(
                f"the loss is NaN or infinite at step {state.global_step}, on {names}; lower --learning_rate or check "
                "these photos"
            )
        if self.agreed and not control.should_training_stop and state.epoch % 1:
            self.stopping = control.should_save = True

    def _handle_broken_photos(self, state: TrainerState) -> None:
        faults, self.faults = sorted(set(gather_object(self.faults)) - set(broken_in(state))), []
        if not self.skips_broken:
            photos = "1 photo" if len(faults) == 1 else f"{len(faults)} photos"
            raise DataError(
                f"{photos} of the train shards cannot be used: {'; '.join(faults[:10])}; repair the shards or add "
                "--on_broken skip"
            )
        # Recorded in the state, so that a resumed run counts them too.
        state.log_history += [{"broken": fault, "step": state.global_step} for fault in faults]
        if state.is_world_process_zero:
            for fault in faults:
                tqdm.write(f"skipped, broken: {fault}")

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.agreed:
            self.stopping = control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self.stopping:
            raise Preempted(
                f"received {self.asked or 'a signal in another process'}; the checkpoint of step {state.global_step} "
                "is complete"
            )


def broken_in(state: TrainerState) -> list[str]:
    """The streamed photos that a run has skipped so far, each with the reason."""
    return [entry["broken"] for entry in state.log_history if "broken" in entry]


def agree(*mine: bool) -> list[bool]:
    """For each value, whether it is true in any process."""
    state = PartialState()
    if state.num_processes == 1:
        return list(mine)
    told = torch.tensor(mine, dtype=torch.int32, device=state.device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return [bool(value) for value in told.tolist()]
