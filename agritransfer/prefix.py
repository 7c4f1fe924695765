"""What need not be computed again?

A frozen part of a network gives the same activations for the same pixels. They are computed once, for a few augmented
views of every train photo and for the validation photos as they are, and what moves is trained on them.
"""

import hashlib
import json
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import TrainerCallback

from agritransfer.data import Splits
from agritransfer.errors import StorageError
from agritransfer.pixels import collate
from agritransfer.stopping import ignore_signals
from agritransfer.strategies import find_blocks
from agritransfer.training import ImageTrainer, say

# Photos of one draw: fixed, so that a view does not depend on the batch size, the restart or the number of processes.
DRAWN_TOGETHER = 32
# The difference that float16 and two ways through float32 or bfloat16 make, as a share of how far the logits spread.
TOLERANCE = 0.05
# What another run may still read is not taken away.
IN_USE_SECONDS = 24 * 3600
CHECKSUM_BYTES = 4
FILLED_ANEW = "run the same command again, which fills it anew and goes on"
# Raised by whoever changes how views are drawn or how activations lie in the file.
VERSION = 1


class _Reached(Exception):  # noqa: N818 it ends a forward early, nothing is wrong
    """Raised in front of the boundary, so that nothing behind it is computed."""

    def __init__(self, activation: Any):
        super().__init__()
        self.activation = activation


class _Off(Exception):  # noqa: N818 training goes on without the cache
    """Why activations are not cached; to be read after "off, "."""


def activations(
    trainer: ImageTrainer, boundary: nn.Module, dataset: Dataset, batches: Sequence[tuple[int | None, int]]
) -> Iterator[torch.Tensor]:
    """What a module is given for batches of photos, float32 on the CPU, one batch at a time; the model is in eval mode.

    A batch is (view, number): the 32 photos from 32 times its number on, in a view drawn from the run's seed and these
    two numbers alone, or as evaluation sees them where the view is None.
    """
    rows = [range(at * DRAWN_TOGETHER, min((at + 1) * DRAWN_TOGETHER, len(dataset))) for _, at in batches]
    loader = DataLoader(
        dataset,
        batch_sampler=rows,
        collate_fn=collate,
        num_workers=trainer.args.dataloader_num_workers,
        worker_init_fn=ignore_signals,
    )
    trainer.model.eval()
    for (view, at), batch in zip(batches, loader, strict=True):
        if view is not None:
            transformers.set_seed(int(np.random.SeedSequence([trainer.args.seed, view, at]).generate_state(1)[0]))
        pixels = trainer.model_inputs(batch, augmented=view is not None)["pixel_values"]
        yield activation_at(trainer, boundary, pixels).float().cpu()


def batches_of(dataset: Dataset, view: int | None) -> list[tuple[int | None, int]]:
    """All batches of a set of photos in one view, for `activations`."""
    return [(view, at) for at in range(-(-len(dataset) // DRAWN_TOGETHER))]


def activation_at(trainer: ImageTrainer, boundary: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What a module is given for normalised pixels; nothing behind it is computed."""

    def stop(_module: nn.Module, given: tuple) -> None:
        raise _Reached(given[0] if given else None)

    hook = boundary.register_forward_pre_hook(stop)
    try:
        _forward(trainer, pixels)
    except _Reached as reached:
        return reached.activation
    finally:
        hook.remove()
    raise _Off("the network does not pass its boundary")


def _forward(trainer: ImageTrainer, given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), trainer.accelerator.autocast():
        return trainer.model(pixel_values=given).logits.float()


class Cut:
    """A network cut in front of its first part that moves; behind the cut it takes activations in place of pixels.

    `boundary` names that part. The modules that are done before it begins are the frozen prefix; once cut off they hand
    out zeros of the right shape, so that what lies between them need not be known, and the boundary is given the cached
    activation.
    """

    def __init__(self, trainer: ImageTrainer, pixels: torch.Tensor):
        self.model, self.pixels = trainer.model, pixels.to("meta")
        self.boundary = _first_to_move(trainer, pixels)
        self.prefix = self._done_before(trainer, pixels)
        self.activation = torch.empty(0)

    def _done_before(self, trainer: ImageTrainer, pixels: torch.Tensor) -> dict[str, Any]:
        """What each of the largest modules gives that end before the boundary begins, without its numbers."""
        done: dict[str, Any] = {}

        def note(name: str) -> Callable[[nn.Module, tuple, Any], None]:
            # No lambda: what a hook returns takes the place of the output.
            def hook(_module: nn.Module, _given: tuple, output: Any) -> None:
                done[name] = output

            return hook

        hooks = [module.register_forward_hook(note(name)) for name, module in self.model.named_modules()]
        try:
            activation = activation_at(trainer, self.model.get_submodule(self.boundary), pixels)
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(activation, torch.Tensor) or len(activation) != len(pixels):
            raise _Off(f"{self.boundary} is not given one tensor of the photos")
        largest = {name: output for name, output in done.items() if not _inside(name, done)}
        if not any(block in largest or _inside(block, largest) for block in find_blocks(self.model)):
            raise _Off("no block is frozen; --train_layers N or --lora_layers N leaves the first ones frozen")
        return {name: _shell(output, name) for name, output in largest.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model is called with activations and its prefix costs nothing; its weights stay as they are."""
        hooks = [
            self.model.register_forward_pre_hook(self._take, with_kwargs=True),
            self.model.get_submodule(self.boundary).register_forward_pre_hook(self._give),
        ]
        for name, output in self.prefix.items():
            self.model.get_submodule(name).forward = lambda *_, output=output, **__: self._zeros(output)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name in self.prefix:
                del self.model.get_submodule(name).forward

    def _take(self, _model: nn.Module, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.activation = named["pixel_values"]
        return given, named | {"pixel_values": self._zeros(self.pixels)}

    def _give(self, _boundary: nn.Module, given: tuple) -> tuple:
        return (self.activation, *given[1:])

    def _zeros(self, shell: Any) -> Any:
        if isinstance(shell, tuple):
            return tuple(map(self._zeros, shell))
        if not isinstance(shell, torch.Tensor):
            return shell
        # Of windows or heads there are several a photo; what has nothing to do with the photos keeps its length.
        length, recorded = shell.shape[0], len(self.pixels)
        length = length * len(self.activation) // recorded if length % recorded == 0 else length
        return torch.zeros(length, *shell.shape[1:], dtype=shell.dtype, device=self.activation.device)

    def check(self, trainer: ImageTrainer, pixels: torch.Tensor) -> None:
        """Refuse a cut through which other logits come than through the whole network, allowing for float16."""
        boundary = self.model.get_submodule(self.boundary)
        self.model.eval()
        whole = _forward(trainer, pixels)
        stored = activation_at(trainer, boundary, pixels).half().float()
        try:
            with self.applied():
                behind = _forward(trainer, stored)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise _Off(f"the network cannot be cut at {self.boundary} ({str(error).splitlines()[0]})") from error
        spread = (whole - whole.mean(dim=0)).abs().max()
        # Not "larger than": of what is no number nothing is larger.
        if not (whole - behind).abs().max() <= TOLERANCE * spread:
            raise _Off(f"cut at {self.boundary} the network gives other logits")


def _shell(output: Any, name: str) -> Any:
    """Shapes and types alone of tensors, also of those in a tuple; numbers as they are."""
    if isinstance(output, torch.Tensor) and output.ndim:
        return output.to("meta")
    if type(output) is tuple:
        return tuple(_shell(part, name) for part in output)
    if output is None or isinstance(output, int):
        return output
    raise _Off(f"{name} gives a {type(output).__name__}")


def _inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(other + ".") for other in others)


def _first_to_move(trainer: ImageTrainer, pixels: torch.Tensor) -> str:
    """Name of the first part in a forward that has weights of its own to train; of a block the whole block."""
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _m, _i, name=name: order.append(name))
        for name, module in trainer.model.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    ]
    try:
        trainer.model.eval()
        _forward(trainer, pixels)
    finally:
        for hook in hooks:
            hook.remove()
    # Inside a block there are ways around each of its parts.
    return next((block for block in find_blocks(trainer.model) if order[0].startswith(block + ".")), order[0])


class CachedPhotos(Dataset):
    """Photos as items for Trainer whose `pixel_values` are cached activations, float16, of the view set.

    Their rows of `shape` begin with row `first` of the file, view after view, and are read when used, as stored pixels.
    """

    def __init__(self, path: Path, first: int, shape: tuple[int, ...], labels: Sequence[int], files: Sequence[str]):
        self.path, self.first, self.shape, self.labels, self.files = path, first, shape, labels, files
        # Shared, so that loader workers that live on from epoch to epoch see it too.
        self.view = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        activation = torch.empty(self.shape, dtype=torch.float16)
        row = self.first + int(self.view) * len(self) + index
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(row * activation.nbytes)
                read = file.readinto(activation.numpy().reshape(-1).view(np.uint8))
        except OSError as error:
            raise StorageError(f"{self.path} is gone ({error}); {FILLED_ANEW}") from error
        if read != activation.nbytes:
            raise StorageError(f"{self.path} is cut off; {FILLED_ANEW}")
        return {"pixel_values": activation, "labels": self.labels[index], "files": self.files[index]}


class _RotateViews(TrainerCallback):
    def __init__(self, photos: CachedPhotos, views: int):
        self.photos, self.views = photos, views

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Before the loader of the epoch begins; a run that goes on in mid-epoch comes with its fraction.
        self.photos.view.fill_(int(state.epoch) % self.views)


@contextmanager
def frozen_prefix(
    trainer: ImageTrainer, splits: Splits, views: int | None, augmentation: str, most_bytes: int
) -> Iterator[None]:
    """Within, the trainer trains what moves on cached activations, view e mod `views` in epoch e; None changes nothing.

    Without augmentation all views are one. The activations lie in the cache of `datasets`, at most `most_bytes` of
    them, and serve later runs. Where they cannot be had or would not pay, one line says so, and training computes them.
    """
    if views is None:
        yield
        return
    views, prepared = (1 if augmentation == "none" else views), None
    try:
        with trainer.times.spent("frozen blocks"):
            prepared = _prepare(trainer, splits, views, augmentation, most_bytes)
    except _Off as reason:
        say(f"cached views: off, {reason}")
    # The draws of the views must leave no trace: a run that finds its cache filled draws none.
    transformers.set_seed(trainer.args.seed)
    # A run that goes on must find it as it was: other views, other weights.
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
        raise _Off(f"{views} views for {epochs:g} epochs save nothing; give fewer views or more epochs")
    cut, shape = _cut(trainer)
    counts = [len(trainer.train_dataset), len(trainer.eval_dataset)]
    rows = views * counts[0] + counts[1]
    size = rows * int(np.prod(shape)) * 2
    if size > most_bytes:
        raise _Off(f"they take {size / 1e9:.1f} GB, --pixel_store_gb allows {most_bytes / 1e9:g}; give fewer views")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "agritransfer-prefix"
    path, began = folder / _name(trainer, cut, splits, views, augmentation), time.perf_counter()
    # One process of each node fills; the others wait and find it filled.
    with PartialState().local_main_process_first():
        found, off = _is_whole(path, size), None
        try:
            if not found:
                _make_room(folder, size, most_bytes)
                _fill(trainer, cut, path, views)
            os.utime(path)
        except _Off as reason:
            # Raised here, it would leave the others waiting.
            off = reason
    if off is not None:
        raise off
    how = "found" if found else f"filled in {time.perf_counter() - began:.0f} s"
    say(
        f"cached views: {views} of each train photo as they reach {cut.boundary}, {size / 1e6:,.0f} MB, {how}; what is "
        "frozen before it is not computed again and drops nothing out"
    )
    first = {"train": 0, "validation": views * counts[0]}
    return cut, *(
        CachedPhotos(path, row, shape, splits.label_indices(split), [photo.file for photo in splits.of(split)])
        for split, row in first.items()
    )


def _cut(trainer: ImageTrainer) -> tuple[Cut, tuple[int, ...]]:
    """The network, cut and checked, and the shape of the activation of one photo."""
    photos = [trainer.eval_dataset[i] for i in range(min(5, len(trainer.eval_dataset)))]
    if len(photos) < 2:
        raise _Off("one validation photo is too few to check it by")
    pixels = trainer.model_inputs(collate(photos), augmented=False)["pixel_values"]
    # Of another number of photos than the check, so that a shape that only happens to fit is found.
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
    """Of a file that holds these activations and no others: everything that decides them has a part in it."""
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
    """Whether so many bytes of activations lie there, and behind them their own checksum."""
    if not path.is_file() or path.stat().st_size != size + CHECKSUM_BYTES:
        return False
    checksum, left = 0, size
    with path.open("rb") as file:
        while left:
            block = file.read(min(left, 1 << 24))
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        return file.read() == checksum.to_bytes(CHECKSUM_BYTES)


def _make_room(folder: Path, size: int, most_bytes: int) -> None:
    """Delete what was used longest ago, but nothing that another run may still read."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime)
    while sum(path.stat().st_size for path in files) + size > most_bytes:
        if not files or files[0].stat().st_mtime > time.time() - IN_USE_SECONDS:
            raise _Off(f"other runs' views of today fill --pixel_store_gb {most_bytes / 1e9:g}; give more, or wait")
        files.pop(0).unlink()


def _fill(trainer: ImageTrainer, cut: Cut, path: Path, views: int) -> None:
    """Write the activations, view after view, then those of validation; the file has its name once it is whole."""
    drawn = [batch for view in range(views) for batch in batches_of(trainer.train_dataset, view)]
    exact = batches_of(trainer.eval_dataset, None)
    boundary = cut.model.get_submodule(cut.boundary)
    checksum, partial = 0, path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.partial")
    bar = tqdm(total=len(drawn) + len(exact), desc="frozen blocks", unit="batch", delay=2, leave=False, disable=None)
    try:
        with partial.open("wb") as file, bar:
            for dataset, batches in ((trainer.train_dataset, drawn), (trainer.eval_dataset, exact)):
                for activation in activations(trainer, boundary, dataset, batches):
                    content = _as_float16(activation)
                    checksum = zlib.crc32(content, checksum)
                    file.write(content)
                    bar.update()
            file.write(checksum.to_bytes(CHECKSUM_BYTES))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path.parent} cannot hold the cached views ({error}); make room or leave --cached_views out"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _as_float16(activation: torch.Tensor) -> bytes:
    stored = activation.half()
    if not torch.isfinite(stored).all():
        raise _Off("its activations are too large for float16")
    return stored.contiguous().numpy().tobytes()
