"""Which networks can be trained from random weights?"""

from collections.abc import Sequence

from transformers import (
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from agritransfer.images.preprocessing import PhotoProcessor, describe_processor
from agritransfer.models.image_size import check_patches

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
