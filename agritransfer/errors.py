"""Which errors end a run early, and with which exit code?"""


class UsageError(ValueError):
    """A flag, a folder or a model is invalid; nothing was trained."""

    exit_code = 2


class DataError(ValueError):
    """The photos or labels are not fit to train on; nothing was trained."""

    exit_code = 3


class PublishError(RuntimeError):
    """The run is complete on disk but was not published on the Hub."""

    exit_code = 4


class DivergedError(RuntimeError):
    """The loss, the weights or the outputs are NaN or infinite."""

    exit_code = 5


class StorageError(RuntimeError):
    """A model, a checkpoint or a cache file could not be written, or read as it was written."""

    exit_code = 1


class Preempted(BaseException):
    """The run was preempted; the same command resumes it.

    Like `KeyboardInterrupt` not an `Exception`, so that no library catches it and continues.
    """

    exit_code = 75


def in_one_line(error: Exception) -> str:
    """The message of an error from a library, in one line."""
    # In the Hub's errors the second line says what was not found.
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
