"""How much faster is training the last two blocks on cached views, including the time to fill the cache?

    python -m benchmarks.last_blocks
    python -m benchmarks.last_blocks --data cardamom_lab --model efficientnet-lite0 --image_size 224
    python -m benchmarks.last_blocks --lora --data cardamom_lab --model efficientnet-lite0 --image_size 224

Ours: `train_finetune.py --train_layers 2 --cached_views 4`, twenty epochs. Peers: the recipe with the same frozen
weights and our learning rate, and ours without cached views but with the pixel store. With `--lora`: `train_lora.py
--lora_layers 2 --cached_views 4` against the same without cached views. Whole processes are timed, from the command to
the test score, with all caches empty at the start.
"""

from benchmarks import runs
from benchmarks.timing import machine, report

AIM = 1.5
TOLERANCE = 0.005
RATE = ["--learning_rate", "1e-4"]


def main() -> None:
    """Compare the time and the test accuracy of whole runs."""
    parser = runs.run_parser(__doc__, turns=3, epochs=20)
    parser.add_argument("--lora", action="store_true", help="Adapters in the last two blocks instead of the blocks.")
    args = runs.parse_run(parser)
    facts, data, folder = machine(), runs.photos_of(args), args.output.absolute() / "runs"
    script, layers = ("train_lora.py", "--lora_layers") if args.lora else ("train_finetune.py", "--train_layers")
    flags = [*runs.shared_flags(args), layers, "2"]

    def ours(seed: int, *more: str):
        return runs.run_ours(script, data, args.model, folder / "blocks", [*flags, *more, "--seed", str(seed)])

    def recipe(seed: int):
        more = [*flags, *RATE, *runs.BEST_FLAGS, "--seed", str(seed)]
        return runs.run_recipe(data, args.model, folder / "blocks-recipe", more)

    entrants = {f"{script} {layers} 2 --cached_views 4": lambda seed: ours(seed, "--cached_views", "4")}
    if not args.lora:
        entrants["recipe, same layers, 2 workers, batches of 32"] = recipe
    entrants["ours without cached views"] = ours
    what = "LoRA in the last 2 blocks" if args.lora else "last 2 blocks"
    question = f"{what}, {args.epochs} epochs, {runs.described(data, args)}"
    ratios = runs.race(question, entrants, args.turns, AIM, TOLERANCE)
    report(args.output, "last_blocks-lora" if args.lora else "last_blocks", ratios, facts)


if __name__ == "__main__":
    main()
