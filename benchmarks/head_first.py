"""Does fitting the head first lower the field error, compared with fine-tuning from a random head?

    python -m benchmarks.head_first --data cardamom_lab --field cardamom_field --model efficientnet-lite0 --epochs 5

Both are `train_finetune.py` with all layers at one rate and the same epochs, batches of 32, seeds and photos; one has
`--no_head_first`. The result is the ratio of the errors on the field photos over all seeds, with a 95% bootstrap
interval over photos and seeds.
"""

from pathlib import Path

import numpy as np

from benchmarks.runs import answers, described, parse_run, photos_of, run_ours, run_parser, shared_flags
from benchmarks.timing import Ratio, machine, report, take_turns

AIM = 0.9
DRAWS = 10_000


def main() -> None:
    """Train both with each seed and compare the errors."""
    flags = run_parser(__doc__, turns=5, epochs=5)
    flags.add_argument("--field", type=Path, help="Photos from other places (default: sample/leaves_field).")
    args = parse_run(flags)
    facts, data, runs = machine(), photos_of(args), args.output.absolute() / "runs"
    field = args.field or Path("sample/leaves_field")
    shared = [*shared_flags(args), "--layer_decay", "1", "--per_device_train_batch_size", "32"]
    shared += ["--shift_dataset_name", str(field.absolute())]
    wrong: dict[str, list[list[bool]]] = {}
    tests: dict[str, list[float]] = {}

    def entrant(name: str, more: list[str]):
        wrong[name], tests[name] = [], []

        def once() -> float:
            seed = ["--seed", str(len(wrong[name]))]
            run = run_ours("train_finetune.py", data, args.model, runs / "first", [*shared, *more, *seed])
            right = answers(run.folder, "shift")
            wrong[name].append([not right[file] for file in sorted(right)])
            tests[name].append(run.test)
            print(f"{name}: field error {np.mean(wrong[name][-1]):.3f}, test {run.test:.3f}, {run.seconds:.0f} s")
            return run.seconds

        return once

    ours, plain = "train_finetune.py", "train_finetune.py --no_head_first"
    seconds, _ = take_turns(
        {ours: entrant(ours, []), plain: entrant(plain, ["--no_head_first"])},
        args.turns,
        warm_up=False,
    )
    ratio, interval = error_ratio(np.array(wrong[ours]), np.array(wrong[plain]))
    errors = {name: [float(np.mean(seed)) for seed in of] for name, of in wrong.items()}
    lab = {name: float(np.mean(of)) for name, of in tests.items()}
    guard = f"test accuracy {lab[ours]:.3f}, plain {lab[plain]:.3f}"
    question = f"error on {len(wrong[ours][0])} photos of {field.name}, {args.epochs} epochs, {described(data, args)}"
    sides = question, ours, plain, "error", "wrong", errors[ours], errors[plain]
    judged = {"target": AIM, "guard": guard, "guarded": lab[ours] >= lab[plain] - 0.005}
    note = ", ".join(f"{name}: {np.median(of):.0f} s" for name, of in seconds.items())
    report(args.output, "head_first", [Ratio(*sides, ratio, interval, **judged)], facts, [note])


def error_ratio(ours: np.ndarray, plain: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Ratio of errors and its 95% interval; both bool of shape (seeds, photos), the same photos in the same order."""
    random = np.random.default_rng(0)
    seeds, photos = ours.shape
    ratios = []
    for _ in range(DRAWS):
        drawn_photos = random.integers(photos, size=photos)
        sides = [of[random.integers(seeds, size=seeds)][:, drawn_photos].mean() for of in (ours, plain)]
        ratios.append(sides[0] / max(sides[1], 1 / photos))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(ours.mean() / max(plain.mean(), 1 / photos)), (float(low), float(high))


if __name__ == "__main__":
    main()
