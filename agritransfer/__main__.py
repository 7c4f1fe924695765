"""Inspect photos, compare strategies, predict, export and publish."""

import argparse
import sys
from collections.abc import Sequence

from agritransfer.cli import audit, compare, export, predict, publish, publish_dataset, rank
from agritransfer.errors import DataError, PublishError, UsageError
from agritransfer.runtime.help_format import HelpFormatter
from agritransfer.runtime.process import begin_process

COMMANDS = {
    "audit": audit,
    "rank": rank,
    "compare": compare,
    "predict": predict,
    "export": export,
    "publish": publish,
    "publish-dataset": publish_dataset,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    begin_process()
    parser = build_parser()
    arguments, others = parser.parse_known_args(argv)
    if others and arguments.command != "compare":
        parser.error(f"unknown flag {others[0]}; see python -m agritransfer {arguments.command} --help")
    try:
        # Flags that compare does not know belong to the training scripts.
        command = COMMANDS[arguments.command]
        return compare.run(arguments, others) if command is compare else command.run(arguments)
    except (UsageError, DataError, PublishError) as error:
        print(f"agritransfer {arguments.command}: error: {error}", file=sys.stderr)
        return error.exit_code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, each with its own flags."""
    parser = argparse.ArgumentParser(prog="python -m agritransfer", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
