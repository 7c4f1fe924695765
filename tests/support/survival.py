"""Runs the training scripts as processes of their own that are killed at a chosen point, and compares what is left.

The processes are forked from one that has loaded torch, so that a run takes two seconds and not twelve.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from conftest import ROOT

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["survival", "agritransfer.hub.model"])


def run(words: list[str], prelude: Callable[[], None] | None, log: Path) -> None:
    """Within a new process: what `python train_x.py ...` does, after a prelude that plants a fault."""
    import torch

    # As a plain start has it; a fork server hands its own way down to the loader workers.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(ROOT)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    sys.argv = words
    if prelude is not None:
        prelude()
    runpy.run_path(words[0], run_name="__main__")


class Session:
    """One start of a script; `code` is its exit code (negative: the signal that ended it), `said` what it printed."""

    def __init__(self, words: list, log: Path, prelude: Callable[[], None] | None = None, during=None):
        log.unlink(missing_ok=True)
        process = FORKS.Process(target=run, args=([str(word) for word in words], prelude, log))
        process.start()
        if during is not None:
            during(process)
        process.join(120)
        self.group, self.code, self.said = process.pid, process.exitcode, log.read_text() if log.exists() else ""

    def left(self) -> list[int]:
        """The processes that outlive the script; a worker notices within five seconds that it lost its parent."""
        end = time.monotonic() + 12
        while (left := [p for p in psutil.pids() if same_group(p, self.group)]) and time.monotonic() < end:
            time.sleep(0.2)
        return left


def same_group(pid: int, group: int) -> bool:
    """Whether a process, that may have ended, belongs to the session of another."""
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid) == group
    return False


def as_step_ends(step: int, act: Callable[[], None]) -> None:
    """Do something in this process as a step ends, before the callbacks learn of it."""
    from transformers.trainer_callback import CallbackHandler

    stock = CallbackHandler.on_step_end

    def on_step_end(handler, args, state, control):
        if state.global_step == step:
            act()
        return stock(handler, args, state, control)

    CallbackHandler.on_step_end = on_step_end


class SignalAtStep:
    """Signals this process and its loader workers, as a scheduler and a terminal do; SIGKILL only the process."""

    def __init__(self, number: int, step: int, times: int = 1):
        self.number, self.step, self.times = number, step, times

    def __call__(self) -> None:
        as_step_ends(self.step, self.send)

    def send(self) -> None:
        for _ in range(self.times):
            if self.number == signal.SIGKILL:
                os.kill(os.getpid(), self.number)
            os.killpg(0, self.number)


class KillOneWorker:
    """Kills a loader worker as a step ends, as the kernel does when memory runs out."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self) -> None:
        as_step_ends(self.step, lambda: os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL))


class FullDisk:
    """Lets no file of this process grow beyond so many bytes once a step has ended, as a full disk does."""

    def __init__(self, step: int, most: int):
        self.step, self.most = step, most

    def __call__(self) -> None:
        as_step_ends(self.step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.most)))


class Poison:
    """Makes a weight NaN as a step ends, so that the loss of the next step is NaN."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self) -> None:
        from transformers import Trainer

        stock = Trainer.training_step

        def training_step(trainer, model, *args):
            if trainer.state.global_step == self.step:
                next(model.parameters()).data.fill_(float("nan"))
            return stock(trainer, model, *args)

        Trainer.training_step = training_step


class SlowSave:
    """Kills this process in the middle of writing the file of the optimizer, in its n-th save."""

    def __init__(self, save: int):
        self.left = save

    def __call__(self) -> None:
        import torch

        stock = torch.save

        def save(thing, file, *args, **kwargs):
            stock(thing, file, *args, **kwargs)
            if str(file).endswith("optimizer.pt"):
                self.left -= 1
                if self.left == 0:
                    os.truncate(file, os.path.getsize(file) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)

        torch.save = save


class KillInSave:
    """Kills this process at its n-th operation on the files of its checkpoints: opened, renamed or deleted."""

    def __init__(self, operation: int):
        self.left = operation

    def __call__(self) -> None:
        def watch(event: str, details: tuple) -> None:
            touched = event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
            if touched and "checkpoints/checkpoint-" in str(details[0]):
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)


def digest(run: Path) -> str:
    """Of the weights that a run ended with."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())
