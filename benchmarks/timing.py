"""How much faster is one contestant, and how certain is that? Turns, ratios, intervals, the machine, one table.

Contestants take turns, forwards and then backwards (A B, B A, ...), so that a machine that slows down affects both
equally. Each turn gives one ratio; their median is reported with a 95% interval from 10,000 bootstrap samples. The
first call of each is a warm-up and is reported separately.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agritransfer.runtime.process import available_cores

ROOT = Path(__file__).parent.parent
DRAWS = 10_000
LIBRARIES = ("torch", "torchvision", "transformers", "datasets", "accelerate", "peft", "timm", "pillow", "numpy")


@dataclass(frozen=True)
class Ratio:
    """Ours compared with one peer: the values of each turn, the median of the ratios and its 95% interval.

    `kind` says what the values are. `speed` (photos/s): ours / peer. `seconds`: peer / ours, so that above 1 is faster
    as well. `error` and `cost`: ours / peer, where less is better. `guard` shows whether both did the same work equally
    well, and `guarded` is the verdict (None: shown but not judged).
    """

    question: str
    ours: str
    peer: str
    kind: Literal["speed", "seconds", "error", "cost"]
    unit: str
    ours_values: list[float]
    peer_values: list[float]
    ratio: float
    interval: tuple[float, float]
    target: float | None = None
    guard: str = ""
    guarded: bool | None = None

    def reached(self) -> bool | None:
        """Whether the whole interval meets the target; None without a target."""
        if self.target is None:
            return None
        return self.interval[1] <= self.target if self.kind in ("error", "cost") else self.interval[0] >= self.target

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return {**self.__dict__, "interval": list(self.interval), "reached": self.reached()}


def take_turns(
    contestants: dict[str, Callable[[], float]], turns: int, warm_up: bool = True
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Call each once per turn, in alternating order; returns their values and the seconds of the warm-up calls.

    The warm-up is one call before the turns; without `warm_up` it is skipped.
    """
    values: dict[str, list[float]] = {name: [] for name in contestants}
    first: dict[str, float] = {}
    for name, contestant in contestants.items() if warm_up else ():
        started = time.perf_counter()
        contestant()
        first[name] = time.perf_counter() - started
    order = list(contestants)
    for turn in range(turns):
        for name in order if turn % 2 == 0 else reversed(order):
            values[name].append(contestants[name]())
    return values, first


def compare(
    question: str,
    ours: tuple[str, Sequence[float]],
    peer: tuple[str, Sequence[float]],
    kind: Literal["speed", "seconds", "cost"],
    unit: str,
    **more: Any,
) -> Ratio:
    """The ratio of two contestants that took turns; each is given by its name and its values."""
    pairs = zip(ours[1], peer[1], strict=True)
    ratios = [b / a if kind == "seconds" else a / b for a, b in pairs]
    middle = statistics.median(ratios)
    return Ratio(
        question, ours[0], peer[0], kind, unit, [*ours[1]], [*peer[1]], middle, interval_of_median(ratios), **more
    )


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """The 95% bootstrap interval of a median; seeded."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), size=(DRAWS, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def machine() -> dict[str, Any]:
    """The machine, the commit and the versions of the measurement."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "processor": processor_name(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "load before": os.getloadavg()[0] if sys.platform != "win32" else None,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "python": platform.python_version(),
        **libraries,
    }


def processor_name() -> str:
    """The name of the processor, as reported by the system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def _commit() -> str | None:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip() or None


def parser(story: str, turns: int) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark has."""
    flags = argparse.ArgumentParser(description=story, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--turns", type=int, default=turns, help="Number of turns; 5 or more for an interval.")
    flags.add_argument("--quick", action="store_true", help="Tiny sizes and one turn, only to check that it runs.")
    flags.add_argument("--output", type=Path, default=Path("runs/bench"), help="Folder for JSON, tables and photos.")
    return flags


def report(output: Path, name: str, ratios: Sequence[Ratio], facts: dict[str, Any], notes: Sequence[str] = ()) -> None:
    """Print the table and write `name.json` and `name.md`."""
    output.mkdir(parents=True, exist_ok=True)
    result = {"machine": facts, "ratios": [ratio.to_dict() for ratio in ratios], "notes": list(notes)}
    result["command"] = " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]])
    (output / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = "\n".join([table(result["ratios"]), "", *notes, machine_line(facts)])
    (output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)


def table(ratios: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with one row per ratio."""
    rows = ["| what | ours | peer | ratio (95%) | aim | same work? |", "|---|---|---|---|---|---|"]
    for ratio in ratios:
        low, high = ratio["interval"]
        sides = (f"{ratio[side]}: {_values(ratio[f'{side}_values'], ratio['unit'])}" for side in ("ours", "peer"))
        aim = "" if ratio["target"] is None else f"{ratio['target']:g}: {'reached' if ratio['reached'] else 'missed'}"
        guard = ratio["guard"] + {None: "", True: "", False: " **(no)**"}[ratio["guarded"]]
        figure = f"**{ratio['ratio']:.2f}** ({low:.2f} to {high:.2f})"
        rows.append("| " + " | ".join([ratio["question"], *sides, figure, aim, guard]) + " |")
    return "\n".join(rows)


def _values(values: Sequence[float], unit: str) -> str:
    return f"{_short(statistics.median(values))} {unit} ({_short(min(values))} to {_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine_line(facts: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *LIBRARIES))
    return f"{facts['processor']}, {facts['cores']} cores, {facts['system']}, {facts['date']}; {versions}"
