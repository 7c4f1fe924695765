"""One tiny network with random weights for every family that the matrix tries.

A family of transformers is its configuration with small values; a family of timm is its smallest variant, with less
depth and width where its builder allows that.
"""

import copy
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
    TimmWrapperConfig,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

SIDE = 64
# The labels of the pretrained head, which are not those of the photos.
LABELS = ["cat", "dog"]

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT |= {"image_size": SIDE, "patch_size": 16}
DINOV2 = {name: value for name, value in VIT.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
SWIN = {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 8, "image_size": SIDE}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 2]}
PYRAMID = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16], "num_attention_heads": [1, 2]}
PYRAMID |= {"strides": [4, 2]}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT |= {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TWO_TOWERS = {"vision_config": VIT, "text_config": TEXT}

# Small values of every family of transformers.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "beit": VIT | {"use_relative_position_bias": True},
    "bit": STAGES | {"embedding_size": 8, "num_groups": 4},
    "clip": TWO_TOWERS,
    "convnext": STAGES | {"num_stages": 2, "image_size": SIDE},
    "convnextv2": STAGES | {"num_stages": 2, "image_size": SIDE},
    "cvt": {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "data2vec-vision": VIT | {"use_relative_position_bias": True},
    "deit": VIT,
    "dinat": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "kernel_size": 3, "dilations": [[1], [1]]},
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
    "donut-swin": SWIN,
    "efficientnet": {
        "image_size": SIDE,
        "width_coefficient": 0.25,
        "depth_coefficient": 1.0,
        "hidden_dim": 320,
        "in_channels": [32, 16, 24],
        "out_channels": [16, 24, 1280],
        "kernel_sizes": [3, 3, 5],
        "strides": [1, 2, 2],
        "num_block_repeats": [1, 1, 2],
        "expand_ratios": [1, 2, 2],
    },
    "focalnet": {
        "embed_dim": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 2],
        "image_size": SIDE,
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
    },
    "hgnet_v2": {
        "embedding_size": 8,
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "stem_channels": [3, 4, 8],
        "stage_in_channels": [8, 16],
        "stage_mid_channels": [8, 8],
        "stage_out_channels": [16, 32],
        "stage_num_blocks": [1, 2],
        "stage_downsample": [False, True],
        "stage_downsample_strides": [2, 2],
        "stage_light_block": [False, True],
        "stage_kernel_size": [3, 3],
        "stage_numb_of_layers": [2, 2],
    },
    "hiera": {
        "embed_dim": 8,
        "image_size": [SIDE, SIDE],
        "depths": [1, 1, 2],
        "num_heads": [1, 2, 2],
        "num_query_pool": 2,
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, True, False],
    },
    "ijepa": VIT,
    "imagegpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": SIDE, "vocab_size": 17},
    "levit": {
        "image_size": SIDE,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 2],
        "key_dim": [8, 8, 8],
    },
    "metaclip_2": TWO_TOWERS,
    "mobilenet_v1": {"image_size": SIDE, "depth_multiplier": 0.25},
    "mobilenet_v2": {"image_size": SIDE, "depth_multiplier": 0.25},
    "mobilevit": {"image_size": SIDE, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 8, 16, 16, 24, 32]},
    "mobilevitv2": {
        "image_size": SIDE,
        "base_attn_unit_dims": [16, 24, 32],
        "n_attn_blocks": [1, 1, 1],
        "width_multiplier": 0.25,
    },
    "perceiver": {
        "num_latents": 8,
        "d_latents": 16,
        "d_model": 16,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 1,
        "image_size": SIDE,
    },
    "poolformer": {
        "depths": [1, 2],
        "hidden_sizes": [8, 16],
        "num_encoder_blocks": 2,
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "padding": [2, 1],
    },
    "pp_lcnet": {"scale": 0.25, "class_expand": 32},
    "pvt": PYRAMID
    | {"image_size": SIDE, "patch_sizes": [4, 2], "sequence_reduction_ratios": [2, 1], "mlp_ratios": [2, 2]},
    "pvt_v2": PYRAMID | {"image_size": SIDE, "patch_sizes": [7, 3], "sr_ratios": [2, 1], "mlp_ratios": [2, 2]},
    "regnet": STAGES | {"embedding_size": 8, "groups_width": 4},
    "resnet": STAGES | {"embedding_size": 8, "layer_type": "basic"},
    "segformer": PYRAMID | {"patch_sizes": [7, 3], "sr_ratios": [2, 1], "mlp_ratios": [2, 2]},
    "shieldgemma2": {"vision_config": VIT, "text_config": TEXT | {"num_key_value_heads": 1, "head_dim": 8}},
    "siglip": TWO_TOWERS,
    "siglip2": {"vision_config": VIT | {"num_patches": 16}, "text_config": TEXT},
    "swiftformer": {"image_size": SIDE, "depths": [1, 1], "embed_dims": [8, 16], "downsamples": [True, True]},
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": {
        "image_size": [SIDE, SIDE],
        "hidden_sizes": [8, 8, 16],
        "stem_out_channels": 8,
        "depths": [1, 2],
        "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3], [1, 3]]],
        "conv_layer_strides": [[2], [2, 1]],
    },
    "vit": VIT,
    "vit_msn": VIT,
}

TIMM_VIT = {"img_size": SIDE, "depth": 2, "embed_dim": 32, "num_heads": 2}
FOUR = (1, 1, 1, 2)
# Families whose smallest photo is larger.
SIDES = {"eva": 56}
# The variant and its reduced arguments for families of timm, by the module that holds them.
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", TIMM_VIT),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", TIMM_VIT | {"depth_token_only": 1}),
    "convit": ("convit_tiny", TIMM_VIT | {"local_up_to_layer": 1, "embed_dim": 16}),
    "convnext": ("test_convnext", {}),
    "davit": ("davit_tiny", {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 2)}),
    "deit": ("deit_tiny_patch16_224", TIMM_VIT),
    "densenet": ("densenet121", {"growth_rate": 8, "block_config": (2, 3)}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {"k_sec": (1, 1, 1, 1)}),
    "edgenext": ("edgenext_xx_small", {"depths": FOUR, "dims": (8, 16, 24, 32)}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2, "embed_dim": 32, "num_heads": 2}),
    "eva dinov3": ("vit_small_patch16_dinov3", TIMM_VIT),
    "fasternet": ("fasternet_t0", {"depths": FOUR}),
    "levit": ("levit_128s", {"img_size": SIDE, "depth": (1, 1, 2), "distilled": False}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {"img_size": SIDE}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "nfnet": ("test_nfnet", {}),
    "pit": ("pit_ti_224", {"img_size": SIDE, "depth": (1, 1, 2)}),
    "pvt_v2": ("pvt_v2_b0", {"depths": FOUR}),
    "regnet": ("regnetx_002", {}),
    "res2net": ("res2net50_48w_2s", {"layers": (1, 1, 1, 1)}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}),
    "rexnet": ("rexnet_100", {"depth_mult": 0.3}),
    "senet": ("legacy_seresnet18", {"layers": (1, 1, 1, 1)}),
    "sknet": ("skresnet18", {"layers": (1, 1, 1, 1)}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": (
        "swin_tiny_patch4_window7_224",
        {"img_size": SIDE, "window_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (2, 2)},
    ),
    "swin_transformer_v2": (
        "swinv2_tiny_window8_256",
        {"img_size": SIDE, "window_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (2, 2)},
    ),
    "swin_transformer_v2_cr": (
        "swinv2_cr_tiny_224",
        {"img_size": SIDE, "window_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (2, 2)},
    ),
    "tiny_vit": ("tiny_vit_5m_224", {"depths": FOUR, "embed_dims": (16, 16, 32, 32), "num_heads": (1, 2, 2, 2)}),
    "tnt": ("tnt_s_legacy_patch16_224", {"img_size": SIDE, "depth": 2}),
    "tresnet": ("tresnet_m", {"layers": (1, 1, 1, 1)}),
    "twins": (
        "twins_svt_small",
        {
            "img_size": SIDE,
            "depths": FOUR,
            "embed_dims": (16, 16, 32, 32),
            "num_heads": (2, 2, 2, 2),
            "wss": (4, 4, 4, 2),
        },
    ),
    "vgg": ("vgg11", {"mlp_ratio": 1 / 64}),
    "visformer": ("visformer_tiny", {"img_size": SIDE, "depth": (1, 1, 2), "embed_dim": 32}),
    "vision_transformer": ("vit_tiny_patch16_224", TIMM_VIT),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", TIMM_VIT),
    "vision_transformer_relpos": ("vit_relpos_small_patch16_224", TIMM_VIT),
    "vision_transformer_sam": ("samvit_base_patch16_224", TIMM_VIT),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xcit": ("xcit_nano_12_p16_224", TIMM_VIT),
}


def put_backbone(family: str, folder: Path) -> None:
    """Write a tiny pretrained network of a family and its image processor; raises what its library raises."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    if family.startswith("timm "):
        architecture, model_args = TIMM[family.removeprefix("timm ")]
        side = SIDES.get(family.removeprefix("timm "), SIDE)
        pretrained_cfg = {"input_size": [3, side, side], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 2}
        config = TimmWrapperConfig(
            architecture=architecture, model_args=model_args, pretrained_cfg=pretrained_cfg, num_labels=2, **names
        )
        _with_lively_weights(AutoModelForImageClassification.from_config(config)).save_pretrained(folder)
        return
    config = AutoConfig.for_model(family, **copy.deepcopy(TRANSFORMERS[family]), **names)
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[family]
    config.architectures = [classes if isinstance(classes, str) else classes[0]]
    _with_lively_weights(AutoModelForImageClassification.from_config(config)).save_pretrained(folder)
    processor_class = IMAGE_PROCESSOR_MAPPING_NAMES.get(family, {}).get("torchvision", "ViTImageProcessor")
    _small(getattr(transformers, processor_class)()).save_pretrained(folder)


def _with_lively_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights that let its answers depend on the photo; the libraries' own start is too small."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear")
        elif "bias" not in name and parameter.abs().max() < 0.1:
            # Layer scales, and norms that begin at zero.
            nn.init.ones_(parameter)
    return model


def _small(processor: BaseImageProcessor) -> BaseImageProcessor:
    """The family's own processor for photos of `SIDE` pixels."""
    for name in ("size", "crop_size"):
        sides = processor.to_dict().get(name) or {}
        if sides.keys() & {"height", "width", "shortest_edge"}:
            setattr(processor, name, {side: SIDE for side, n in sides.items() if n is not None})
    return processor


# Models on the Hub that the documentation of transformers names; timm lists its own.
EXAMPLES = {
    "beit": "microsoft/beit-base-patch16-224",
    "bit": "google/bit-50",
    "clip": "openai/clip-vit-base-patch32",
    "convnext": "facebook/convnext-tiny-224",
    "convnextv2": "facebook/convnextv2-tiny-1k-224",
    "cvt": "microsoft/cvt-13",
    "data2vec-vision": "facebook/data2vec-vision-base",
    "deit": "facebook/deit-small-patch16-224",
    "dinat": "shi-labs/dinat-mini-in1k-224",
    "dinov2": "facebook/dinov2-small",
    "dinov2_with_registers": "facebook/dinov2-with-registers-base",
    "efficientnet": "google/efficientnet-b7",
    "focalnet": "microsoft/focalnet-tiny",
    "hgnet_v2": "ustc-community/hgnet-v2",
    "hiera": "facebook/hiera-tiny-224-hf",
    "ijepa": "facebook/ijepa_vith14_1k",
    "imagegpt": "openai/imagegpt-small",
    "levit": "facebook/levit-128S",
    "metaclip_2": "facebook/metaclip-2-worldwide-huge-quickgelu",
    "mobilenet_v1": "google/mobilenet_v1_1.0_224",
    "mobilenet_v2": "google/mobilenet_v2_1.0_224",
    "mobilevitv2": "apple/mobilevitv2-1.0-imagenet1k-256",
    "perceiver": "deepmind/vision-perceiver-learned",
    "poolformer": "sail/poolformer_s12",
    "pvt": "Xrenya/pvt-tiny-224",
    "pvt_v2": "OpenGVLab/pvt_v2_b0",
    "regnet": "facebook/regnet-y-040",
    "resnet": "microsoft/resnet-50",
    "shieldgemma2": "google/shieldgemma-2-4b-it",
    "siglip": "google/siglip-base-patch16-224",
    "siglip2": "google/siglip2-base-patch16-naflex",
    "swiftformer": "MBZUAI/swiftformer-xs",
    "swin": "microsoft/swin-tiny-patch4-window7-224",
    "swinv2": "microsoft/swinv2-tiny-patch4-window8-256",
    "textnet": "czczup/textnet-base",
    "vit": "google/vit-base-patch16-224",
    "vit_msn": "facebook/vit-msn-small",
}


def example_of(family: str) -> str:
    """A model of the family on the Hub, or nothing where none is known for certain."""
    if not family.startswith("timm "):
        return EXAMPLES.get(family, "")
    architecture = TIMM[family.removeprefix("timm ")][0]
    # The variants for tests were trained a little, at the size of a stamp.
    pretrained = [] if architecture.startswith("test_") else timm.list_pretrained(f"{architecture}.*")
    return f"timm/{pretrained[0]}" if pretrained else ""
