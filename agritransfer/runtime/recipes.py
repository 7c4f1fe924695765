"""How does a recipe become flags?

A recipe is a YAML file with one `flag: value` per line. Its values are the words that would stand on the command line:
`off` is the word off and not the boolean, and `1e-3` is a number.
"""

from pathlib import Path

import yaml

from agritransfer.errors import UsageError

EMPTY = ("", "~", "null", "Null", "NULL")


def recipe_flags(recipe: str) -> list[str]:
    """The flags of a recipe, such as `--seed=3`; `UsageError` if the file is no recipe."""
    path = Path(recipe)
    if not path.is_file():
        raise UsageError(f"no recipe at '{path}'; sample recipes are in recipes/")
    try:
        # The nodes, since the values that YAML makes of them would be guesses: `off` and `no` become False.
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise UsageError(
            f"the recipe '{path}', line {line}: {error.problem}; write one 'flag: value' per line"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())
        raise UsageError(f"the recipe '{path}' is no text in UTF-8 ({found}); save it as UTF-8") from error
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"the recipe '{path}' holds no flags; write one 'flag: value' per line")
    flags: dict[str, list[str]] = {}
    for key, value in root.value:
        place = f"the recipe '{path}', line {key.start_mark.line + 1}"
        name = str(key.value).replace("-", "_")
        if not isinstance(key, yaml.ScalarNode) or not (name.isidentifier() and name[0].isalpha()):
            raise UsageError(f"{place}: a line must begin with the name of a flag, without dashes, such as 'seed: 3'")
        if name in flags:
            raise UsageError(f"{place}: {name} is given twice; keep one of them")
        if name == "recipe":
            raise UsageError(f"{place}: a recipe cannot name another recipe; copy its lines")
        flags[name] = _words(name, value, place)
    return [word for words in flags.values() for word in words]


def _words(name: str, value: yaml.Node, place: str) -> list[str]:
    """A flag of a recipe in the words of a command line."""
    if isinstance(value, yaml.SequenceNode):
        values = [_text(name, item, place) for item in value.value]
        if not values:
            raise UsageError(f"{place}: {name} has no value; write one or remove the line")
        return [f"--{name}", *values]
    return [f"--{name}={_text(name, value, place)}"]


def _text(name: str, value: yaml.Node, place: str) -> str:
    if not isinstance(value, yaml.ScalarNode):
        raise UsageError(
            f"{place}: {name} must be one value or a list of values; write options as JSON in quotes, such as "
            """'{"num_cycles": 1}'"""
        )
    if value.value.strip() in EMPTY:
        raise UsageError(f"{place}: {name} has no value; write one or remove the line")
    return value.value
