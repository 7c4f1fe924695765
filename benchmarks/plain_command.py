"""Which command scores higher on the same photos, in the lab and outside: one with other flags, or the recipe's?

    python -m benchmarks.plain_command --data cardamom_lab --field cardamom_field --model efficientnet-lite0 \\
        --image_size 112 --photos 240 --epochs 4 --commands train_finetune.py "train_lora.py --lora_r 4" \\
        "recipe --learning_rate 2e-4"

`recipe` is the recipe of the Hugging Face documentation with its better flags for few photos: batches of 8 and one
batch per step. The seconds are CPU seconds of the whole process, from the command to the scored photos. A gain is the
difference in mean macro F1 to the best recipe, over the seeds, paired by photo, with its 95% interval over photos and
seeds. Finished runs are kept in the output folder and not repeated.
"""

import argparse
import json
import resource
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from agritransfer.data.dataset import Splits, load_shift_photos, load_splits
from agritransfer.evaluation.significance import gain, mean_macro_f1
from benchmarks import runs
from benchmarks.timing import ROOT, machine, machine_line

# The guide's own 16 x 4 photos per step leave few photos with a handful of steps.
RECIPE = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"]
COMMANDS = ["train_finetune.py", "train_lora.py", "recipe --learning_rate 5e-5", "recipe --learning_rate 2e-4"]
TITLES = {"test": "lab", "shift": "field"}


def main() -> None:
    """Run each command with each seed; print a table of scores and gains, and write it with every answer."""
    args = parsed()
    facts, title = machine(), f"{args.data.name}-{args.model.name}-{args.image_size}-{args.photos}-{args.epochs}"
    splits, field = load_splits(str(args.data), max_train_samples=args.photos, max_eval_samples=args.scored), None
    if args.field is not None:
        splits, field = load_shift_photos(str(args.field), splits, max_eval_samples=args.scored)
    work = args.output.absolute() / "plain_command" / title
    data = runs.copy_splits(splits, args.data, work / "photos")
    outside = field and runs.copy_splits(field, args.field, work / "field") / "shift"
    finished: dict[str, list[dict[str, Any]]] = {command: [] for command in args.commands}
    for command in args.commands:
        for seed in range(args.seeds):
            done = work / f"{command.replace('/', '-')} seed {seed}.json"
            if not done.exists():
                before = children_seconds()
                answers = answers_of(command, seed, args, data, outside, work)
                done.write_text(json.dumps({"answers": answers, "seconds": children_seconds() - before}))
            finished[command].append(json.loads(done.read_text()))
    truth = {"test": labels_of(splits, "test")} | ({"shift": labels_of(field, "shift")} if field else {})
    table = [f"{title}, {args.seeds} seeds", "", *compared(finished, truth)]
    print("\n".join([*table, "", machine_line(facts)]))
    (args.output / f"plain_command-{title}.md").write_text("\n".join(table) + "\n", encoding="utf-8")


def parsed() -> argparse.Namespace:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data", type=Path, default=ROOT / "sample/leaves", help="Folder of photos.")
    flags.add_argument("--field", type=Path, help="Photos of the same classes from other places.")
    flags.add_argument("--model", type=Path, default=ROOT / "sample/vit", help="Folder of the pretrained model.")
    flags.add_argument("--image_size", type=int, default=96, help="Side of the input in pixels.")
    flags.add_argument("--photos", type=int, default=240, help="Number of train photos.")
    flags.add_argument("--scored", type=int, default=200, help="Most photos of validation, test and field.")
    flags.add_argument("--epochs", type=int, default=4, help="Epochs of every run.")
    flags.add_argument("--seeds", type=int, default=3, help="Runs of each command.")
    flags.add_argument("--commands", nargs="+", default=COMMANDS, help="Scripts with flags, or recipe with flags.")
    flags.add_argument("--output", type=Path, default=Path("runs/bench"), help="Folder for tables, photos and runs.")
    return flags.parse_args()


def answers_of(
    command: str, seed: int, args: argparse.Namespace, data: Path, field: Path | None, work: Path
) -> dict[str, dict[str, str]]:
    """Train with this command; the label that it gives to each photo of the test split and of the field, by file."""
    script, *flags = shlex.split(command)
    flags = ["--num_train_epochs", str(args.epochs), "--image_size", str(args.image_size), "--use_cpu", *flags]
    flags += ["--seed", str(seed)]
    outside = [] if field is None else ["--field_dir" if script == "recipe" else "--shift_dataset_name", str(field)]
    if script == "recipe":
        run = runs.run_recipe(data, args.model, work / "run", [*RECIPE, *flags, *outside])
        given = json.loads((run.folder / "scores.json").read_text())["answers"]
        return {split: {short(file): label for file, label in answers.items()} for split, answers in given.items()}
    run = runs.run_ours(script, data, args.model, work / "run", [*flags, *outside])
    splits = ["test"] if field is None else ["test", "shift"]
    return {
        split: {short(file): label for file, label in runs.labels_given(run.folder, split).items()} for split in splits
    }


def labels_of(splits: Splits, split: str) -> dict[str, str]:
    """The true label of each photo of a split, by its file."""
    return {f"{photo.label}/{Path(photo.file).name}": photo.label for photo in splits.of(split)}


def short(file: str) -> str:
    """The class folder and the name of a file."""
    return "/".join(Path(file).parts[-2:])


def children_seconds() -> float:
    """CPU seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compared(finished: dict[str, list[dict[str, Any]]], truth: dict[str, dict[str, str]]) -> list[str]:
    """The table: for each command its mean seconds, macro F1, and gain over the best recipe."""
    columns = [
        ["command", *finished],
        ["CPU seconds", *(f"{np.mean([r['seconds'] for r in f]):.0f}" for f in finished.values())],
    ]
    for split, of_file in truth.items():
        files, labels = sorted(of_file), sorted(set(of_file.values()))
        right = np.array([labels.index(of_file[file]) for file in files])
        given = {
            command: np.array([[labels.index(run["answers"][split][file]) for file in files] for run in each])
            for command, each in finished.items()
        }
        scores = {command: mean_macro_f1(each, right, files, len(labels)) for command, each in given.items()}
        recipes = [command for command in given if command.startswith("recipe")]
        best = max(recipes, key=lambda command: scores[command]["macro_f1"], default=None)
        columns.append([f"{TITLES[split]} accuracy", *(f"{(each == right).mean():.3f}" for each in given.values())])
        columns.append(
            [f"{TITLES[split]} macro F1", *(interval(s["macro_f1"], s["macro_f1_ci95"]) for s in scores.values())]
        )
        if best is not None:
            gains = (
                "" if command in recipes else over(gain(each, given[best], right, files, len(labels)))
                for command, each in given.items()
            )
            columns.append([f"gain over {best}", *gains])
    titles, *rows = zip(*columns, strict=True)
    return ["| " + " | ".join(row) + " |" for row in (titles, ["---"] * len(titles), *rows)]


def interval(value: float, limits: list[float]) -> str:
    """A score with its interval."""
    return f"{value:.3f} [{limits[0]:.3f}, {limits[1]:.3f}]"


def over(found: dict[str, Any]) -> str:
    """A gain with its interval."""
    return f"{found['gain']:+.3f} [{found['gain_ci95'][0]:+.3f}, {found['gain_ci95'][1]:+.3f}]"


if __name__ == "__main__":
    main()
