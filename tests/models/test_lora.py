"""Tests that each strategy moves the weights that it says it moves, and no others."""

from collections import Counter

import pytest
import torch
from networks import LORA, build, moved_by_two_steps, timm
from torch import nn
from torch.nn.utils import parametrizations
from transformers import AutoModelForImageClassification, BitConfig, MobileNetV1Config, MobileNetV2Config

from agritransfer.errors import UsageError
from agritransfer.models.adapter_check import check_adapters
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


SMALL = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        # Their weights are standardized in every pass, so that adding to them changes something else.
        (BitConfig(embedding_size=8, num_groups=4, **SMALL), "cannot be merged .* a WeightStandardizedConv2d layer"),
        (timm("test_nfnet"), "cannot be merged .* a ScaledStdConv2d layer"),
        # Their padding is computed from the stride of a convolution, which an adapter does not have.
        (MobileNetV1Config(depth_multiplier=0.1, num_labels=3), "does not run with adapters .*'stride'"),
        (MobileNetV2Config(depth_multiplier=0.1, num_labels=3), "does not run with adapters .*'stride'"),
        # peft takes every module that has a base_layer for an adapter.
        (timm("dla46x_c"), "peft cannot merge adapters in dla46x_c, which has a part called 'base_layer'"),
    ],
    ids=["bit", "nfnet", "mobilenet_v1", "mobilenet_v2", "dla"],
)
def test_networks_whose_adapters_could_not_be_merged_are_refused_before_training(config, reason):
    model = AutoModelForImageClassification.from_config(config)
    with pytest.raises(UsageError, match=reason) as refused:
        add_lora(model, **LORA)
    assert "use train_finetune.py" in str(refused.value) and "\n" not in str(refused.value)


def dilated(model: nn.Module) -> str:
    convolution = model.resnet.encoder.stages[0].layers[0].layer[0].convolution
    convolution.dilation, convolution.padding = (2, 2), (2, 2)
    return "Conv2d"


def weight_normed(model: nn.Module) -> str:
    parametrizations.weight_norm(model.resnet.encoder.stages[0].layers[0].layer[0].convolution)
    return "ParametrizedConv2d"


@pytest.mark.parametrize("change", [dilated, weight_normed])
def test_a_layer_that_does_not_use_its_stored_weight_cannot_be_adapted(change):
    model = build("resnet")
    kind = change(model)
    with pytest.raises(UsageError, match=rf"into 'resnet.encoder.stages.0.layers.0.layer.0.convolution', .* {kind} "):
        add_lora(model, **LORA | {"target_modules": ["layer.0.convolution"]})


def test_dilated_and_grouped_convolutions_are_left_out_where_others_can_be_adapted():
    model = build("resnet")
    dilated(model)
    found = find_lora_targets(model)
    assert len(found) == 6 and "resnet.encoder.stages.0.layers.0.layer.0.convolution" not in found


def test_a_layer_whose_weight_is_read_without_calling_it_is_no_target():
    config = timm("beit_base_patch16_224", img_size=32, depth=2, embed_dim=16, num_heads=2)
    adapted = adapted_layers(add_lora(AutoModelForImageClassification.from_config(config), **LORA))
    assert adapted == [f"base_model.model.timm_model.blocks.{i}.attn.proj" for i in range(2)]
    with pytest.raises(UsageError, match="blocks.0.attn.qkv' and would ignore its adapter"):
        add_lora(AutoModelForImageClassification.from_config(config), **LORA | {"target_modules": ["qkv"]})


def test_the_check_of_adapters_changes_no_weight_and_draws_no_random_number():
    adapted = add_lora(build("vit"), **LORA)
    state, before = torch.get_rng_state(), {name: weight.clone() for name, weight in adapted.state_dict().items()}
    check_adapters(adapted, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in adapted.state_dict().items()) and len(before) > 40


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
