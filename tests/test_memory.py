"""The peak of a stage is its own, and photos cannot fill the memory."""

import re
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from agritransfer.audit import examine
from agritransfer.memory import PeakMemory
from agritransfer.sources import read_source


def test_each_stage_has_a_peak_of_its_own():
    memory = PeakMemory()
    filled = np.ones(200 * 2**20, dtype=np.uint8)
    del filled
    told = memory.line("filled")
    memory.line("after")
    megabytes = int(re.fullmatch(r"peak memory, filled: ([\d,]+) MB.*", told)[1].replace(",", ""))
    assert megabytes == round(memory.resident["filled"] / 1e6)
    assert memory.highest(on_gpu=False) == memory.resident["filled"]
    if sys.platform == "linux":
        assert memory.resident["filled"] - memory.resident["after"] > 150e6


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
    examination = examine(source.images, source.photos)
    memory.line("looking")
    assert list(examination.broken) == ["rust/bomb.png"]
    assert memory.resident["looking"] - memory.resident["before"] < 50e6
