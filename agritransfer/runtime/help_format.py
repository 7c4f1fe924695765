"""How does `--help` read?"""

import argparse
import textwrap
from itertools import groupby


class HelpFormatter(argparse.HelpFormatter):
    """Shows defaults and short placeholders; wraps the prose of a description and keeps its indented commands.

    The methods are those that the formatters of the standard library override.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is None or isinstance(default, bool) or default in (argparse.SUPPRESS, "", []):
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{action.help} (default: {shown})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if action.const is True:
            return "true|false"
        return {int: "N", float: "X"}.get(action.type, action.dest.rsplit("_", 1)[-1].upper())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = []
        for is_prose, group in groupby(text.splitlines(), key=lambda line: line[:1].strip() != ""):
            lines = list(group)
            blocks += [textwrap.fill(" ".join(lines), width, break_on_hyphens=False)] if is_prose else lines
        return textwrap.indent("\n".join(blocks), indent)
