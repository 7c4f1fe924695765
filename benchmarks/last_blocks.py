"""How much sooner are the last two blocks trained from cached views of what lies below them, the filling included?

    python -m benchmarks.last_blocks
    python -m benchmarks.last_blocks --data cardamom_lab --model efficientnet-lite0 --image_size 224

Ours: `--train_layers 2 --cached_views 4`, twenty epochs. Peers: the recipe with the same weights frozen, at the rate of
ours, and ours without cached views, which has the pixel store too. Whole processes, from the command to the scored
test, the caches empty at the start.
"""

from benchmarks.runs import BEST_FLAGS, described, photos_of, race, run_ours, run_parser, run_recipe, shared_flags
from benchmarks.timing import machine, report

AIM = 1.5
TOLERANCE = 0.005
RATE = ["--learning_rate", "1e-4"]


def main() -> None:
    """Compare whole runs, and their test accuracy."""
    args = run_parser(__doc__, turns=3, epochs=20).parse_args()
    facts, data, runs = machine(), photos_of(args), args.output.absolute() / "runs"
    flags = [*shared_flags(args), "--train_layers", "2"]

    def ours(seed: int, *more: str):
        return run_ours("train_finetune.py", data, args.model, runs / "blocks", [*flags, *more, "--seed", str(seed)])

    def recipe(seed: int):
        more = [*flags, *RATE, *BEST_FLAGS, "--seed", str(seed)]
        return run_recipe(data, args.model, runs / "blocks-recipe", more)

    entrants = {
        "train_finetune.py --train_layers 2 --cached_views 4": lambda seed: ours(seed, "--cached_views", "4"),
        "recipe, same layers, 2 workers, batches of 32": recipe,
        "ours without cached views": ours,
    }
    question = f"last 2 blocks, {args.epochs} epochs, {described(data, args)}"
    ratios = race(question, entrants, 1 if args.quick else args.turns, AIM, TOLERANCE)
    report(args.output, "last_blocks", ratios, facts)


if __name__ == "__main__":
    main()
