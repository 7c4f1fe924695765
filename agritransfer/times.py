"""Where does the time of a run go?"""

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
