"""Which photos of one split are also in another?"""

from typing import Literal

from agritransfer.data.examination import Examination
from agritransfer.errors import DataError
from agritransfer.wording import counted

# If two splits share a photo, the one that is scored later keeps it.
SCORED_LAST = {"train": 0, "validation": 1, "test": 2, "": 0}


def find_leaks(examination: Examination, on_leakage: Literal["drop", "keep", "stop"]) -> dict[str, str]:
    """For each photo that is also in a split that is scored later, where that copy is."""
    leaked = {}
    for group in examination.groups_where("split"):
        last = max(group, key=lambda photo: SCORED_LAST[photo.split])
        early = [photo for photo in group if SCORED_LAST[photo.split] < SCORED_LAST[last.split]]
        leaked |= {photo.file: f"is also in {last.split} as {last.file}" for photo in early}
    stop_if_leaked(leaked, on_leakage)
    return leaked


def stop_if_leaked(leaked: dict[str, str], on_leakage: str) -> None:
    """Raise `DataError` for leaked photos if `on_leakage` is "stop"."""
    if leaked and on_leakage == "stop":
        named = "; ".join(f"{file} {where}" for file, where in list(leaked.items())[:10])
        raise DataError(f"{counted(len(leaked), 'leaked photo')}: {named}; remove them or use --on_leakage drop")
