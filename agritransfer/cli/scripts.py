"""How does a command run the training scripts, and which of its flags does each one get?"""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agritransfer.arguments import ModelArguments
from agritransfer.errors import UsageError
from agritransfer.strategies import STRATEGIES

SCRIPTS = Path(__file__).parent.parent.parent
ON_WINDOWS = sys.platform == "win32"
# What a terminal or a scheduler sends to end a command.
SIGNALS = [signal.SIGINT, signal.SIGTERM] + ([] if ON_WINDOWS else [signal.SIGUSR1, signal.SIGHUP])


def flags_for(strategy: str, training_flags: Sequence[str], useless: Collection[str] = ()) -> list[str]:
    """The flags that this strategy's script knows: all but those that only other strategies have, and the useless."""
    of_model = set(ModelArguments.__dataclass_fields__)
    own = {name for other in STRATEGIES.values() for name in other.arguments.__dataclass_fields__} | of_model
    known = set(STRATEGIES[strategy].arguments.__dataclass_fields__) - of_model
    # Training from scratch could take a model too, for its architecture; here it has a small network of its own.
    foreign = own - known - (of_model if STRATEGIES[strategy].pretrained else set())
    # Feature extraction shares the flags of fine-tuning but has no use for these.
    foreign |= {"head_first", "layer_decay", "head_learning_rate"} if strategy == "head" else set()
    foreign |= set(useless)
    kept, keeping = [], True
    for word in training_flags:
        if word.startswith("--"):
            keeping = word[2:].split("=")[0].replace("-", "_").removeprefix("no_") not in foreign
        kept += [word] if keeping else []
    return kept


def run_script(command: Sequence[str], log: Path) -> int:
    """Run a training script with its output in a log file; signals to this process are passed on to the script.

    Returns its exit code; for a script that was ended by a signal 128 and the number of the signal, as in a shell.
    """
    script = [sys.executable, str(SCRIPTS / command[0]), *command[1:]]
    # A process group of its own: a second Ctrl-C, from the terminal itself, would end the script without a checkpoint.
    group = {} if ON_WINDOWS else {"process_group": 0}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(script, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, **group)
        with _passing_signals_on(process):
            code = process.wait()
    return 128 - code if code < 0 else code


@contextmanager
def _passing_signals_on(process: subprocess.Popen) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: process.send_signal(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_line(log: Path) -> str:
    """The last line of a log, without the name of the script that it begins with: what ended the script."""
    line = (log.read_text(encoding="utf-8", errors="replace").strip() or "no output").splitlines()[-1]
    return re.sub(r"^\w+\.py: (error: )?", "", line)


def make_folder(folder: Path) -> None:
    """Make the folder of `--output_dir`; raises `UsageError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output_dir {folder} cannot be used: {error.strerror}; choose another folder") from error


def as_typed(command: Sequence[str]) -> str:
    """A command of a script, to show and to copy."""
    return shlex.join(["python", *command])
