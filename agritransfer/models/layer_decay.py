"""Which learning rate does each layer get, and which weights decay?"""

import re

from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from agritransfer.arguments import FinetuneArguments
from agritransfer.models.structure import find_head, has_numbered_blocks, layer_depths

# The layers whose weights are matrices or filters.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
DECAYING_LAYERS = (nn.Linear, *CONVOLUTIONS, nn.MultiheadAttention, nn.RNNBase)
# Layers that compute position biases or embeddings: Swin V2's in transformers and timm, MaxxViT's, Twins'.
OF_POSITIONS = re.compile(r"(^|\.)(continuous_position_bias_mlp|cpb_mlp|rel_pos|pos_block)\.")

# The default of BEiT and MAE for networks of this size.
LAYER_DECAY = 0.75


def decaying_parameters(model: nn.Module) -> list[str]:
    """Names of the weights that decay: those of linear and convolutional layers, adapters included, and no others.

    Biases, normalization (GRN too), layer scales, position embeddings, bias tables and class, mask and register tokens
    do not decay, whatever their shape; nor do layers that compute position biases. These are the rules of BEiT, Swin
    and timm (`no_weight_decay`).
    """
    return [
        f"{layer}.{name}"
        for layer, module in model.named_modules()
        if isinstance(module, DECAYING_LAYERS) and not OF_POSITIONS.search(f"{layer}.")
        for name, _ in module.named_parameters(recurse=False)
        if "weight" in name
    ]


def parameter_groups_of(
    model: PreTrainedModel, finetune_args: FinetuneArguments, training_args: TrainingArguments
) -> list[dict]:
    """The optimizer groups that these flags ask for."""
    decay = finetune_args.layer_decay
    if decay is None:
        decay = LAYER_DECAY if has_numbered_blocks(model) else 1.0
    return layerwise_parameter_groups(
        model,
        learning_rate=training_args.learning_rate,
        layer_decay=decay,
        head_learning_rate=finetune_args.head_rate(training_args.learning_rate),
        weight_decay=training_args.weight_decay,
    )


def layerwise_parameter_groups(
    model: PreTrainedModel, learning_rate: float, layer_decay: float, head_learning_rate: float, weight_decay: float
) -> list[dict]:
    """Optimizer groups: each depth at `layer_decay` times the rate of the one above it, the head at its own rate.

    Weight decay applies to `decaying_parameters`. Blocks are needed only for a `layer_decay` other than 1.
    """
    decaying = set(decaying_parameters(model))
    depth_of, depth = layer_depths(model) if layer_decay != 1 else ({}, 0)
    head = find_head(model)[0]
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = learning_rate * layer_decay ** (depth - depth_of.get(name, depth))
        rate = head_learning_rate if name.startswith(head + ".") else rate
        decay = weight_decay if name in decaying else 0.0
        groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})["params"].append(parameter)
    return list(groups.values())
