"""Are the logits of a network the output of its head, and nothing else?"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from agritransfer.errors import UsageError
from agritransfer.models.image_size import outputs_for_blank_photo
from agritransfer.models.structure import architecture_of, find_head, network_of


def check_head(model: PreTrainedModel, image_size: int) -> None:
    """Raise `UsageError` unless the model gives the output of its head as the logits of a photo, and nothing else.

    Distilled networks average two heads, only one of which would be solved, and other outputs would be scored as
    further answers. The head's output is replaced in a forward pass of a blank photo: the logits must be that output.
    """
    name, head = find_head(model)
    labels, width, *window = head.weight.shape
    expected = torch.arange(1.0, labels + 1).unsqueeze(0)
    shapes: list[torch.Size] = []

    def replace(_module: nn.Module, given: tuple, output: torch.Tensor) -> torch.Tensor:
        shapes.append(given[0].shape)
        return expected.view(1, labels, *window).expand_as(output)

    hook = head.register_forward_hook(replace)
    try:
        outputs = outputs_for_blank_photo(model, image_size)
    finally:
        hook.remove()
    kind = architecture_of(model)
    if len(heads := _linears_beside_body(model, labels)) > 1 and not _equal(outputs, expected):
        raise UsageError(
            f"{kind} combines the outputs of {len(heads)} heads ({', '.join(heads)}), as distilled models do, "
            "which is not supported; choose a model with one head, such as facebook/deit-small-patch16-224"
        )
    if list(outputs) != ["logits"]:
        optional = {*outputs} <= {"logits", "hidden_states", "attentions"}
        remedy = "set output_hidden_states and output_attentions to false in its config.json, or " if optional else ""
        raise UsageError(
            f"{kind} returns {', '.join(outputs)} rather than the logits alone, and validation would score all of it; "
            f"{remedy}use another model, such as facebook/dinov2-small"
        )
    if shapes != [torch.Size((1, width, *window))] or not _equal(outputs, expected):
        raise UsageError(
            f"the logits of {kind} are not the output of its layer {name} for one vector per photo, so it has "
            "no linear classification head; use another model, such as facebook/dinov2-small"
        )


def _equal(outputs: ModelOutput, expected: torch.Tensor) -> bool:
    return "logits" in outputs and torch.equal(outputs["logits"], expected)


def _linears_beside_body(model: nn.Module, out_features: int) -> list[str]:
    prefix, network = network_of(model)
    parts = sorted(network.named_children(), key=lambda named: sum(weight.numel() for weight in named[1].parameters()))
    return [
        f"{prefix}{key}.{name}".rstrip(".")
        for key, part in parts[:-1]
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == out_features
    ]
