"""How is a number of things written in a message?"""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """The number with its noun, such as `1 photo`, `3 photos` or, with a plural of its own, `2 classes`."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"
