"""Train the course's four strategies on the drawn leaves and print them side by side: `make demo`.

Same photos, same split, same number of passes over them; about two minutes on two cores, without a network.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
# Run as a file, Python looks beside it only; the package lies one folder up.
sys.path.insert(0, str(HERE.parent))
STRATEGIES = {
    "from scratch": ("train_scratch.py", "sample_scratch"),
    "feature extraction": ("train_finetune.py", "sample_head"),
    "fine-tuning": ("train_finetune.py", "sample_finetune"),
    "LoRA": ("train_lora.py", "sample_lora"),
}
PHOTO = "sample/leaves_field/angular_leaf_spot/000.jpg"


def main() -> None:
    """Train, compare, answer for one photo."""
    for number, (name, (script, recipe)) in enumerate(STRATEGIES.items(), start=1):
        print(
            f"\n=== {number}/{len(STRATEGIES)} {name}: python {script} --recipe recipes/{recipe}.yaml ===", flush=True
        )
        # The same command again prints the finished run's results; the libraries need no network for any of it.
        subprocess.run(
            [sys.executable, script, "--recipe", f"recipes/{recipe}.yaml"],
            check=True,
            cwd=HERE.parent,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    folders = {name: HERE.parent / "runs" / recipe.replace("_", "-") for name, (_, recipe) in STRATEGIES.items()}
    print(comparison_table(folders))
    print(one_answer(folders["fine-tuning"]))
    print(NEXT)


def comparison_table(folders: dict[str, Path]) -> str:
    """One line a strategy, with its gain over scratch on the very same test photos."""
    from agritransfer.evaluation import paired_gain_interval
    from agritransfer.results import interval_text, read_results

    baseline = right_answers(folders["from scratch"])
    heads = (
        "strategy",
        "test accuracy (95 %)",
        "macro F1 (95 %)",
        "gain over scratch (95 %)",
        "field",
        "weights trained",
    )
    widths = (20, 23, 23, 25, 7, 17)
    lines = ["", "".join(head.ljust(width) for head, width in zip(heads, widths, strict=True)) + "seconds   MB"]
    for name, folder in folders.items():
        results, right = read_results(folder), right_answers(folder)
        low, high = paired_gain_interval(right, baseline, groups=[""] * len(baseline))
        gain = right.mean() - baseline.mean()
        cells = (
            name,
            interval_text(results["test"], "accuracy"),
            interval_text(results["test"], "macro_f1"),
            "" if name == "from scratch" else f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]",
            f"{results['shift']['accuracy']:.3f}",
            f"{results['training']['trainable_parameters']:,}",
        )
        row = "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{row}{results['training']['seconds']:>7.0f}{megabytes(folder):>5.1f}")
    lines.append(f"{len(baseline)} test photos; intervals are 95 %; MB is what you would share (LoRA: its adapter).")
    return "\n".join(lines)


def right_answers(folder: Path) -> np.ndarray:
    """Which test photos a run got right, in the order of its predictions.csv."""
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return np.array([row["label"] == row["predicted"] for row in rows])


def megabytes(folder: Path) -> float:
    """Size of the weights that a run asks to be shared."""
    adapter = folder / "adapter" / "adapter_model.safetensors"
    return (adapter if adapter.exists() else folder / "model.safetensors").stat().st_size / 1e6


def one_answer(folder: Path) -> str:
    """What the fine-tuned model says of one field photo."""
    import transformers

    transformers.logging.disable_progress_bar()
    answers = transformers.pipeline("image-classification", model=str(folder))(str(HERE.parent / PHOTO), top_k=2)
    said = " or ".join(f"{answer['label']} ({answer['score']:.0%})" for answer in answers)
    return f"\n{PHOTO}: the fine-tuned model says {said}."


NEXT = """
What to try next:
  look at   runs/sample-finetune/figures/ : errors.png, confusion_matrix.png, training_curves.png
  change    python train_finetune.py --recipe recipes/sample_finetune.yaml --train_layers 2 --output_dir runs/last-2
  yours     python train_finetune.py --dataset_name YOUR_FOLDER --model_name_or_path facebook/dinov2-small
            (YOUR_FOLDER holds one folder of photos for each class)"""


if __name__ == "__main__":
    main()
