"""When does a run stop before its end?

A signal asks for it, the loss is no number, or a streamed photo is broken. Within training that takes effect after the
step, in all processes at once; anywhere else at once.
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

# What a scheduler sends before it takes the machine away; Windows knows only the first.
SIGNALS = [signal.SIGTERM] if sys.platform == "win32" else [signal.SIGTERM, signal.SIGUSR1]


@contextmanager
def preemptible() -> Iterator[None]:
    """Within, a signal raises `Preempted` wherever the code stands; afterwards no loader worker is left."""
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
        # torch takes a worker's end for an accident, and would raise wherever the code then stands.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        # They ignore gentler signals, see `ignore_signals`.
        worker.kill()
        worker.join()


def _preempt(number: int, _frame: Any) -> None:
    ignore_signals()
    raise Preempted(f"{signal.Signals(number).name} came")


def ignore_signals(_worker: int = 0) -> None:
    """Let this process end only when it is killed or, as a loader worker, when its parent is done with it.

    A scheduler and Ctrl-C signal a whole group of processes; a worker that ended would take the last step with it.
    """
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class SafeStop(TrainerCallback):
    """Ends training after a step: with a checkpoint when a signal or Ctrl-C asked for it, without one when it diverged.

    The processes agree after every step, since one that stopped alone would leave the others waiting. At the last step
    of an epoch the epoch's own validation and save come first: a run that goes on from there would not make up for it.

    Broken photos of a stream end it too; where it `skips_broken` they are named once, and stay in the Trainer's state.
    """

    def __init__(self, skips_broken: bool = False) -> None:
        self.skips_broken = skips_broken
        self.asked, self.agreed, self.stopping = "", False, False
        self.losses: list[torch.Tensor] = []
        self.files: list[Sequence[str]] = []
        self.faults: list[str] = []

    def watch(self, loss: torch.Tensor, files: Sequence[str], faults: Sequence[str] = ()) -> None:
        """Note the loss of a batch; it is looked at once a step, so that a GPU need not wait for each batch."""
        self.losses.append(loss.detach())
        self.files.append(files)
        self.faults += faults

    def on_train_begin(self, args, state, control, **kwargs):
        self.handlers = {number: signal.signal(number, self._ask) for number in (*SIGNALS, signal.SIGINT)}

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.asked:
            raise Preempted(f"{self.asked} came as training ended")

    def _ask(self, number: int, _frame: Any) -> None:
        self.asked = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        # The second Ctrl-C ends the process where it stands.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"{self.asked}: a checkpoint after this step, then the end (Ctrl-C: at once)\n".encode())

    def on_step_end(self, args, state, control, **kwargs):
        finite = torch.isfinite(torch.stack(self.losses)).tolist()
        diverging = [file for fine, files in zip(finite, self.files, strict=True) if not fine for file in files]
        self.losses, self.files = [], []
        self.agreed, diverged, faulty = _agree(bool(self.asked), bool(diverging), bool(self.faults))
        if faulty:
            self._meet_broken_photos(state)
        if diverged:
            names = ", ".join(gather_object(diverging))
            raise DivergedError(
                f"the loss became no number at step {state.global_step}, on {names}; lower --learning_rate, or look at "
                "these photos"
            )
        if self.agreed and not control.should_training_stop and state.epoch % 1:
            self.stopping = control.should_save = True

    def _meet_broken_photos(self, state: TrainerState) -> None:
        faults, self.faults = sorted(set(gather_object(self.faults)) - set(broken_in(state))), []
        if not self.skips_broken:
            raise DataError(
                f"{len(faults)} photos of the train shards cannot be used: {'; '.join(faults[:10])}; mend them or add "
                "--on_broken skip"
            )
        # In the state, so that a run that goes on counts them too.
        state.log_history += [{"broken": fault, "step": state.global_step} for fault in faults]
        if state.is_world_process_zero:
            for fault in faults:
                tqdm.write(f"left out, broken: {fault}")

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.agreed:
            self.stopping = control.should_save = True

    def now(self, step: int) -> None:
        """Called when all that a step asked for is done; raises `Preempted` where it was to be the last one."""
        if self.stopping:
            raise Preempted(
                f"{self.asked or 'a signal to another process'} came; the checkpoint of step {step} is complete"
            )


def broken_in(state: TrainerState) -> list[str]:
    """The streamed photos that a run has left out so far, each with the reason."""
    return [entry["broken"] for entry in state.log_history if "broken" in entry]


def _agree(*mine: bool) -> list[bool]:
    """What any of the processes says."""
    state = PartialState()
    if state.num_processes == 1:
        return list(mine)
    told = torch.tensor(mine, dtype=torch.int32, device=state.device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return [bool(value) for value in told.tolist()]
