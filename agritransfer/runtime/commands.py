"""Which command started this process, and in which flags do two commands differ?"""

import shlex
import sys
from collections.abc import Collection
from pathlib import Path


def command_line() -> str:
    """The command that started this process: a script, or `agritransfer` with a subcommand."""
    program = Path(sys.argv[0])
    command = shlex.join([*(["python", program.name] if program.suffix else sys.argv[0].split()), *sys.argv[1:]])
    # The path of a folder may hold bytes that are not UTF-8.
    return command.encode("utf-8", "backslashreplace").decode()


def differences(then: str, now: str, ignored: Collection[str] = ()) -> str:
    """The flags that differ between two commands, with both values, apart from the ignored ones; "" for none."""
    was, asked = _flags_of(then), _flags_of(now)
    names = sorted(name for name in was.keys() | asked.keys() if was.get(name) != asked.get(name))
    return "; ".join(
        f"{name} was {was.get(name, 'not given')}, is {asked.get(name, 'not given')}"
        for name in names
        if name not in ignored
    )


def _flags_of(command: str) -> dict[str, str]:
    """The words after each flag; the words before the first flag are stored under "script"."""
    flags, name = {"script": []}, "script"
    for word in shlex.split(command):
        flag, given, value = word.partition("=") if word.startswith("--") else ("", "", word)
        name = flag or name
        flags.setdefault(name, [])
        flags[name] += [value] if given or not flag else []
    return {name: " ".join(words) or "set" for name, words in flags.items()}
