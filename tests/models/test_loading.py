"""Tests that weights come from where they are said to come from, and that another image size gives the same model."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import CONFIGS
from PIL import Image
from safetensors.torch import load_file, save_file
from saved_networks import LABELS, NAMES, TINY_VIT, logits, pixels, vit
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    EfficientNetImageProcessor,
    HieraConfig,
    HieraForImageClassification,
    ImageClassificationPipeline,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from agritransfer.arguments import DataArguments, ModelArguments
from agritransfer.errors import UsageError
from agritransfer.models.image_size import set_image_size
from agritransfer.models.loading import check_labels, labels_of, load_backbone, load_pretrained, load_processor
from agritransfer.models.structure import find_head, is_timm

SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}


def timm_model(architecture: str, **model_args) -> TimmWrapperForImageClassification:
    of_pixels = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": len(LABELS)}
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args, pretrained_cfg=of_pixels, **NAMES)
    return TimmWrapperForImageClassification(config)


def save_random(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Every weight random, so that none is equal by its initial value; saved, in evaluation mode."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model.eval()


def refused(folder: Path, labels: list[str] = LABELS, image_size: int = 32) -> str:
    """The one line that `load_pretrained` answers with."""
    with pytest.raises(UsageError) as caught:
        load_pretrained(str(folder), None, labels, image_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_head_for_as_many_but_other_labels_starts_anew(tmp_path):
    original = save_random(vit(), tmp_path)
    model = load_pretrained(str(tmp_path), None, ["blight", "miner", "scab"], 32)
    assert model.config.id2label == {0: "blight", 1: "miner", 2: "scab"}
    assert model.config.label2id == {"blight": 0, "miner": 1, "scab": 2}
    assert not torch.isclose(model.classifier.weight, original.classifier.weight).any()
    assert 0.01 < model.classifier.weight.std() < 0.03
    assert not model.classifier.bias.any()


def test_a_head_that_is_partly_for_other_labels_starts_anew(tmp_path):
    save_random(vit(), tmp_path)
    model = load_pretrained(str(tmp_path), None, ["healthy", "mosaic", "scab"], 32)
    assert not model.classifier.bias.any()


def test_a_head_for_another_number_of_labels_has_that_number(tmp_path):
    save_random(vit(), tmp_path)
    model = load_pretrained(str(tmp_path), None, [*LABELS, "scab", "blight"], 32)
    assert model.classifier.weight.shape == (5, 16)
    assert model.config.num_labels == 5
    assert logits(model, pixels()).shape == (2, 5)


def test_the_head_of_the_same_labels_is_kept_in_our_order(tmp_path):
    original = save_random(vit(), tmp_path)
    model = load_pretrained(str(tmp_path), None, ["rust", "healthy", "mosaic"], 32)
    assert model.config.id2label == {0: "rust", 1: "healthy", 2: "mosaic"}
    assert torch.equal(logits(model, pixels()), logits(original, pixels())[:, [2, 0, 1]])


def test_labels_that_a_config_lists_in_the_order_of_their_digits_are_kept_in_place(tmp_path):
    # Many configurations of the Hub are sorted as text: 0, 1, 10, 11, 2, ...
    labels = [f"disease {i}" for i in range(12)]
    original = save_random(
        vit(id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}), tmp_path
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {key: config["id2label"][key] for key in sorted(config["id2label"])}
    assert list(config["id2label"])[2] == "10"
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_pretrained(str(tmp_path), None, labels, 32)
    assert torch.equal(logits(model, pixels()), logits(original, pixels()))


@pytest.mark.parametrize("labels", [LABELS, ["blight", "scab"]])
def test_the_weights_of_the_backbone_are_those_that_were_saved(tmp_path, labels):
    original = save_random(vit(), tmp_path).state_dict()
    model = load_pretrained(str(tmp_path), None, labels, 32).state_dict()
    assert model.keys() == original.keys()
    for name in model:
        if not name.startswith("classifier."):
            assert torch.equal(model[name], original[name]), name


def test_a_backbone_without_a_head_gets_one(tmp_path):
    original = vit()
    save_random(original, tmp_path)
    original.vit.save_pretrained(tmp_path)
    model = load_pretrained(str(tmp_path), None, LABELS, 32)
    assert not model.classifier.bias.any()
    assert torch.equal(model.vit.layernorm.weight, original.vit.layernorm.weight)


def test_a_timm_model_keeps_its_backbone_and_gets_a_head(tmp_path):
    original = save_random(timm_model("test_efficientnet"), tmp_path)
    model = load_pretrained(str(tmp_path), None, ["blight", "scab"], 32)
    assert find_head(model)[0] == "timm_model.classifier"
    assert not model.timm_model.classifier.bias.any()
    assert torch.equal(model.timm_model.conv_head.weight, original.timm_model.conv_head.weight)
    assert logits(model, pixels()).shape == (2, 2)


def test_a_file_that_lacks_weights_of_the_backbone_is_refused_by_name(tmp_path):
    save_random(vit(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = [name for name in weights if "layer.1.output.dense" in name]
    assert len(lost) == 2
    kept = {name: weight for name, weight in weights.items() if name not in lost}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert re.search(r"lacks 2 weights of its backbone, such as vit\.layers\.1\.", refused(tmp_path))


@pytest.mark.parametrize("labels", [LABELS, ["blight", "scab"]])
def test_a_distilled_network_is_refused_for_its_two_heads_whatever_the_labels(labels, tmp_path):
    save_random(DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY_VIT, intermediate_size=32, **NAMES)), tmp_path)
    assert "combines the outputs of 2 heads (cls_classifier, distillation_classifier)" in refused(tmp_path, labels)


def test_weights_as_a_pickle_are_refused_in_one_line(tmp_path):
    model = save_random(vit(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "model.safetensors" in refused(tmp_path)


def test_a_broken_weights_file_is_refused_in_one_line(tmp_path):
    save_random(vit(), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert str(tmp_path) in refused(tmp_path)


def test_a_folder_that_is_not_there_is_refused_in_one_line(tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere")


def test_code_that_comes_with_a_model_is_neither_run_nor_trusted(tmp_path):
    save_random(vit(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"AutoConfig": "theirs.TheirConfig", "AutoModelForImageClassification": "theirs.TheirModel"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "their_net", "auto_map": names}))
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    assert "could not be loaded" in refused(tmp_path)
    assert not (tmp_path / "was_run").exists()


def test_weights_of_half_precision_are_loaded_as_float32(tmp_path):
    original = save_random(vit().half(), tmp_path).state_dict()
    assert load_file(tmp_path / "model.safetensors")["classifier.weight"].dtype == torch.float16
    for name, weight in load_pretrained(str(tmp_path), None, LABELS, 32).state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, original[name].float())


def test_the_processor_is_loaded_for_the_side_asked_for(tmp_path):
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert load_processor(str(tmp_path), None, None).image_size == 32
    assert load_processor(str(tmp_path), None, 48).image_size == 48
    with pytest.raises(UsageError, match="the image processor of .*nowhere.* could not be loaded"):
        load_processor(str(tmp_path / "nowhere"), None, None)


BACKBONES = {
    "vit": ViTImageProcessor(size={"height": 32, "width": 32}),
    "convnextv2": ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
    "dinov2": BitImageProcessor(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}),
    "timm mobilenet": None,
}


@pytest.mark.parametrize("mode", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_of_another_resize_mode_is_served_with_it_by_pipeline(kind, mode, tmp_path):
    save_random(AutoModelForImageClassification.from_config(CONFIGS[kind]), tmp_path / "base")
    if BACKBONES[kind] is not None:
        BACKBONES[kind].save_pretrained(tmp_path / "base")
    data_args = DataArguments(image_size=64, resize_mode=mode)
    model, processor, _ = load_backbone(ModelArguments(str(tmp_path / "base")), data_args, LABELS)
    model.save_pretrained(tmp_path / "run")
    processor.save(tmp_path / "run")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 301, 3), np.uint8))
    mean, std = processor.normalization
    with torch.no_grad():
        expected = model.eval()(pixel_values=((processor.pixels(photo) - mean) / std)[None]).logits.softmax(dim=1)[0]
    served = pipeline("image-classification", model=str(tmp_path / "run"), device="cpu")(photo)
    assert {answer["label"]: answer["score"] for answer in served} == pytest.approx(
        dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-3
    )
    assert torch.equal(load_processor(str(tmp_path / "run"), None, None).pixels(photo), processor.pixels(photo))


def test_a_vit_of_another_size_answers_as_the_original_does_with_interpolated_positions(tmp_path):
    original = save_random(vit(), tmp_path / "old")
    load_pretrained(str(tmp_path / "old"), None, LABELS, 48).save_pretrained(tmp_path / "new")
    resized = AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    assert resized.config.image_size == 48
    assert resized.vit.embeddings.position_embeddings.shape == (1, 1 + 6 * 6, 16)
    expected = logits(original, pixels(48), interpolate_pos_encoding=True)
    assert torch.allclose(logits(resized, pixels(48)), expected, atol=1e-4)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("side", [24, 64])
def test_a_dinov2_of_another_size_answers_as_the_original_does(tmp_path, side):
    config = Dinov2Config(**TINY_VIT, **NAMES, mlp_ratio=2)
    original = save_random(Dinov2ForImageClassification(config), tmp_path / "old")
    load_pretrained(str(tmp_path / "old"), None, LABELS, side).save_pretrained(tmp_path / "new")
    resized = AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    assert resized.config.image_size == side
    assert resized.dinov2.embeddings.position_embeddings.shape == (1, 1 + (side // 8) ** 2, 16)
    assert torch.allclose(logits(resized, pixels(side)), logits(original, pixels(side)), atol=1e-4)


def test_both_tokens_of_a_deit_stay_in_front_of_the_grid():
    original = DeiTForImageClassification(DeiTConfig(**TINY_VIT, **NAMES, intermediate_size=32))
    nn.init.normal_(original.deit.embeddings.position_embeddings)
    resized = set_image_size(original, 64)
    before, after = (model.deit.embeddings.position_embeddings for model in (original, resized))
    assert after.shape == (1, 2 + 8 * 8, 16)
    assert torch.equal(after[:, :2], before[:, :2])


@pytest.mark.parametrize(
    "model",
    [
        lambda: SwinForImageClassification(SwinConfig(**SWIN, **NAMES)),
        lambda: ConvNextV2ForImageClassification(
            ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32, **NAMES)
        ),
        lambda: ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **NAMES)
        ),
    ],
)
def test_a_model_without_positions_takes_another_size_with_the_same_weights(tmp_path, model):
    original = save_random(model(), tmp_path)
    resized = load_pretrained(str(tmp_path), None, LABELS, 64)
    assert getattr(resized.config, "image_size", 64) == 64
    assert torch.allclose(logits(resized, pixels(64)), logits(original, pixels(64)), atol=1e-5)


def test_a_size_between_patches_is_refused_with_the_two_nearest():
    with pytest.raises(UsageError, match=r"--image_size 50 is not a multiple of the patch size 8; use 48 or 56"):
        set_image_size(vit(), 50)


@pytest.mark.parametrize(
    "model",
    [
        lambda: BeitForImageClassification(
            BeitConfig(**TINY_VIT, **NAMES, intermediate_size=32, use_relative_position_bias=True)
        ),
        lambda: timm_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=16, num_heads=2),
        lambda: timm_model(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            patch_size=4,
            window_size=4,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(2, 2),
        ),
        lambda: CLIPForImageClassification(
            CLIPConfig(vision_config=TINY_VIT | {"intermediate_size": 32, "projection_dim": 16}, **NAMES)
        ),
    ],
)
def test_a_model_tied_to_its_size_is_refused_for_another_and_taken_for_its_own(model):
    tied = model()
    assert logits(set_image_size(tied, 32), pixels()).shape == (2, 3)
    with pytest.raises(UsageError, match="remove --image_size"):
        set_image_size(tied, 64)


def test_a_model_with_a_height_and_a_width_keeps_its_size():
    small = {"embed_dim": 8, "image_size": [32, 32], "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1}
    small |= {"masked_unit_size": [4, 4], "masked_unit_attention": [True, False]}
    hiera = HieraForImageClassification(HieraConfig(**small, **NAMES))
    assert set_image_size(hiera, 32) is hiera
    with pytest.raises(UsageError, match="hiera model supports only 32 x 32 pixels; remove --image_size"):
        set_image_size(hiera, 64)


def test_a_size_below_the_patch_size_is_refused_with_one_that_fits():
    with pytest.raises(UsageError, match="--image_size 5 is not a multiple of the patch size 8; use 8$"):
        set_image_size(vit(), 5)


def test_a_timm_network_and_its_processor_change_size_together(tmp_path):
    save_random(timm_model("test_efficientnet"), tmp_path / "old")
    resized = load_pretrained(str(tmp_path / "old"), None, LABELS, 64)
    assert list(resized.config.pretrained_cfg["input_size"]) == [3, 64, 64]
    resized.save_pretrained(tmp_path / "new")
    processor = load_processor(str(tmp_path / "new"), None, None)
    assert processor.image_size == 64
    photo = Image.fromarray(np.random.default_rng(0).integers(256, size=(90, 120, 3), dtype=np.uint8))
    assert processor.library(photo, return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


def test_the_processor_that_normalises_twice_is_refused_with_another_model(tmp_path):
    EfficientNetImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="left out .* use another model, such as .* timm/efficientnet_b0.ra_in1k"):
        load_processor(str(tmp_path), None, None)


OLD = ["rust", "healthy", "mosaic"]


def with_old_names(folder: Path, **changes) -> None:
    """Give the configuration of a saved timm model further old names, as timm writes them."""
    config = json.loads((folder / "config.json").read_text())
    described = {"label_names": OLD, "label_descriptions": {label: f"a leaf with {label}" for label in OLD}}
    config |= described | changes
    config["pretrained_cfg"] |= described
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("labels", [LABELS, ["blight", "scab", "miner"], ["blight", "scab"]])
@pytest.mark.parametrize(
    "build",
    [
        lambda: vit(problem_type="multi_label_classification"),
        lambda: vit(problem_type="regression", id2label={"2": "mosaic", "0": "rust", "1": "healthy"}, label2id=None),
        lambda: timm_model("test_efficientnet"),
        lambda: timm_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=16, num_heads=2),
        lambda: CLIPForImageClassification(
            CLIPConfig(vision_config=TINY_VIT | {"intermediate_size": 32, "projection_dim": 16}, **NAMES)
        ),
    ],
)
def test_a_base_with_names_of_its_own_is_served_with_ours_by_softmax(build, labels, tmp_path):
    original = save_random(build(), tmp_path / "base")
    if is_timm(original):
        with_old_names(tmp_path / "base")
    load_pretrained(str(tmp_path / "base"), None, labels, 32).save_pretrained(tmp_path / "run")
    text = (tmp_path / "run/config.json").read_text()
    assert "a leaf with" not in text and not any(f'"{label}"' in text for label in set(OLD) - set(labels))
    served = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert labels_of(served.config) == labels
    assert served.config.label2id == {label: place for place, label in enumerate(labels)}
    with torch.no_grad():
        outputs = served(pixel_values=pixels())
    answers = ImageClassificationPipeline(served, image_processor=ViTImageProcessor()).postprocess(outputs)
    assert {answer["label"] for answer in answers} == set(labels)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)


def test_a_saved_model_with_the_names_of_a_run_in_another_order_is_refused(tmp_path):
    model = vit()
    check_labels(model.config, LABELS, tmp_path)
    with pytest.raises(UsageError, match="names the classes healthy, mosaic, rust, but results.json rust, healthy"):
        check_labels(model.config, ["rust", "healthy", "mosaic"], tmp_path)
