"""Which numbers does a flag take?"""

import math
from dataclasses import dataclass
from typing import Any

from agritransfer.errors import UsageError

# Larger numbers overflow somewhere in the libraries.
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Range:
    """The numbers between these limits; `least` and `most` belong to it, `above` and `below` do not.

    NaN and infinity are in no range.
    """

    least: float = -math.inf
    above: float = -math.inf
    most: float = LARGEST
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        inside = self.least <= number <= self.most and self.above < number < self.below
        return inside and math.isfinite(number)

    def __str__(self) -> str:
        limits = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        told = {words: limit for words, limit in limits.items() if math.isfinite(limit) and limit != LARGEST}
        return " and ".join(f"{words} {limit}" for words, limit in told.items())


COUNT = Range(least=1)
SHARE = Range(above=0, below=1)
SEED = Range(least=0, most=2**32 - 1)


def check_number(flag: str, number: Any, allowed: Range) -> None:
    """Raise `UsageError` if the number given with the flag is outside the range; None is a flag that is not given."""
    if number is not None and number not in allowed:
        too_large = allowed.most == LARGEST < number < math.inf
        limits = f"of at most {LARGEST}" if too_large else allowed
        found = f"{number:g}" if isinstance(number, float) else number
        raise UsageError(f"{flag} {found} is out of range; give a number {limits}")


def check_numbers(values: dict[str, Any], ranges: dict[str, Range]) -> None:
    """`check_number` for each of the ranges, which are named like the flags."""
    for name, allowed in ranges.items():
        check_number(f"--{name}", values[name], allowed)
