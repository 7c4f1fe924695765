"""How are a number of things and a list of names written in a message?"""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """The number with its noun, such as `1 photo`, `1,200 photos` or, with an irregular plural, `2 classes`."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def listed(names: list[str]) -> str:
    """Names as in a sentence, such as `rust, mosaic and blight`."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
