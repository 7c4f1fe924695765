"""Tests that weights come from where they are said to come from, and that another image size gives the same model."""

from types import SimpleNamespace

import pytest
import torch
from networks import CONFIGS, TINY, build, timm
from saved_networks import TINY_VIT, logits, pixels, vit
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    LevitConfig,
    LevitForImageClassification,
    LevitForImageClassificationWithTeacher,
    SwiftFormerConfig,
    SwiftFormerForImageClassification,
    TimmWrapperConfig,
    ViTConfig,
    ViTForImageClassification,
)

from agritransfer.arguments import FinetuneArguments
from agritransfer.errors import UsageError
from agritransfer.models.freezing import train_layers
from agritransfer.models.head_check import check_head
from agritransfer.models.layer_decay import layerwise_parameter_groups, parameter_groups_of
from agritransfer.models.structure import find_blocks, find_head, numbered_blocks


def test_the_head_is_the_last_linear_layer_with_one_number_a_label():
    # 16 labels: every layer of the attention answers with 16 numbers too.
    model = vit(id2label={i: str(i) for i in range(16)}, label2id={str(i): i for i in range(16)})
    assert find_head(model) == ("classifier", model.classifier)
    with pytest.raises(UsageError, match="no linear classification head"):
        find_head(ViTForImageClassification(ViTConfig(**TINY_VIT, intermediate_size=32, num_labels=0)))


# peft 0.21 asks transformers 5.23 by an old name; pytest undoes the filter that strategies.py sets when imported.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def test_blocks_are_found_at_the_depth_at_which_they_repeat():
    assert find_blocks(build("vit")) == ["vit.layers.0", "vit.layers.1"]
    assert find_blocks(build("swin")) == ["swin.encoder.layers.0.blocks.0", "swin.encoder.layers.1.blocks.0"]
    stages = [(0, 0), (1, 0), (1, 1)]
    assert find_blocks(build("resnet")) == [f"resnet.encoder.stages.{s}.layers.{i}" for s, i in stages]
    assert find_blocks(build("timm efficientnet")) == [f"timm_model.blocks.{s}.0" for s in range(5)]


@pytest.mark.parametrize(
    ("architecture", "number", "last"),
    [
        # Blocks of several classes in one list.
        ("mobilenetv4_hybrid_medium", 32, "blocks.4.0"),
        pytest.param("rexnet_100", 17, "features.16", marks=pytest.mark.slow),
        pytest.param("starnet_s050", 11, "stages.3.1", marks=pytest.mark.slow),
        pytest.param("halonet26t", 11, "stages.3.1", marks=pytest.mark.slow),
        # No lists of blocks: the stages.
        pytest.param("densenet121", 8, "features.denseblock4", marks=pytest.mark.slow),
        ("vgg11", 2, "pre_logits.fc2"),
        ("regnetx_002", 5, "s4"),
        pytest.param("dpn68", 23, "features.conv5_3", marks=pytest.mark.slow),
        ("dla34", 7, "level5"),
        pytest.param("convmixer_768_32", 32, "blocks.31", marks=pytest.mark.slow),
        pytest.param("inception_v3", 16, "Mixed_7c", marks=pytest.mark.slow),
        pytest.param("inception_v4", 22, "features.21", marks=pytest.mark.slow),
        pytest.param("nasnetalarge", 23, "cell_17", marks=pytest.mark.slow),
        pytest.param("pnasnet5large", 15, "cell_11", marks=pytest.mark.slow),
        pytest.param("legacy_xception", 16, "conv4", marks=pytest.mark.slow),
        pytest.param("pvt_v2_b0", 8, "stages.3.blocks.1", marks=pytest.mark.slow),
        # Lists inside a block are its branches.
        ("skresnet18", 8, "layer4.1"),
        pytest.param("repvit_m1", 4, "stages.3", marks=pytest.mark.slow),
        # A layer of its own, such as the last convolution, belongs to no block.
        ("lcnet_050", 13, "blocks.5.1"),
        pytest.param("swin_tiny_patch4_window7_224", 12, "layers.3.blocks.1", marks=pytest.mark.slow),
    ],
)
def test_the_blocks_hold_most_of_a_network_of_any_layout(architecture, number, last):
    model = on_meta(architecture)
    blocks = numbered_blocks(model)
    assert (len(blocks), blocks[-1]) == (number, f"timm_model.{last}")
    assert not any(one.startswith(other + ".") for one in blocks for other in blocks if one != other)


def on_meta(architecture: str) -> torch.nn.Module:
    config = TimmWrapperConfig(architecture=architecture, num_labels=3, pretrained_cfg={"num_classes": 3})
    with torch.device("meta"):
        return AutoModelForImageClassification.from_config(config)


class Table(torch.nn.Module):
    """A body whose weights are a table, for the smaller part two layers."""

    def __init__(self, size: int):
        super().__init__()
        self.entries = torch.nn.Parameter(torch.ones(size, size))
        self.layers = torch.nn.ModuleList([torch.nn.Bilinear(4, 4, 4), torch.nn.Linear(8, 8)])


def test_blocks_that_are_a_small_part_of_the_body_cannot_be_counted():
    model = torch.nn.ModuleDict({"body": Table(24), "classifier": torch.nn.Linear(8, 3)})
    model.config = SimpleNamespace(num_labels=3)
    with pytest.raises(UsageError, match=r"hold 20% of its body, .* use --train_layers all or head"):
        numbered_blocks(model)
    assert len(layerwise_parameter_groups(model, 1e-3, 1.0, 1e-2, 0.1)) == 4
    with pytest.raises(UsageError, match="without --layer_decay"):
        layerwise_parameter_groups(model, 1e-3, 0.75, 1e-2, 0.1)
    # Without the flag, all layers get one rate.
    args = SimpleNamespace(learning_rate=1e-3, weight_decay=0.1)
    assert {group["lr"] for group in parameter_groups_of(model, FinetuneArguments(), args)} == {1e-3}
    train_layers(model, "head")
    with pytest.raises(UsageError, match="hold 20% of its body"):
        train_layers(model, "1")
    model["body"] = Table(3)
    assert numbered_blocks(model) == ["body.layers.0", "body.layers.1"]
    model.requires_grad_(True)
    rates = {group["lr"] for group in parameter_groups_of(model, FinetuneArguments(), args)}
    assert sorted(rates) == pytest.approx([0.75**depth * 1e-3 for depth in (3, 2, 1, 0)])


LEVIT = LevitConfig(
    image_size=32, hidden_sizes=[16, 24, 32], num_attention_heads=[2] * 3, depths=[1] * 3, key_dim=[8] * 3, num_labels=3
)


@pytest.mark.parametrize("kind", [*CONFIGS, "levit"])
def test_a_network_whose_logits_are_those_of_its_head_passes_unchanged(kind):
    model = LevitForImageClassification(LEVIT) if kind == "levit" else build(kind)
    before = logits(model, pixels())
    model.train()
    check_head(model, 32)
    assert model.training
    assert torch.equal(logits(model, pixels()), before)


def test_a_convolution_of_one_pixel_is_a_head():
    small = timm("resnetv2_18", layers=(1, 1, 1, 1), channels=(16, 16, 32, 32))
    model = AutoModelForImageClassification.from_config(small)
    check_head(model, 32)
    assert find_head(model) == ("timm_model.head.fc", model.timm_model.head.fc)
    assert model.timm_model.head.fc.weight.shape == (3, 32, 1, 1)
    train_layers(model, "1")
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} >= {"timm_model.head.fc.weight"}


def two_headed(kind: str) -> torch.nn.Module:
    if kind == "deit":
        return DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY))
    if kind == "levit":
        return LevitForImageClassificationWithTeacher(LEVIT)
    if kind == "swiftformer":
        small = {"depths": [1] * 4, "embed_dims": [8, 16, 24, 32], "mlp_ratio": 2, "num_labels": 3}
        return SwiftFormerForImageClassification(SwiftFormerConfig(**small))
    distilled = timm("deit_tiny_distilled_patch16_224", img_size=32, depth=1, embed_dim=16, num_heads=2)
    return AutoModelForImageClassification.from_config(distilled)


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("deit", "cls_classifier, distillation_classifier"),
        ("levit", "classifier.linear, classifier_distill.linear"),
        ("swiftformer", "head, dist_head"),
        ("timm", "timm_model.head, timm_model.head_dist"),
    ],
)
def test_a_network_with_two_heads_is_refused_by_their_names(kind, heads):
    model = two_headed(kind)
    with pytest.raises(UsageError, match=rf"combines the outputs of 2 heads \({heads}\).*choose a model with one head"):
        check_head(model, 32)


@pytest.mark.parametrize("output", ["hidden_states", "attentions"])
def test_a_network_that_returns_more_than_logits_is_refused(output):
    model = vit(**{f"output_{output}": True}, attn_implementation="eager")
    with pytest.raises(UsageError, match=rf"returns logits, {output} rather than the logits alone.*set output_hidden"):
        check_head(model, 32)


def test_a_linear_layer_that_is_not_the_head_is_not_taken_for_it():
    # As many labels as features: the last linear layer with 16 outputs is one of the last block.
    model = vit(num_labels=16, id2label=None, label2id=None)
    model.classifier = torch.nn.Sequential(
        torch.nn.Unflatten(1, (16, 1)), torch.nn.Conv1d(16, 16, 1), torch.nn.Flatten()
    )
    assert find_head(model)[0] == "vit.layers.1.mlp.fc2"
    with pytest.raises(UsageError, match="are not the output of its layer vit.layers.1.mlp.fc2"):
        check_head(model, 32)


def test_a_network_that_cannot_read_the_photos_is_refused():
    with pytest.raises(UsageError, match="ViTForImageClassification model does not support 40 pixels"):
        check_head(vit(), 40)
