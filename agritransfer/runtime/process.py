"""How does a process begin and end, which cores has it, and which one of several speaks?

torch is imported where it is used: a process is prepared before torch is.
"""

import atexit
import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments

# What is imported stays: a collection after every 700 of its objects, Python's own choice, finds nothing.
OBJECTS_BETWEEN_COLLECTIONS = 50_000
# Any of these tells how many processes a launcher started; accelerate reads the same.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Of mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def begin_process() -> None:
    """Called before torch is imported: fewer collections, a quick end, and memory that is quickly given.

    `MALLOC_MMAP_MAX_`, glibc's own variable, and `THP_MEM_ALLOC_ENABLE`, torch's, are left as they are found.
    """
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    # The last collection, of everything that was imported, takes longer than some answers do.
    atexit.register(gc.freeze)
    # Linux hands torch large activations in pages of 2 MB in place of 4 kB, each of which it clears when first used.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_MAX_" not in os.environ:
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let the next layer have the memory of the last one as it is.

    glibc gives large blocks back to Linux as soon as they are free, and Linux clears every page that it hands out anew.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)


def available_cores() -> int:
    """The cores that this process may use, of a core with two threads both; a Slurm job has fewer than its node."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


def physical_cores(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """The same, a core with two threads once: for arithmetic, which a second thread of a core only holds up."""
    if sys.platform != "linux":
        import psutil

        return psutil.cpu_count(logical=False) or os.cpu_count()
    siblings = (cpus / f"cpu{number}/topology/thread_siblings_list" for number in os.sched_getaffinity(0))
    # A container may hide them; then every thread counts.
    return len({file.read_text() for file in siblings if file.exists()}) or available_cores()


def prepare_process(args: "TrainingArguments") -> None:
    """Seed this process and give it its share of the cores."""
    import torch
    import transformers

    # accelerate pins one thread for every process when the configuration says that there may be a GPU.
    torch.set_num_threads(max(1, physical_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    transformers.set_seed(args.seed)


def is_distributed() -> bool:
    """Whether a launcher such as `accelerate launch` or torchrun started several processes, this one among them."""
    return any(int(os.environ.get(name, "1")) > 1 for name in WORLD_SIZES)


@contextmanager
def local_main_process_first() -> Iterator[bool]:
    """Run the body in one process of this machine before the others; yields whether this process is that one."""
    if not is_distributed():
        # Without others to wait for, accelerate and torch need not be imported.
        yield True
        return
    from accelerate import PartialState

    state = PartialState()
    with state.local_main_process_first():
        yield state.is_local_main_process


def say(*lines: str) -> None:
    """Print once, whatever the number of processes."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(*lines, sep="\n", flush=True)
