"""Where are the head, the blocks and the last attention of a network?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TimmWrapperForImageClassification
from transformers.utils import ModelOutput

from agritransfer.errors import UsageError

# The share of the body that blocks must hold, so that a number of blocks says how much is trained.
COVERAGE = 0.9
LISTS = (nn.ModuleList, nn.Sequential)
Children = list[tuple[str, nn.Module]]
Head = nn.Linear | nn.Conv2d


def find_head(model: nn.Module) -> tuple[str, Head]:
    """Name and module of the classification head: the last linear layer with one output per label.

    Where there is none, it is the last 1 x 1 convolution with one output per label, as in BiT and DLA of timm, which is
    applied to the pooled features (batch, width, 1, 1). Raises `UsageError` for a network without either.
    """
    labels, layers = model.config.num_labels, list(model.named_modules())
    linears = [
        (name, module) for name, module in layers if isinstance(module, nn.Linear) and module.out_features == labels
    ]
    convolutions = [
        (name, module)
        for name, module in layers
        if isinstance(module, nn.Conv2d) and (module.out_channels, module.kernel_size) == (labels, (1, 1))
    ]
    if not (heads := linears or convolutions):
        raise UsageError(
            f"{architecture_of(model)} has no linear classification head; use another model, such as "
            "facebook/dinov2-small or timm/efficientnet_b0.ra_in1k"
        )
    return heads[-1]


def architecture_of(model: PreTrainedModel) -> str:
    """The name of a network for messages: timm's for a timm network, else its class."""
    return model.config.architecture if is_timm(model) else type(model).__name__


def find_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks from input to output, such as `vit.layers.0` or `encoder.stages.1.layers.0`.

    A block is a member of a module list whose members share one class that is not torch's own. A list inside such a
    member (the blocks of a stage) takes precedence, but nothing deeper does (the convolutions of a block). Where such
    blocks are less than `COVERAGE` of the body, the members may differ in class; where these are too, a stage is a
    block.
    """
    return _blocks_and_coverage(model)[0]


def has_numbered_blocks(model: nn.Module) -> bool:
    """Whether blocks are most of the network's body, so that they can be counted from the last."""
    return _blocks_and_coverage(model)[1] >= COVERAGE


def numbered_blocks(model: nn.Module) -> list[str]:
    """The blocks, to be counted from the last; raises `UsageError` where they are not most of the network's body."""
    blocks, coverage = _blocks_and_coverage(model)
    if coverage < COVERAGE:
        raise UsageError(
            f"the layers of {architecture_of(model)} cannot be counted: the blocks found (number: {len(blocks)}) hold "
            f"{coverage:.0%} of its body, less than {COVERAGE:.0%}; use --train_layers all or head without "
            "--layer_decay, or choose another model"
        )
    return blocks


def _blocks_and_coverage(model: nn.Module) -> tuple[list[str], float]:
    """The blocks, and the share of the body's weights that they hold."""
    prefix, network = network_of(model)
    head = find_head(model)[0] + "."
    body = [(prefix + key, part) for key, part in network.named_children() if not head.startswith(f"{prefix}{key}.")]
    found: tuple[list[str], float] = [], 0.0
    for find in (_repeated_blocks, _listed_blocks, _stages):
        blocks = find(body)
        found = max(found, (blocks, _coverage(body, blocks)), key=lambda blocks_and_coverage: blocks_and_coverage[1])
        if found[1] >= COVERAGE:
            break
    return found


def _coverage(body: Children, blocks: list[str]) -> float:
    """The share of the weights that blocks hold; a layer between them, such as a patch embedding, does not count."""
    inside = outside = 0
    parts = list(body)
    for name, part in parts:
        if name in blocks:
            inside += _size(part)
        elif any(block.startswith(name + ".") for block in blocks):
            parts += _children(name, part)
            outside += sum(parameter.numel() for parameter in part.parameters(recurse=False))
        elif sum(_has_matrix(layer) and not any(layer.children()) for layer in part.modules()) > 1:
            outside += _size(part)
    return inside / max(inside + outside, 1)


def network_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that holds body and head side by side, inside the wrappers of timm and peft, and its prefix."""
    prefix = ""
    while len(inner := _layers("", model)) == 1:
        prefix, model = f"{prefix}{inner[0][0]}.", inner[0][1]
    return prefix, model


def _children(name: str, module: nn.Module) -> Children:
    return [(f"{name}.{key}".lstrip("."), child) for key, child in module.named_children()]


def _layers(name: str, module: nn.Module) -> Children:
    """The children that hold a matrix or filters, so neither activations nor normalizations."""
    return [(key, child) for key, child in _children(name, module) if _has_matrix(child)]


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _of_torch(module: nn.Module) -> bool:
    # The layers of peft stand for layers of torch.
    return type(module).__module__.startswith(("torch.nn.", "peft."))


def _repeated_blocks(body: Children) -> list[str]:
    """Members of lists whose members share one class."""
    return _members_of_lists(body, lambda part: len({type(child) for child in part.children()}) == 1)


def _listed_blocks(body: Children) -> list[str]:
    """Members of lists, of whatever classes."""
    return _members_of_lists(body, lambda part: True)


def _members_of_lists(body: Children, alike: Callable[[nn.Module], bool]) -> list[str]:
    """The members of the outermost lists, or of the list that is most of such a member."""
    blocks = []
    for stage, module in _members(body, alike):
        lists: dict[str, Children] = {}
        for name, block in _members(_children(stage, module), alike):
            lists.setdefault(name.rpartition(".")[0], []).append((name, block))
        # The branches of a block are lists too, but each is a small part of it.
        inner = [list_ for list_ in lists.values() if 2 * sum(_size(block) for _, block in list_) > _size(module)]
        blocks += [name for name, _ in inner[0]] if inner else [stage]
    return blocks


def _members(parts: Children, alike: Callable[[nn.Module], bool]) -> Children:
    found = []
    for name, part in parts:
        layers = _layers(name, part)
        if isinstance(part, LISTS) and layers and alike(part) and not any(_of_torch(child) for _, child in layers):
            found += layers
        else:
            found += _members(_children(name, part), alike)
    return found


def _stages(body: Children) -> list[str]:
    """The children of the smallest module that holds most of the body; of a list, its members."""
    total = sum(_size(part) for _, part in body)
    while large := [
        _layers(name, part) for name, part in body if _size(part) >= COVERAGE * total and _layers(name, part)
    ]:
        body = large[0]
    return [stage for name, part in body if _has_matrix(part) for stage in _flattened(name, part)]


def _flattened(name: str, part: nn.Module) -> list[str]:
    """The module itself; of a list without layers of torch's own, its members."""
    layers = _layers(name, part)
    if isinstance(part, LISTS) and all(isinstance(child, LISTS) or not _of_torch(child) for _, child in layers):
        return [stage for key, child in layers for stage in _flattened(key, child)]
    return [name]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layer_depths(model: PreTrainedModel) -> tuple[dict[str, int], int]:
    """Depth of every parameter, and the maximum: 0 for embeddings, then one per block, then what follows the blocks.

    A parameter between blocks, such as a downsampling layer, belongs to the block that follows it.
    """
    blocks = numbered_blocks(model)
    depth_of: dict[str, int] = {}
    begun = 0
    for name, _ in model.named_parameters():
        inside = [i for i, block in enumerate(blocks) if name.startswith(block + ".")]
        begun = inside[0] + 1 if inside else begun
        between_or_above = begun + 1 if begun else 0
        depth_of[name] = begun if inside else between_or_above
    return depth_of, len(blocks) + 1


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The numbers of all weights and of trainable weights."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, moves in sizes if moves)


@dataclass(frozen=True)
class Attention:
    """The layers of an attention: query, key and value (one layer in timm), output projection and layer scale."""

    inputs: dict[str, nn.Module]
    output: nn.Module
    scale: nn.Module
    heads: int


def last_attention(model: PreTrainedModel) -> Attention | None:
    """The last attention of a transformer; None for a network without one, or with one of another layout."""
    modules = dict(model.named_modules())
    if queries := [name for name in modules if name.endswith(".q_proj")]:
        name, inputs, output = queries[-1].rpartition(".")[0], ("q_proj", "k_proj", "v_proj"), "o_proj"
        # In CLIP and SigLIP, the configuration of the photo's network is part of another one.
        networks = [part for key, part in modules.items() if isinstance(part, PreTrainedModel) and name.startswith(key)]
        heads = networks[-1].config.to_dict().get("num_attention_heads")
    elif fused := [name for name in modules if name.endswith(".attn.qkv")]:
        name, inputs, output = fused[-1].rpartition(".")[0], ("qkv",), "proj"
        heads = vars(modules[name]).get("num_heads")
    else:
        return None
    if not isinstance(heads, int) or not isinstance(modules.get(f"{name}.{output}"), nn.Linear):
        return None
    block = name.rpartition(".")[0]
    scale = modules.get(f"{block}.layer_scale1", modules.get(f"{block}.ls1", nn.Identity()))
    given = {part: modules[f"{name}.{part}"] for part in inputs}
    return Attention(given, modules[f"{name}.{output}"], scale, heads)


def last_norm(model: nn.Module) -> nn.Module:
    """The last layer normalization; an identity where there is none."""
    return [nn.Identity(), *(module for module in model.modules() if isinstance(module, nn.LayerNorm))][-1]


def is_timm(model: PreTrainedModel) -> bool:
    """Whether this is a timm network in transformers' wrapper."""
    return isinstance(model, TimmWrapperForImageClassification)


def logits_and_hidden_state(model: PreTrainedModel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (batch, classes), and what the head pools: tokens (batch, n, width) or a map (batch, width, n, m).

    Raises `UsageError` for a timm network whose body returns several of them.
    """
    if is_timm(model):
        hidden = model.timm_model.forward_features(pixels)
        if not isinstance(hidden, torch.Tensor):
            raise UsageError(
                f"{model.config.architecture} cannot be exported: its body has several outputs, so there is no map of "
                "cells; export another model, such as ViT or ConvNeXt"
            )
        logits = model.timm_model.forward_head(hidden)
        # Some timm networks, such as Swin, have the channels last.
        channels_last = getattr(model.timm_model, "output_fmt", "NCHW") == "NHWC"
        return logits, hidden.permute(0, 3, 1, 2) if channels_last else hidden
    states = {}

    # The body is not always `base_model`: CLIP has a `vision_model`, HGNet V2 an `encoder`. It ends after its parts.
    def note(_module: nn.Module, _inputs: tuple, output: Any) -> None:
        if isinstance(output, ModelOutput) and "last_hidden_state" in output:
            states["last"] = output["last_hidden_state"]

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        logits = model(pixel_values=pixels).logits
    finally:
        for hook in hooks:
            hook.remove()
    if "last" not in states:
        raise UsageError(
            f"{type(model).__name__} cannot be exported: its body gives no last hidden state, so there is no map of "
            "cells; export another model, such as ViT or ConvNeXt"
        )
    return logits, states["last"]


def pooled_features(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The pooled features (batch, width) that the head of a timm network reads from a hidden state."""
    return model.timm_model.forward_head(hidden, pre_logits=True)


@contextmanager
def watch(modules: dict[str, nn.Module]) -> Iterator[dict[str, tuple]]:
    """Record the first input and the output of these modules, by name, inside the context."""
    seen: dict[str, tuple] = {}

    # By name: while torch traces a network, its modules are other objects.
    def note(name: str, _module: nn.Module, inputs: tuple, output: Any) -> None:
        seen[name] = (inputs[0] if inputs else None, output)

    hooks = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
