"""Why can a file not be used as a photo? Whatever a decoder raises becomes one error with a reason in one line."""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from agritransfer.errors import in_one_line

# The errors that Pillow and pillow-heif raise with a sentence of their own; others say little without their type.
WORDED = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error)
MEMORY_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")


class BrokenPhoto(ValueError):
    """A file that is not a complete photo of a kind that can be used; the message is the reason, in one line."""


@contextmanager
def reasons_in_one_line() -> Iterator[None]:
    """Turn whatever a decoder raises for one photo into `BrokenPhoto`."""
    try:
        yield
    except BrokenPhoto:
        raise
    # The only broad except of the package: for damaged files, decoders raise almost every kind of exception (TypeError,
    # AttributeError, OverflowError, MemoryError, ...), and one photo must never end a run, an audit or a batch.
    except Exception as error:  # noqa: BLE001
        raise BrokenPhoto(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "too little memory to decode it; resize it"
    # The message of an error of the file system ends with the path.
    text = error.strerror if isinstance(error, OSError) and error.strerror else in_one_line(error)
    text = MEMORY_ADDRESS.sub("the file", text)
    return text if isinstance(error, WORDED) else f"damaged ({type(error).__name__}: {text})"
