"""Can a run be written into its folder, and how did it end?"""

import json
from pathlib import Path

from agritransfer.errors import UsageError
from agritransfer.training.checkpoints import free_name
from agritransfer.wording import listed

STATUS = "status.json"
# What a run writes under names that other programs use too.
WRITTEN = {
    *("model.safetensors", "config.json", "preprocessor_config.json", "results.json", "README.md"),
    "validation.json",
    *("splits.csv", "predictions.csv", "figures", "adapter", "onnx"),
}


def check_folder(folder: Path) -> None:
    """Raise `UsageError` if this is no folder, or one with files of someone else's that a run would overwrite.

    Other files, such as the log of a Slurm job, do not matter.
    """
    try:
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise _unusable(folder, error) from error
    if not {STATUS, "checkpoints"} & found and (lost := sorted(found & WRITTEN)):
        raise UsageError(
            f"--output_dir {folder} holds {listed(lost)}, which no run has written and a run would overwrite; choose "
            "another folder"
        )


def reserve_folder(folder: Path, restart: bool) -> None:
    """Make the folder and mark it as running; `restart` renames that of an earlier run. Raises `UsageError`."""
    try:
        if restart and (folder / STATUS).exists():
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
