"""Which class does a value of a label column name?"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import datasets

from agritransfer.errors import DataError

TEXT = ("string", "large_string")


def classes_of(values: Sequence[Any], feature: Any, file: str) -> list[str | None]:
    """The class name of each value of a label column, None for a hidden label; `DataError` names the row and file."""
    names = names_of(feature)
    known: dict[Any, str | None] = {}
    for row, value in enumerate(values):
        if value not in known:
            try:
                known[value] = class_of(value, names)
            except ValueError as error:
                raise DataError(f"row {row} (counted from 0) of {file} has {error}") from error
    return [known[value] for value in values]


def class_of(value: Any, names: list[str] | None) -> str | None:
    """The class that a value names, None if it names none; `ValueError` says what is wrong with another value."""
    # The Hub marks a hidden label with -1, which Python would take for the last class.
    if value is None or (type(value) is int and value == -1):
        return None
    if names is not None and type(value) is int:
        if not 0 <= value < len(names):
            raise ValueError(
                f"the label {value}, but there are {len(names)} class names (0 to {len(names) - 1}); correct it, or "
                "set it to -1 to leave the photo out"
            )
        value = names[value]
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("an empty label; name its class, or set it to null to leave the photo out")
        if any(unicodedata.category(letter) == "Cc" for letter in value):
            raise ValueError(f"the label {value!r} with a control character; remove it")
        return value
    if not isinstance(value, int):
        raise ValueError(f"the label {value!r}; use text or whole numbers")
    if value < 0:
        raise ValueError(f"the label {value}; use 0 or more, or -1 to leave the photo out")
    return str(value)


def names_of(feature: Any) -> list[str] | None:
    """The class names that a column comes with, or None."""
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def refuse_label_column(name: str, column: str, features: dict[str, Any]) -> None:
    """Raise `DataError` if the labels of these files, {file: column type}, are no class names or not of one kind."""
    kinds = {file: _kind(feature) for file, feature in features.items()}
    for file, kind in kinds.items():
        if kind not in ("class names", "text", "whole numbers", "true or false", "nothing"):
            raise DataError(
                f"the label column '{column}' of {file} in '{name}' holds {kind}; one class per photo, as text or a "
                "whole number, can be trained on: convert the column or choose another with --label_column_name"
            )
    of_kind: dict[str, str] = {}
    for file, kind in kinds.items():
        if kind != "nothing":
            of_kind.setdefault(kind, file)
    if len(of_kind) > 1:
        found = "; ".join(f"{kind} in {file}" for kind, file in of_kind.items())
        raise DataError(
            f"the label column '{column}' of '{name}' differs between its files: {found}; save all of them with the "
            "same type"
        )


def refuse_odd_names(name: str, labels: Sequence[str]) -> None:
    """Raise `DataError` for a label that names no class, and for two that differ only in blanks around them."""
    seen: dict[str, str] = {}
    for label in labels:
        try:
            class_of(label, None)
        except ValueError as error:
            raise DataError(f"'{name}' has {error}") from error
        if (twin := seen.setdefault(label.strip(), label)) != label:
            raise DataError(f"'{name}' has the labels '{twin}' and '{label}', which differ only in blanks; merge them")


def _kind(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return "class names"
    if isinstance(feature, datasets.Value):
        kinds = dict.fromkeys(TEXT, "text") | {"bool": "true or false", "null": "nothing"}
        is_whole = feature.dtype.startswith(("int", "uint"))
        return kinds.get(feature.dtype, "whole numbers" if is_whole else f"{feature.dtype} values")
    if isinstance(feature, dict):
        return f"records of {', '.join(feature)}"
    if isinstance(feature, (list, datasets.List, datasets.LargeList)):
        return "lists, that is several labels per photo (multi-label)"
    return f"{type(feature).__name__} values"
