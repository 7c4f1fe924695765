"""Train the course's four strategies on the drawn leaves and print them side by side: `make demo`.

Same photos, same split, same number of passes over them; about two minutes on two cores, without a network.
"""

import os
import subprocess
import sys
from pathlib import Path

from agritransfer.strategies import STRATEGIES

HERE = Path(__file__).parent
# The control first, then from the fewest trained weights to the most.
ORDER = ("scratch", "head", "lora", "finetune")
PHOTO = "sample/leaves_field/angular_leaf_spot/000.jpg"


def main() -> None:
    """Train, compare, answer for one photo."""
    for number, name in enumerate(ORDER, start=1):
        title, script, recipe = STRATEGIES[name].title, STRATEGIES[name].script, f"recipes/sample_{name}.yaml"
        print(f"\n=== {number}/{len(ORDER)} {title}: python {script} --recipe {recipe} ===", flush=True)
        # The same command again prints the finished run's results; the libraries need no network for any of it.
        subprocess.run(
            [sys.executable, script, "--recipe", recipe],
            check=True,
            cwd=HERE.parent,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    from agritransfer.evaluation.comparison import compare, read_candidates, recommendation
    from agritransfer.evaluation.report import comparison_table

    folders = {name: HERE.parent / f"runs/sample-{name}" for name in ORDER}
    compared = compare(read_candidates(list(folders.values())))
    print(f"\n{comparison_table(compared)}\n\n{recommendation(compared)}")
    print(one_answer(folders["finetune"]))
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
