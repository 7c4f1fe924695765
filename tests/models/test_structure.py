"""Tests that weights come from where they are said to come from, and that another image size gives the same model."""

import pytest
from networks import build
from saved_networks import TINY_VIT, vit
from transformers import ViTConfig, ViTForImageClassification

from agritransfer.errors import UsageError
from agritransfer.models.structure import find_blocks, find_head


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
