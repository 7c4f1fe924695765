"""One small network of every kind."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextConfig,
    ConvNextV2Config,
    DeiTConfig,
    Dinov2Config,
    ResNetConfig,
    SwinConfig,
    Swinv2Config,
    TimmWrapperConfig,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
)

from agritransfer.images.augmentation import build_augmentation
from agritransfer.images.preprocessing import describe_processor
from agritransfer.training.trainer import ImageTrainer

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


TINY |= {"image_size": 32, "patch_size": 8, "num_labels": 3}


DINOV2 = {name: value for name, value in TINY.items() if name != "intermediate_size"} | {"mlp_ratio": 2}


SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}


SWIN |= {"image_size": 32, "num_labels": 3}


CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 32, "num_labels": 3}


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic", "num_labels": 3}


LORA = {
    "image_size": 32,
    "r": 4,
    "alpha": 8,
    "dropout": 0.0,
    "target_modules": None,
    "use_dora": False,
    "use_rslora": False,
}


def timm(architecture: str, **model_args) -> TimmWrapperConfig:
    of_pixels = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 3}
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, pretrained_cfg=of_pixels, num_labels=3)


CONFIGS = {
    "vit": ViTConfig(**TINY),
    "deit": DeiTConfig(**TINY, architectures=["DeiTForImageClassification"]),
    "dinov2": Dinov2Config(**DINOV2),
    "beit": BeitConfig(**TINY, use_relative_position_bias=True),
    "swin": SwinConfig(**SWIN),
    "swinv2": Swinv2Config(**SWIN),
    "convnext": ConvNextConfig(**CONVNEXT),
    "convnextv2": ConvNextV2Config(**CONVNEXT),
    "resnet": ResNetConfig(**RESNET),
    "timm vit": timm("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=16, num_heads=2),
    "timm mobilenet": timm("mobilenetv3_small_050"),
    "timm efficientnet": timm("test_efficientnet"),
}


def build(kind: str) -> nn.Module:
    """A random network whose answers depend on its photos; the libraries' own start is too small for that."""
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(copy.deepcopy(CONFIGS[kind]))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        elif "layer_scale" in name:
            nn.init.ones_(parameter)
    return model


def photos(count: int = 8) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=generator),
            "labels": i % 3,
            "files": f"{i}.jpg",
        }
        for i in range(count)
    ]


def moved_by_two_steps(model: nn.Module, folder: Path, parameter_groups: list[dict] | None = None) -> set[str]:
    """Names of the weights and buffers that two steps of the real trainer changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    args = TrainingArguments(
        output_dir=str(folder),
        **{"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no"},
        **{"report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False},
        **{"remove_unused_columns": False, "label_names": ["labels"]},
    )
    trainer = ImageTrainer(
        model=model,
        args=args,
        processor=describe_processor(ViTImageProcessor(size={"height": 32, "width": 32})),
        train_dataset=photos(),
        eval_dataset=photos(),
        augment=build_augmentation("none", 32, 3),
        class_weights=None,
        early_stopping_patience=None,
        settings={},
        parameter_groups=parameter_groups,
    )
    trainer.train()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
