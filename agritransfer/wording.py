"""How is a number of things written in a message?"""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """The number with its noun, such as `1 photo`, `1,200 photos` or, with an irregular plural, `2 classes`."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"
