"""How much faster is a new head on a frozen network trained, from start to finish?

    python -m benchmarks.head_only
    python -m benchmarks.head_only --data cardamom_lab --model efficientnet-lite0 --image_size 224 --documented

Ours: `train_finetune.py --train_layers head`, which fits a linear probe. Peer: the recipe with a frozen network for ten
epochs, with a learning rate of 5e-3 (its own 5e-5 would learn nothing), two loader workers and batches of 32; with
`--documented` also with its own batches and no workers. Whole processes are timed, from the command to the test score,
with all caches empty at the start.
"""

from benchmarks import runs
from benchmarks.timing import machine, report

AIM = 8.0
TOLERANCE = 0.0
RATE = ["--learning_rate", "5e-3"]


def main() -> None:
    """Compare the time and the test accuracy of whole runs."""
    parser = runs.run_parser(__doc__, turns=3, epochs=10)
    parser.add_argument("--documented", action="store_true", help="Also compare with the recipe's own settings.")
    args = runs.parse_run(parser)
    facts, data, folder = machine(), runs.photos_of(args), args.output.absolute() / "runs"
    flags = [*runs.shared_flags(args), "--train_layers", "head"]

    def ours(seed: int):
        return runs.run_ours("train_finetune.py", data, args.model, folder / "head", [*flags, "--seed", str(seed)])

    def recipe(seed: int, *more: str):
        return runs.run_recipe(data, args.model, folder / "head-recipe", [*flags, *RATE, *more, "--seed", str(seed)])

    entrants = {
        "train_finetune.py --train_layers head": ours,
        "recipe, frozen, 2 workers, batches of 32": lambda seed: recipe(seed, *runs.BEST_FLAGS),
    }
    if args.documented:
        entrants["recipe, frozen, as documented"] = recipe
    question = f"head only, {args.epochs} epochs, {runs.described(data, args)}"
    ratios = runs.race(question, entrants, args.turns, AIM, TOLERANCE)
    report(args.output, "head_only", ratios, facts)


if __name__ == "__main__":
    main()
