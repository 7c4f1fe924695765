"""Tests that whatever bytes stand in a file, it is an upright RGB photo or has one reason, in one line."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mutants import mutant, photos_of_every_kind

from agritransfer.images.broken_photos import BrokenPhoto, reasons_in_one_line
from agritransfer.images.decoding import decode_photo
from agritransfer.images.photo_notes import file_notes
from photos import PhotoError, read_photo


def outcome(content: bytes) -> str:
    """What becomes of a file: decoded, or the kind of error that became its reason."""
    try:
        picture, notes = decode_photo(content), file_notes(content, "leaf.jpg")
    except BrokenPhoto as error:
        reason = str(error)
        assert reason.strip() and len(reason.splitlines()) == 1, repr(reason)
        assert not re.search(r"0x[0-9a-f]{6}|/tmp|site-packages", reason), reason
        return type(error.__cause__ or error).__name__
    assert picture.mode == "RGB" and np.asarray(picture).shape == (picture.height, picture.width, 3)
    # The file is closed, and nothing is read from it again.
    picture.thumbnail((10, 10))
    assert max(picture.size) <= 10
    assert all(len(note.splitlines()) == 1 for note in notes)
    return "decoded"


def outcome_in_space(content: bytes) -> str:
    """The same in the Space."""
    try:
        photo = read_photo(content, least_side=20)
    except PhotoError as error:
        return type(error.__cause__ or error).__name__
    assert photo.picture.mode == "RGB"
    return "decoded"


def fuzz(judge: Callable[[bytes], str], each: int, seed: int) -> dict[str, Counter]:
    """What became of so many mutants of each kind of photo."""
    random = np.random.default_rng(seed)
    return {
        kind: Counter(judge(mutant(content, random)) for _ in range(each))
        for kind, content in photos_of_every_kind().items()
    }


@pytest.mark.parametrize("judge", [outcome, outcome_in_space])
def test_every_kind_of_photo_is_read_undamaged_and_damaged_copies_are_read_or_refused(judge, capfd):
    assert {judge(content) for content in photos_of_every_kind().values()} == {"decoded"}
    found = fuzz(judge, each=10, seed=0)
    assert len(found) == 24
    # Each kind of photo is refused at times, and no decoder writes past us on the screen.
    assert all(of["decoded"] < 10 for of in found.values())
    assert sum(of["decoded"] for of in found.values()) > 20
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("judge", [outcome, outcome_in_space])
def test_many_thousands_of_damaged_photos_are_read_or_refused(judge, capsys):
    found = fuzz(judge, each=1000, seed=1)
    total = sum(found.values(), Counter())
    with capsys.disabled():
        print(f"\n{judge.__name__}: {total.total():,} mutants, {dict(total.most_common())}, none uncaught")
    assert total.total() == 24_000
    assert total["decoded"] > 5_000


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TypeError("bad operand type"), "damaged (TypeError: bad operand type)"),
        (AttributeError("no attribute"), "damaged (AttributeError: no attribute)"),
        (OverflowError("too large"), "damaged (OverflowError: too large)"),
        (ZeroDivisionError("division by zero"), "damaged (ZeroDivisionError: division by zero)"),
        (KeyError(34712), "damaged (KeyError: 34712)"),
        (MemoryError(), "too little memory to decode it; resize it"),
        (RuntimeError("Invalid input\n\n"), "Invalid input"),
        (ValueError(""), "ValueError"),
        (OSError("cannot read <_io.BytesIO object at 0x7fe609aff790>"), "cannot read the file"),
        (FileNotFoundError(2, "No such file or directory", "/home/me/leaf.jpg"), "No such file or directory"),
        (BrokenPhoto("the file is empty"), "the file is empty"),
    ],
)
def test_whatever_a_decoder_raises_becomes_a_reason_in_one_line(error, reason):
    with pytest.raises(BrokenPhoto) as broken, reasons_in_one_line():
        raise error
    assert str(broken.value) == reason


def test_what_stops_a_run_is_no_reason_of_a_photo():
    with pytest.raises(KeyboardInterrupt), reasons_in_one_line():
        raise KeyboardInterrupt


def test_a_file_that_is_gone_is_named_without_its_folder(tmp_path: Path):
    with pytest.raises(BrokenPhoto) as error:
        decode_photo(tmp_path / "gone.jpg")
    assert str(error.value) == "No such file or directory"
