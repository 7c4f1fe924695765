"""At the same epochs, does the plain command score higher than the recipe of the documentation, in the lab and outside?

    python -m benchmarks.plain_command --data cardamom_lab --field cardamom_field --model efficientnet-lite0 \\
        --image_size 112 --photos 240 --epochs 4

Ours is `train_finetune.py` and `train_lora.py` without further flags; the peer is the recipe with its better flags for
few photos (batches of 32, one batch per step) at the learning rate of the guide and at four times that rate. All get
the same photos, epochs and seeds. The seconds are CPU seconds of the whole process, from the command to the scored
photos. A gain is in mean macro F1 over the seeds, paired by photo, with its 95% interval over photos and seeds.
"""

import argparse
import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agritransfer.data.dataset import load_shift_photos, load_splits
from agritransfer.evaluation.significance import gain, mean_macro_f1
from benchmarks import runs
from benchmarks.timing import ROOT, machine, machine_line

OURS = {"fine-tuning": "train_finetune.py", "LoRA": "train_lora.py"}
RECIPE = ["--per_device_train_batch_size", "32", "--gradient_accumulation_steps", "1"]
RATES = ("5e-5", "2e-4")


def main() -> None:
    """Train each of them with each seed; print a table of scores and gains, and write it with every answer."""
    args = parsed()
    facts, folder = machine(), args.output.absolute() / "runs" / "plain"
    data = cut(args, folder.parent / f"plain-{args.data.name}-{args.photos}")
    field = [] if args.field is None else [str(args.field.absolute())]
    shared = ["--num_train_epochs", str(args.epochs), "--image_size", str(args.image_size), "--use_cpu"]

    def ours(script: str) -> Callable[[str], dict[str, dict[str, str]]]:
        more = [*shared, *(["--shift_dataset_name", *field] if field else [])]

        def answered(seed: str) -> dict[str, dict[str, str]]:
            run = runs.run_ours(script, data, args.model, folder, [*more, "--seed", seed])
            return {split: runs.labels_given(run.folder, split) for split in ("test", *(["shift"] if field else []))}

        return answered

    def recipe(rate: str) -> Callable[[str], dict[str, dict[str, str]]]:
        more = [*shared, *RECIPE, "--learning_rate", rate, *(["--field_dir", *field] if field else [])]

        def answered(seed: str) -> dict[str, dict[str, str]]:
            run = runs.run_recipe(data, args.model, folder, [*more, "--seed", seed])
            return json.loads((run.folder / "scores.json").read_text())["answers"]

        return answered

    entrants = {name: ours(script) for name, script in OURS.items()}
    entrants |= {f"recipe, rate {rate}": recipe(rate) for rate in RATES}
    answers: dict[str, list[dict[str, dict[str, str]]]] = {name: [] for name in entrants}
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    for seed in range(args.seeds):
        for name, entrant in entrants.items():
            before = children_seconds()
            answers[name].append(entrant(str(seed)))
            seconds[name].append(children_seconds() - before)
            print(f"{name}, seed {seed}: {seconds[name][-1]:.0f} s", flush=True)
    table = compared(answers, {name: float(np.mean(values)) for name, values in seconds.items()})
    lines = [f"{args.data.name}, {args.model.name}, {args.image_size} pixels, {args.epochs} epochs", *table]
    print("\n".join([*lines, machine_line(facts)]))
    args.output.mkdir(parents=True, exist_ok=True)
    name = f"plain_command-{args.data.name}-{args.model.name}.json"
    result = {"machine": facts, "table": lines, "answers": answers, "seconds": seconds}
    (args.output / name).write_text(json.dumps(result) + "\n", encoding="utf-8")


def parsed() -> argparse.Namespace:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data", type=Path, default=ROOT / "sample/leaves", help="Folder of photos.")
    flags.add_argument("--field", type=Path, help="Photos of the same classes from other places.")
    flags.add_argument("--model", type=Path, default=ROOT / "sample/vit", help="Folder of the pretrained model.")
    flags.add_argument("--image_size", type=int, default=96, help="Side of the input in pixels.")
    flags.add_argument("--photos", type=int, default=240, help="Number of train photos.")
    flags.add_argument("--epochs", type=int, default=4, help="Epochs of every run.")
    flags.add_argument("--seeds", type=int, default=3, help="Runs of each.")
    flags.add_argument("--output", type=Path, default=Path("runs/bench"), help="Folder for JSON, photos and runs.")
    return flags.parse_args()


def cut(args: argparse.Namespace, folder: Path) -> Path:
    """A folder `train/ validation/ test/` with as many train photos, and none that is also in the field."""
    splits = load_splits(str(args.data), max_train_samples=args.photos)
    if args.field is not None:
        splits, _ = load_shift_photos(str(args.field), splits)
    return runs.copy_splits(splits, args.data, folder)


def children_seconds() -> float:
    """CPU seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compared(answers: dict[str, list[dict[str, dict[str, str]]]], seconds: dict[str, float]) -> list[str]:
    """The rows of the table; `answers` holds, for each entrant and seed, the label given to each file of each split."""
    rows = [[name, f"{seconds[name]:.0f}"] for name in answers]
    titles = ["command", "CPU seconds"]
    for split, title in (("test", "lab"), ("shift", "field")):
        if split not in next(iter(answers.values()))[0]:
            continue
        files = sorted(next(iter(answers.values()))[0][split])
        labels = sorted({Path(file).parts[-2] for file in files})
        truth = np.array([labels.index(Path(file).parts[-2]) for file in files])
        given = {
            name: np.array([[labels.index(seed[split][file]) for file in files] for seed in each])
            for name, each in answers.items()
        }
        peers = [name for name in given if name.startswith("recipe")]
        best = max(peers, key=lambda name: mean_macro_f1(given[name], truth, files, len(labels))["macro_f1"])
        titles += [f"{title} macro F1", f"gain over {best}"]
        for row, (name, mine) in zip(rows, given.items(), strict=True):
            score = mean_macro_f1(mine, truth, files, len(labels))
            low, high = score["macro_f1_ci95"]
            row.append(f"{score['macro_f1']:.3f} [{low:.3f}, {high:.3f}]")
            if name in peers:
                row.append("")
                continue
            over = gain(mine, given[best], truth, files, len(labels))
            row.append(f"{over['gain']:+.3f} [{over['gain_ci95'][0]:+.3f}, {over['gain_ci95'][1]:+.3f}]")
    return ["| " + " | ".join(row) + " |" for row in (titles, ["---"] * len(titles), *rows)]


if __name__ == "__main__":
    main()
