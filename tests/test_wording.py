"""One thing is written in the singular, none and several in the plural; any file name can be written and read back."""

import os

import pytest

from agritransfer.wording import counted, escaped, unescaped


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (0, ("photo",), "0 photos"),
        (1, ("photo",), "1 photo"),
        (2, ("missing photo",), "2 missing photos"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
        (12_345, ("photo",), "12,345 photos"),
    ],
)
def test_a_number_has_its_noun(number, words, expected):
    assert counted(number, *words) == expected


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("leaf é 葉.jpg".encode(), "leaf é 葉.jpg"),
        (b"leaf \xe9.jpg", r"leaf \xe9.jpg"),
        (b"two\nlines\t.jpg", r"two\x0alines\x09.jpg"),
        ("next\x85\u2028line.jpg".encode(), r"next\xc2\x85\xe2\x80\xa8line.jpg"),
        (rb"back\slash \xe9.jpg", r"back\\slash \\xe9.jpg"),
    ],
)
def test_any_file_name_can_be_written_and_read_back(name, written):
    name = os.fsdecode(name)
    assert escaped(name) == written
    assert written.encode() and written.isprintable()
    assert unescaped(written) == name
