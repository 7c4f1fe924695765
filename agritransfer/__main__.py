"""Train image classifiers by transfer learning; inspect photos, compare strategies, predict, export and publish."""

import argparse
import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from agritransfer.cli import audit, compare, export, predict, publish, publish_dataset, rank, train
from agritransfer.cli.flag_checks import check_flags
from agritransfer.errors import DataError, PublishError, UsageError
from agritransfer.runtime.help_format import HelpFormatter
from agritransfer.runtime.process import begin_process
from agritransfer.strategies import SCRIPTS

COMMANDS = {
    "train": train,
    "audit": audit,
    "rank": rank,
    "compare": compare,
    "predict": predict,
    "export": export,
    "publish": publish,
    "publish-dataset": publish_dataset,
}
# They run the training scripts and pass on the flags that they do not know.
PASSING_ON = (train, compare)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command or training script; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SCRIPTS:
        return run_script(*words)
    begin_process()
    parser = build_parser()
    arguments, others = parser.parse_known_args(words)
    if others and COMMANDS[arguments.command] not in PASSING_ON:
        parser.error(f"unknown flag {others[0]}; see agritransfer {arguments.command} --help")
    try:
        check_flags(arguments, words)
        command = COMMANDS[arguments.command]
        return command.run(arguments, others) if command in PASSING_ON else command.run(arguments)
    except (UsageError, DataError, PublishError) as error:
        print(f"agritransfer {arguments.command}: error: {error}", file=sys.stderr)
        return error.exit_code


def run_script(name: str, *flags: str) -> int:
    """Run a training script as `python train_NAME.py FLAGS` does; returns 0, or ends the process with its exit code."""
    sys.argv = [f"agritransfer {name}", *flags]
    runpy.run_module(Path(SCRIPTS[name]).stem, run_name="__main__")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, each with its own flags; those of the training scripts are parsed by the scripts."""
    parser = argparse.ArgumentParser(prog="agritransfer", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, script in SCRIPTS.items():
        commands.add_parser(name, help=_first_line(script), add_help=False)
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


def _first_line(script: str) -> str:
    """What a script is for; read, since running it would import the libraries. The scripts lie beside the package."""
    text = (Path(__file__).parent.parent / script).read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
