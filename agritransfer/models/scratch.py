"""Which networks can be trained from random weights?"""

from collections.abc import Sequence

import timm
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.auto.image_processing_auto import get_image_processor_config

from agritransfer.arguments import DataArguments, ScratchArguments
from agritransfer.errors import UsageError
from agritransfer.images.preprocessing import PhotoProcessor, describe_processor
from agritransfer.models.head_check import check_head
from agritransfer.models.image_size import check_patches, set_image_size
from agritransfer.models.loading import checked_resize_mode, hub_commit, load_processor, name_classes, without_warnings
from agritransfer.models.source_check import LOADING_ERRORS, cannot_load
from agritransfer.models.structure import is_timm
from agritransfer.runtime.process import say

# Small networks for small datasets: ViT with 0.8, 2.7 and 6.4 M weights, ConvNeXt V2 with 0.9, 1.9 and 3.4 M ("atto").
VIT_SIZES = {
    "nano": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
    "tiny": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 1024},
}
CONVNEXTV2_SIZES = {
    "nano": {"hidden_sizes": [24, 48, 96, 192], "depths": [2, 2, 2, 2]},
    "tiny": {"hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 4, 2]},
    "small": {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]},
}
SCRATCH_IMAGE_SIZE = 96


def load_untrained(
    scratch_args: ScratchArguments, data_args: DataArguments, labels: Sequence[str]
) -> tuple[PreTrainedModel, PhotoProcessor, dict[str, str | None] | None]:
    """A network with random weights, its image processor, and where its architecture comes from, if from a model."""
    name, revision = scratch_args.model_name_or_path, scratch_args.model_revision
    architecture = None
    if name is None:
        model_type, model_size = scratch_args.model_type or "vit", scratch_args.model_size or "tiny"
        model, processor = build_from_scratch(model_type, model_size, labels, data_args.image_size)
    else:
        model, processor = build_like(name, revision, labels, data_args.image_size)
        architecture = {"name": name, "revision": hub_commit(name, revision)}
    processor = checked_resize_mode(processor, data_args.resize_mode)
    processor.configure(model.config)
    return model, processor, architecture


def build_like(
    name: str, revision: str | None, labels: Sequence[str], image_size: int | None
) -> tuple[PreTrainedModel, PhotoProcessor]:
    """The architecture of a model with the random weights of its library, and the model's image processor.

    Only the configurations are read, never the weights. Raises `UsageError` for what `load_pretrained` would refuse.
    """
    try:
        with without_warnings():
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
            processor = _processor_of(name, revision, config, image_size)
            name_classes(config, labels)
            _set_size(config, processor.image_size)
            model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
            if is_timm(model):
                # The wrapper initializes layers in its own way, where timm's initialization suits the network.
                options = config.model_args or {}
                own = timm.create_model(config.architecture, pretrained=False, num_classes=len(labels), **options)
                model.timm_model.load_state_dict(own.state_dict())
    except UsageError:
        raise
    except LOADING_ERRORS as error:
        raise cannot_load("architecture", name, revision, error) from error
    model = set_image_size(model, processor.image_size)
    check_head(model, processor.image_size)
    return model, processor


def _processor_of(name: str, revision: str | None, config: PreTrainedConfig, image_size: int | None) -> PhotoProcessor:
    """The image processor of a model; where it has none, photos are squashed to the size of its configuration."""
    settings = config.to_dict()
    if "architecture" in settings or get_image_processor_config(name, revision=revision):
        return load_processor(name, revision, image_size)
    own_size = settings.get("image_size")
    side = image_size or (own_size if isinstance(own_size, int) else SCRATCH_IMAGE_SIZE)
    say(f"'{name}' has no image processor: photos are squashed to {side} x {side} pixels")
    return describe_processor(ViTImageProcessor(size={"height": side, "width": side}))


def _set_size(config: PreTrainedConfig, image_size: int) -> None:
    # Before the network is built, so that no random position embedding is interpolated.
    settings = config.to_dict()
    own_size, patch_size = settings.get("image_size"), settings.get("patch_size")
    if isinstance(own_size, int) and own_size != image_size:
        if isinstance(patch_size, int):
            check_patches(image_size, patch_size)
        config.image_size = image_size


def build_from_scratch(
    model_type: str, model_size: str, labels: Sequence[str], image_size: int | None
) -> tuple[PreTrainedModel, PhotoProcessor]:
    """A network with random weights and its image processor, which squashes photos (vit) or center-crops them."""
    image_size = image_size or SCRATCH_IMAGE_SIZE
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if model_type == "vit":
        patch_size = 8 if image_size < 160 else 16
        check_patches(image_size, patch_size)
        config = ViTConfig(image_size=image_size, patch_size=patch_size, **VIT_SIZES[model_size], **names)
        processor = ViTImageProcessor(size={"height": image_size, "width": image_size})
        return ViTForImageClassification(config), describe_processor(processor)
    config = ConvNextV2Config(image_size=image_size, drop_path_rate=0.1, **CONVNEXTV2_SIZES[model_size], **names)
    processor = ConvNextImageProcessor(size={"shortest_edge": image_size}, crop_pct=0.875)
    return ConvNextV2ForImageClassification(config), describe_processor(processor)
