"""Tests that every depth has its learning rate, and that the weights of layers decay and nothing else does."""

import re

import pytest
import timm
import torch
from networks import CONFIGS, LORA, build, moved_by_two_steps
from small_trainer import arguments, trainer_of
from transformers import AutoModelForImageClassification, Dinov2WithRegistersConfig, SiglipConfig

from agritransfer.models.freezing import train_layers
from agritransfer.models.layer_decay import decaying_parameters, layerwise_parameter_groups
from agritransfer.models.lora import add_lora
from agritransfer.models.scratch import build_from_scratch

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
        decay = 0.05 if name.endswith("weight") and parameter.ndim > 1 else 0.0
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


TOKENS = {"embeddings.cls_token", "embeddings.position_embeddings"}
BIAS_TABLE = "relative_position_bias.relative_position_bias_table"
# Weights of more than one dimension that do not decay; all others of more than one dimension do, and vectors do not.
NOT_DECAYING = {
    "vit": {f"vit.{name}" for name in TOKENS},
    "deit": {f"deit.{name}" for name in (*TOKENS, "embeddings.distillation_token")},
    "dinov2": {f"dinov2.{name}" for name in (*TOKENS, "embeddings.mask_token")},
    "registers": {
        f"dinov2_with_registers.{name}" for name in (*TOKENS, "embeddings.mask_token", "embeddings.register_tokens")
    },
    "beit": {"beit.embeddings.cls_token", f"beit.layers.*.{BIAS_TABLE}"},
    "swin": {f"swin.encoder.layers.*.blocks.*.attention.{BIAS_TABLE}"},
    "swinv2": {
        f"swinv2.encoder.layers.*.blocks.*.attention.self.{name}"
        for name in ("continuous_position_bias_mlp.*.weight", "logit_scale")
    },
    "siglip": {"vision_model.embeddings.position_embedding.weight", "vision_model.head.probe"},
    "convnext": set(),
    "convnextv2": {f"convnextv2.encoder.stages.*.layers.*.grn.{name}" for name in ("weight", "bias")},
    "resnet": set(),
    "timm vit": {"timm_model.cls_token", "timm_model.pos_embed"},
    "timm mobilenet": set(),
    "timm efficientnet": set(),
}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
MORE = {
    "registers": Dinov2WithRegistersConfig(**VISION, mlp_ratio=2, num_labels=3),
    "siglip": SiglipConfig(text_config=VISION, vision_config=VISION | {"intermediate_size": 32}, num_labels=3),
}


def network(kind: str):
    return AutoModelForImageClassification.from_config(MORE[kind]) if kind in MORE else build(kind)


def decay_of_each(model, groups: list[dict]) -> dict[str, float]:
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    return {name: decay[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", NOT_DECAYING)
def test_the_weights_of_layers_decay_and_nothing_else_with_and_without_layer_decay(kind, tmp_path):
    model = network(kind)
    trainer = trainer_of(model, arguments(tmp_path, weight_decay=0.05))
    trainer.create_optimizer()
    decay = decay_of_each(model, trainer.optimizer.param_groups)
    decaying = {name for name, value in decay.items() if value}
    several = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    left_out = {re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in several.keys() - decaying}
    assert left_out == NOT_DECAYING[kind]
    # At least patch embedding, two layers of a block and the head.
    assert decaying <= several.keys() and len(decaying) >= 4
    if kind not in MORE:
        groups = layerwise_parameter_groups(
            model, learning_rate=0.01, layer_decay=0.5, head_learning_rate=0.3, weight_decay=0.05
        )
        assert decay_of_each(model, groups) == decay


def test_every_small_network_is_tested():
    assert set(CONFIGS) | set(MORE) == set(NOT_DECAYING)


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnextv2"])
def test_adapters_and_the_head_decay_and_the_lengths_of_dora_do_not(kind, tmp_path):
    model = add_lora(build(kind), **LORA | {"use_dora": True})
    trainer = trainer_of(model, arguments(tmp_path, weight_decay=0.05))
    trainer.create_optimizer()
    decay = decay_of_each(model, trainer.optimizer.param_groups)
    ends = {"lora_A.default.weight", "lora_B.default.weight", "modules_to_save.default.weight"}
    assert {name for name in decay if ".lora_magnitude_vector." in name}
    assert {name for name, value in decay.items() if value} == {name for name in decay if name.endswith(tuple(ends))}


@pytest.mark.parametrize(("model_type", "idle"), [("vit", "embeddings"), ("convnextv2", "grn")])
def test_the_networks_of_train_scratch_follow_the_same_rule(model_type, idle):
    model, _ = build_from_scratch(model_type, "nano", ["a", "b"], 32)
    decaying = decaying_parameters(model)
    of_kind = [name for name, _ in model.named_parameters() if f".{idle}." in name and "projection" not in name]
    assert len(of_kind) >= 2 and not {*of_kind} & {*decaying}


@pytest.mark.parametrize(
    "architecture", ["swinv2_tiny_window8_256", "maxxvitv2_nano_rw_256", "twins_pcpvt_small", "levit_128s", "coat_tiny"]
)
def test_no_weight_decays_that_timm_names_in_its_own_list(architecture):
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=3)
    own, decaying = model.no_weight_decay(), set(decaying_parameters(model))
    assert own & {name for name, _ in model.named_parameters()}
    assert decaying <= {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    assert len(decaying) > 20 and not decaying & own
