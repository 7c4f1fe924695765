"""Tests that a photo is decoded as people see it and that the model sees the pixels of its own image processor."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    ConvNextImageProcessor,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

from agritransfer.errors import UsageError
from agritransfer.images.augmentation import build_augmentation, check_augmentation
from agritransfer.images.decoding import decode_photo
from agritransfer.images.photo_dataset import EvaluationPixels, WholePhotos, collate, training_pixels
from agritransfer.images.preprocessing import PhotoProcessor, describe_processor

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# One processor of every kind: whole photo squashed, centre cut out, shortest edge then crop.
PROCESSORS = {
    "vit": lambda: ViTImageProcessor(size={"height": 32, "width": 32}),
    "swinv2": lambda: ViTImageProcessor(size={"height": 64, "width": 64}, resample=3, **IMAGENET),
    "convnextv2_below_384": lambda: ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875, **IMAGENET),
    "convnextv2_at_384": lambda: ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=1.0, **IMAGENET),
    "dinov2": lambda: BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3, **IMAGENET
    ),
    "not_normalised": lambda: ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
    "between_minus_1_and_1": lambda: ViTImageProcessor(
        size={"height": 32, "width": 32}, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3
    ),
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def saved_and_loaded(processor: PhotoProcessor, folder: Path) -> PhotoProcessor:
    processor.save(folder)
    return described(folder)


def described(folder: Path) -> PhotoProcessor:
    return describe_processor(AutoImageProcessor.from_pretrained(folder))


def timm_model(**pretrained_cfg: object) -> TimmWrapperForImageClassification:
    pretrained_cfg = {"input_size": [3, 64, 64], "interpolation": "bicubic", "crop_pct": 0.875, **pretrained_cfg}
    config = TimmWrapperConfig(architecture="mobilenetv3_small_050", num_labels=3, pretrained_cfg=pretrained_cfg)
    return TimmWrapperForImageClassification(config)


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


UPRIGHT = Image.new("RGB", (48, 32), "white")
for corner, colour in {(0, 0): "red", (32, 0): "lime", (0, 16): "blue"}.items():
    UPRIGHT.paste(colour, (*corner, corner[0] + 16, corner[1] + 16))

# How a camera that was held so stores the upright photo: the inverse of what each EXIF orientation asks for.
AS_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def difference(photo: Image.Image, expected: Image.Image) -> float:
    """Mean absolute difference of two photos of one size, in steps of 8 bits."""
    assert photo.mode == "RGB"
    assert photo.size == expected.size
    return np.abs(np.asarray(photo).astype(float) - np.asarray(expected.convert("RGB"))).mean()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_gives_the_same_upright_photo(file_format, orientation):
    stored = UPRIGHT.transpose(AS_STORED[orientation]) if orientation in AS_STORED else UPRIGHT
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(decode_photo(encode(stored, file_format, exif=exif)), UPRIGHT) < 5


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF"])
def test_the_formats_of_phones_and_scanners_are_read_from_bytes_and_from_files(file_format, tmp_path):
    content = encode(UPRIGHT, file_format)
    (tmp_path / "leaf").write_bytes(content)
    assert difference(decode_photo(content), UPRIGHT) < 5
    assert difference(decode_photo(tmp_path / "leaf"), UPRIGHT) < 5
    assert difference(decode_photo(str(tmp_path / "leaf")), UPRIGHT) < 5


def test_cmyk_and_grey_photos_become_rgb():
    assert difference(decode_photo(encode(UPRIGHT.convert("CMYK"), "JPEG", quality=95)), UPRIGHT) < 5
    assert difference(decode_photo(encode(UPRIGHT.convert("L"), "PNG")), UPRIGHT.convert("L")) == 0
    assert difference(decode_photo(encode(UPRIGHT.convert("1"), "PNG")), UPRIGHT.convert("1")) == 0


def test_what_is_transparent_is_white_and_never_shows_its_hidden_colour():
    white = Image.new("RGB", (8, 8), "white")
    hidden = {
        "RGBA": encode(Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "PNG"),
        "RGBA WebP": encode(Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "WEBP", lossless=True, exact=True),
        "LA": encode(Image.new("LA", (8, 8), (40, 0)), "PNG"),
        "L": encode(Image.new("L", (8, 8), 40), "PNG", transparency=40),
        "RGB": encode(Image.new("RGB", (8, 8), (200, 0, 0)), "PNG", transparency=(200, 0, 0)),
        "P": encode(Image.new("RGB", (8, 8), (200, 0, 0)).quantize(4), "PNG", transparency=0),
    }
    assert {mode: difference(decode_photo(content), white) for mode, content in hidden.items()} == dict.fromkeys(
        hidden, 0
    )
    half = decode_photo(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"))
    assert np.asarray(half)[0, 0].tolist() == [127, 127, 127]
    opaque = decode_photo(encode(Image.new("RGB", (8, 8), (200, 0, 0)).quantize(4), "PNG"))
    assert np.asarray(opaque)[0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_photos_are_scaled_and_not_clipped(file_format, byte_order):
    values = np.array([[0, 257, 32896, 51400, 65278, 65535]], dtype=byte_order)
    photo = decode_photo(encode(Image.fromarray(values), file_format))
    assert np.asarray(photo)[0].tolist() == [[v] * 3 for v in (0, 1, 128, 200, 254, 255)]


@pytest.mark.parametrize("file_format", ["MPO", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(file_format):
    content = encode(UPRIGHT, file_format, save_all=True, append_images=[Image.new("RGB", UPRIGHT.size)])
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.n_frames) == (file_format, 2)
    assert difference(decode_photo(content), UPRIGHT) < 5


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_pixels_without_a_known_range_are_refused(mode):
    with pytest.raises(ValueError, match="32-bit numbers without a known range"):
        decode_photo(encode(Image.new(mode, (8, 8), 70000), "TIFF"))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF"])
def test_a_truncated_photo_is_refused_wherever_it_ends(file_format):
    content = encode(noise(60, 40), file_format)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises((OSError, ValueError)):
            decode_photo(content[: int(share * len(content))])


# A TIFF of damaged tags makes Pillow warn before it refuses the file.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF"])
def test_a_damaged_photo_is_read_or_refused_with_a_reason_in_one_of_two_kinds(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(noise(60, 40), file_format, **({} if file_format == "BMP" else {"exif": exif}))
    random = np.random.default_rng(0)
    refused = 0
    for attempt in range(200):
        damaged = bytearray(content)
        # The header by turns, because it is a small part of the file.
        for place in random.integers(0, 200 if attempt % 2 else len(content), size=4):
            damaged[place] = random.integers(256)
        try:
            decode_photo(bytes(damaged))
        except (OSError, ValueError):
            refused += 1
    assert refused > 5


def test_a_photo_of_unreadable_orientation_is_refused():
    with pytest.raises(ValueError, match="not a TIFF file"):
        decode_photo(encode(UPRIGHT, "PNG", exif=b"Exif\0\0garbage"))


@pytest.mark.parametrize("content", [b"", b"a text file\n", encode(UPRIGHT, "GIF")], ids=["empty", "text", "gif"])
def test_what_is_no_photo_is_refused_with_the_allowed_formats(content):
    with pytest.raises(ValueError, match="no photo in any of the formats JPEG, PNG, WEBP, BMP, TIFF, HEIF"):
        decode_photo(content)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def bmp_that_claims(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


# Pillow itself warns above 89 million pixels, before we refuse.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(6400, 6251), (12_000, 12_000), (60_000, 60_000)])
@pytest.mark.parametrize("claim", [png_that_claims, bmp_that_claims])
def test_a_photo_over_40_million_pixels_is_refused_from_its_header(claim: Callable, size: tuple[int, int]):
    content = claim(*size)
    images_made = Image.core.get_stats()["new_count"]
    with pytest.raises(ValueError, match="over 40 million pixels; shrink it"):
        decode_photo(content)
    assert Image.core.get_stats()["new_count"] == images_made


def test_a_photo_of_40_million_pixels_is_not_too_large():
    # Refused as well, but for what it lacks: the pixels that its header promises.
    with pytest.raises(OSError, match="truncated"):
        decode_photo(png_that_claims(6400, 6250))


def batch_of(*photos: np.ndarray, labels: tuple[int, ...] = (0, 1, 2, 1)) -> dict:
    """Whole photos, each of shape (height, width, 3), as a batch."""
    items = [{"photo": torch.from_numpy(photo), "files": "a.jpg"} for photo in photos]
    return collate([item | {"labels": label} for item, label in zip(items, labels, strict=True)])


def same_noise(count: int, side: int) -> list[np.ndarray]:
    return [np.asarray(noise(side, side)).copy()] * count


@pytest.mark.parametrize(
    ("augmentation", "views", "words"),
    [("wild", None, "use one of none, crop, light, strong"), ("strong", 4, "use --augmentation light")],
)
def test_an_augmentation_that_cannot_be_used_is_refused(augmentation, views, words):
    with pytest.raises(UsageError, match=words):
        check_augmentation(augmentation, views)
    check_augmentation("light", views)


def test_no_augmentation_leaves_pixels_and_labels_as_they_are():
    pixels = torch.from_numpy(np.stack(same_noise(4, 32))).permute(0, 3, 1, 2)
    batch = {"pixel_values": pixels, "labels": torch.tensor([0, 1, 2, 1])}
    augmented, kept = build_augmentation("none", 32, 3)(batch)
    assert augmented.dtype == torch.float32
    assert torch.equal(augmented, pixels.float())
    assert torch.equal(kept, batch["labels"])


def test_light_augmentation_crops_and_flips_each_photo_by_itself_and_keeps_the_labels():
    torch.manual_seed(0)
    batch = batch_of(*same_noise(4, 32))
    augmented, kept = build_augmentation("light", 28, 3)(batch)
    assert augmented.shape == (4, 3, 28, 28)
    assert augmented.dtype == torch.float32
    assert torch.equal(kept, torch.tensor([0, 1, 2, 1]))
    assert all(not torch.equal(augmented[0], other) for other in augmented[1:])
    # Crops and flips only: a photo of one colour keeps it, whatever its shape.
    colour = np.array([10, 120, 250], np.uint8)
    plain = batch_of(
        *(np.tile(colour, (height, width, 1)) for height, width in ((32, 50), (40, 32), (32, 32), (32, 90)))
    )
    assert (build_augmentation("light", 28, 3)(plain)[0] == torch.tensor(colour).view(1, 3, 1, 1)).all()


def test_a_plain_crop_has_pixels_of_the_photo_itself_from_all_of_its_places():
    torch.manual_seed(0)
    # Every pixel of this photo tells where it is.
    rows, columns = np.mgrid[0:40, 0:60].astype(np.uint8)
    photo = np.stack([rows, columns, np.full_like(rows, 7)], axis=-1)
    augment = build_augmentation("crop", 32, 1)
    corners, turned = set(), set()
    for _ in range(40):
        crops, _ = augment(batch_of(photo, photo, labels=(0, 0)))
        for crop in crops.int():
            top, left = crop[0].min().item(), crop[1].min().item()
            assert sorted(crop[0, :, 0].tolist()) == list(range(top, top + 32))
            assert sorted(crop[1, 0].tolist()) == list(range(left, left + 32))
            assert (crop[2] == 7).all()
            corners.add((top, left))
            turned.add((crop[0, 0, 0].item() == top, crop[1, 0, 0].item() == left))
    assert len(turned) == 4
    assert {min(top for top, _ in corners), max(top for top, _ in corners)} == {0, 8}
    assert min(left for _, left in corners) <= 2
    assert max(left for _, left in corners) >= 26


def test_strong_augmentation_gives_shares_of_the_labels_that_sum_to_1():
    torch.manual_seed(0)
    augment = build_augmentation("strong", 28, 3)
    batches = [augment(batch_of(*same_noise(4, 32))) for _ in range(8)]
    assert all(pixels.shape == (4, 3, 28, 28) and pixels.dtype == torch.float32 for pixels, _ in batches)
    assert all(pixels.min() >= 0 and pixels.max() <= 255 for pixels, _ in batches)
    shares = torch.stack([share for _, share in batches])
    assert shares.shape == (8, 4, 3)
    assert torch.allclose(shares.sum(-1), torch.ones(8, 4))
    assert (shares >= 0).all()
    mixed = (shares > 0.02).sum(-1) > 1
    assert mixed.any()
    # A photo keeps a share of its own label, or lends it: over a batch the labels add up.
    assert torch.allclose(shares.sum(1), torch.tensor([1.0, 2.0, 1.0]).expand(8, 3))


@pytest.mark.parametrize("augmentation", ["crop", "light", "strong"])
def test_the_same_seed_augments_a_batch_the_same_way(augmentation):
    augment = build_augmentation(augmentation, 28, 3)
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(augment(batch_of(*same_noise(4, 40))))
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])
    assert not torch.equal(batches[0][0], batches[2][0])


@pytest.mark.parametrize(("name", "margin"), [("swinv2", 73), ("dinov2", 256), ("convnextv2_below_384", 73)])
def test_training_photos_keep_their_shape_and_have_a_margin_to_crop_into(name, margin):
    processor = describe_processor(PROCESSORS[name]())
    assert training_pixels(processor, "none") == EvaluationPixels(processor)
    for augmentation in ("crop", "light", "strong"):
        pixels = training_pixels(processor, augmentation)
        assert pixels.read(encode(noise(150, 100), "PNG")).shape == (margin, round(1.5 * margin), 3)
        assert pixels.read(encode(noise(100, 150), "PNG")).shape == (round(1.5 * margin), margin, 3)


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
