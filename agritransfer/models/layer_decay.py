"""Which learning rate does each layer get?"""

from transformers import PreTrainedModel, TrainingArguments

from agritransfer.arguments import FinetuneArguments
from agritransfer.models.structure import find_head, layer_depths


def parameter_groups_of(
    model: PreTrainedModel, finetune_args: FinetuneArguments, training_args: TrainingArguments
) -> list[dict]:
    """The optimizer groups that these flags ask for."""
    return layerwise_parameter_groups(
        model,
        learning_rate=training_args.learning_rate,
        layer_decay=finetune_args.layer_decay,
        head_learning_rate=finetune_args.head_rate(training_args.learning_rate),
        weight_decay=training_args.weight_decay,
    )


def layerwise_parameter_groups(
    model: PreTrainedModel, learning_rate: float, layer_decay: float, head_learning_rate: float, weight_decay: float
) -> list[dict]:
    """Optimizer groups: each depth at `layer_decay` times the rate of the one above it, the head at its own rate.

    Biases and normalization layers have no weight decay.
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
