"""Tests that each strategy moves the weights that it says it moves, and no others."""

import copy

import pytest
from networks import LORA, build, moved_by_two_steps
from torch import nn

from agritransfer.errors import UsageError
from agritransfer.models.freezing import train_layers, trainable_line
from agritransfer.models.lora import add_lora
from agritransfer.models.structure import count_parameters, find_head

# peft 0.21 asks transformers 5.23 by an old name; pytest undoes the filter that strategies.py sets when imported.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def names_under(model: nn.Module, *prefixes: str) -> set[str]:
    return {name for name in model.state_dict() if name.startswith(prefixes)}


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm mobilenet", "timm vit", "swin"])
def test_feature_extraction_moves_the_head_and_no_statistics(kind, tmp_path):
    model = build(kind)
    train_layers(model, "head")
    head = find_head(model)[0]
    assert moved_by_two_steps(model, tmp_path) == {f"{head}.weight", f"{head}.bias"}


@pytest.mark.parametrize(
    ("kind", "blocks", "moving"),
    [
        ("vit", "1", ["vit.layers.1.", "vit.layernorm.", "classifier."]),
        ("vit", "2", ["vit.layers.", "vit.layernorm.", "classifier."]),
        ("timm vit", "1", ["timm_model.blocks.1.", "timm_model.norm.", "timm_model.head."]),
        # What makes the picture smaller in front of a trained block moves with it.
        (
            "swin",
            "1",
            ["swin.encoder.layers.1.", "swin.encoder.layers.0.downsample.", "swin.layernorm.", "classifier."],
        ),
        ("convnextv2", "1", ["convnextv2.encoder.stages.1.layers.1.", "convnextv2.layernorm.", "classifier."]),
        ("convnextv2", "2", ["convnextv2.encoder.stages.1.", "convnextv2.layernorm.", "classifier."]),
        ("resnet", "1", ["resnet.encoder.stages.1.layers.1.", "classifier."]),
        ("resnet", "2", ["resnet.encoder.stages.1.", "classifier."]),
        ("timm mobilenet", "1", ["timm_model.blocks.5.0.", "timm_model.conv_head.", "timm_model.classifier."]),
    ],
)
def test_the_last_blocks_and_what_is_above_them_move_alone(kind, blocks, moving, tmp_path):
    model = build(kind)
    train_layers(model, blocks)
    # BatchNorm of the trained blocks counts on; that of the frozen ones stands still.
    assert moved_by_two_steps(model, tmp_path) == names_under(model, *moving)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "resnet", "timm mobilenet"])
def test_all_weights_move_that_have_a_part_in_the_answer(kind, tmp_path):
    model = build(kind)
    train_layers(model, "all")
    assert count_parameters(model)[0] == count_parameters(model)[1]
    # The mask token of DINOv2 is for its pretraining; a key's bias is cancelled by the softmax.
    idle = {name for name in model.state_dict() if name.endswith(("mask_token", "k_proj.bias"))}
    assert moved_by_two_steps(model, tmp_path) | idle == set(model.state_dict())


@pytest.mark.parametrize("layers", ["0", "-1", "1.5", "some", "", "\u00b2", "3", "12"])
def test_a_share_of_layers_that_the_model_does_not_have_is_refused(layers):
    with pytest.raises(UsageError, match=f"--train_layers {layers}"):
        train_layers(build("vit"), layers)


def test_the_trainable_line_counts_what_moves():
    model = build("vit")
    total = sum(parameter.numel() for parameter in model.parameters())
    assert trainable_line(model) == f"trainable: {total:,} of {total:,} weights (100.0%)"
    frozen = copy.deepcopy(model)
    train_layers(frozen, "head")
    assert trainable_line(frozen) == f"trainable: 51 of {total:,} weights ({51 / total:.1%})"
    adapted = add_lora(model, **LORA | {"target_modules": ["q_proj"]})
    # Two layers with 4 x 16 and 16 x 4, and a second head beside the frozen one.
    moving, together = 2 * 2 * 4 * 16 + 51, total + 2 * 2 * 4 * 16 + 51
    assert trainable_line(adapted) == (
        f"trainable: {moving} of {together:,} weights ({moving / together:.1%}); adapters on q_proj x 2, and the head"
    )
