"""Tests that each strategy moves the weights that it says it moves, and no others."""

import pytest
from networks import build, moved_by_two_steps

from agritransfer.models.freezing import train_layers
from agritransfer.models.layer_decay import layerwise_parameter_groups

# peft 0.21 asks transformers 5.23 by an old name; pytest undoes the filter that strategies.py sets when imported.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


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
