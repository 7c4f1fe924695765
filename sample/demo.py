"""Train all four strategies on the drawn leaves, compare them and let one answer for a photo: `make demo`.

All use the same photos and split. Takes about two minutes on two cores, without a network.
"""

import os
import subprocess
import sys
from pathlib import Path

from agritransfer.strategies import STRATEGIES

HERE = Path(__file__).parent
# The control first, then by the number of trained weights.
ORDER = ("scratch", "head", "lora", "finetune")
PHOTO = "sample/leaves_field/angular_leaf_spot/000.jpg"


def main() -> None:
    """Train, compare and classify one photo."""
    for number, name in enumerate(ORDER, start=1):
        title, script, recipe = STRATEGIES[name].title, STRATEGIES[name].script, f"recipes/sample_{name}.yaml"
        print(f"\n=== {number}/{len(ORDER)} {title}: python {script} --recipe {recipe} ===", flush=True)
        # A finished run only prints its results again. No network is needed.
        subprocess.run(
            [sys.executable, script, "--recipe", recipe],
            check=True,
            cwd=HERE.parent,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    from agritransfer.evaluation.comparison import compare, read_candidates
    from agritransfer.evaluation.recommendation import recommendation
    from agritransfer.evaluation.report import comparison_table

    folders = {name: HERE.parent / f"runs/sample-{name}" for name in ORDER}
    compared = compare(read_candidates(list(folders.values())))
    print(f"\n{comparison_table(compared)}\n\n{recommendation(compared)}")
    print("\n=== one field photo: agritransfer predict runs/sample-finetune ... ===", flush=True)
    predict = [sys.executable, "-m", "agritransfer", "predict", "runs/sample-finetune", PHOTO]
    subprocess.run(predict, check=True, cwd=HERE.parent)
    print(NEXT)


NEXT = """
Next steps:
  look      at the figures in runs/sample-finetune/figures: errors, confusion matrix, training curves
  change    python train_finetune.py --recipe recipes/sample_finetune.yaml --train_layers 2 --output_dir runs/last-2
  use       python train_finetune.py --dataset_name YOUR_FOLDER --model_name_or_path facebook/dinov2-small
            (YOUR_FOLDER contains one folder of photos per class)"""


if __name__ == "__main__":
    main()
