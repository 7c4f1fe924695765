"""What is a network made of? Its head, its blocks, its last attention, found by structure."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from agritransfer.errors import UsageError


def find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the classification head: the last linear layer that answers with one number a label."""
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    heads = [(name, module) for name, module in linears if module.out_features == model.config.num_labels]
    if not heads:
        raise UsageError(f"{type(model).__name__} has no linear classification head; choose another model")
    return heads[-1]


def find_blocks(model: nn.Module) -> list[str]:
    """Names of the repeated blocks from input to output, such as `vit.layers.0` or `encoder.stages.1.layers.0`.

    A block is a member of a list of modules of one class of the model's own; a list inside such a member (the blocks
    of a stage) is preferred to it, but nothing deeper is (the convolutions of a block).
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
    """Depth of every parameter, and the greatest: 0 embeddings, then one for each block, last what is above them.

    A parameter between blocks, such as a downsampling, moves with the block that follows it.
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
    """All weights, and those that move."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, moves in sizes if moves)


def last_attention(model: PreTrainedModel) -> dict[str, Any] | None:
    """The layers of the last attention: query, key and value (one layer in timm), the output and what scales it."""
    modules = dict(model.named_modules())
    if queries := [name for name in modules if name.endswith(".q_proj")]:
        name, inputs, output = queries[-1].rpartition(".")[0], ("q_proj", "k_proj", "v_proj"), "o_proj"
        heads = model.config.num_attention_heads
    elif fused := [name for name in modules if name.endswith(".attn.qkv")]:
        name, inputs, output = fused[-1].rpartition(".")[0], ("qkv",), "proj"
        heads = modules[name].num_heads
    else:
        return None
    block = name.rpartition(".")[0]
    scale = modules.get(f"{block}.layer_scale1", modules.get(f"{block}.ls1", nn.Identity()))
    given = {part: modules[f"{name}.{part}"] for part in inputs}
    return {"inputs": given, "output": modules[f"{name}.{output}"], "scale": scale, "heads": heads}
