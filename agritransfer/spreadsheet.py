"""How is text kept from being run as a formula when a spreadsheet opens a CSV file?"""

import re

# What starts a formula, as OWASP lists it under "CSV injection"; some spreadsheets skip blanks before it.
# The last four are full-width forms of the others.
FORMULA = re.compile(r"'*(\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def guarded(cell: str) -> str:
    """The text, with one more apostrophe in front if a spreadsheet would run it; numbers such as -0.5 stay."""
    is_formula = FORMULA.match(cell) and not NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell
