"""How are numbers, lists, file names and names from outside written in a message or a report?"""

import re
import unicodedata


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """The number with its noun, such as `1 photo`, `1,200 photos` or, with an irregular plural, `2 classes`."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def listed(names: list[str]) -> str:
    """Names as in a sentence, such as `rust, mosaic and blight`."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def duration(seconds: float) -> str:
    """A duration in seconds as readable text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def escaped(name: str) -> str:
    """A file name in printable UTF-8, reversed by `unescaped`.

    Linux allows any bytes in a name. Those that are not UTF-8 and control characters become `\\xNN`, and a backslash
    is doubled, so every other name stays as it is.
    """
    return "".join(_escaped(character) for character in name)


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    # Python decodes a byte that is not UTF-8 as a surrogate. Control characters and separators would break a line.
    if unicodedata.category(character) in ("Cs", "Cc", "Zl", "Zp"):
        return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return character


def unescaped(name: str) -> str:
    """The file name that `escaped` wrote."""
    as_bytes = name.encode("utf-8", "surrogateescape")
    original = re.sub(rb"\\(?:x([0-9a-f]{2})|\\)", _unescaped, as_bytes)
    return original.decode("utf-8", "surrogateescape")


def _unescaped(found: re.Match) -> bytes:
    return bytes.fromhex(found.group(1).decode()) if found.group(1) else b"\\"


# An underscore within a word, as in leaf_spot, is only itself.
MARKDOWN = re.compile(r"[\\`*\[\]<>&~|#$]|(?<![^\W_])_|_(?![^\W_])")


def in_markdown(text: str) -> str:
    """A text from outside, such as a label, in one line of Markdown that shows it as it is, without links or HTML."""
    return MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def as_code(name: str) -> str:
    """A name from outside, such as that of a folder, as code in Markdown."""
    name = escaped(name)
    # The text may hold backticks: the fence has one more than any of them in a row.
    fence = "`" * (max(map(len, re.findall("`+", name)), default=0) + 1)
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{name}{space}{fence}"
