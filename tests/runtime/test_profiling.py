"""The peak of a stage is its own, and photos cannot fill the memory."""

import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from conftest import ROOT

from agritransfer.data.examination import examine
from agritransfer.data.sources import read_source
from agritransfer.runtime.profiling import PeakMemory

FILL = """
import numpy as np
from agritransfer.runtime.profiling import PeakMemory
memory = PeakMemory()
filled = np.ones(200 * 2**20, dtype=np.uint8)
del filled
print(memory.line("filled"), memory.line("after"), memory.highest(on_gpu=False), sep="\\n")
"""


@pytest.mark.script
def test_each_stage_has_a_peak_of_its_own():
    """In a process of its own: one that has run many tests keeps memory in pieces that are used again."""
    said = subprocess.run([sys.executable, "-c", FILL], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    filled, after, highest = said.splitlines()
    megabytes = [
        int(re.fullmatch(rf"peak memory, {stage}: ([\d,]+) MB.*", told)[1].replace(",", ""))
        for stage, told in (("filled", filled), ("after", after))
    ]
    assert megabytes[0] == round(int(highest) / 1e6)
    if sys.platform == "linux":
        assert megabytes[0] - megabytes[1] > 150


def png_bomb(path: Path, side: int) -> None:
    """A PNG of side x side white pixels: a few hundred kilobytes that unpack to three bytes a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(b"\0" + b"\xff" * 3 * side) for _ in range(side)) + packed.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [13_500])
def test_a_photo_that_unpacks_to_half_a_gigabyte_is_refused_from_its_header(side, photos, tmp_path):
    (tmp_path / "set/rust").mkdir(parents=True)
    png_bomb(tmp_path / "set/rust/bomb.png", side)
    assert (tmp_path / "set/rust/bomb.png").stat().st_size < 10**6
    (tmp_path / "set/rust/leaf.jpg").write_bytes((photos / "rust/00.jpg").read_bytes())
    source, memory = read_source(str(tmp_path / "set")), PeakMemory()
    memory.line("before")
    examination = examine(source.images, source.photos, "a set of its own")
    memory.line("looking")
    assert list(examination.broken) == ["rust/bomb.png"]
    assert memory.resident["looking"] - memory.resident["before"] < 50e6
