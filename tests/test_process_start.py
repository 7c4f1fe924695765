"""A process of ours counts its cores, keeps memory in large pages, and ends without looking through its imports."""

import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT

from agritransfer.runtime.process import available_cores, physical_cores

AT_THE_END = """
import gc, sys
from agritransfer.runtime.process import begin_process
class Cycle:
    def __init__(self): self.itself = self
    def __del__(self): print("collected at the end", file=sys.stderr)
begin_process()
left = Cycle()
"""
# How often Linux hands out a page for a block of 64 MB that is as large as the one just freed.
TAKEN_AGAIN = """
import resource
from agritransfer.runtime.process import begin_process
def pages(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
begin_process()
block = b"x" * (64 << 20)
del block
before = pages()
block = b"x" * (64 << 20)
print(pages() - before)
"""


def said_by(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return process.stdout + process.stderr


def test_nothing_is_collected_at_the_end():
    assert said_by(AT_THE_END) == ""
    assert said_by(AT_THE_END.replace("begin_process()", "")) == "collected at the end\n"


@pytest.mark.parametrize(("told", "used"), [({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")])
def test_large_pages_are_asked_for_unless_the_user_decided(told, used):
    code = "import os; from agritransfer.runtime.process import begin_process; begin_process()"
    assert said_by(code + "; print(os.environ['THP_MEM_ALLOC_ENABLE'])", **told) == f"{used}\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_freed_memory_is_taken_again_without_a_new_page_unless_the_user_decided():
    assert int(said_by(TAKEN_AGAIN)) < 16
    # A page has 2 MB at most.
    assert int(said_by(TAKEN_AGAIN, MALLOC_MMAP_MAX_="65536")) >= 32


@pytest.mark.skipif(sys.platform != "linux", reason="the system is asked elsewhere")
def test_two_threads_of_a_core_count_once(tmp_path):
    assert physical_cores(tmp_path) == available_cores()
    for number in os.sched_getaffinity(0):
        topology = tmp_path / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text("0-1\n")
    assert physical_cores(tmp_path) == 1
