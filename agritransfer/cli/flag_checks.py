"""Which values of a command's flags cannot work?"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from agritransfer.arguments import DataArguments
from agritransfer.errors import UsageError
from agritransfer.ranges import COUNT, Range, check_number
from agritransfer.runtime.flag_checks import check_split, check_words, flag_names, repeated_flags

NUMBERS = {field.name: field.metadata["allowed"] for field in fields(DataArguments) if "allowed" in field.metadata}
NUMBERS |= dict.fromkeys(("batch_size", "budget_epochs"), COUNT)
NUMBERS["seeds"] = Range(least=1, most=1000)


def check_flags(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Raise `UsageError` for a number out of range, an empty word or an output that is no file."""
    check_words(words)
    for note in repeated_flags(words):
        print(note)
    values = vars(arguments)
    for name, value in values.items():
        if name in NUMBERS:
            check_number(f"--{name}", value, NUMBERS[name])
    if "splits_file" in values:
        check_split(set(flag_names(words)), arguments)
    if values.get("output") is not None:
        _check_output(arguments.output)


def make_folder(folder: Path) -> None:
    """Make the folder of `--output_dir`; raises `UsageError` if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output_dir {folder} cannot be used: {error.strerror}; choose another folder") from error


def _check_output(file: Path) -> None:
    """Raise `UsageError` if the file cannot be written, before the work that fills it."""
    try:
        if file.is_dir():
            raise UsageError(f"--output {file} is a folder; give the name of a file")
        # Opened without a change to what is in it.
        existed = file.exists()
        file.open("a").close()
        if not existed:
            file.unlink()
    except OSError as error:
        raise UsageError(f"--output {file} cannot be written: {error.strerror}; choose another file") from error
