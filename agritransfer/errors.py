"""What may end a run early, and with which exit code?"""


class UsageError(ValueError):
    """A flag, a folder or a model that cannot be used as asked; nothing was trained."""

    exit_code = 2


class DataError(ValueError):
    """Photos or labels that cannot be trained on as they are; nothing was trained."""

    exit_code = 3


class DivergedError(RuntimeError):
    """The loss is no longer a number."""

    exit_code = 5
