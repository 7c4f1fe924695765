"""Where are the head, the blocks and the last attention of a network?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TimmWrapperForImageClassification
from transformers.utils import ModelOutput

from agritransfer.errors import UsageError, in_one_line


def find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the classification head: the last linear layer with one output per label."""
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    heads = [(name, module) for name, module in linears if module.out_features == model.config.num_labels]
    if not heads:
        raise UsageError(f"{type(model).__name__} has no linear classification head; choose another model")
    return heads[-1]


def check_head(model: PreTrainedModel, image_size: int) -> None:
    """Raise `UsageError` unless the model gives the output of its head as the logits of a photo, and nothing else.

    Distilled networks average two heads, only one of which would be solved, and other outputs would be scored as
    further answers. The head's output is replaced in a forward pass of a blank photo: the logits must be that output.
    """
    name, head = find_head(model)
    expected = torch.arange(1.0, head.out_features + 1).unsqueeze(0)
    shapes: list[torch.Size] = []

    def replace(_module: nn.Module, given: tuple, output: torch.Tensor) -> torch.Tensor:
        shapes.append(given[0].shape)
        return expected.expand_as(output)

    hook = head.register_forward_hook(replace)
    try:
        outputs = _outputs_for_blank_photo(model, image_size)
    finally:
        hook.remove()
    kind = _architecture_of(model)
    if len(heads := _linears_outside_blocks(model, head.out_features)) > 1 and not _equal(outputs, expected):
        raise UsageError(
            f"{kind} combines the outputs of {len(heads)} heads ({', '.join(heads)}), as distilled models do, "
            "which is not supported; choose a model with one head, such as facebook/deit-small-patch16-224"
        )
    if list(outputs) != ["logits"]:
        raise UsageError(
            f"{kind} returns {', '.join(outputs)} rather than the logits alone, and validation would score all of it; "
            "set output_hidden_states and output_attentions to false in its config.json, or choose another model"
        )
    if shapes != [torch.Size((1, head.in_features))] or not _equal(outputs, expected):
        raise UsageError(
            f"the logits of {kind} are not the output of its linear layer {name} for one vector per photo, so it has "
            "no linear classification head; choose another model"
        )


def _equal(outputs: ModelOutput, expected: torch.Tensor) -> bool:
    return "logits" in outputs and torch.equal(outputs["logits"], expected)


def _linears_outside_blocks(model: nn.Module, out_features: int) -> list[str]:
    blocks = tuple(block + "." for block in find_blocks(model))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == out_features and not name.startswith(blocks)
    ]


def _outputs_for_blank_photo(model: PreTrainedModel, image_size: int) -> ModelOutput:
    """What the model returns for a blank photo in evaluation mode; `UsageError` if it does not support the size."""
    was_training = model.training
    try:
        with torch.no_grad():
            return model.eval()(pixel_values=torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"this {_architecture_of(model)} model does not support {image_size} pixels "
            f"({in_one_line(error)}); remove --image_size or choose another model"
        ) from error
    finally:
        model.train(was_training)


def _architecture_of(model: PreTrainedModel) -> str:
    """The name of a network for messages: timm's for a timm network, else its class."""
    return model.config.architecture if is_timm(model) else type(model).__name__


def find_blocks(model: nn.Module) -> list[str]:
    """Names of the repeated blocks from input to output, such as `vit.layers.0` or `encoder.stages.1.layers.0`.

    A block is a member of a module list whose members share one class that is not torch's own. A list inside such a
    member (the blocks of a stage) takes precedence, but nothing deeper does (the convolutions of a block).
    """
    blocks = []
    for stage_name, stage in _repeated_members(model):
        inner = list(_repeated_members(stage, stage_name + "."))
        blocks += [name for name, _ in inner] or [stage_name]
    return blocks


def _repeated_members(module: nn.Module, prefix: str = ""):
    for name, child in module.named_children():
        members = list(child.named_children())
        classes = {type(member) for _, member in members}
        own = len(classes) == 1 and not next(iter(classes)).__module__.startswith("torch.nn")
        if isinstance(child, nn.ModuleList | nn.Sequential) and own:
            yield from ((f"{prefix}{name}.{key}", member) for key, member in members)
        else:
            yield from _repeated_members(child, f"{prefix}{name}.")


def layer_depths(model: PreTrainedModel) -> tuple[dict[str, int], int]:
    """Depth of every parameter, and the maximum: 0 for embeddings, then one per block, then what follows the blocks.

    A parameter between blocks, such as a downsampling layer, belongs to the block that follows it.
    """
    blocks = find_blocks(model)
    if not blocks:
        raise UsageError(f"{type(model).__name__} has no repeated blocks; use --train_layers all or head")
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
    if not isinstance(heads, int) or f"{name}.{output}" not in modules:
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
            raise UsageError(f"evidence is not supported for {model.config.architecture}, which has several branches")
        logits = model.timm_model.forward_head(hidden)
        # Some timm networks, such as Swin, have the channels last.
        channels_last = getattr(model.timm_model, "output_fmt", "NCHW") == "NHWC"
        return logits, hidden.permute(0, 3, 1, 2) if channels_last else hidden
    states = {}

    # The body is not always the `base_model`: CLIP has a `vision_model`, HGNet V2 an `encoder`. It ends after its parts.
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
        raise UsageError(f"evidence is not supported for {type(model).__name__}, whose body has no last_hidden_state")
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
