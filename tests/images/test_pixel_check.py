"""A processor's pixels are made everywhere as it makes them, or it is refused in one line."""

import re
from collections import Counter

import pytest
import torch
import transformers
from PIL import Image
from processors import HAS_LANCZOS, timm_processor
from transformers import BaseImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from agritransfer.errors import UsageError
from agritransfer.images.photo_dataset import WholePhotos, training_pixels
from agritransfer.images.pixel_check import check_pixels
from agritransfer.images.preprocessing import describe_processor, pixel_recipe
from agritransfer.images.recipe_pixels import normalize, recipe_pixels
from agritransfer.models.loading import load_processor
from pictures import encode, noise, timm_model

# Every image processor that transformers 5.23 registers, without the suffix `ImageProcessor`, with the settings of its
# class: equal, or the reason why it is refused. One that a later version adds has its place here too.
REGISTERED = {
    "equal": """
        Beit Bit Blip CLIP Chameleon ChineseCLIP ConvNext DINOv3ViT DPT DeiT DepthPro Flava Gemma3 GotOcr2 Levit
        Llava MobileNetV1 MobileNetV2 Ovis2 OwlViT PPChart2Table PoolFormer PromptDepthAnything Pvt RTDetr Sam2
        Sam3 SegGpt Segformer Siglip Tipsv2 Tipsv2Dpt ViT""",
    "size": """
        Apertus1p5 Aria CohereCompass ConditionalDetr Cosmos3Edge DeformableDetr Detr Emu3 Eomt Ernie4_5_VLMoe
        GLPN Gemma4 Gemma4Unified Glm46V Glm4v Glm5Next GlmImage Glmga GroundingDino HYV4VL HunYuanVL Idefics2
        Idefics3 Kimi_K25 Kosmos2_5 Mask2Former MaskFormer MiniCPMOcr MiniCPMV4_6 MiniMaxM3VL MuseGlimmer
        NemotronH_Omni_Reasoning_V3 NeoMME OneFormer PI0 PaddleOCRVL Pix2Struct Pixtral Qwen2VL RfDetr Sam
        Siglip2 SmolVLM Swin2SR Tvp UltraVBert VideoLlama3 VitMatte Yolos""",
    "shape": """
        Cohere2Vision GraniteDocling Inkling Lfm2Vl LlavaNext LlavaOnevision Mllama Molmo2 PPOCRV5ServerDet
        PerceptionLM TextNet VideoMAE Vilt Vivit""",
    "square": """
        Donut EfficientLoFTR Fuyu LightGlue Nougat PPOCRV5ServerRec PPOCRV6SmallRec Sapiens2 SuperGlue
        SuperPoint UVDoc VitPose ZoeDepth""",
    "levels": """
        DeepseekOcr2 DeepseekVL DeepseekVLHybrid Janus Llama4 Owlv2 PPDocLayoutV2 PPDocLayoutV3 PPDocLayoutV4
        PPFormulaNet PPLCNet SLANeXt Step3p7 UnlimitedOcr""",
    "input": "Idefics ImageGPT LayoutLMv2 LayoutLMv3 Phi4Multimodal VideoLlava",
    "crop": "MobileViT Perceiver",
    "exported": "BridgeTower",
    "resample": "Inkling2",
    "resize": "CHMv2",
    "steps": "EfficientNet",
}
REASONS = {
    "size": r"size is {.*}, which is neither a shortest edge nor height and width",
    "shape": r"it turns a photo of \d+ x \d+ pixels into an array of shape \(.*\), not \(1, 3, \d+, \d+\)",
    "levels": r"the pixels for (evaluation|an exported model) would differ by up to \d+ of 255 levels",
    "square": r"photos become \d+ x \d+ pixels, which is no square",
    "crop": r"crop_size is \d+, more than the \d+ pixels that photos are resized to",
    "exported": r"the pixels for an exported model would have the shape \(.*\) instead of \(3, \d+, \d+\)",
    "input": r"it makes no pixels of a single photo \(\w+Error: .*\)",
    "steps": r"it fails when rescaling and normalizing are left out \(\w+Error: .*\)",
    "resample": r"resample is \w+, not one of bilinear, bicubic, lanczos",
    "resize": r"do_resize is off",
    "channels": r"the model takes photos of \d+ channels",
    "crop_mode": r"crop_mode is 'border' with a crop_pct of 0\.\d+, not 1",
}


def outcome(library: BaseImageProcessor) -> str:
    """`equal`, or the key of the reason why the processor is refused, in one line that names what to use."""
    try:
        check_pixels(describe_processor(library))
    except UsageError as error:
        line = re.fullmatch(
            rf"the image processor {type(library).__name__} is not supported: (.*); "
            r"use another model, such as facebook/dinov2-small or timm/efficientnet_b0.ra_in1k",
            str(error),
        )
        assert line, str(error)
        keys = [key for key, reason in REASONS.items() if re.fullmatch(reason, line[1])]
        assert len(keys) == 1, str(error)
        return keys[0]
    return "equal"


def levels_apart(library: BaseImageProcessor, photo: Image.Image) -> float:
    """How many of 255 levels our pixels of a photo differ from the processor's, at most."""
    processor = describe_processor(library)
    theirs = library(photo, return_tensors="pt")["pixel_values"][0]
    mean, std = processor.normalization
    recipe = pixel_recipe(processor)
    evaluation = (processor.pixels(photo) - mean) / std
    exported = torch.from_numpy(normalize(recipe_pixels(photo, recipe)[None], recipe)[0])
    return max(((ours - theirs) * std).abs().max().item() for ours in (evaluation, exported))


def registered() -> list[type[BaseImageProcessor]]:
    """Every image processor of a model type, of torchvision where there is one, as `AutoImageProcessor` chooses."""
    names = {backends.get("torchvision", backends.get("pil")) for backends in IMAGE_PROCESSOR_MAPPING_NAMES.values()}
    return [getattr(transformers, name) for name in sorted(names - {"TimmWrapperImageProcessor"})]


@pytest.mark.slow
def test_every_registered_processor_is_reproduced_or_refused_in_one_line():
    found = {kind.__name__.removesuffix("ImageProcessor"): outcome(kind()) for kind in registered()}
    assert found == {name: result for result, names in REGISTERED.items() for name in names.split()}
    assert len(found) == 135 and Counter(found.values())["equal"] == 33


# Families of image classifiers, with small inputs and the settings of their published models.
SQUARE, CROPPED = {"size": {"height": 40, "width": 40}}, {"crop_size": {"height": 40, "width": 40}}
FAMILIES = {
    "BeitImageProcessor": SQUARE,
    "BitImageProcessor": {"size": {"shortest_edge": 46}, **CROPPED},
    "CLIPImageProcessor": {"size": {"shortest_edge": 40}, **CROPPED},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 40}},
    "DINOv3ViTImageProcessor": SQUARE,
    "DeiTImageProcessor": {"size": {"height": 46, "width": 46}, **CROPPED},
    "EfficientNetImageProcessor": SQUARE,
    "LevitImageProcessor": {"size": {"shortest_edge": 40}, **CROPPED},
    "MobileNetV1ImageProcessor": {"size": {"shortest_edge": 46}, **CROPPED},
    "MobileNetV2ImageProcessor": {"size": {"shortest_edge": 46}, **CROPPED},
    "MobileViTImageProcessor": {"size": {"shortest_edge": 45}, **CROPPED},
    "PerceiverImageProcessor": {"size": {"height": 40, "width": 40}, "crop_size": {"height": 46, "width": 46}},
    "PoolFormerImageProcessor": {"size": {"shortest_edge": 40}, **CROPPED},
    "PvtImageProcessor": SQUARE,
    "SegformerImageProcessor": SQUARE,
    "SiglipImageProcessor": SQUARE,
    "ViTImageProcessor": SQUARE,
}
SETTINGS = {
    "as it is": {},
    "no crop": {"do_center_crop": False},
    "a crop": {"do_center_crop": True, "crop_size": {"height": 33, "width": 33}},
    "a crop beyond the edge": {"do_center_crop": True, "crop_size": {"height": 80, "width": 80}},
    "no resize": {"do_resize": False},
    "no rescale": {"do_rescale": False},
    "no normalize": {"do_normalize": False},
    "neither": {"do_rescale": False, "do_normalize": False},
    "normalize": {"do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1]},
    "another scale": {"rescale_factor": 1 / 127.5},
    "crop_pct 0.7": {"crop_pct": 0.7},
    "crop_pct 1": {"crop_pct": 1.0},
    "height and width": {"size": {"height": 48, "width": 48}},
    "shortest edge": {"size": {"shortest_edge": 50}},
    "shortest and longest edge": {"size": {"shortest_edge": 50, "longest_edge": 90}},
    "not square": {"size": {"height": 48, "width": 32}},
    "padded": {"do_pad": True, "pad_size": {"height": 64, "width": 64}},
    "bgr": {"do_flip_channel_order": True},
    "rgb": {"do_flip_channel_order": False},
    **{f"resample {filter.name}": {"resample": filter} for filter in Image.Resampling},
}


# How many of these settings are followed.
FOLLOWED = {
    "BeitImageProcessor": 16,
    "BitImageProcessor": 14,
    "CLIPImageProcessor": 14,
    "ConvNextImageProcessor": 15,
    "DINOv3ViTImageProcessor": 13,
    "DeiTImageProcessor": 16,
    "EfficientNetImageProcessor": 0,
    "LevitImageProcessor": 15,
    "MobileNetV1ImageProcessor": 14,
    "MobileNetV2ImageProcessor": 15,
    "MobileViTImageProcessor": 15,
    "PerceiverImageProcessor": 1,
    "PoolFormerImageProcessor": 14,
    "PvtImageProcessor": 15,
    "SegformerImageProcessor": 15,
    "SiglipImageProcessor": 15,
    "ViTImageProcessor": 15,
}
NEVER = {
    "no resize": "resize",
    "shortest and longest edge": "size",
    **dict.fromkeys(("resample NEAREST", "resample BOX", "resample HAMMING"), "resample"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_that_matter_are_followed_or_refused(family):
    found = {}
    for name, changed in SETTINGS.items():
        library = getattr(transformers, family)(**FAMILIES[family] | changed)
        found[name] = outcome(library)
        if found[name] == "equal":
            # Pictures that the check itself does not look at.
            assert max(levels_apart(library, noise(*shape, seed=1)) for shape in ((150, 100), (64, 91))) < 1.01, name
    assert found.items() >= NEVER.items()
    equal = Counter(found.values())["equal"]
    if not HAS_LANCZOS and found["resample LANCZOS"] != "equal":
        # transformers then takes another filter, which the check refuses.
        assert FOLLOWED[family] - 1 <= equal <= FOLLOWED[family], found
    else:
        assert (len(found), equal) == (25, FOLLOWED[family]), found


def test_the_channels_of_mobilevit_are_blue_first_in_training_scoring_and_export():
    library = transformers.MobileViTImageProcessor(**FAMILIES["MobileViTImageProcessor"])
    processor = describe_processor(library)
    photo = Image.new("RGB", (90, 60), (200, 100, 30))
    theirs = (library(photo, return_tensors="pt")["pixel_values"][0, :, 0, 0] * 255).round().tolist()
    assert theirs == [30, 100, 200] and pixel_recipe(processor)["channels"] == processor.channels == "bgr"
    assert processor.pixels(photo)[:, 0, 0].tolist() == theirs
    assert recipe_pixels(photo, pixel_recipe(processor))[:, 0, 0].tolist() == theirs
    for augmentation in ("none", "crop", "light", "strong"):
        pixels = training_pixels(processor, augmentation)
        assert pixels.read(encode(photo, "PNG"))[0, 0].tolist() == theirs
    assert training_pixels(processor, "light").mark() != training_pixels(describe_processor(vit()), "light").mark()


def vit() -> BaseImageProcessor:
    return transformers.ViTImageProcessor(**SQUARE)


def test_random_crops_of_another_color_are_refused(monkeypatch):
    monkeypatch.setattr("agritransfer.images.pixel_check.training_pixels", lambda *_: WholePhotos(46, channels="bgr"))
    with pytest.raises(UsageError, match="the pixels for random crops would differ by up to 170 of 255 levels"):
        check_pixels(describe_processor(vit()))


TIMM = {
    "equal": [
        {},
        *({"crop_pct": share} for share in (0.875, 0.9, 0.95, 1.0)),
        *({"crop_pct": share, "crop_mode": "squash"} for share in (0.875, 0.95, 1.0)),
        *({"interpolation": name} for name in ("bilinear", "nearest", "lanczos", "box", "hamming")),
        {"crop_mode": "border", "crop_pct": 1.0},
        {"input_size": (3, 63, 63)},
        {"input_size": (3, 224, 224), "crop_pct": 0.965},
    ],
    "shape": [{"input_size": (3, 48, 64)}, {"input_size": (3, 64, 48), "crop_mode": "squash"}],
    "crop_mode": [{"crop_mode": "border"}, {"crop_mode": "border", "crop_pct": 0.9}],
    "channels": [{"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.5,)}],
}


@pytest.mark.parametrize("expected", TIMM)
def test_a_timm_configuration_is_followed_or_refused(expected):
    for config in TIMM[expected]:
        library = timm_processor(**config)
        assert outcome(library) == expected, config
        if expected == "equal":
            assert max(levels_apart(library, noise(*shape, seed=1)) for shape in ((150, 100), (64, 91))) < 1.01, config
    assert sum(map(len, TIMM.values())) == 21


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"interpolation": "random"}, "KeyError 'random'"),
        ({"input_size": [1, 64, 64], "mean": [0.5] * 3}, "AssertionError"),
    ],
)
def test_a_configuration_that_timm_refuses_itself_ends_in_one_line(config, found, tmp_path):
    timm_model(**config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"timm cannot build .* describes \\({found}\\); use another model"):
        load_processor(str(tmp_path), None, None)


def test_a_processor_is_checked_when_it_is_loaded_at_the_size_that_is_used(tmp_path):
    transformers.ConvNextImageProcessor(size={"shortest_edge": 40}, do_resize=False).save_pretrained(tmp_path / "off")
    with pytest.raises(UsageError, match="ConvNextImageProcessor is not supported: do_resize is off"):
        load_processor(str(tmp_path / "off"), None, None)
    transformers.PerceiverImageProcessor().save_pretrained(tmp_path / "perceiver")
    for image_size in (None, 64):
        with pytest.raises(UsageError, match="crop_size is .*, more than the .* pixels that photos are resized to"):
            load_processor(str(tmp_path / "perceiver"), None, image_size)
    vit().save_pretrained(tmp_path / "vit")
    assert load_processor(str(tmp_path / "vit"), None, 64).image_size == 64
