"""How does a process start and end, which cores may it use, and which process prints?

torch is imported only where it is used, since a process is prepared before torch is imported.
"""

import atexit
import ctypes
import gc
import io
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agritransfer.errors import UsageError

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Imported objects stay alive, so Python's default of a collection per 700 new objects is wasted time.
OBJECTS_BETWEEN_COLLECTIONS = 50_000
# Variables in which launchers give the number of processes; accelerate reads the same ones.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# See mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def begin_process() -> None:
    """Prepare a process before torch is imported: any print, fewer garbage collections, fast exit and allocation.

    The environment variables `MALLOC_MMAP_MAX_` (glibc) and `THP_MEM_ALLOC_ENABLE` (torch) take precedence.
    """
    # What the terminal or log file cannot encode is printed escaped, as on stderr. A notebook has no such file.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    # Skips the final collection, which covers all imported objects and takes longer than some predictions.
    atexit.register(gc.freeze)
    # Linux clears each page on first use; large activations then take pages of 2 MB rather than 4 kB.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_MAX_" not in os.environ:
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Keep freed memory in the process, so that the next layer reuses the memory of the previous one.

    By default glibc returns large free blocks to Linux, which clears every page before handing it out again.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)


def available_cores() -> int:
    """The logical cores that this process may use; a Slurm job has fewer than its node."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


def physical_cores(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """The physical cores that this process may use: a second thread per core slows arithmetic down."""
    if sys.platform != "linux":
        import psutil

        return psutil.cpu_count(logical=False) or os.cpu_count()
    siblings = (cpus / f"cpu{number}/topology/thread_siblings_list" for number in os.sched_getaffinity(0))
    # A container may hide the topology; then logical cores are counted.
    return len({file.read_text() for file in siblings if file.exists()}) or available_cores()


def prepare_process(args: "TrainingArguments") -> None:
    """Seed this process and set its share of the cores; `UsageError` if the Trainer would use several GPUs in it."""
    import torch
    import transformers

    if args.n_gpu > 1:
        raise UsageError(_one_process_per_gpu(args.n_gpu))
    # accelerate limits every process to one thread when its configuration allows a GPU.
    torch.set_num_threads(max(1, physical_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    transformers.set_seed(args.seed)


def _one_process_per_gpu(gpus: int) -> str:
    """Why one process cannot use several GPUs, and this process's command for all of them and for one."""
    program = Path(sys.argv[0])
    # A script, or `agritransfer finetune`.
    started = [program.name] if program.suffix else ["-m", *sys.argv[0].split()]
    command = shlex.join([*started, *sys.argv[1:]])
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return (
        f"{gpus} GPUs are visible to a single process, where the Trainer would use DataParallel and scale the loss "
        "twice; start one process per GPU: accelerate launch --config_file accelerate_config.yaml --multi_gpu "
        f"--num_processes {gpus} {command} -- or use one GPU: CUDA_VISIBLE_DEVICES={first} python {command}"
    )


@contextmanager
def full_precision(device_type: str = "cpu") -> Iterator[None]:
    """Compute in full float32: no TF32 and no autocast on this type of device, whatever the run trains with.

    TF32 rounds the factors of matrix products and convolutions to 10 of 23 bits; cuDNN uses it by default. Use this
    around every forward pass whose logits are stored or compared; it also works as a decorator.
    """
    import torch
    from torch.backends import cuda, cudnn, mkldnn

    general, torch.backends.fp32_precision = torch.backends.fp32_precision, "ieee"
    # An operation with a setting of its own does not follow the general one.
    operations = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    own = [(operation, operation.fp32_precision) for operation in operations if operation.fp32_precision != "ieee"]
    for operation, _ in own:
        operation.fp32_precision = "ieee"
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.backends.fp32_precision = general
        for operation, precision in own:
            operation.fp32_precision = precision


def is_distributed() -> bool:
    """Whether this is one of several processes started by a launcher such as `accelerate launch` or torchrun."""
    return any(int(os.environ.get(name, "1")) > 1 for name in WORLD_SIZES)


@contextmanager
def local_main_process_first() -> Iterator[bool]:
    """Run the body in one process of this machine before the others; yields whether this process is that one."""
    if not is_distributed():
        # A single process waits for no other, so accelerate and torch are not imported.
        yield True
        return
    from accelerate import PartialState

    state = PartialState()
    with state.local_main_process_first():
        yield state.is_local_main_process


def say(*lines: str) -> None:
    """Print on the main process only."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(*lines, sep="\n", flush=True)
