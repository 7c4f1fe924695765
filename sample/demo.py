"""Train the course's four strategies on the drawn leaves and print them side by side: `make demo`.

Same photos, same split, same number of passes over them; about two minutes on two cores, without a network.
"""

import os
import subprocess
import sys
from pathlib import Path

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
    from agritransfer.comparison import compare, read_candidates, recommendation
    from agritransfer.report import comparison_table

    folders = {name: HERE.parent / "runs" / recipe.replace("_", "-") for name, (_, recipe) in STRATEGIES.items()}
    compared = compare(read_candidates(list(folders.values())))
    print(f"\n{comparison_table(compared)}\n\n{recommendation(compared)}")
    print(one_answer(folders["fine-tuning"]))
    print(NEXT)


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
