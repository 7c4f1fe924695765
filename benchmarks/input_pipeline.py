"""How many training photos per second arrive as normalized batches after the first epoch?

    python -m benchmarks.input_pipeline --cores 1
    python -m benchmarks.input_pipeline --cores 2 --peers recipe timm fastai ultralytics

Ours: the dataset and the Trainer of the scripts, with the pixel store filled. Peers: JPEG files from the page cache,
read by the recipe of the documentation and by timm, fastai and ultralytics if they are installed. All yield flipped
float32 batches of 32 photos at 224 pixels; their crops are those of their documentation, and `crop` (no resizing after
the crop) is compared with the same crop in the recipe. On one core there are no loader workers; on two, the peers have
one or two. All run in one process, so that the peers also benefit from the memory that ours keeps. Photos: drawn ones
of 500 x 500 and of 12 million pixels.
"""

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch

from agritransfer.arguments import DataArguments, FinetuneArguments, ModelArguments
from agritransfer.data.dataset import load_splits
from agritransfer.images.augmentation import build_augmentation
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.models.loading import load_processor
from agritransfer.runtime.command_line import parse_args
from agritransfer.training.trainer import ImageTrainer
from benchmarks.peers import recipe
from benchmarks.photos import generated, photos_below
from benchmarks.timing import ROOT, Ratio, compare, machine, parser, report, take_turns

SIDE, BATCH = 224, 32
# Crops differ between ours and a peer, but mean and deviation hardly do; in standard deviations.
SAME_MEAN, SAME_DEVIATION = 0.1, 0.1
AIMS = {("500px", "light"): 3.0, ("500px", "crop"): 8.0, ("12mpx", "light"): 40.0, ("12mpx", "crop"): 40.0}
OTHERS = {"timm": "timm", "fastai": "fastai", "ultralytics": "ultralytics"}

Epoch = Callable[[], Iterable[torch.Tensor]]


def main() -> None:
    """Compare ours with every peer on each kind of photo."""
    flags = parser(__doc__, turns=5)
    flags.add_argument("--cores", type=int, choices=[1, 2], default=1)
    flags.add_argument("--peers", nargs="+", choices=["recipe", *OTHERS], default=["recipe", "timm"])
    flags.add_argument(
        "--photos", type=int, default=256, help="Photos of 500 x 500 pixels; 1/16 as many of 12 million."
    )
    flags.add_argument("--seconds", type=float, default=2.0, help="Minimum duration of one measurement.")
    args = flags.parse_args()
    use_cores(args.cores)
    datasets.disable_progress_bars()
    facts = machine()
    ratios, notes = [], []
    for size, count in (("500px", args.photos), ("12mpx", max(16, args.photos // 16))):
        counts = {"train": 4 if args.quick else count, "validation": 4, "test": 4}
        more, told = on_photos(generated(args.output.absolute(), size, counts), size, args)
        ratios += more
        notes += told
    report(args.output, f"input_pipeline-{args.cores}", ratios, facts, notes)


def use_cores(cores: int) -> None:
    """Restrict this process to this number of cores and threads, as `taskset` would."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    torch.set_num_threads(cores)


def on_photos(folder: Path, size: str, args: Any) -> tuple[list[Ratio], list[str]]:
    """The ratios on one folder, and a note on the first epoch of each contestant."""
    processor = load_processor(str(ROOT / "sample/vit"), None, SIDE)
    # timm drops an incomplete last batch.
    batch = min(BATCH, len(photos_below(folder / "train")))
    mean, std = ((of.flatten() / 255).tolist() for of in processor.normalization)
    ours = {f"ours, {kind}": our_epochs(folder, kind, batch) for kind in ("light", "crop")}
    peers: dict[str, Epoch] = {}
    for workers in (0,) if args.cores == 1 else (1, 2):
        told = {0: "", 1: ", 1 worker", 2: ", 2 workers"}[workers]
        if "recipe" in args.peers:
            make = partial(recipe.batches, folder, SIDE, batch, workers, mean, std)
            peers[f"recipe{told}"] = _pixels(make(), lambda batch: batch["pixel_values"])
            peers[f"recipe, crop without resizing{told}"] = _pixels(
                make(crop=True), lambda batch: batch["pixel_values"]
            )
        for name in OTHERS:
            if name in args.peers and importlib.util.find_spec(name):
                loader = importlib.import_module(f"benchmarks.peers.{name}_loader")
                made = loader.batches(folder, SIDE, batch, workers, mean, std)
                pick = (lambda batch: batch["img"]) if name == "ultralytics" else (lambda batch: batch[0])
                peers[f"{name}{told}"] = _pixels(made, pick)
    epochs = ours | peers
    # The first epoch of each is a warm-up and does not count.
    looks = {name: look_at(epoch) for name, epoch in epochs.items()}
    contestants = {name: partial(speed, epoch, 0.1 if args.quick else args.seconds) for name, epoch in epochs.items()}
    values, _ = take_turns(contestants, 1 if args.quick else args.turns, warm_up=False)
    ratios = []
    for name, kind in zip(ours, ("light", "crop"), strict=True):
        for peer in peers:
            if "without resizing" in peer and kind == "light":
                continue
            guard, guarded = same_work(looks[name], looks[peer], unit_scale=not peer.startswith("ultralytics"))
            question = f"training input, {size} JPEG, {args.cores} core{'s' * (args.cores > 1)}"
            sides = (name, values[name]), (peer, values[peer])
            more = {"target": AIMS[size, kind], "guard": guard, "guarded": guarded}
            ratios.append(compare(question, *sides, "speed", "photos/s", **more))
    warm = ", ".join(f"{name} {look['seconds']:.1f} s" for name, look in looks.items())
    kilobytes = sum(path.stat().st_size for path in photos_below(folder / "train")) / 1000
    files = (
        f"{len(photos_below(folder / 'train'))} photos, {kilobytes / len(photos_below(folder / 'train')):,.0f} kB each"
    )
    return ratios, [f"{size}: {files}; warm-up, not counted: {warm}"]


def our_epochs(folder: Path, augmentation: str, batch: int) -> Epoch:
    """The batches of the training scripts, made by the same objects in the same order."""
    flags = ["--dataset_name", str(folder), "--model_name_or_path", str(ROOT / "sample/vit"), "--use_cpu"]
    # The Trainer creates this folder, but writes nothing to it.
    flags += ["--output_dir", str(folder.parent / "runs/input")]
    flags += ["--image_size", str(SIDE), "--augmentation", augmentation, "--per_device_train_batch_size", str(batch)]
    classes = (DataArguments, ModelArguments, FinetuneArguments)
    data_args, model_args, _, training_args = parse_args(classes, "", flags)
    splits = load_splits(data_args.dataset_name, **data_args.split_options())
    processor = load_processor(model_args.model_name_or_path, None, data_args.image_size)
    store = PixelStore(data_args.pixel_store, data_args.pixel_store_gb)
    trainer = ImageTrainer(
        model=torch.nn.Linear(1, 1),
        args=training_args,
        settings={},
        processor=processor,
        train_dataset=splits.training_photos(processor, data_args.augmentation, store),
        eval_dataset=splits.dataset("validation", processor, store),
        augment=build_augmentation(data_args.augmentation, SIDE, len(splits.labels)),
        class_weights=None,
        early_stopping_patience=None,
    )
    loader = trainer.get_train_dataloader()
    return lambda: (trainer.model_inputs(batch, augmented=True)["pixel_values"] for batch in loader)


def _pixels(loader: Iterable, pick: Callable[[Any], torch.Tensor]) -> Epoch:
    return lambda: (pick(batch) for batch in loader)


def speed(epoch: Epoch, least_seconds: float) -> float:
    """Photos per second over whole epochs that take at least this long together."""
    photos, started = 0, time.perf_counter()
    while time.perf_counter() - started < least_seconds:
        photos += sum(len(pixels) for pixels in epoch())
    return photos / (time.perf_counter() - started)


def look_at(epoch: Epoch) -> dict[str, Any]:
    """The contents of one epoch: photos, their shape and type, mean and deviation of the pixels; and its seconds."""
    started = time.perf_counter()
    pixels = torch.cat(list(epoch()))
    return {
        "seconds": time.perf_counter() - started,
        "photos": len(pixels),
        "kind": (tuple(pixels.shape[1:]), pixels.dtype),
        "mean": float(pixels.mean()),
        "deviation": float(pixels.std()),
    }


def same_work(ours: dict[str, Any], peer: dict[str, Any], unit_scale: bool) -> tuple[str, bool]:
    """Whether both gave every photo once, in one shape and type, with similar pixels (not compared across scales)."""
    alike = ours["photos"] == peer["photos"] and ours["kind"] == peer["kind"]
    apart = abs(ours["mean"] - peer["mean"]), abs(ours["deviation"] - peer["deviation"])
    if unit_scale:
        alike = alike and apart[0] < SAME_MEAN and apart[1] < SAME_DEVIATION
    told = f"{peer['photos']} photos each, mean and deviation {apart[0]:.2f} and {apart[1]:.2f} apart"
    return told if unit_scale else f"{peer['photos']} photos each", alike


if __name__ == "__main__":
    main()
