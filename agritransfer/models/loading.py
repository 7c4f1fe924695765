"""How are pretrained models and their image processors loaded?"""

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
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)

from agritransfer.arguments import ModelArguments
from agritransfer.errors import UsageError
from agritransfer.images.pixel_check import check_pixels
from agritransfer.images.preprocessing import PhotoProcessor, describe_processor
from agritransfer.models.head_check import check_head
from agritransfer.models.structure import find_head, is_timm

# Progress bars for a second of loading would clutter the output.
transformers.logging.disable_progress_bar()


def load_backbone(
    model_args: ModelArguments, labels: Sequence[str], image_size: int | None
) -> tuple[PreTrainedModel, PhotoProcessor, dict[str, str | None]]:
    """The pretrained network with a head for `labels`, its image processor, and its entry in `results.json`."""
    name, revision = model_args.model_name_or_path, model_args.model_revision
    processor = load_processor(name, revision, image_size)
    model = load_pretrained(name, revision, labels, processor.image_size)
    return model, processor, {"name": name, "revision": hub_commit(name, revision)}


def load_processor(model_name_or_path: str, revision: str | None, image_size: int | None) -> PhotoProcessor:
    """The model's own image processor, resized if `image_size` is given.

    Raises `UsageError` if our pixels would not be those of the processor.
    """
    try:
        with _quiet():
            library = AutoImageProcessor.from_pretrained(model_name_or_path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load("image processor", model_name_or_path, error) from error
    except (AssertionError, LookupError) as error:
        # Raised by timm for another number of channels and an unknown filter, without a sentence.
        found = f"{type(error).__name__} {error}".strip()
        raise UsageError(
            f"timm cannot build the image processor that config.json of '{model_name_or_path}' describes ({found}); "
            "use another model, such as facebook/dinov2-small or timm/efficientnet_b0.ra_in1k"
        ) from error
    processor = describe_processor(library)
    if image_size not in (None, processor.image_size):
        processor = processor.resized(image_size)
    check_pixels(processor)
    return processor


def load_classifier(folder: Path) -> tuple[PreTrainedModel, PhotoProcessor]:
    """A trained classifier with its head and labels, and its image processor, loaded as any user would load them.

    Raises `UsageError` if it is not a safetensors model of a type that transformers supports.
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

    The head is initialized anew, unless the model already has exactly these labels: then it is kept, in our order.
    Raises `UsageError` if it is not a complete safetensors model of a type that transformers supports.
    """
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(model_name_or_path, revision=revision, trust_remote_code=False)
            known_labels = labels_of(config)
            model, report = AutoModelForImageClassification.from_pretrained(
                model_name_or_path,
                revision=revision,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _cannot_load("model", model_name_or_path, error) from error
    name_classes(model.config, labels)
    model = set_image_size(model, image_size)
    check_head(model, image_size)
    head_name, head = find_head(model)
    fresh = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    if lost := sorted(key for key in fresh if not key.startswith(head_name)):
        raise UsageError(
            f"'{model_name_or_path}' lacks {len(lost)} weights of its backbone, such as {lost[0]}; use another model"
        )
    if set(known_labels) == set(labels) and not fresh:
        order = [known_labels.index(label) for label in labels]
        head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
    else:
        # Otherwise a head of the same size for other labels would be kept.
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    return _in_channels_last(model)


def labels_of(config: PreTrainedConfig) -> list[str]:
    """The label of each logit, in order."""
    # By index: many files list them in text order, 0, 1, 10, 11, 2.
    return [config.id2label[index] for index in sorted(config.id2label)]


def check_labels(config: PreTrainedConfig, labels: Sequence[str], folder: Path) -> None:
    """Raise `UsageError` if the model saved in a folder names other classes than its run, or in another order."""
    if (found := labels_of(config)) != list(labels):
        raise UsageError(
            f"config.json in {folder} names the classes {', '.join(found[:5])}, but results.json "
            f"{', '.join(labels[:5])}; its answers would be wrong: train the run again with --restart"
        )


def name_classes(config: PreTrainedConfig, labels: Sequence[str]) -> None:
    """Make `labels` the only names of the classes in a configuration, one for each logit, to be served by a softmax.

    timm stores names a second time, and these win when the saved model is loaded again.
    """
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    # A base for multi-label classification or regression would be served without a softmax.
    config.problem_type = None
    if isinstance(config, TimmWrapperConfig):
        config.label_names, config.num_classes = list(labels), len(labels)
        for key in ("label_names", "label_descriptions"):
            config.pretrained_cfg.pop(key, None)
        vars(config).pop("label_descriptions", None)


def _in_channels_last(model: PreTrainedModel) -> PreTrainedModel:
    # On a CPU this cuts a step of EfficientNet at 224 pixels to 0.6 of the time; ViT and ConvNeXt V2 are unaffected.
    if is_timm(model):
        return model.to(memory_format=torch.channels_last)
    return model


def hub_commit(model_name_or_path: str, revision: str | None) -> str | None:
    """The commit of the Hub model that was loaded; None for a folder."""
    if Path(model_name_or_path).is_dir():
        return None
    # In the cache the folder of a snapshot is named after its commit, so no network is needed.
    return Path(
        huggingface_hub.try_to_load_from_cache(model_name_or_path, "config.json", revision=revision)
    ).parent.name


def set_image_size(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """The same weights for photos of another side in pixels; learned position embeddings are interpolated.

    Raises `UsageError` if the architecture has a fixed size.
    """
    if is_timm(model):
        # The processor of a timm model is part of its configuration.
        model.config.pretrained_cfg["input_size"] = [3, image_size, image_size]
        return _try_size(model, image_size)
    old_size = getattr(model.config, "image_size", None)
    if old_size is None:
        # Fully convolutional networks have no fixed size.
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
        raise UsageError(f"this {kind} model supports only {old_size} pixels; remove --image_size") from error
    return resized


def _try_size(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """The model itself, after a forward pass of a blank photo of this size has succeeded."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(pixel_values=torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        kind = getattr(model.config, "architecture", model.config.model_type)
        raise UsageError(f"this {kind} model does not support {image_size} pixels; remove --image_size") from error
    return model.train(was_training)


def _interpolate_positions(positions: torch.Tensor, length: int) -> torch.Tensor:
    """Position embeddings (1, old length, width) for a grid of another side; special tokens are unchanged."""
    side, new_side = math.isqrt(positions.shape[1]), math.isqrt(length)
    in_front = positions.shape[1] - side**2
    tokens, grid = positions[:, :in_front], positions[:, in_front:]
    grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # Bicubic without antialiasing, as in the models' own `interpolate_pos_encoding`.
    grid = nn.functional.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return torch.cat([tokens, grid.permute(0, 2, 3, 1).reshape(1, new_side**2, -1)], dim=1)


def check_patches(image_size: int, patch_size: int) -> None:
    """Raise `UsageError` for an image size that is not a multiple of the patch size."""
    if image_size % patch_size:
        below = image_size // patch_size * patch_size
        raise UsageError(
            f"--image_size {image_size} is not a multiple of the patch size {patch_size}; "
            f"use {below} or {below + patch_size}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    # The library warns about every new head and about timm's processor; what matters is checked here.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _cannot_load(what: str, name: str, error: Exception) -> UsageError:
    reason = str(error).strip().splitlines()[0]
    return UsageError(f"the {what} of '{name}' could not be loaded: {reason}")
