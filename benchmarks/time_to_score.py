"""How much sooner do we reach the score that the recipe has after five epochs of fine-tuning all layers?

    python -m benchmarks.time_to_score --data cardamom_lab --model efficientnet-lite0 --image_size 112

Peer: the recipe, as documented and with better flags (learning rate, batch, workers); its time is when its validation
accuracy first reached the value that it has after five epochs. Ours: the same network with `--train_layers head` and
without it; its time is when its validation accuracy first reached that value. Both are timed from the command,
including imports, the photo check and the filling of caches. Each turn uses another seed.
"""

import statistics
from collections.abc import Callable, Sequence

from benchmarks import runs
from benchmarks.timing import Ratio, compare, machine, report, take_turns

AIM = 4.0
OURS = {
    "train_finetune.py --train_layers head": ["--train_layers", "head"],
    "train_finetune.py": [],
}
# The learning rate of the guide is meant for batches of 64 and many more photos.
RECIPES = {
    "recipe as documented": [],
    "recipe, 2 workers, batches of 32, rate 2e-4": [*runs.BEST_FLAGS, "--learning_rate", "2e-4"],
}


def main() -> None:
    """Run every entrant once per turn, then compare each of ours with the score of each recipe."""
    args = runs.parse_run(runs.run_parser(__doc__, turns=5, epochs=5))
    facts, data, folder = machine(), runs.photos_of(args), args.output.absolute() / "runs"
    flags = runs.shared_flags(args)
    finished: dict[str, list[runs.Run]] = {name: [] for name in (*OURS, *RECIPES)}

    def entrant(name: str, start: Callable[[int], runs.Run]) -> Callable[[], float]:
        def once() -> float:
            run = start(len(finished[name]))
            finished[name].append(run)
            scores = ", ".join(f"{accuracy:.3f} at {seconds:.0f} s" for seconds, accuracy in run.validation)
            print(f"{name}: {scores}; total {run.seconds:.0f} s, test {run.test:.3f}", flush=True)
            return run.seconds

        return once

    def ours(more: Sequence[str]) -> Callable[[int], runs.Run]:
        return lambda seed: runs.run_ours(
            "train_finetune.py", data, args.model, folder / "score", [*flags, *more, "--seed", str(seed)]
        )

    def recipe(more: Sequence[str]) -> Callable[[int], runs.Run]:
        return lambda seed: runs.run_recipe(
            data, args.model, folder / "score-recipe", [*flags, *more, "--seed", str(seed)]
        )

    entrants = {name: entrant(name, ours(more)) for name, more in OURS.items()}
    entrants |= {name: entrant(name, recipe(more)) for name, more in RECIPES.items()}
    take_turns(entrants, args.turns, warm_up=False)

    ratios, notes = [], []
    for name in OURS:
        for peer in RECIPES:
            ratio, note = reached(f"{runs.described(data, args)}", name, finished[name], peer, finished[peer])
            ratios += [ratio] if ratio else []
            notes += [note] if note else []
    report(args.output, f"time_to_score-{data.name.removeprefix('split-')}", ratios, facts, notes)


def reached(what: str, name: str, ours: list[runs.Run], peer: str, theirs: list[runs.Run]) -> tuple[Ratio | None, str]:
    """The ratio over the turns in which ours reached the score of the peer, and a note on the other turns."""
    pairs = [(mine.seconds_to(other.validation[-1][1]), other) for mine, other in zip(ours, theirs, strict=True)]
    got = [(seconds, other.seconds_to(other.validation[-1][1])) for seconds, other in pairs if seconds is not None]
    bar = statistics.mean(other.validation[-1][1] for other in theirs)
    note = ""
    if missed := len(pairs) - len(got):
        short = f"in {missed} of {len(pairs)} turns {name} did not reach the score of {peer}"
        note = f"{what}: {short} ({bar:.3f} on average)."
    if not got:
        return None, note
    question = f"time to the recipe's validation accuracy, {what}"
    tests = statistics.mean(run.test for run in ours), statistics.mean(run.test for run in theirs)
    guard = f"target {bar:.3f}, reached in {len(got)} of {len(pairs)}; test {tests[0]:.3f}, peer {tests[1]:.3f}"
    mine, other = zip(*got, strict=True)
    facts = {"target": AIM, "guard": guard, "guarded": not missed}
    return compare(question, (name, mine), (peer, other), "seconds", "s", **facts), note


if __name__ == "__main__":
    main()
