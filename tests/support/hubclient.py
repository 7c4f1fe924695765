"""A process of the project that talks to a loopback Hub: it runs one command after another, as a user would.

The Hub's clients read their settings when they are imported, so that a test cannot point its own process at a Hub.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from hubserver import hub_environment

LOOP = """
import contextlib, io, json, os, runpy, sys, time, traceback
import torch
torch.set_num_threads(1)
from agritransfer.__main__ import main

def run(words):
    if not words[0].endswith(".py"):
        return main(words)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
    return 0

for line in sys.stdin:
    asked = json.loads(line)
    os.environ.update(asked["environment"])
    out, err, started = io.StringIO(), io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(asked["before"])
            code = run(asked["words"])
        except SystemExit as end:
            code = end.code or 0
        except Exception:
            traceback.print_exc()
            code = 1
    answer = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.perf_counter() - started}
    print("ANSWER " + json.dumps(answer), flush=True)
"""


class HubClient:
    """Runs training scripts and commands in one process of its own; `url` is the Hub's."""

    def __init__(self, url: str, home: Path):
        self.home = home
        environment = os.environ | hub_environment(url, home) | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            cwd=ROOT,
        )

    def run(self, *words: str | Path, before: str = "", **environment: str) -> dict:
        """Run one command; gives its exit code, what it printed and complained of, and the seconds that it took.

        `before` is code that runs in the process first; `environment` holds from now on, HF_TOKEN only for this once.
        """
        environment = {"HF_TOKEN": "hf_test_write", **environment}
        asked = {"words": [str(word) for word in words], "before": before, "environment": environment}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line[7:])
        raise RuntimeError("the client process ended")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
