"""How many photos per second does a training step process (all layers, LoRA), compared with the plain Trainer?

    python -m benchmarks.training_step
    python -m benchmarks.training_step --model efficientnet-lite0 --image_size 224 --batch 16 --compiled

Both train the same network on the same pixels in memory, without decoding or cropping: uint8 for ours, which
normalizes them, normalized floats for the peer. The rest is the loop of the Trainer with its optimizer. Ours adds the
check of the loss and the seed of each step; its savings are measured elsewhere (cached views, `last_blocks`). Each
measurement runs in its own process, since speed depends on how memory was allocated: one pass to warm up, one that
counts. `--compiled` adds ours with `--torch_compile`; its first pass, which compiles, is reported separately.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from agritransfer.images.augmentation import build_augmentation
from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset
from agritransfer.models.loading import load_pretrained, load_processor
from agritransfer.models.lora import add_lora
from agritransfer.runtime.process import begin_process, physical_cores
from agritransfer.training.trainer import ImageTrainer
from benchmarks.peers.recipe import collate
from benchmarks.timing import ROOT, compare, machine, parser, report, take_turns

AIMS = {"all layers": 1.15, "LoRA": None}
OURS, COMPILED, TRAINER = "ours", "ours, --torch_compile", "Trainer"
LABELS = ["a", "b", "c", "d"]
LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": None, "use_dora": False, "use_rslora": False}


def main() -> None:
    """Compare both with all layers trained, then with the same LoRA adapters."""
    flags = parser(__doc__, turns=5)
    flags.add_argument("--model", type=Path, default=ROOT / "sample/vit", help="Folder of a pretrained model.")
    flags.add_argument("--image_size", type=int, help="Side of the model's input (default: the model's own).")
    flags.add_argument("--batch", type=int, default=32)
    flags.add_argument("--steps", type=int, default=20, help="Number of steps per measurement.")
    flags.add_argument("--compiled", action="store_true", help="Also measure ours with --torch_compile.")
    flags.add_argument("--measure", nargs=2, metavar=("SIDE", "KIND"), help="Run a single measurement in this process.")
    args = flags.parse_args()
    args.steps = 2 if args.quick else args.steps
    if args.measure:
        print(json.dumps(measure(*args.measure, args)))
        return
    facts, ratios, notes = machine(), [], []
    side = load_processor(str(args.model), None, args.image_size).image_size
    for kind, aim in AIMS.items():
        question = f"training step, {kind}, {args.model.name} at {side} pixels, batches of {args.batch}"
        measured = {name: [] for name in (OURS, *([COMPILED] if args.compiled else []), TRAINER)}
        contestants = {name: partial(in_a_process, name, kind, of) for name, of in measured.items()}
        values, _ = take_turns(contestants, 1 if args.quick else args.turns, warm_up=False)
        loss = {name: of[0]["loss"] for name, of in measured.items()}
        pairs = [(OURS, TRAINER, aim)] + ([(COMPILED, OURS, None)] if args.compiled else [])
        for ours, peer, target in pairs:
            apart = abs(loss[ours] - loss[peer])
            more = {"target": target, "guard": f"mean losses of the first pass {apart:.4f} apart"}
            sides = (ours, values[ours]), (peer, values[peer])
            ratios.append(compare(question, *sides, "speed", "photos/s", **more, guarded=apart < 0.01))
        firsts = (f"{name} {of[0]['first']:.1f} s" for name, of in measured.items())
        notes.append(f"{kind}: first pass, not counted: " + ", ".join(firsts))
    report(args.output, "training_step", ratios, facts, notes)


def in_a_process(name: str, kind: str, measured: list[dict[str, float]]) -> float:
    """Photos per second of one side, measured by this script in a separate process with `--measure`."""
    command = [sys.executable, "-m", "benchmarks.training_step", *sys.argv[1:], "--measure", name, kind]
    # Set here, since this setting of `begin_process` must precede the import of torch.
    pages = {"THP_MEM_ALLOC_ENABLE": "0" if name == TRAINER else "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | pages, stdout=subprocess.PIPE, text=True, check=True)
    measured.append(json.loads(done.stdout.splitlines()[-1]))
    return measured[-1]["speed"]


def measure(name: str, kind: str, args: Any) -> dict[str, float]:
    """Photos per second of the second pass; seconds and mean loss of the first."""
    if name != TRAINER:
        begin_process()
    torch.set_num_threads(physical_cores())
    processor = load_processor(str(args.model), None, args.image_size)
    side = processor.image_size
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (args.batch * args.steps, 3, side, side), dtype=torch.uint8, generator=random)
    trainer_of, watch = plain if name == TRAINER else ours, Stopwatch()
    trainer = trainer_of(network(args, side, kind), processor, pixels, settings(args, name == COMPILED))
    trainer.add_callback(watch)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
        first = watch.seconds
        trainer.train()
    return {"speed": len(pixels) / watch.seconds, "first": first, "loss": watch.losses[0]}


def network(args: Any, side: int, kind: str) -> PreTrainedModel:
    """The model, with the same weights and LoRA adapters every time."""
    torch.manual_seed(0)
    model = load_pretrained(str(args.model), None, LABELS, side)
    return add_lora(model, image_size=side, **LORA) if kind == "LoRA" else model


def ours(model: torch.nn.Module, processor: Any, pixels: torch.Tensor, args: TrainingArguments) -> Trainer:
    """The Trainer of the scripts, without augmentation."""
    labels = [place % len(LABELS) for place in range(len(pixels))]
    stored = pixels.permute(0, 2, 3, 1).contiguous()
    photos = PhotoDataset([], labels, labels, ["drawn"] * len(pixels), EvaluationPixels(processor), stored)
    return ImageTrainer(
        model=model,
        args=args,
        settings={},
        processor=processor,
        train_dataset=photos,
        eval_dataset=photos,
        augment=build_augmentation("none", pixels.shape[-1], len(LABELS)),
        class_weights=None,
        early_stopping_patience=None,
    )


def plain(model: torch.nn.Module, processor: Any, pixels: torch.Tensor, args: TrainingArguments) -> Trainer:
    """The Trainer of transformers on normalized pixels."""
    mean, std = processor.normalization
    photos = [
        {"pixel_values": (photo - mean) / std, "label": place % len(LABELS)} for place, photo in enumerate(pixels)
    ]
    return Trainer(model, args, data_collator=collate, train_dataset=photos)


def settings(args: Any, compiled: bool) -> TrainingArguments:
    """The training arguments of both sides."""
    return TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=1,
        per_device_train_batch_size=args.batch,
        train_sampling_strategy="sequential",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
        torch_compile=compiled,
        label_names=["labels"],
    )


class Stopwatch(TrainerCallback):
    """Times the steps, without the Trainer's work before and after them, and keeps the loss of each pass."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.losses: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.started

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep the mean loss."""
        self.losses += [logs["loss"]] if "loss" in logs else []


if __name__ == "__main__":
    main()
