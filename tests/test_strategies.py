"""Tests that each strategy moves the weights that it says it moves, and no others."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextConfig,
    ConvNextV2Config,
    DeiTConfig,
    Dinov2Config,
    ResNetConfig,
    SwinConfig,
    Swinv2Config,
    TimmWrapperConfig,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
)

from agritransfer.errors import UsageError
from agritransfer.images.augmentation import build_augmentation
from agritransfer.images.preprocessing import describe_processor
from agritransfer.models.freezing import train_layers, trainable_line
from agritransfer.models.layer_decay import layerwise_parameter_groups
from agritransfer.models.lora import add_lora, find_lora_targets, merge_lora
from agritransfer.models.structure import count_parameters, find_blocks, find_head
from agritransfer.training.trainer import ImageTrainer

# peft 0.21 asks transformers 5.23 by an old name; pytest undoes the filter that strategies.py sets when imported.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TINY |= {"image_size": 32, "patch_size": 8, "num_labels": 3}
DINOV2 = {name: value for name, value in TINY.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
SWIN |= {"image_size": 32, "num_labels": 3}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 32, "num_labels": 3}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic", "num_labels": 3}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": None, "use_dora": False, "use_rslora": False}


def timm(architecture: str, **model_args) -> TimmWrapperConfig:
    of_pixels = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 3}
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, pretrained_cfg=of_pixels, num_labels=3)


CONFIGS = {
    "vit": ViTConfig(**TINY),
    "deit": DeiTConfig(**TINY, architectures=["DeiTForImageClassification"]),
    "dinov2": Dinov2Config(**DINOV2),
    "beit": BeitConfig(**TINY, use_relative_position_bias=True),
    "swin": SwinConfig(**SWIN),
    "swinv2": Swinv2Config(**SWIN),
    "convnext": ConvNextConfig(**CONVNEXT),
    "convnextv2": ConvNextV2Config(**CONVNEXT),
    "resnet": ResNetConfig(**RESNET),
    "timm vit": timm("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=16, num_heads=2),
    "timm mobilenet": timm("mobilenetv3_small_050"),
    "timm efficientnet": timm("test_efficientnet"),
}


def build(kind: str) -> nn.Module:
    """A random network whose answers depend on its photos; the libraries' own start is too small for that."""
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(copy.deepcopy(CONFIGS[kind]))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        elif "layer_scale" in name:
            nn.init.ones_(parameter)
    return model


def photos(count: int = 8) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=generator),
            "labels": i % 3,
            "files": f"{i}.jpg",
        }
        for i in range(count)
    ]


def moved_by_two_steps(model: nn.Module, folder: Path, parameter_groups: list[dict] | None = None) -> set[str]:
    """Names of the weights and buffers that two steps of the real trainer changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    args = TrainingArguments(
        output_dir=str(folder),
        **{"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no"},
        **{"report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False},
        **{"remove_unused_columns": False, "label_names": ["labels"]},
    )
    trainer = ImageTrainer(
        model=model,
        args=args,
        processor=describe_processor(ViTImageProcessor(size={"height": 32, "width": 32})),
        train_dataset=photos(),
        eval_dataset=photos(),
        augment=build_augmentation("none", 32, 3),
        class_weights=None,
        early_stopping_patience=None,
        settings={},
        parameter_groups=parameter_groups,
    )
    trainer.train()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


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


def test_blocks_are_found_at_the_depth_at_which_they_repeat():
    assert find_blocks(build("vit")) == ["vit.layers.0", "vit.layers.1"]
    assert find_blocks(build("swin")) == ["swin.encoder.layers.0.blocks.0", "swin.encoder.layers.1.blocks.0"]
    stages = [(0, 0), (1, 0), (1, 1)]
    assert find_blocks(build("resnet")) == [f"resnet.encoder.stages.{s}.layers.{i}" for s, i in stages]
    assert find_blocks(build("timm efficientnet")) == [f"timm_model.blocks.{s}.0" for s in range(5)]


def test_every_depth_has_its_rate_and_every_weight_its_place():
    model = build("vit")
    groups = layerwise_parameter_groups(
        model, learning_rate=0.01, layer_decay=0.5, head_learning_rate=0.3, weight_decay=0.05
    )
    grouped = [(id(parameter), group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]]
    assert sorted(place for place, *_ in grouped) == sorted(map(id, model.parameters()))
    found = {place: (rate, decay) for place, rate, decay in grouped}
    depths = {"vit.embeddings.": 0.01 / 8, "vit.layers.0.": 0.01 / 4, "vit.layers.1.": 0.01 / 2}
    depths |= {"vit.layernorm.": 0.01, "classifier.": 0.3}
    for name, parameter in model.named_parameters():
        rate = next(rate for prefix, rate in depths.items() if name.startswith(prefix))
        decay = 0.0 if name.endswith("bias") or "layernorm" in name else 0.05
        assert found[id(parameter)] == (pytest.approx(rate), decay), name


def test_frozen_weights_are_in_no_group():
    model = build("vit")
    train_layers(model, "head")
    groups = layerwise_parameter_groups(
        model, learning_rate=0.01, layer_decay=0.5, head_learning_rate=0.3, weight_decay=0.05
    )
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (0.3, 0.05, 1),
        (0.3, 0.0, 1),
    ]
    assert groups[0]["params"][0] is model.classifier.weight


def test_a_rate_of_zero_for_all_but_the_head_moves_the_head_alone(tmp_path):
    model = build("vit")
    groups = layerwise_parameter_groups(
        model, learning_rate=0.0, layer_decay=0.5, head_learning_rate=0.1, weight_decay=0.05
    )
    assert moved_by_two_steps(model, tmp_path, groups) == {"classifier.weight", "classifier.bias"}


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
        with pytest.raises(UsageError, match=f"--lora_layers {layers} is neither all nor a number"):
            add_lora(build("resnet"), **LORA, layers=layers)
    with pytest.raises(UsageError, match="none of the layers to adapt lies in the last 1 blocks"):
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
