"""Would more epochs have helped?"""

import math
from typing import Any

from agritransfer.runtime.process import say

# A smaller rise of macro F1 is within the noise of the validation photos.
RISE = 0.01


def still_rising(history: list[dict[str, Any]]) -> bool:
    """Whether the best validation macro F1 of the last fifth of the evaluations beats all earlier ones by `RISE`."""
    # A linear probe has penalties in place of epochs.
    scores = [entry["eval_macro_f1"] for entry in history if "eval_macro_f1" in entry and "penalty" not in entry]
    last = math.ceil(len(scores) / 5)
    return len(scores) > last and max(scores[-last:]) - max(scores[:-last]) >= RISE


def say_whether_rising(history: list[dict[str, Any]], epochs: float) -> None:
    """Print what to add if validation still rose when training ended."""
    if still_rising(history):
        say(
            "validation macro F1 still rose when training ended: add epochs, such as --num_train_epochs "
            f"{math.ceil(2 * epochs)} --restart"
        )
