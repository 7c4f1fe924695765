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
