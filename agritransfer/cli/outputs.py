"""Which files may a command write, so that nothing of the user's is lost?"""

import json
import os
from pathlib import Path

from agritransfer.errors import UsageError
from agritransfer.wording import escaped

# Bytes in the name of a file, on all usual file systems.
LONGEST_NAME = 255


def check_output(path: Path, overwrite: bool, flag: str = "--output") -> None:
    """Raise `UsageError` if this file cannot be written, or exists and may not be overwritten."""
    _check_place(path, flag)
    if os.path.lexists(path) and not _is_device(path) and not overwrite:
        raise UsageError(f"{flag} '{escaped(str(path))}' exists already; add --overwrite or choose another name")


def check_report(path: Path, *entries: str, flag: str = "--output") -> None:
    """Raise `UsageError` if this JSON file cannot be written, or exists and is no report with these entries."""
    _check_place(path, flag)
    if os.path.lexists(path) and not _is_device(path) and not is_report(path, *entries):
        name = escaped(str(path))
        raise UsageError(f"{flag} '{name}' exists already and is no report of this command; choose another name")


def is_report(path: Path, *entries: str) -> bool:
    """Whether a JSON file has these entries, in itself or in the first element of its list."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    report = report[0] if isinstance(report, list) and report else report
    return isinstance(report, dict) and set(entries) <= set(report)


def _check_place(path: Path, flag: str) -> None:
    name, folder = escaped(str(path)), escaped(str(path.parent))
    if os.path.isdir(path):
        raise UsageError(f"{flag} '{name}' is a folder; give the name of a file, such as '{name}/table'")
    if not os.path.isdir(path.parent):
        raise UsageError(f"there is no folder '{folder}' for {flag}; make it first")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise UsageError(f"the name of {flag} '{name}' is too long; choose another name")
    if not os.access(path if os.path.lexists(path) else path.parent, os.W_OK):
        raise UsageError(f"{flag} '{name}' cannot be written; correct the permissions or choose another folder")


def _is_device(path: Path) -> bool:
    # Such as /dev/stdout: nothing in it can be lost.
    return os.path.exists(path) and not os.path.isfile(path)
