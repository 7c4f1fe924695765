"""Tests that weights come from where they are said to come from, and that another image size gives the same model."""

import shutil
from pathlib import Path

import pytest
import torch
from networks import CONFIGS
from PIL import Image
from saved_networks import LABELS, logits, pixels
from torch import nn
from transformers import AutoModelForImageClassification, ViTImageProcessor

from agritransfer.arguments import DataArguments, ScratchArguments
from agritransfer.errors import UsageError
from agritransfer.models.scratch import build_from_scratch, build_like, load_untrained
from agritransfer.models.structure import is_timm


@pytest.mark.parametrize(
    ("model_type", "model_size", "weights"),
    [
        ("vit", "nano", 837_123),
        ("vit", "tiny", 2_735_235),
        ("vit", "small", 6_406_147),
        ("convnextv2", "nano", 929_787),
        ("convnextv2", "tiny", 1_909_667),
        ("convnextv2", "small", 3_388_363),
    ],
)
def test_a_network_from_scratch_has_its_size_and_fits_its_processor(model_type, model_size, weights):
    model, processor = build_from_scratch(model_type, model_size, LABELS, None)
    assert model.num_parameters() == weights
    assert model.config.model_type == model_type
    assert model.config.id2label == dict(enumerate(LABELS))
    photo = Image.new("RGB", (120, 150), "green")
    batch = processor.library(photo, return_tensors="pt")["pixel_values"]
    assert batch.shape == (1, 3, 96, 96)
    assert processor.image_size == model.config.image_size == 96
    assert logits(model, batch).shape == (1, 3)


def test_a_network_from_scratch_takes_the_size_asked_for():
    large, processor = build_from_scratch("vit", "nano", LABELS, 160)
    assert (large.config.patch_size, large.config.image_size, processor.image_size) == (16, 160, 160)
    with pytest.raises(UsageError, match="use 96 or 104"):
        build_from_scratch("vit", "nano", LABELS, 100)
    convolutional, processor = build_from_scratch("convnextv2", "nano", LABELS, 100)
    assert processor.image_size == 100
    assert logits(convolutional, pixels(100)).shape == (2, 3)


def pretrained(kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """A saved network of this kind, every weight of which is random."""
    torch.manual_seed(1)
    model = AutoModelForImageClassification.from_config(CONFIGS[kind])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if not is_timm(model):
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model.state_dict()


def of_seed(seed: int, folder: Path) -> nn.Module:
    torch.manual_seed(seed)
    return build_like(str(folder), None, ["blight", "rust"], None)[0]


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm efficientnet", "timm vit"])
def test_the_architecture_of_a_model_is_taken_without_any_of_its_weights(kind, tmp_path):
    theirs = pretrained(kind, tmp_path)
    # The weights are not even read.
    (tmp_path / "model.safetensors").unlink()
    first, again, second = (of_seed(seed, tmp_path) for seed in (0, 0, 1))
    assert first.config.id2label == {0: "blight", 1: "rust"}
    ours, others = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in ours.items())
    matrices = [name for name, weight in first.named_parameters() if weight.ndim > 1 and weight.std() > 0]
    assert len(matrices) >= 8
    for name in matrices:
        # Of thousands of random numbers, a few are equal by chance.
        assert torch.isclose(ours[name], others[name]).float().mean() < 0.01, name
        same_shape = ours[name].shape == theirs[name].shape
        assert not same_shape or torch.isclose(ours[name], theirs[name]).float().mean() < 0.01, name
    assert logits(first, pixels()).shape == (2, 2)


def test_a_network_of_timm_starts_as_timm_initializes_it(tmp_path):
    pretrained("timm efficientnet", tmp_path)
    model = of_seed(0, tmp_path).timm_model
    # He initialization by the number of outputs, which the wrapper's own constant would replace.
    fan_out = model.conv_stem.weight[:, 0].numel()
    assert model.conv_stem.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


def test_a_model_without_a_processor_gets_a_plain_one_and_another_size_is_built_in(tmp_path, capsys):
    pretrained("vit", tmp_path)
    model, processor = build_like(str(tmp_path), None, LABELS, 48)
    assert (model.config.image_size, processor.image_size) == (48, 48)
    assert model.vit.embeddings.position_embeddings.shape[1] == 1 + 6 * 6
    with pytest.raises(UsageError, match=r"--image_size 50 is not a multiple of the patch size 8; use 48 or 56"):
        build_like(str(tmp_path), None, LABELS, 50)
    (tmp_path / "preprocessor_config.json").unlink()
    assert build_like(str(tmp_path), None, LABELS, None)[1].image_size == 32
    assert "has no image processor: photos are squashed to 32 x 32 pixels" in capsys.readouterr().out


def test_where_the_architecture_comes_from_is_told(tmp_path):
    pretrained("vit", tmp_path)
    arguments = ScratchArguments(model_name_or_path=str(tmp_path))
    assert load_untrained(arguments, DataArguments(), LABELS)[2] == {"name": str(tmp_path), "revision": None}
    model, _, architecture = load_untrained(ScratchArguments(model_size="nano"), DataArguments(), LABELS)
    assert (model.config.model_type, architecture) == ("vit", None)
    shutil.rmtree(tmp_path)
    with pytest.raises(UsageError, match="the architecture of .* could not be loaded: there is no such folder"):
        load_untrained(arguments, DataArguments(), LABELS)
