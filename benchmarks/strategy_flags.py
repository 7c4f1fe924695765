"""Which flags of a strategy score best, with the same photos and epochs?

    python -m benchmarks.strategy_flags --data cardamom_lab --field cardamom_field --model efficientnet-lite0 \\
        --image_size 112 --photos 240 --commands "train_lora.py --head_first" "train_lora.py --lora_r 4"

The parts of the scripts run in this process, one command after the other, without the imports and figures of whole
runs, so that many settings can be screened. The seed sets the split too. CPU seconds are those of training, the fitting
of a head included. `plain_command` compares whole runs.
"""

import argparse
import contextlib
import io
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agritransfer import data, images, models, training
from agritransfer.arguments import DataArguments, FinetuneArguments, LoraArguments, ModelArguments
from agritransfer.data.dataset import Splits
from agritransfer.evaluation.inference import predict
from agritransfer.evaluation.metrics import macro_f1
from agritransfer.runtime.command_line import parse_args
from agritransfer.runtime.profiling import PeakMemory
from agritransfer.training.run import Run
from benchmarks.timing import ROOT, machine, machine_line

SCRIPTS = {"train_finetune.py": FinetuneArguments, "train_lora.py": LoraArguments}


def main() -> None:
    """Train with each command and seed; print a row for each."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data", type=Path, default=ROOT / "sample/leaves", help="Folder of photos.")
    flags.add_argument("--field", type=Path, help="Photos of the same classes from other places.")
    flags.add_argument("--model", type=Path, default=ROOT / "sample/vit", help="Folder of the pretrained model.")
    flags.add_argument("--image_size", type=int, default=96, help="Side of the input in pixels.")
    flags.add_argument("--photos", type=int, default=240, help="Number of train photos.")
    flags.add_argument("--epochs", type=int, default=4, help="Epochs of every run.")
    flags.add_argument("--seeds", type=int, default=1, help="Runs of each command, each with a split of its own.")
    flags.add_argument("--commands", nargs="+", default=list(SCRIPTS), help="Scripts with flags.")
    flags.add_argument("--output", type=Path, default=Path("runs/bench/strategy_flags"), help="Folder of the runs.")
    args = flags.parse_args()
    torch.set_num_threads(1)
    print("| command | seed | test accuracy | log loss | field macro F1 | CPU seconds |\n|---|---|---|---|---|---|")
    for command in args.commands:
        for seed in range(args.seeds):
            scores = trained(command, seed, args)
            print(f"| {command} | {seed} | " + " | ".join(scores) + " |", flush=True)
    print(f"\n{machine_line(machine())}")


def trained(command: str, seed: int, args: argparse.Namespace) -> list[str]:
    """Train once and score the weights that are kept: the cells of the row."""
    script, *more = shlex.split(command)
    shutil.rmtree(args.output, ignore_errors=True)
    words = ["--dataset_name", args.data, "--model_name_or_path", args.model, "--image_size", args.image_size]
    words += ["--max_train_samples", args.photos, "--max_eval_samples", 200, "--num_train_epochs", args.epochs]
    words += ["--split_seed", seed, "--seed", seed, "--output_dir", args.output, "--use_cpu", *more]
    words += [] if args.field is None else ["--shift_dataset_name", args.field]
    # What a run prints is of no interest here.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        parsed = parse_args((DataArguments, ModelArguments, SCRIPTS[script]), "", [str(word) for word in words])
        return scored(Run(parsed, args.output, PeakMemory()), *parsed[:3])


def scored(run: Run, data_args: DataArguments, model_args: ModelArguments, strategy: Any) -> list[str]:
    """The story of the scripts as far as the weights that are kept, then their scores."""
    splits, shift = data.load_photos(data_args)
    torch.manual_seed(run.training_args.seed)
    model, processor, base_model = models.load_backbone(model_args, data_args, splits.labels)
    groups = None
    if isinstance(strategy, FinetuneArguments):
        models.train_layers(model, strategy.train_layers)
        groups = models.parameter_groups_of(model, strategy, run.training_args)
    else:
        model = models.add_lora(
            model,
            image_size=processor.image_size,
            r=strategy.lora_r,
            alpha=strategy.lora_alpha,
            dropout=strategy.lora_dropout,
            target_modules=strategy.lora_target_modules,
            use_dora=strategy.use_dora,
            use_rslora=strategy.use_rslora,
            layers=strategy.lora_layers,
        )
    store = images.PixelStore(data_args.pixel_store, data_args.pixel_store_gb)
    trainer = training.build_trainer(run, model, processor, splits, store, base_model, groups)
    began = time.process_time()
    if strategy.head_first:
        training.begin_with_solved_head(trainer, splits.dataset("train", processor, store))
    if isinstance(strategy, FinetuneArguments) and strategy.solves_head(data_args):
        training.solve_head(trainer, data_args.cached_views)
    else:
        training.train(run, trainer, splits, store)
    seconds = time.process_time() - began
    test = answers(trainer.model, splits, "test", processor, store)
    field = None if shift is None else answers(trainer.model, shift, "shift", processor, store)[1]
    return [f"{test[0]:.3f}", f"{test[2]:.3f}", "" if field is None else f"{field:.3f}", f"{seconds:.0f}"]


def answers(model: Any, splits: Splits, split: str, processor: Any, store: images.PixelStore) -> tuple[float, ...]:
    """Accuracy, macro F1 and log loss on a split."""
    logits, _ = predict(model, splits.dataset(split, processor, store), 64)
    truth = np.array(splits.label_indices(split))
    found, losses = logits.argmax(axis=1), torch.nn.functional.cross_entropy(*map(torch.from_numpy, (logits, truth)))
    return float((found == truth).mean()), macro_f1(found, truth, len(splits.labels)), float(losses)


if __name__ == "__main__":
    main()
