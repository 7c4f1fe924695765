"""Which checkpoints are complete?

The Trainer writes directly into `checkpoint-N` and resumes from the highest number, complete or not. Here a checkpoint
is valid when every file matches its manifest, and the manifest is written last.
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"


def follow_umask(folder: Path) -> None:
    """Give the weights in a folder the mode that the umask grants; safetensors lets only the owner read them."""
    # The umask can only be read by setting it; with this value, files created meanwhile by other threads are private.
    umask = os.umask(0o077)
    os.umask(umask)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o666 & ~umask)


def write_manifest(checkpoint: Path) -> None:
    """Mark a checkpoint as complete: size and sha256 of every file, all of them flushed to the disk first."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST):
        # Windows flushes only files that are open for writing.
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
    """Why a checkpoint cannot be used, phrased to follow its name; None if every file matches the manifest."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "was not written completely"
    for name, written in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != written["size"]:
            return f"has {path.stat().st_size:,} of the {written['size']:,} bytes of {name}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != written["sha256"]:
                return f"has a {name} with a wrong checksum"
    return None


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest complete checkpoint in a folder, and what is wrong with each newer one.

    A checkpoint whose best weights so far are lost is not complete: the run would end with different weights.
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
    return f"needs the best weights so far, those of {best.name}, which {fault}"


def best_of(checkpoint: Path) -> Path | None:
    """The checkpoint beside this one that holds the best weights so far; None before the first validation."""
    state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    best = state["best_model_checkpoint"]
    # By name only: the run folder may have been moved.
    return None if best is None else checkpoint.parent / Path(best).name


def put_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it is kept but no longer used; returns its new path."""
    return checkpoint.rename(free_name(checkpoint.with_name(f"damaged-{checkpoint.name}")))


def free_name(path: Path) -> Path:
    """This path, or the first of path.1, path.2, ... that does not exist."""
    free, taken = path, 0
    while free.exists():
        taken += 1
        free = path.with_name(f"{path.name}.{taken}")
    return free


def point_to_best(checkpoint: Path) -> None:
    """Update the path of the best checkpoint in the saved state; the Trainer ignores one that it cannot find."""
    best = best_of(checkpoint)
    path = checkpoint / TRAINER_STATE
    state = json.loads(path.read_text(encoding="utf-8"))
    if best is not None and state["best_model_checkpoint"] != str(best):
        state["best_model_checkpoint"] = str(best)
        path.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        write_manifest(checkpoint)
