"""Tests that weights come from where they are said to come from, and that another image size gives the same model."""

import pytest
from PIL import Image
from saved_networks import LABELS, logits, pixels

from agritransfer.errors import UsageError
from agritransfer.models.scratch import build_from_scratch


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
