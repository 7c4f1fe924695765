"""Tests that a photo is decoded as people see it and that the model sees the pixels of its own image processor."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor

from agritransfer.errors import UsageError
from agritransfer.images.photo_dataset import collate
from agritransfer.images.preprocessing import PhotoProcessor, describe_processor
from pictures import PROCESSORS, described, noise, timm_model


def saved_and_loaded(processor: PhotoProcessor, folder: Path) -> PhotoProcessor:
    processor.save(folder)
    return described(folder)


def check_pixels_of(processor: PhotoProcessor, size: int) -> None:
    """Our path from photo to model input gives what the processor gives, to one step of 8 bits."""
    photos = [noise(150, 100), noise(90, 160), noise(700, 300), noise(64, 64)]
    batch = collate([{"pixel_values": processor.pixels(photo), "labels": 0, "files": "a.jpg"} for photo in photos])
    mean, std = processor.normalization
    ours = (batch["pixel_values"] - mean) / std
    theirs = torch.cat([processor.library(photo, return_tensors="pt")["pixel_values"] for photo in photos])
    assert batch["pixel_values"].dtype == torch.uint8
    assert ours.shape == theirs.shape == (4, 3, size, size)
    assert ((ours - theirs) * std / 255).abs().max() <= 1 / 255
    assert processor.image_size == size


@pytest.mark.parametrize("name", PROCESSORS)
def test_evaluation_pixels_are_those_of_the_saved_processor(name, tmp_path):
    processor = describe_processor(PROCESSORS[name]())
    check_pixels_of(saved_and_loaded(processor, tmp_path), processor.image_size)


@pytest.mark.parametrize("size", [48, 384])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_resized_processor_saves_the_pixels_that_were_trained_on(name, size, tmp_path):
    resized = describe_processor(PROCESSORS[name]()).resized(size)
    loaded = saved_and_loaded(resized, tmp_path)
    check_pixels_of(loaded, size)
    assert torch.equal(resized.pixels(noise(150, 100)), loaded.pixels(noise(150, 100)))


def test_a_resized_processor_keeps_its_proportions_and_leaves_the_first_as_it_was():
    processor = PROCESSORS["dinov2"]()
    resized = describe_processor(processor).resized(112).library
    assert (resized.size.shortest_edge, resized.crop_size.height, resized.crop_size.width) == (128, 112, 112)
    assert (processor.size.shortest_edge, processor.crop_size.height) == (256, 224)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_evaluation_pixels_of_a_timm_model_are_those_of_its_saved_configuration(crop_mode, tmp_path):
    model = timm_model(crop_mode=crop_mode)
    model.save_pretrained(tmp_path)
    processor = described(tmp_path)
    check_pixels_of(processor, 64)

    # Its transform is saved in config.json, with the model.
    model.config.pretrained_cfg["input_size"] = [3, 96, 96]
    model.save_pretrained(tmp_path / "resized")
    loaded, resized = described(tmp_path / "resized"), processor.resized(96)
    check_pixels_of(loaded, 96)
    assert torch.equal(resized.pixels(noise(150, 100)), loaded.pixels(noise(150, 100)))


def test_the_squash_of_vit_keeps_the_edges_and_the_crop_of_dinov2_cuts_them_off():
    photo = Image.new("RGB", (200, 100), "black")
    photo.paste("white", (0, 0, 20, 100))
    squashed = describe_processor(PROCESSORS["vit"]()).pixels(photo)
    cropped = describe_processor(PROCESSORS["dinov2"]()).pixels(photo)
    assert squashed[:, :, 0].min() == 255
    assert cropped.max() == 0


@pytest.mark.parametrize(
    "sides",
    [
        {"size": {"height": 32, "width": 48}},
        {"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": {"height": 32, "width": 48}},
    ],
)
def test_photos_that_become_no_square_are_refused_with_their_sides(sides):
    processor = describe_processor(BitImageProcessor(**{"do_center_crop": False} | sides))
    with pytest.raises(UsageError, match="photos become 32 x 48 pixels, which is no square; use another model"):
        _ = processor.geometry
