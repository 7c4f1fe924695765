"""Which weights move, and how fast?

A network is read by its structure: the embeddings, the repeated blocks, the last normalisation, the head.
"""

import warnings
from collections import Counter

import peft
from peft import LoraConfig, PeftModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from agritransfer.errors import UsageError
from agritransfer.models import find_head

# peft 0.21 asks transformers 5.23 by an old name, at every start.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def train_layers(model: PreTrainedModel, layers: str) -> None:
    """Let all weights move (`all`), only the head (`head`), or the last N blocks and the head (`N`)."""
    if layers == "all":
        return
    if layers == "head":
        train_head_only(model)
    elif layers.isdecimal() and int(layers) > 0:
        freeze_below(model, int(layers))
    else:
        raise UsageError(f"--train_layers {layers} is none of: all, head, or a number of blocks such as 4")


def train_head_only(model: PreTrainedModel) -> None:
    """Feature extraction: only the head's weights move."""
    model.requires_grad_(False)
    find_head(model)[1].requires_grad_(True)
    freeze_batchnorm_statistics(model)


def freeze_below(model: PreTrainedModel, last_blocks: int) -> None:
    """Only the last blocks move, and what lies above them: the last normalisation and the head."""
    depth_of, depth = layer_depths(model)
    if last_blocks >= depth:
        raise UsageError(f"--train_layers {last_blocks}: the model has {depth - 1} blocks; use fewer, or all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(depth_of[name] >= depth - last_blocks)
    freeze_batchnorm_statistics(model)


def freeze_batchnorm_statistics(model: nn.Module, of_frozen_layers_only: bool = True) -> None:
    """BatchNorm layers, those that move too where asked, keep their running statistics, whoever calls `model.train()`.

    requires_grad=False stops the gradient, but training mode would still move mean and variance.
    """
    for module in model.modules():
        moves = any(parameter.requires_grad for parameter in module.parameters())
        if isinstance(module, _BatchNorm) and not (moves and of_frozen_layers_only):
            module.register_forward_pre_hook(_stay_in_eval)


def _stay_in_eval(module: nn.Module, _inputs: tuple) -> None:
    module.eval()


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


def layerwise_parameter_groups(
    model: PreTrainedModel, learning_rate: float, layer_decay: float, head_learning_rate: float, weight_decay: float
) -> list[dict]:
    """Optimizer groups: each depth at `layer_decay` times the rate of the one above it, the head at its own rate.

    Biases and normalisations are not decayed.
    """
    depth_of, depth = layer_depths(model)
    head = find_head(model)[0]
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = learning_rate * layer_decay ** (depth - depth_of[name])
        rate = head_learning_rate if name.startswith(head + ".") else rate
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})["params"].append(parameter)
    return list(groups.values())


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: list[str] | None,
    use_dora: bool,
    use_rslora: bool,
    layers: str = "all",
) -> PeftModel:
    """Freeze the model and add low-rank adapters, in all blocks or the last N (`layers`); the head stays trainable."""
    head = find_head(model)[0]
    targets = find_lora_targets(model) if target_modules is None else _named_targets(model, target_modules, head)
    if layers != "all":
        targets = _in_last_blocks(model, layers, targets)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        # Without this the new head would stay random, without an error.
        modules_to_save=[head],
        use_dora=use_dora,
        use_rslora=use_rslora,
    )
    adapted = peft.get_peft_model(model, config)
    freeze_batchnorm_statistics(adapted)
    return adapted


def _in_last_blocks(model: PreTrainedModel, layers: str, targets: list[str]) -> list[str]:
    blocks = find_blocks(model)
    if not layers.isdecimal() or not 0 < int(layers) < len(blocks):
        raise UsageError(f"--lora_layers {layers} is neither all nor a number of blocks below the {len(blocks)} it has")
    kept = tuple(block + "." for block in blocks[-int(layers) :])
    inside = [target for target in targets if target.startswith(kept)]
    if not inside:
        raise UsageError(
            f"none of the layers to adapt lies in the last {layers} blocks; choose more with --lora_layers"
        )
    return inside


def find_lora_targets(model: PreTrainedModel) -> list[str]:
    """Full names of the layers to adapt: attention's projections, else linear layers, else full convolutions."""
    inside = tuple(block + "." for block in find_blocks(model))
    layers = {name: module for name, module in model.named_modules() if name.startswith(inside)}
    attention = tuple(name + "." for name, module in layers.items() if "Attention" in type(module).__name__)
    linears = {name: module for name, module in layers.items() if isinstance(module, nn.Linear)}
    # A projection keeps the width or makes query, key and value at once; the small networks of position biases do not.
    projections = [
        name
        for name, module in linears.items()
        if attention
        and name.startswith(attention)
        and module.out_features in (module.in_features, 3 * module.in_features)
    ]
    convolutions = [name for name, module in layers.items() if isinstance(module, nn.Conv2d) and module.groups == 1]
    targets = projections or list(linears) or convolutions
    if not targets:
        raise UsageError(f"no layer for LoRA was found in {type(model).__name__}; name some with --lora_target_modules")
    return targets


def _named_targets(model: PreTrainedModel, names: list[str], head: str) -> list[str]:
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name != head
    }
    targets = [layer for layer in layers if any(layer == name or layer.endswith("." + name) for name in names)]
    for name in names:
        if not any(layer == name or layer.endswith("." + name) for layer in layers):
            known = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
            raise UsageError(f"--lora_target_modules {name} matches no layer; the model has {', '.join(known)}")
    for layer in targets:
        module = layers[layer]
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            raise UsageError(
                f"'{layer}' is a depthwise convolution: each of its {module.groups} filters sees one channel only, "
                "so there is no matrix to approximate by a low rank; choose linear layers or full convolutions"
            )
    return targets


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapters added into its weights; the given model is used up."""
    return model.merge_and_unload()


def trainable_line(model: nn.Module) -> str:
    """One line: how many weights move, and where they are."""
    moving = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    total, trained = count_parameters(model)
    layers = Counter(name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in moving if ".lora_A." in name)
    where = ", ".join(f"{name} x {count}" for name, count in layers.items())
    adapters = f"; adapters on {where}, and the head" if layers else ""
    return f"trainable: {trained:,} of {total:,} weights ({trained / total:.1%}){adapters}"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All weights, and those that move."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, moves in sizes if moves)
