"""Which strategy does a comparison recommend, and why?"""

from collections.abc import Sequence
from typing import Any

from agritransfer.evaluation.significance import LEVEL
from agritransfer.strategies import STRATEGIES
from agritransfer.wording import counted, listed

PLACES = {"test": "on the test photos", "shift": "on the field photos"}


def choose(rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """The row to recommend, chosen on the validation photos alone, so that test and field scores stay unbiased.

    Among those that are not significantly worse than the best, it trains the fewest weights. Random weights are chosen
    only if every pretrained strategy is significantly worse.
    """
    equals = _equals(rows, pairs)
    choices = [row for row in equals if STRATEGIES[row["strategy"]].pretrained] or equals
    return min(choices, key=lambda row: row["trainable_parameters"])


def _equals(rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best row on the validation photos, and those that are not significantly worse."""
    best = max(rows, key=lambda row: row["validation"]["macro_f1"])
    gains = _gains_of(pairs, best["name"], "validation")
    return [best, *(row for row in rows if row is not best and not _significant(gains[row["name"]]))]


def _significant(found: dict[str, Any]) -> bool:
    return found["p_value_adjusted"] < LEVEL


def recommendation(comparison: dict[str, Any]) -> str:
    """Which strategy to use and why, in plain words derived from the numbers, and how certain that is."""
    rows, pairs = comparison["rows"], comparison["pairs"]
    choice = next(row for row in rows if row["name"] == comparison["recommended"])
    equals, places = _equals(rows, pairs), [split for split in PLACES if split in comparison["photos"]]
    words = [
        f"Use {choice['name']}, chosen on the {counted(comparison['photos']['validation'], 'validation photo')}: its "
        f"macro F1 there is {choice['validation']['macro_f1']:.3f}, with {choice['trainable_parameters']:,} trained "
        f"weights and {choice['seconds']:.0f} s of training.",
        _reason_words(choice, equals, _gains_of(pairs, equals[0]["name"], "validation"), len(rows)),
    ]
    for split in places:
        words += _score_words(choice, rows, _gains_of(pairs, choice["name"], split), split)
    words += _transfer_words(pairs, places)
    words += [_rule_words(choice, {row["strategy"] for row in rows}), _doubt_words(comparison, choice, places[-1])]
    return " ".join([*words, *seed_note(rows)])


def _gains_of(pairs: list[dict[str, Any]], name: str, split: str) -> dict[str, dict[str, Any]]:
    """The gain of one candidate over each of the others."""
    gains = {}
    for pair in pairs:
        if pair["second"] == name:
            gains[pair["first"]] = pair[split]
        elif pair["first"] == name:
            low, high = pair[split]["gain_ci95"]
            gains[pair["second"]] = pair[split] | {"gain": -pair[split]["gain"], "gain_ci95": [-high, -low]}
    return gains


def _reason_words(
    choice: dict[str, Any], equals: list[dict[str, Any]], gains: dict[str, dict[str, Any]], candidates: int
) -> str:
    """Why it was chosen; `gains` are those of the best on the validation photos."""
    best, *others = equals
    if choice is not best:
        found = gains[choice["name"]]
        return (
            f"{_capital(best['name'])} scores {found['gain']:.3f} higher there, but that is not significant "
            f"({p_text(found)}), and it trains {best['trainable_parameters']:,} weights."
        )
    if others:
        named = listed([row["name"] for row in others])
        return f"It has the highest score there, but its lead over {named} may be due to chance."
    return (
        f"There it is significantly better than {'the other strategy' if candidates == 2 else 'every other strategy'}."
    )


def _score_words(
    choice: dict[str, Any], rows: list[dict[str, Any]], gains: dict[str, dict[str, Any]], split: str
) -> list[str]:
    """How good the choice is on other photos, and which candidates differ from it there; the choice stays."""
    low, high = choice[split]["macro_f1_ci95"]
    words = [f"{_capital(PLACES[split])}, its macro F1 is {choice[split]['macro_f1']:.3f} [{low:.3f}, {high:.3f}]."]
    differ = [
        (row["name"], gains[row["name"]]) for row in rows if row is not choice and _significant(gains[row["name"]])
    ]
    lower = [(name, found) for name, found in differ if found["gain"] > 0]
    higher = [(name, found) for name, found in differ if found["gain"] < 0]
    for named, word in ((lower, "lower"), (higher, "higher")):
        if named:
            parts = [
                f"{name} {'scores ' if name == named[0][0] else ''}{abs(found['gain']):.3f} {word} ({p_text(found)})"
                for name, found in named
            ]
            words.append(f"{_capital(listed(parts))}.")
    if higher:
        names = listed([name for name, _ in higher])
        words.append(
            f"The choice was not made on these photos, so that their scores stay unbiased; if they are what matters, "
            f"consider {names} and confirm that on new photos."
        )
    if not differ:
        words.append("No other strategy differs significantly from it there.")
    return words


def p_text(found: dict[str, Any]) -> str:
    """The corrected p-value, such as `p = 0.031`."""
    p_value = found["p_value_adjusted"]
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _transfer_words(pairs: list[dict[str, Any]], places: Sequence[str]) -> list[str]:
    over_scratch = [pair for pair in pairs if pair["over_scratch"]]
    if not over_scratch:
        return []
    # The field photos tell what transfer is worth, if there are any.
    split = places[-1]
    where, certain = PLACES[split], [pair for pair in over_scratch if _significant(pair[split])]
    negative = [pair["second"] for pair in certain if pair[split]["gain"] < 0]
    positive = [pair["second"] for pair in certain if pair[split]["gain"] > 0]
    if negative:
        better = f"training from scratch scores higher {where} than {listed(negative)}"
        return [f"Negative transfer: {better}; try another backbone."]
    if len(positive) == len(over_scratch):
        return [f"Transfer helps: every pretrained strategy scores higher {where} than training from scratch."]
    if positive:
        return [f"Transfer is shown to help {where} only for {listed(positive)}."]
    return [f"No pretrained strategy is shown to score higher {where} than training from scratch."]


def _rule_words(choice: dict[str, Any], strategies: set[str]) -> str:
    """What the result means for the course's rule of thumb."""
    rule = (
        "The course's rule of thumb: feature extraction if domain and task are similar, fine-tuning otherwise, and "
        "LoRA if compute is limited."
    )
    chosen = STRATEGIES[choice["strategy"]]
    if chosen.pretrained and chosen.trains_backbone and "head" not in strategies:
        return f"{rule} Feature extraction was not compared, so the rule cannot be checked here."
    return f"{rule} {chosen.verdict}"


def _doubt_words(comparison: dict[str, Any], choice: dict[str, Any], split: str) -> str:
    """How small a difference this comparison could detect."""
    gains = _gains_of(comparison["pairs"], choice["name"], split).values()
    widest = max((found["gain_ci95"][1] - found["gain_ci95"][0]) / 2 for found in gains)
    runs = sorted({len(row["runs"]) for row in comparison["rows"]})
    seeds = counted(runs[0], "seed") if len(runs) == 1 else f"{runs[0]} to {runs[-1]} seeds"
    return (
        f"Uncertainty {PLACES[split]}: {counted(comparison['photos'][split], 'photo')}, {seeds} per strategy; "
        f"differences below about {widest:.2f} cannot be distinguished from chance."
    )


def seed_note(rows: list[dict[str, Any]]) -> list[str]:
    """What the numbers do not cover if candidates have a single run; nothing if each has several."""
    single = [row["name"] for row in rows if len(row["runs"]) == 1]
    if not single:
        return []
    whose = "each strategy" if len(single) == len(rows) else listed(single)
    return [
        f"There is one run of {whose}: the luck of its seed is not in the intervals and p-values, which are about that "
        "trained model only; use --seeds 3 to include it."
    ]


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
