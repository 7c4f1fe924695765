"""Tests that a file is decoded when its bytes are seen first, and never taken for another."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agritransfer.data import file_checks as inspections
from agritransfer.data.file_checks import inspect
from agritransfer.data.sources import read_source
from agritransfer.images.decoding import decode_photo


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    return tmp_path / "agritransfer-inspections"


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """The contents that were decoded, one by one."""
    seen, decode = [], inspections.decode_photo
    monkeypatch.setattr(inspections, "decode_photo", lambda content: (seen.append(content), decode(content))[1])
    return seen


@pytest.fixture
def folder(tmp_path) -> Path:
    for label in ("rust", "healthy"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng([number, len(label)]).integers(256, size=(30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{number}.png")
    return tmp_path / "set"


def look(folder: Path) -> dict[str, inspections.Inspection]:
    source = read_source(str(folder))
    return dict(
        zip((photo.file for photo in source.photos), inspect(source.images, source.photos, str(folder)), strict=True)
    )


def test_a_second_look_decodes_nothing_and_tells_the_same(folder, decoded):
    first = look(folder)
    assert len(decoded) == 6
    second = look(folder)
    assert len(decoded) == 6
    assert first.keys() == second.keys()
    for file, inspection in first.items():
        other = second[file]
        assert (inspection.reason, inspection.digest, inspection.notes) == (other.reason, other.digest, other.notes)
        assert inspection.size == other.size == (40, 30)
        assert np.array_equal(inspection.look, other.look)


def test_only_what_is_new_is_decoded_and_a_changed_file_is_new(folder, decoded):
    look(folder)
    decoded.clear()
    Image.new("RGB", (50, 20), "red").save(folder / "rust/0.png")
    Image.new("RGB", (20, 50), "blue").save(folder / "rust/9.png")
    seen = look(folder)
    assert len(decoded) == 2
    assert (seen["rust/0.png"].size, seen["rust/9.png"].size) == ((50, 20), (20, 50))
    (folder / "rust/1.png").rename(folder / "rust/new name.png")
    look(folder)
    assert len(decoded) == 2


def test_what_is_told_of_a_name_is_not_told_of_another(folder):
    look(folder)
    (folder / "rust/0.png").rename(folder / "rust/0.jpg")
    seen = look(folder)
    assert seen["rust/0.jpg"].notes == ("PNG content but the suffix .jpg",)
    assert seen["rust/1.png"].notes == ()
    assert look(folder)["rust/0.jpg"].notes == ("PNG content but the suffix .jpg",)


def test_a_broken_photo_is_broken_at_every_look(folder):
    content = (folder / "rust/0.png").read_bytes()
    (folder / "rust/0.png").write_bytes(content[:100])
    reasons = [look(folder)["rust/0.png"].reason for _ in range(2)]
    assert reasons[0] and reasons[0] == reasons[1]
    (folder / "rust/0.png").write_bytes(content)
    assert look(folder)["rust/0.png"].reason == ""


def test_a_damaged_memory_is_forgotten(folder, cache, decoded):
    look(folder)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-200])
    assert all(inspection.size == (40, 30) for inspection in look(folder).values())
    assert len(decoded) == 12
    look(folder)
    assert len(decoded) == 12


@pytest.mark.parametrize("error", [TypeError, AttributeError, MemoryError, OverflowError, RuntimeError])
def test_whatever_a_decoder_raises_is_the_reason_of_that_photo(error, folder, monkeypatch):
    def fail_on_blue(content: bytes) -> Image.Image:
        if content == blue:
            raise error("of one photo")
        return decode_photo(content)

    Image.new("RGB", (20, 50), "blue").save(folder / "rust/0.png")
    blue = (folder / "rust/0.png").read_bytes()
    monkeypatch.setattr(inspections, "decode_photo", fail_on_blue)
    reasons = {file: inspection.reason for file, inspection in look(folder).items()}
    assert reasons.pop("rust/0.png") and set(reasons.values()) == {""} and len(reasons) == 5


def test_a_file_that_cannot_be_read_is_named_without_its_folder(folder):
    source = read_source(str(folder))
    (folder / "rust/0.png").unlink()
    reasons = {seen.reason for seen in inspect(source.images, source.photos, str(folder))}
    assert reasons == {"", "No such file or directory"}
