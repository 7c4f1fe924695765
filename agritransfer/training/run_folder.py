"""Can a run be written into its folder, and how did it end?"""

import json
from pathlib import Path

from agritransfer.errors import UsageError
from agritransfer.training.checkpoints import free_name

STATUS = "status.json"


def check_folder(folder: Path) -> None:
    """Raise `UsageError` if this is no folder, or one with files that no run has written."""
    try:
        others = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise _unusable(folder, error) from error
    if others and not {STATUS, "checkpoints"} & set(others):
        raise UsageError(
            f"--output_dir {folder} holds files that no run has written, such as {others[0]}; choose a new or an empty "
            "folder"
        )


def reserve_folder(folder: Path, restart: bool) -> None:
    """Make the folder and mark it as running; `restart` renames that of an earlier run. Raises `UsageError`."""
    try:
        if restart and folder.exists():
            print(f"the earlier run is renamed to {folder.rename(free_name(folder))}")
        folder.mkdir(parents=True, exist_ok=True)
        write_status(folder, "running", None)
    except OSError as error:
        raise _unusable(folder, error) from error


def write_status(folder: Path, state: str, exit_code: int | None) -> None:
    """Write `status.json`: running, done or why not, and the exit code."""
    (folder / STATUS).write_text(json.dumps({"state": state, "exit_code": exit_code}) + "\n")


def _unusable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"--output_dir {folder} cannot be used: {error.strerror}; choose another folder")
