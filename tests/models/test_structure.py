"""Tests that weights come from where they are said to come from, and that another image size gives the same model."""

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
    ViTConfig,
    ViTForImageClassification,
)

from agritransfer.errors import UsageError
from agritransfer.models.structure import check_head, find_blocks, find_head


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
    with pytest.raises(UsageError, match="are not the output of its linear layer vit.layers.1.mlp.fc2"):
        check_head(model, 32)


def test_a_network_that_cannot_read_the_photos_is_refused():
    with pytest.raises(UsageError, match="ViTForImageClassification model does not support 40 pixels"):
        check_head(vit(), 40)
