"""Which checkpoint can be trusted?

The Trainer writes straight into `checkpoint-N` and resumes from the highest number, whole or not. Here a checkpoint
counts when every file is as its manifest says, and the manifest is written last.
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"


def write_manifest(checkpoint: Path) -> None:
    """Declare a checkpoint complete: size and sha256 of every file, all of it forced to the disk first."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST):
        # Windows forces to the disk only what is open for writing.
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(checkpoint).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    partial = checkpoint / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"files": files}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(checkpoint)
    partial.replace(checkpoint / MANIFEST)
    _sync_folder(checkpoint)
    _sync_folder(checkpoint.parent)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def fault_of(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, to be read after its name; None where every file is as it was written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "was not written to its end"
    for name, written in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != written["size"]:
            return f"has {path.stat().st_size:,} of the {written['size']:,} bytes of {name}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != written["sha256"]:
                return f"has a {name} that is not what was written"
    return None


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest complete checkpoint in a folder, and what is wrong with each one that is newer.

    One whose best weights so far are lost is not complete: the run would end with other weights.
    """
    numbered = {
        int(match[1]): path for path in folder.glob("*") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    faults: dict[Path, str] = {}
    for _, path in sorted(numbered.items(), reverse=True):
        fault = fault_of(path) or _fault_of_best(path)
        if fault is None:
            return path, faults
        faults[path] = fault
    return None, faults


def _fault_of_best(checkpoint: Path) -> str | None:
    best = best_of(checkpoint)
    if best in (None, checkpoint) or (fault := fault_of(best)) is None:
        return None
    return f"needs the best weights, those of {best.name}, which {fault}"


def best_of(checkpoint: Path) -> Path | None:
    """The checkpoint beside this one that holds the best weights so far; None where none was better than another."""
    state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    best = state["best_model_checkpoint"]
    # By its name: the run folder may have been moved.
    return None if best is None else checkpoint.parent / Path(best).name


def put_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint so that it is no longer taken for one, and nothing is lost; returns its new place."""
    return checkpoint.rename(free_name(checkpoint.with_name(f"damaged-{checkpoint.name}")))


def free_name(path: Path) -> Path:
    """This path, or the first of path.1, path.2, ... that is not taken."""
    free, taken = path, 0
    while free.exists():
        taken += 1
        free = path.with_name(f"{path.name}.{taken}")
    return free


def point_to_best(checkpoint: Path) -> None:
    """Let the saved state name the best checkpoint where it lies now; the Trainer forgets one that it cannot find."""
    best = best_of(checkpoint)
    path = checkpoint / TRAINER_STATE
    state = json.loads(path.read_text(encoding="utf-8"))
    if best is not None and state["best_model_checkpoint"] != str(best):
        state["best_model_checkpoint"] = str(best)
        path.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        write_manifest(checkpoint)
