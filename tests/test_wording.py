"""One thing is written in the singular, none and several in the plural; any file name can be written and read back."""

import html
import os

import pytest
from markdown_it import MarkdownIt

from agritransfer.wording import as_code, counted, escaped, in_markdown, unescaped


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


@pytest.mark.parametrize(
    "text",
    [
        "leaf_spot",
        "__init__ *x* **y** _z_",
        "<b>&amp;",
        "![i](http://e/x.png) [l](http://e)",
        "a `b` $x_1$ ~~c~~ # d",
        r"\x0a \\ |",
    ],
)
def test_a_text_from_outside_is_shown_in_markdown_as_it_is(text):
    markdown, cell = MarkdownIt("commonmark", {"html": True}).enable("table"), in_markdown(text)
    assert html.unescape(markdown.render(cell)) == f"<p>{text}</p>\n"
    assert f"<td>{text}</td>" in html.unescape(markdown.render(f"| a |\n| --- |\n| {cell} |\n"))


@pytest.mark.parametrize("name", ["leaves", "a`b", "``", "`a"])
def test_a_name_is_code_in_markdown_whatever_it_holds(name):
    assert MarkdownIt().render(as_code(name)) == f"<p><code>{name}</code></p>\n"


def test_a_plain_label_needs_no_escape():
    assert in_markdown("Tomato/late_blight (2)\nof") == "Tomato/late_blight (2) of"
