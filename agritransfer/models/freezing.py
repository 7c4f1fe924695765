"""Which pretrained weights are trained?"""

from collections import Counter
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from agritransfer.errors import UsageError
from agritransfer.models.structure import count_parameters, find_head, layer_depths


def train_layers(model: PreTrainedModel, layers: str) -> None:
    """Train all weights (`all`), only the head (`head`), or the last N blocks and the head (`N`)."""
    if layers == "all":
        return
    if layers == "head":
        train_head_only(model)
    elif layers.isdecimal() and int(layers) > 0:
        freeze_below(model, int(layers))
    else:
        raise UsageError(f"--train_layers {layers} is invalid; use all, head, or a number of blocks such as 4")


def train_head_only(model: PreTrainedModel) -> None:
    """Feature extraction: train only the head."""
    model.requires_grad_(False)
    find_head(model)[1].requires_grad_(True)
    freeze_batchnorm_statistics(model)


def freeze_below(model: PreTrainedModel, last_blocks: int) -> None:
    """Train only the last blocks and what follows them: the last normalization and the head."""
    depth_of, depth = layer_depths(model)
    if last_blocks >= depth:
        raise UsageError(f"--train_layers {last_blocks}: the model has {depth - 1} blocks; use fewer, or all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(depth_of[name] >= depth - last_blocks)
    freeze_batchnorm_statistics(model)


def freeze_batchnorm_statistics(model: nn.Module, of_frozen_layers_only: bool = True) -> None:
    """Keep the running statistics of frozen BatchNorm layers, or of all of them, even after `model.train()`.

    requires_grad=False stops the gradient, but in training mode the mean and variance would still be updated.
    """
    for module in model.modules():
        moves = any(parameter.requires_grad for parameter in module.parameters())
        if isinstance(module, _BatchNorm) and not (moves and of_frozen_layers_only):
            module.register_forward_pre_hook(_stay_in_eval)


def _stay_in_eval(module: nn.Module, _inputs: tuple) -> None:
    module.eval()


def batchnorm_of_single_values(model: nn.Module, pixels: torch.Tensor) -> str | None:
    """The name of a BatchNorm layer that is trained and gets one value per channel from these pixels, or None.

    torch refuses to normalize a single value. No weight, no statistic and no random state changes.
    """
    found: list[str] = []

    # Runs after the hook that keeps frozen statistics, and ends training mode before the layer itself runs.
    def note(name: str, module: nn.Module, given: tuple) -> None:
        if module.training and given[0].numel() == given[0].shape[1]:
            found.append(name)
        module.eval()

    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in layers.items()]
    was_training = model.training
    model.eval()
    try:
        for module in layers.values():
            module.train()
        with torch.no_grad():
            model(pixel_values=pixels)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def trainable_line(model: nn.Module) -> str:
    """One line with the number of trainable weights and the layers that have adapters."""
    moving = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    total, trained = count_parameters(model)
    layers = Counter(name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in moving if ".lora_A." in name)
    where = ", ".join(f"{name} x {count}" for name, count in layers.items())
    adapters = f"; adapters on {where}, and the head" if layers else ""
    return f"trainable: {trained:,} of {total:,} weights ({trained / total:.1%}){adapters}"
