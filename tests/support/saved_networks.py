"""Small networks as they lie on a disk."""

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

LABELS = ["healthy", "mosaic", "rust"]


NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}


TINY_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def vit(**changes) -> ViTForImageClassification:
    return ViTForImageClassification(ViTConfig(**(TINY_VIT | {"intermediate_size": 32} | NAMES | changes)))


def pixels(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module, batch: torch.Tensor, **options) -> torch.Tensor:
    return model.eval()(pixel_values=batch, **options).logits
