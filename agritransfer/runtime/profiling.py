"""Where does a run spend its time and memory?"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from agritransfer.wording import duration


class Times:
    """Seconds spent in each stage of a run; time in a nested stage is counted only for the nested one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.within: list[float] = []

    @contextmanager
    def spent(self, stage: str) -> Iterator[None]:
        """Add the time of this block to a stage, without the time of nested blocks."""
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
        """The share of each stage in one line, largest first."""
        total = sum(self.seconds.values())
        shares = sorted(self.seconds.items(), key=lambda entry: -entry[1])
        return f"time, {duration(total)}: " + ", ".join(f"{stage} {part / total:.0%}" for stage, part in shares)


class PeakMemory:
    """Peak memory of each stage in bytes, of this process (without its loader workers) and of its GPU.

    The peak of a process can be reset only on Linux, and not in every container; elsewhere a stage shows the highest
    value so far.
    """

    def __init__(self) -> None:
        self.resident: dict[str, int] = {}
        self.on_gpu: dict[str, int] = {}
        _reset_peaks()

    def line(self, stage: str) -> str:
        """End a stage: record its peak, return it as one line, and reset the peak for the next stage."""
        self.resident[stage] = _peak_resident_bytes()
        told = f"peak memory, {stage}: {self.resident[stage] / 1e6:,.0f} MB"
        if torch.cuda.is_available():
            self.on_gpu[stage] = torch.cuda.max_memory_allocated()
            told += f", GPU {self.on_gpu[stage] / 1e6:,.0f} MB"
        _reset_peaks()
        return told

    def highest(self, on_gpu: bool) -> int:
        """The highest peak of any stage in bytes, of the GPU or of the process."""
        return max((self.on_gpu if on_gpu else self.resident).values())


def _reset_peaks() -> None:
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
