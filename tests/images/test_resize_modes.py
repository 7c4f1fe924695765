"""In every resize mode, a saved model sees the pixels that it was trained on, and the mode says what it sees."""

import numpy as np
import pytest
import torch
from PIL import Image
from processors import KINDS, timm_processor
from transformers import BitImageProcessor

from agritransfer.errors import UsageError
from agritransfer.images.photo_dataset import training_pixels
from agritransfer.images.pixel_check import check_pixels
from agritransfer.images.preprocessing import describe_processor, pixel_recipe, settings_text
from agritransfer.images.recipe_pixels import normalize, recipe_pixels
from agritransfer.images.resize_modes import cut_off_line, share_cut_off, with_resize_mode
from pictures import IMAGENET, PROCESSORS, described, encode, noise, timm_model

# One that squashes, three that crop; ConvNeXt below 384 pixels cannot squash, and none of them can pad.
FAMILIES = {
    "vit": KINDS["vit"],
    "convnextv2": KINDS["convnextv2_below_384"],
    "dinov2": lambda: BitImageProcessor(
        size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}, resample=3, **IMAGENET
    ),
    "timm": KINDS["timm_center"],
}
MODES = ("squash", "letterbox", "crop")
# Square, both orientations, strips of which a side becomes a fraction of a pixel, and sides that end in a half.
SIZES = ((64, 64), (150, 100), (60, 301), (700, 300), (7, 200), (640, 30))


def rim_photo() -> Image.Image:
    """A green strip with a red mark at its left end and a blue one at its right."""
    photo = Image.new("RGB", (300, 60), (0, 255, 0))
    photo.paste((255, 0, 0), (0, 0, 30, 60))
    photo.paste((0, 0, 255), (270, 0, 300, 60))
    return photo


def marks_in(pixels: torch.Tensor) -> set[str]:
    """Which of the two marks are in these pixels (3, height, width)."""
    red, green, blue = pixels.int()
    return {
        name
        for name, seen in (("red", (red > 200) & (green < 60)), ("blue", (blue > 200) & (green < 60)))
        if seen.any()
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_processor_the_recipe_and_training_give_the_same_pixels(family, mode, tmp_path):
    own = describe_processor(FAMILIES[family]())
    processor = with_resize_mode(own, mode)
    check_pixels(processor)
    if family == "timm":
        model = timm_model(mean=(0.5,) * 3, std=(0.5,) * 3)
        processor.configure(model.config)
        model.save_pretrained(tmp_path)
    else:
        processor.save(tmp_path)
    loaded, recipe = described(tmp_path), pixel_recipe(processor)
    assert settings_text(loaded) == settings_text(processor)
    assert loaded.image_size == processor.image_size == own.image_size
    mean, std = own.normalization
    for size in SIZES:
        photo = noise(*size)
        ours = processor.pixels(photo)
        assert torch.equal(loaded.pixels(photo), ours)
        assert np.array_equal(recipe_pixels(photo, recipe), ours.numpy())
        theirs = loaded.library(photo, return_tensors="pt")["pixel_values"][0]
        # With the normalization of the model's own processor.
        assert (((ours - mean) / std - theirs) * std).abs().max() < 1.01
        assert np.abs(normalize(ours.numpy()[None], recipe)[0] - theirs.numpy()).max() * std.max() < 1.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lesion_at_the_rim_survives_squash_and_letterbox_and_no_crop(family):
    own = describe_processor(FAMILIES[family]())
    seen = {mode: with_resize_mode(own, mode).pixels(rim_photo()) for mode in MODES}
    assert {mode: marks_in(pixels) for mode, pixels in seen.items()} == {
        "squash": {"red", "blue"},
        "letterbox": {"red", "blue"},
        "crop": set(),
    }
    # The padding is what the network sees as zero, to one level.
    mean, std = own.normalization
    corner = (seen["letterbox"][:, 0, 0] - mean.flatten()) * torch.ones(3)
    assert corner.abs().max() < 1 and seen["squash"][1, 0].float().mean() > 100
    side = own.image_size
    rows = (seen["letterbox"][:, :, side // 2] != seen["letterbox"][:, :1, side // 2]).any(dim=0).sum().item()
    assert abs(rows - side / 5) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_training_photos_have_the_aspect_ratio_and_the_padding_of_scoring(family):
    own = describe_processor(FAMILIES[family]())
    photo = encode(rim_photo(), "PNG")
    margin = round(own.image_size * 8 / 7)
    expected = {"squash": (margin, margin), "letterbox": (margin, margin), "crop": (margin, 4 * margin)}
    marks = set()
    for mode in MODES:
        processor = with_resize_mode(own, mode)
        for augmentation in ("crop", "light", "strong"):
            pixels = training_pixels(processor, augmentation)
            read = pixels.read(photo)
            assert tuple(read.shape[:2]) == pixels.shape(300, 60) == expected[mode]
            assert marks_in(read.permute(2, 0, 1)) == {"red", "blue"}
        # Scored and trained on, a photo lies at the same place of the square.
        if mode != "crop":
            scored = processor.pixels(rim_photo()).float()
            shrunk = torch.nn.functional.interpolate(read.permute(2, 0, 1)[None].float(), scored.shape[1:], mode="area")
            assert (shrunk[0] - scored).abs().mean() < 12
        marks.add(pixels.mark())
    assert len(marks) == len(MODES)


def test_the_models_own_processor_stays_as_it_is():
    own = describe_processor(PROCESSORS["dinov2"]())
    assert with_resize_mode(own, "processor") is own


def test_another_size_keeps_the_mode():
    for family in FAMILIES:
        for mode in MODES:
            own = describe_processor(FAMILIES[family]())
            resized = with_resize_mode(own, mode).resized(96)
            assert torch.equal(
                resized.pixels(noise(300, 60)), with_resize_mode(own.resized(96), mode).pixels(noise(300, 60))
            )


def test_every_kind_of_processor_takes_the_mode_or_is_refused_in_one_line():
    refused = []
    for name, make in KINDS.items():
        try:
            check_pixels(with_resize_mode(describe_processor(make()), "letterbox"))
        except UsageError as error:
            refused.append(name)
            assert str(error).startswith("--resize_mode letterbox is not supported for MobileViTImageProcessor, whose")
            assert "remove --resize_mode" in str(error) and "\n" not in str(error)
    assert refused == ["mobilevit"] and len(KINDS) >= 13


def test_a_padded_strip_that_timm_would_lose_is_refused():
    with pytest.raises(
        UsageError, match="letterbox needs at least 51 pixels with a model of timm, not 32; use a larger"
    ):
        with_resize_mode(describe_processor(timm_processor(input_size=(3, 32, 32))), "letterbox")
    smallest = with_resize_mode(describe_processor(timm_processor(input_size=(3, 51, 51))), "letterbox")
    assert smallest.pixels(noise(1000, 10)).shape == (3, 51, 51)


def test_what_the_crop_cuts_off_of_elongated_photos_is_counted():
    own = describe_processor(PROCESSORS["dinov2"]())
    assert share_cut_off(own, 300, 300) == pytest.approx(1 - 0.875**2)
    assert share_cut_off(with_resize_mode(own, "crop"), 100, 300) == pytest.approx(2 / 3)
    assert share_cut_off(with_resize_mode(own, "squash"), 100, 300) == 0
    line = cut_off_line(own, [(300, 300), (300, 100), (100, 200)])
    lost = ((1 - 0.875**2 / 3) + (1 - 0.875**2 / 2)) / 2
    assert line.startswith(
        f"2 of 3 photos are at least 1.4 times as long as wide, and the center crop cuts off {lost:.0%}"
    )
    assert cut_off_line(own, [(300, 300)]) is None and cut_off_line(own, []) is None
    assert cut_off_line(with_resize_mode(own, "letterbox"), [(300, 100)]) is None
