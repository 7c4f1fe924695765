"""No text that we write for people is run as a formula by a spreadsheet."""

import pytest

from agritransfer.spreadsheet import guarded


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-a",
        "@cell",
        "\ta",
        "\ra",
        "\na",
        " =1",
        "\uff1d1",
        "=",
        "-0.5kg",
        "--5",
        "'=1",
        "+1",
        "-1e5",
        "-\u0661",
    ],
)
def test_a_formula_gets_an_apostrophe(text):
    assert guarded(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "rust", "a=b", "-0.5", "-3", "0.25", "'Candidatus' spot", "a-b", "1+1", "é"])
def test_other_texts_stay_as_they_are(text):
    assert guarded(text) == text
