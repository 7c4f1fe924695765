"""How are the outputs of frozen layers cached?

They are computed once, for a few augmented views of every train photo and for the validation photos without
augmentation, and the remaining layers are trained on them.
"""

import hashlib
import json
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import TrainerCallback

from agritransfer.data.dataset import Splits
from agritransfer.errors import StorageError
from agritransfer.images.photo_dataset import collate
from agritransfer.runtime.disk_cache import (
    cache_folder,
    checksum_of,
    force_to_disk,
    make_room,
    mark_as_used,
    read_at,
    written_whole,
)
from agritransfer.runtime.process import say
from agritransfer.training.partial_forward import CannotCut, Cut, activation_at, activations, batches_of
from agritransfer.training.trainer import ImageTrainer

CHECKSUM_BYTES = 4
# To be increased whenever the drawing of views or the layout of the file changes.
VERSION = 1


class _Off(Exception):  # noqa: N818 training continues without the cache
    """Why activations are not cached; printed after "off, "."""


class CachedPhotos(Dataset):
    """Photos as items for the Trainer; their `pixel_values` are the cached float16 activations of the current view.

    Their rows of `shape` begin at row `first` of the file, view after view, and are read on demand.
    """

    def __init__(self, path: Path, first: int, shape: tuple[int, ...], labels: Sequence[int], files: Sequence[str]):
        self.path, self.first, self.shape, self.labels, self.files = path, first, shape, labels, files
        # Shared memory, so that persistent loader workers see it too.
        self.view = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        activation = torch.empty(self.shape, dtype=torch.float16)
        row = self.first + int(self.view) * len(self) + index
        read_at(self.path, row * activation.nbytes, activation.numpy())
        return {"pixel_values": activation, "labels": self.labels[index], "files": self.files[index]}


class _RotateViews(TrainerCallback):
    def __init__(self, photos: CachedPhotos, views: int):
        self.photos, self.views = photos, views

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Called before the epoch's loader starts; in a run resumed in mid-epoch, the epoch is a fraction.
        self.photos.view.fill_(int(state.epoch) % self.views)


@contextmanager
def frozen_prefix(
    trainer: ImageTrainer, splits: Splits, views: int | None, augmentation: str, most_bytes: int
) -> Iterator[None]:
    """Inside, training uses cached activations, view e mod `views` in epoch e; nothing changes if `views` is None.

    Without augmentation there is a single view. The activations, at most `most_bytes`, are in the cache of `datasets`
    and are reused by later runs. If caching is impossible or not worthwhile, one line says so and nothing is cached.
    """
    if views is None:
        yield
        return
    views, prepared = (1 if augmentation == "none" else views), None
    try:
        with trainer.times.spent("frozen blocks"):
            prepared = _prepare(trainer, splits, views, augmentation, most_bytes)
    except (CannotCut, _Off) as reason:
        say(f"cached views: off, {reason}")
    # A run that finds its cache filled draws no views, so drawing them must not change the random state.
    transformers.set_seed(trainer.args.seed)
    # A resumed run must use the same setting, since it affects the weights.
    trainer.settings["views_cached"] = prepared is not None
    if prepared is None:
        yield
        return
    cut, train, validation = prepared
    rotate, whole = _RotateViews(train, views), (trainer.train_dataset, trainer.eval_dataset)
    trainer.add_callback(rotate)
    trainer.train_dataset, trainer.eval_dataset = train, validation
    try:
        with cut.applied():
            yield
    finally:
        trainer.train_dataset, trainer.eval_dataset = whole
        trainer.remove_callback(rotate)


def _prepare(
    trainer: ImageTrainer, splits: Splits, views: int, augmentation: str, most_bytes: int
) -> tuple[Cut, CachedPhotos, CachedPhotos]:
    if views >= (epochs := _epochs(trainer)):
        length = "1 epoch" if epochs == 1 else f"{epochs:g} epochs"
        raise _Off(f"--cached_views {views} saves no time in {length}; use fewer views or more epochs")
    cut, shape = _cut(trainer)
    counts = [len(trainer.train_dataset), len(trainer.eval_dataset)]
    rows = views * counts[0] + counts[1]
    size = rows * int(np.prod(shape)) * 2
    if size > most_bytes:
        raise _Off(f"they take {size / 1e9:.1f} GB, --pixel_store_gb allows {most_bytes / 1e9:g}; use fewer views")
    path, began = cache_folder("prefix") / _name(trainer, cut, splits, views, augmentation), time.perf_counter()
    # One process per node fills the cache; the others wait and find it filled.
    with PartialState().local_main_process_first():
        found, off = _is_whole(path, size), None
        try:
            if not found:
                if not make_room(path.parent, size, most_bytes):
                    raise _Off(
                        f"views that other runs used today fill --pixel_store_gb {most_bytes / 1e9:g}, or the disk is "
                        "full; free some space or wait a day"
                    )
                _fill(trainer, cut, path, views)
            mark_as_used(path)
        except _Off as reason:
            # Raising here would leave the others waiting.
            off = reason
    if off is not None:
        raise off
    how = "found" if found else f"filled in {time.perf_counter() - began:.0f} s"
    say(
        f"cached views: {views} of each train photo, as input of {cut.boundary}, {size / 1e6:,.0f} MB, {how}; the "
        "frozen layers before it run only once, without dropout"
    )
    first = {"train": 0, "validation": views * counts[0]}
    return cut, *(
        CachedPhotos(path, row, shape, splits.label_indices(split), [photo.file for photo in splits.of(split)])
        for split, row in first.items()
    )


def _cut(trainer: ImageTrainer) -> tuple[Cut, tuple[int, ...]]:
    """The network, split and checked, and the shape of the activation of one photo."""
    photos = [trainer.eval_dataset[i] for i in range(min(5, len(trainer.eval_dataset)))]
    if len(photos) < 2:
        raise _Off("a single validation photo is too few to check the cached activations; add some")
    pixels = trainer.model_inputs(collate(photos), augmented=False)["pixel_values"]
    # One photo fewer than in the check, so that shapes that match only by chance are detected.
    cut = Cut(trainer, pixels[:-1])
    cut.check(trainer, pixels)
    activation = activation_at(trainer, cut.model.get_submodule(cut.boundary), pixels)
    return cut, tuple(activation.shape[1:])


def _epochs(trainer: ImageTrainer) -> float:
    args = trainer.args
    if args.max_steps <= 0:
        return args.num_train_epochs
    a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.max_steps * a_step / len(trainer.train_dataset)


def _name(trainer: ImageTrainer, cut: Cut, splits: Splits, views: int, augmentation: str) -> str:
    """A file name that identifies these activations: a digest of everything that they depend on."""
    digest = hashlib.sha256()
    for name, tensor in cut.model.state_dict(keep_vars=True).items():
        if not tensor.requires_grad:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    seen = zip(splits.photos, splits.inspections, strict=True)
    photos = [f"{photo.split} {inspection.digest}" for photo, inspection in seen]
    pixels = [trainer.train_dataset.pixels.mark(), trainer.eval_dataset.pixels.mark(), augmentation, trainer.args.seed]
    machine = [torch.__version__, trainer.args.device.type, trainer.accelerator.mixed_precision]
    digest.update(json.dumps([VERSION, cut.boundary, views, *pixels, *machine, *photos]).encode())
    return digest.hexdigest()[:32]


def _is_whole(path: Path, size: int) -> bool:
    """Whether the file holds this many bytes of activations, followed by their checksum."""
    if not path.is_file() or path.stat().st_size != size + CHECKSUM_BYTES:
        return False
    with path.open("rb") as file:
        return checksum_of(file, size) == int.from_bytes(file.read())


def _fill(trainer: ImageTrainer, cut: Cut, path: Path, views: int) -> None:
    """Write the activations, view after view, then those of validation; the file gets its name once it is complete."""
    drawn = [batch for view in range(views) for batch in batches_of(trainer.train_dataset, view)]
    exact = batches_of(trainer.eval_dataset, None)
    boundary, checksum = cut.model.get_submodule(cut.boundary), 0
    bar = tqdm(total=len(drawn) + len(exact), desc="frozen blocks", unit="batch", delay=2, leave=False, disable=None)
    try:
        with written_whole(path) as begun, begun.open("wb") as file, bar:
            for dataset, batches in ((trainer.train_dataset, drawn), (trainer.eval_dataset, exact)):
                for activation in activations(trainer, boundary, dataset, batches):
                    content = _as_float16(activation)
                    checksum = zlib.crc32(content, checksum)
                    file.write(content)
                    bar.update()
            file.write(checksum.to_bytes(CHECKSUM_BYTES))
            force_to_disk(file)
    except OSError as error:
        raise StorageError(
            f"{path.parent} cannot hold the cached views ({error}); free some disk space or remove --cached_views"
        ) from error


def _as_float16(activation: torch.Tensor) -> bytes:
    stored = activation.half()
    if not torch.isfinite(stored).all():
        raise _Off("the activations are too large for float16")
    return stored.contiguous().numpy().tobytes()
