"""Where can a network be split, and what flows through that point?

Everything before its first trainable part is frozen and gives the same activations for the same pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset

from agritransfer.images.photo_dataset import collate
from agritransfer.models.structure import find_blocks
from agritransfer.training.preemption import ignore_signals
from agritransfer.training.trainer import ImageTrainer

# Photos augmented at once; fixed, so that views do not depend on batch size, restarts or number of processes.
DRAWN_TOGETHER = 32
# The largest difference due to float16 and rounding in float32 or bfloat16, as a share of the spread of the logits.
TOLERANCE = 0.05


class _Reached(Exception):  # noqa: N818 it ends a forward pass early and is not an error
    """Raised in front of the boundary, so that nothing after it is computed."""

    def __init__(self, activation: Any):
        super().__init__()
        self.activation = activation


class CannotCut(Exception):  # noqa: N818 training continues with the whole network
    """Why a network cannot be split; printed after "off, "."""


def activations(
    trainer: ImageTrainer, boundary: nn.Module, dataset: Dataset, batches: Sequence[tuple[int | None, int]]
) -> Iterator[torch.Tensor]:
    """The input of a module for batches of photos, float32 on the CPU, one batch at a time; the model is in eval mode.

    A batch is (view, number): the 32 photos from index 32 * number on, in a view that depends only on the seed of the
    run and these two numbers, or with the evaluation pixels where the view is None.
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
    """All batches of a dataset in one view, for `activations`."""
    return [(view, at) for at in range(-(-len(dataset) // DRAWN_TOGETHER))]


def activation_at(trainer: ImageTrainer, boundary: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The input of a module for normalized pixels; nothing after it is computed."""

    def stop(_module: nn.Module, given: tuple) -> None:
        raise _Reached(given[0] if given else None)

    hook = boundary.register_forward_pre_hook(stop)
    try:
        _forward(trainer, pixels)
    except _Reached as reached:
        return reached.activation
    finally:
        hook.remove()
    raise CannotCut("the forward pass does not reach the boundary")


def _forward(trainer: ImageTrainer, given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), trainer.accelerator.autocast():
        return trainer.model(pixel_values=given).logits.float()


class Cut:
    """A network split before its first trainable part; inside `applied` it takes activations in place of pixels.

    `boundary` names that part. The modules that finish before it starts are the frozen prefix. Inside `applied` they
    return zeros of the right shape, so that the code between them runs unchanged, and the boundary gets the cached
    activation.
    """

    def __init__(self, trainer: ImageTrainer, pixels: torch.Tensor):
        self.model, self.pixels = trainer.model, pixels.to("meta")
        self.boundary = _first_to_move(trainer, pixels)
        self.prefix = self._done_before(trainer, pixels)
        self.activation = torch.empty(0)

    def _done_before(self, trainer: ImageTrainer, pixels: torch.Tensor) -> dict[str, Any]:
        """The outputs, shapes only, of the largest modules that finish before the boundary starts."""
        done: dict[str, Any] = {}

        def note(name: str) -> Callable[[nn.Module, tuple, Any], None]:
            # Not a lambda, since a value returned by a hook replaces the output.
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
            raise CannotCut(f"the input of {self.boundary} is not a single tensor with one row per photo")
        largest = {name: output for name, output in done.items() if not _inside(name, done)}
        if not any(block in largest or _inside(block, largest) for block in find_blocks(self.model)):
            raise CannotCut("no block is frozen; --train_layers N or --lora_layers N keeps the first blocks frozen")
        return {name: _shell(output, name) for name, output in largest.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model is called with activations and its prefix is not computed."""
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
        # Windows and heads give several rows per photo; tensors that do not depend on the photos keep their length.
        length, recorded = shell.shape[0], len(self.pixels)
        length = length * len(self.activation) // recorded if length % recorded == 0 else length
        return torch.zeros(length, *shell.shape[1:], dtype=shell.dtype, device=self.activation.device)

    def check(self, trainer: ImageTrainer, pixels: torch.Tensor) -> None:
        """Raise `CannotCut` if the logits of the split and the whole network differ by more than float16 explains."""
        boundary = self.model.get_submodule(self.boundary)
        self.model.eval()
        whole = _forward(trainer, pixels)
        stored = activation_at(trainer, boundary, pixels).half().float()
        try:
            with self.applied():
                behind = _forward(trainer, stored)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise CannotCut(f"the network cannot be split at {self.boundary} ({str(error).splitlines()[0]})") from error
        spread = (whole - whole.mean(dim=0)).abs().max()
        # Not "larger than", which is false for NaN.
        if not (whole - behind).abs().max() <= TOLERANCE * spread:
            raise CannotCut(f"split at {self.boundary}, the network gives different logits")


def _shell(output: Any, name: str) -> Any:
    """Shapes and types of tensors without their values, also within tuples; integers unchanged."""
    if isinstance(output, torch.Tensor) and output.ndim:
        return output.to("meta")
    if type(output) is tuple:
        return tuple(_shell(part, name) for part in output)
    if output is None or isinstance(output, int):
        return output
    raise CannotCut(f"{name} returns a {type(output).__name__}")


def _inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(other + ".") for other in others)


def _first_to_move(trainer: ImageTrainer, pixels: torch.Tensor) -> str:
    """Name of the first module of a forward pass with trainable weights of its own; within a block, the whole block."""
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
    # Inside a block, residual connections bypass its parts.
    return next((block for block in find_blocks(trainer.model) if order[0].startswith(block + ".")), order[0])
