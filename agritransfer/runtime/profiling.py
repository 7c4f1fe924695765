"""Where do the time and the memory of a run go?"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch


class Times:
    """Where the time of a run goes, in seconds; what lies within another stage is counted once, in its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.within: list[float] = []

    @contextmanager
    def spent(self, stage: str) -> Iterator[None]:
        """Count the time of this block, without that of the blocks inside it, as this stage's."""
        started = time.perf_counter()
        self.within.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds - self.within.pop()
            if self.within:
                self.within[-1] += seconds

    def line(self) -> str:
        """The share of each stage, the largest first."""
        total = sum(self.seconds.values())
        shares = sorted(self.seconds.items(), key=lambda entry: -entry[1])
        return f"time, {duration(total)}: " + ", ".join(f"{stage} {part / total:.0%}" for stage, part in shares)


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class PeakMemory:
    """The most memory that each stage took, of this process (its loader workers apart) and of its GPU, in bytes.

    Only Linux lets a process begin its peak anew, and not in every container; elsewhere a stage shows the highest so
    far.
    """

    def __init__(self) -> None:
        self.resident: dict[str, int] = {}
        self.on_gpu: dict[str, int] = {}
        _begin_anew()

    def line(self, stage: str) -> str:
        """End a stage: note its peak, say it in one line, and let the next one begin."""
        self.resident[stage] = _peak_resident_bytes()
        told = f"peak memory, {stage}: {self.resident[stage] / 1e6:,.0f} MB"
        if torch.cuda.is_available():
            self.on_gpu[stage] = torch.cuda.max_memory_allocated()
            told += f", GPU {self.on_gpu[stage] / 1e6:,.0f} MB"
        _begin_anew()
        return told

    def highest(self, on_gpu: bool) -> int:
        """Bytes of the stage that took most, of the GPU or of the process."""
        return max((self.on_gpu if on_gpu else self.resident).values())


def _begin_anew() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_resident_bytes() -> int:
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
