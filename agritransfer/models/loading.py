"""Where do pretrained weights come from?"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
)

from agritransfer.arguments import ModelArguments
from agritransfer.errors import UsageError
from agritransfer.images.preprocessing import PhotoProcessor, describe_processor
from agritransfer.models.structure import find_head, is_timm

# Its bars for a second of loading would stand between our lines.
transformers.logging.disable_progress_bar()


def load_backbone(
    model_args: ModelArguments, labels: Sequence[str], image_size: int | None
) -> tuple[PreTrainedModel, PhotoProcessor, dict[str, str | None]]:
    """The pretrained network with a head for `labels`, its image processor, and what `results.json` says of it."""
    name, revision = model_args.model_name_or_path, model_args.model_revision
    processor = load_processor(name, revision, image_size)
    model = load_pretrained(name, revision, labels, processor.image_size)
    return model, processor, {"name": name, "revision": hub_commit(name, revision)}


def load_processor(model_name_or_path: str, revision: str | None, image_size: int | None) -> PhotoProcessor:
    """The model's own image processor, for another side in pixels where one is given."""
    try:
        with _quiet():
            library = AutoImageProcessor.from_pretrained(model_name_or_path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load("image processor", model_name_or_path, error) from error
    processor = describe_processor(library)
    return processor if image_size in (None, processor.image_size) else processor.resized(image_size)


def load_classifier(folder: Path) -> tuple[PreTrainedModel, PhotoProcessor]:
    """A trained classifier as anyone loads it, head and labels included, and its processor.

    Raises `UsageError` for what is no safetensors model of a kind that transformers knows.
    """
    try:
        with _quiet():
            model = AutoModelForImageClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _cannot_load("model", str(folder), error) from error
    return _in_channels_last(model.eval()), load_processor(str(folder), None, None)


def load_pretrained(
    model_name_or_path: str, revision: str | None, labels: Sequence[str], image_size: int
) -> PreTrainedModel:
    """A pretrained backbone with a head for `labels`, in float32, for square photos of `image_size` pixels.

    The head starts anew, unless the model already answers with these very labels: then it is kept, in our order.
    Raises `UsageError` for what is not a complete safetensors model of a kind that transformers knows.
    """
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(model_name_or_path, revision=revision, trust_remote_code=False)
            # By index: many a file lists them in the order of text, 0, 1, 10, 11, 2.
            known_labels = [config.id2label[index] for index in sorted(config.id2label)]
            model, report = AutoModelForImageClassification.from_pretrained(
                model_name_or_path,
                revision=revision,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: i for i, label in enumerate(labels)},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _cannot_load("model", model_name_or_path, error) from error
    head_name, head = find_head(model)
    fresh = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    if lost := sorted(key for key in fresh if not key.startswith(head_name)):
        raise UsageError(f"'{model_name_or_path}' lacks {len(lost)} weights of its backbone, such as {lost[0]}")
    if set(known_labels) == set(labels) and not fresh:
        order = [known_labels.index(label) for label in labels]
        head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
    else:
        # A head of the same size but for other labels would otherwise stay.
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    return _in_channels_last(set_image_size(model, image_size))


def _in_channels_last(model: PreTrainedModel) -> PreTrainedModel:
    # A step of EfficientNet at 224 pixels takes 0.6 of the time so on a CPU; a ViT or a ConvNeXt V2 takes the same.
    if is_timm(model):
        return model.to(memory_format=torch.channels_last)
    return model


def hub_commit(model_name_or_path: str, revision: str | None) -> str | None:
    """The commit that was loaded of a Hub model, whatever its branch is later moved to; None for a folder."""
    if Path(model_name_or_path).is_dir():
        return None
    # The cache files a snapshot under the name of its commit, and knows it without the network.
    return Path(
        huggingface_hub.try_to_load_from_cache(model_name_or_path, "config.json", revision=revision)
    ).parent.name


def set_image_size(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """The same weights for photos of another side in pixels; learned position embeddings are interpolated.

    Raises `UsageError` where the architecture is tied to its size.
    """
    if is_timm(model):
        # The processor of a timm model is part of its configuration.
        model.config.pretrained_cfg["input_size"] = [3, image_size, image_size]
        return _try_size(model, image_size)
    old_size = getattr(model.config, "image_size", None)
    if old_size is None:
        # Pure convolutions hold no size of their own.
        return _try_size(model, image_size)
    if old_size == image_size:
        return model
    if patch_size := getattr(model.config, "patch_size", None):
        check_patches(image_size, patch_size)
    config = copy.deepcopy(model.config)
    config.image_size = image_size
    resized = type(model)(config)
    weights = model.state_dict()
    for name, parameter in resized.named_parameters():
        if name.endswith("position_embeddings") and parameter.shape != weights[name].shape:
            weights[name] = _interpolate_positions(weights[name], parameter.shape[1])
    try:
        resized.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        kind = model.config.model_type
        raise UsageError(f"this {kind} model fits {old_size} pixels only; leave --image_size out") from error
    return resized


def _try_size(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """The model itself, once a blank photo of this side has gone through it."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(pixel_values=torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        kind = getattr(model.config, "architecture", model.config.model_type)
        raise UsageError(f"this {kind} model takes no photos of {image_size} pixels; leave --image_size out") from error
    return model.train(was_training)


def _interpolate_positions(positions: torch.Tensor, length: int) -> torch.Tensor:
    """Position embeddings (1, old length, width) for a grid of another side; tokens in front of the grid stay."""
    side, new_side = math.isqrt(positions.shape[1]), math.isqrt(length)
    in_front = positions.shape[1] - side**2
    tokens, grid = positions[:, :in_front], positions[:, in_front:]
    grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # Bicubic without antialiasing, as the models' own `interpolate_pos_encoding` has it.
    grid = nn.functional.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return torch.cat([tokens, grid.permute(0, 2, 3, 1).reshape(1, new_side**2, -1)], dim=1)


def check_patches(image_size: int, patch_size: int) -> None:
    """Raise `UsageError` for a side in pixels that cannot be divided into patches."""
    if image_size % patch_size:
        below = image_size // patch_size * patch_size
        raise UsageError(
            f"--image_size {image_size} is no multiple of the patch size {patch_size}; "
            f"use {below} or {below + patch_size}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    # The library warns of every fresh head and of timm's own processor; what matters of it is checked here.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _cannot_load(what: str, name: str, error: Exception) -> UsageError:
    reason = str(error).strip().splitlines()[0]
    return UsageError(f"the {what} of '{name}' could not be loaded: {reason}")
