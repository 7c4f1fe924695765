"""Which photos of one split are also in another?"""

from typing import Literal

from agritransfer.data.audit import Examination
from agritransfer.errors import DataError

# Of two splits that share a photo the later one keeps it.
SCORED_LAST = {"train": 0, "validation": 1, "test": 2, "": 0}


def find_leaks(examination: Examination, on_leakage: Literal["drop", "keep", "stop"]) -> dict[str, str]:
    """Where each photo is found again that is also in a split that is scored later."""
    leaked = {}
    for group in examination.groups_where("split"):
        last = max(group, key=lambda photo: SCORED_LAST[photo.split])
        early = [photo for photo in group if SCORED_LAST[photo.split] < SCORED_LAST[last.split]]
        leaked |= {photo.file: f"is also in {last.split} as {last.file}" for photo in early}
    stop_if_leaked(leaked, on_leakage)
    return leaked


def stop_if_leaked(leaked: dict[str, str], on_leakage: str) -> None:
    """Raise `DataError` for leaked photos where they are to stop the run."""
    if leaked and on_leakage == "stop":
        named = "; ".join(f"{file} {where}" for file, where in list(leaked.items())[:10])
        raise DataError(f"{len(leaked)} photos leak: {named}; remove them or use --on_leakage drop")
