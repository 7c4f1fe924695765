"""One thing is written in the singular, none and several in the plural."""

import pytest

from agritransfer.wording import counted


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
