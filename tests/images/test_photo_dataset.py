"""Tests that a photo is decoded as people see it and that the model sees the pixels of its own image processor."""

import pytest
from PIL import Image

from agritransfer.errors import DataError
from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset, WholePhotos, training_pixels
from agritransfer.images.preprocessing import describe_processor
from pictures import PROCESSORS, UPRIGHT, described, encode, noise, timm_model


@pytest.mark.parametrize(
    ("name", "margin", "longer"), [("swinv2", 73, 73), ("dinov2", 256, 384), ("convnextv2_below_384", 73, 110)]
)
def test_training_photos_have_the_shape_of_scoring_and_a_margin_to_crop_into(name, margin, longer):
    processor = describe_processor(PROCESSORS[name]())
    assert training_pixels(processor, "none") == EvaluationPixels(processor)
    for augmentation in ("crop", "light", "strong"):
        pixels = training_pixels(processor, augmentation)
        assert pixels.read(encode(noise(150, 100), "PNG")).shape == (margin, longer, 3)
        assert pixels.read(encode(noise(100, 150), "PNG")).shape == (longer, margin, 3)


def test_a_timm_model_has_the_same_margin(tmp_path):
    timm_model().save_pretrained(tmp_path)
    pixels = training_pixels(described(tmp_path), "light")
    assert pixels.read(encode(noise(100, 100), "PNG")).shape == (73, 73, 3)


def test_a_training_photo_keeps_its_edges_and_its_picture():
    photo = UPRIGHT.resize((480, 320), Image.Resampling.NEAREST)
    pixels = WholePhotos(64).read(encode(photo, "PNG"))
    # Red, lime and blue stand in three corners.
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[0, -1].tolist() == [0, 255, 0]
    assert pixels[-1, 0].tolist() == [0, 0, 255]


def test_a_large_jpeg_is_decoded_small_and_shows_the_same():
    photo = UPRIGHT.resize((1200, 800), Image.Resampling.BICUBIC)
    small, whole = (
        WholePhotos(64).read(encode(photo, form, **options))
        for form, options in (("JPEG", {"quality": 95}), ("PNG", {}))
    )
    assert small.shape == whole.shape == (64, 96, 3)
    assert (small.float() - whole.float()).abs().mean() < 3


def test_a_panorama_is_squeezed_so_that_it_takes_the_room_of_four_photos_at_most():
    assert WholePhotos(64).shape(2000, 100) == (64, 256)
    assert WholePhotos(64).read(encode(noise(2000, 100), "PNG")).shape == (64, 256, 3)


def test_what_a_photo_will_take_is_known_before_it_is_decoded():
    for pixels in (WholePhotos(73), EvaluationPixels(describe_processor(PROCESSORS["dinov2"]()))):
        for width, height in ((150, 101), (99, 150), (64, 64), (3000, 70)):
            assert tuple(pixels.read(encode(noise(width, height), "PNG")).shape[:2]) == pixels.shape(width, height)


def test_a_photo_that_was_lost_since_it_was_checked_ends_the_run_with_its_name(tmp_path):
    images = [{"image": {"path": str(tmp_path / "gone.jpg"), "bytes": None}}]
    dataset = PhotoDataset(images, [0], [0], ["rust/gone.jpg"], WholePhotos(64))
    with pytest.raises(DataError, match="^rust/gone.jpg, whole when it was checked: No such file or directory"):
        dataset[0]
