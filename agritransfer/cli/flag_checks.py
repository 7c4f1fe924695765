"""Which values of a command's flags cannot work?"""

import argparse
from collections.abc import Sequence
from dataclasses import fields

from agritransfer.arguments import DataArguments
from agritransfer.ranges import COUNT, Range, check_number
from agritransfer.runtime.flag_checks import check_split, check_words, flag_names, repeated_flags

NUMBERS = {field.name: field.metadata["allowed"] for field in fields(DataArguments) if "allowed" in field.metadata}
NUMBERS |= dict.fromkeys(("batch_size", "budget_epochs"), COUNT)
NUMBERS["seeds"] = Range(least=1, most=1000)
NUMBERS["minutes"] = Range(above=0)


def check_flags(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Raise `UsageError` for a number out of range or an empty word."""
    check_words(words)
    for note in repeated_flags(words):
        print(note)
    values = vars(arguments)
    for name, value in values.items():
        if name in NUMBERS:
            for number in value if isinstance(value, list) else [value]:
                check_number(f"--{name}", number, NUMBERS[name])
    if "splits_file" in values:
        check_split(set(flag_names(words)), arguments)
