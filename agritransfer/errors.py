"""What may end a run early, and with which exit code?"""


class UsageError(ValueError):
    """A flag, a folder or a model that cannot be used as asked; nothing was trained."""

    exit_code = 2


class DataError(ValueError):
    """Photos or labels that cannot be trained on as they are; nothing was trained."""

    exit_code = 3


class PublishError(RuntimeError):
    """All is trained and on disk, but not on the Hub."""

    exit_code = 4


class DivergedError(RuntimeError):
    """The loss is no longer a number."""

    exit_code = 5


class StorageError(RuntimeError):
    """A checkpoint could not be written; the earlier ones are whole."""

    exit_code = 1


class Preempted(BaseException):
    """The machine is being taken away; the same command goes on later.

    No `Exception`, as `KeyboardInterrupt` is none: a library that makes the best of an error must not go on.
    """

    exit_code = 75


def in_one_line(error: Exception) -> str:
    """What a library complained of, for a message of one line."""
    # Of the Hub's many lines the second says what was not found.
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
