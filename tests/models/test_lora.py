"""Tests that each strategy moves the weights that it says it moves, and no others."""

from collections import Counter

import pytest
import torch
from networks import LORA, build, moved_by_two_steps
from torch import nn

from agritransfer.errors import UsageError
from agritransfer.models.lora import add_lora, find_lora_targets, merge_lora
from agritransfer.models.structure import find_head

# peft 0.21 asks transformers 5.23 by an old name; pytest undoes the filter that strategies.py sets when imported.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm mobilenet", "timm vit"])
def test_lora_moves_adapters_and_head_and_nothing_of_the_network(kind, tmp_path):
    model = build(kind)
    head = find_head(model)[0]
    adapted = add_lora(model, **LORA)
    adapters = {name for name in adapted.state_dict() if ".lora_" in name}
    assert len(adapters) == 2 * len(adapted_layers(adapted))
    moving = adapters | {f"base_model.model.{head}.modules_to_save.default.{name}" for name in ("weight", "bias")}
    assert moved_by_two_steps(adapted, tmp_path) == moving


def test_adapters_in_the_last_blocks_alone_and_where_none_can_be():
    adapted = adapted_layers(add_lora(build("resnet"), **LORA, layers="1"))
    assert len(adapted) == 2 and all(".resnet.encoder.stages.1.layers.1." in name for name in adapted)
    for layers in ("0", "3", "4", "-1", "head", "1.5"):
        with pytest.raises(UsageError, match=f"--lora_layers {layers} is invalid; use all or a number"):
            add_lora(build("resnet"), **LORA, layers=layers)
    with pytest.raises(UsageError, match="none of the target layers is in the last 1 blocks"):
        add_lora(build("resnet"), **LORA | {"target_modules": ["shortcut.convolution"]}, layers="1")


def adapted_layers(model: nn.Module) -> list[str]:
    return [
        name.removesuffix(".lora_A.default") for name, _ in model.named_modules() if name.endswith("lora_A.default")
    ]


QKVO = {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2}


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        *((kind, QKVO) for kind in ("vit", "deit", "dinov2", "beit", "swin")),
        # Not the small network that makes the position bias.
        ("swinv2", {"self.query": 2, "self.key": 2, "self.value": 2, "output.dense": 2}),
        ("convnext", {"pwconv1": 3, "pwconv2": 3}),
        ("convnextv2", {"pwconv1": 3, "pwconv2": 3}),
        ("resnet", {"convolution": 7}),
        ("timm vit", {"attn.qkv": 2, "attn.proj": 2}),
        # Not conv_dw: depthwise.
        ("timm mobilenet", {"conv_pw": 11, "conv_pwl": 10, "se.conv_reduce": 9, "se.conv_expand": 9, "conv": 1}),
        (
            "timm efficientnet",
            {"conv": 1, "conv_exp": 2, "conv_pwl": 4, "conv_pw": 2, "se.conv_reduce": 2, "se.conv_expand": 2},
        ),
    ],
)
def test_lora_finds_its_layers_by_structure_and_merges_into_the_same_answers(kind, layers):
    model = build(kind)
    plain_names, head = set(model.state_dict()), find_head(model)[0]
    targets = find_lora_targets(model)
    found = Counter(next(end for end in layers if target.endswith("." + end)) for target in targets)
    assert found == layers
    adapted = add_lora(model, **LORA)
    assert adapted_layers(adapted) == [f"base_model.model.{target}" for target in targets]
    moving = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name for name in moving if ".lora_" not in name} == {
        f"base_model.model.{head}.modules_to_save.default.weight",
        f"base_model.model.{head}.modules_to_save.default.bias",
    }
    assert_merges(adapted, plain_names)


def assert_merges(adapted: nn.Module, plain_names: set[str]) -> None:
    """Move the adapters, which begin as zero, and the head; the merged network must answer as the adapted one."""
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    adapted.eval()
    with torch.no_grad():
        untouched = adapted(pixel_values=batch).logits
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
        with_adapters = adapted(pixel_values=batch).logits
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
        expected = adapted(pixel_values=batch).logits
        merged = merge_lora(adapted)
        assert set(merged.state_dict()) == plain_names
        # Were the adapters without effect, any merging would do.
        assert (with_adapters - untouched).abs().max() > 0.01
        assert torch.allclose(merged(pixel_values=batch).logits, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "convnextv2", "resnet"])
def test_dora_learns_a_magnitude_and_merges(kind):
    model = build(kind)
    plain_names = set(model.state_dict())
    adapted = add_lora(model, **LORA | {"use_dora": True})
    assert adapted.peft_config["default"].use_dora
    magnitudes = [parameter for name, parameter in adapted.named_parameters() if "lora_magnitude_vector" in name]
    assert len(magnitudes) == len(adapted_layers(adapted))
    with torch.no_grad():
        for magnitude in magnitudes:
            magnitude.mul_(1.1)
    assert_merges(adapted, plain_names)


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_rank_alpha_and_dropout_reach_the_adapters(use_rslora, scale):
    model = build("vit")
    plain_names = set(model.state_dict())
    adapted = add_lora(model, **LORA | {"use_rslora": use_rslora, "dropout": 0.3})
    layer = adapted.base_model.model.vit.layers[0].attention.q_proj
    assert layer.scaling["default"] == pytest.approx(scale)
    assert layer.lora_A["default"].weight.shape == (4, 16)
    assert layer.lora_dropout["default"].p == 0.3
    assert_merges(adapted, plain_names)


def test_named_targets_are_adapted_alone_and_an_unknown_name_lists_those_that_there_are():
    adapted = add_lora(build("vit"), **LORA | {"target_modules": ["q_proj", "v_proj"]})
    assert adapted_layers(adapted) == [
        f"base_model.model.vit.layers.{i}.attention.{name}" for i in range(2) for name in ("q_proj", "v_proj")
    ]
    with pytest.raises(UsageError, match=r"query matches no layer; .* fc1, fc2, k_proj, o_proj, .*q_proj, v_proj"):
        add_lora(build("vit"), **LORA | {"target_modules": ["q_proj", "query"]})


def test_the_head_is_no_target_since_it_is_trained_whole():
    with pytest.raises(UsageError, match="classifier matches no layer"):
        add_lora(build("vit"), **LORA | {"target_modules": ["classifier"]})


def test_a_depthwise_convolution_is_refused_with_the_reason():
    with pytest.raises(UsageError, match="depthwise convolution: each of its 8 filters sees one channel"):
        add_lora(build("convnextv2"), **LORA | {"target_modules": ["pwconv1", "dwconv"]})
