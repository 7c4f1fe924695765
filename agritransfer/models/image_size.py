"""How does a network take photos of another size?"""

import copy
import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from agritransfer.errors import UsageError, in_one_line
from agritransfer.models.structure import architecture_of, is_timm

# What networks raise for photos of a size, or of a kind, that they were not made for.
FORWARD_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def set_image_size(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """The same weights for photos of another side in pixels; learned position embeddings are interpolated.

    Raises `UsageError` if the architecture has a fixed size.
    """
    if is_timm(model):
        # The processor of a timm model is part of its configuration.
        model.config.pretrained_cfg["input_size"] = [3, image_size, image_size]
        return _checked(model, image_size)
    settings = model.config.to_dict()
    old_size = settings.get("image_size")
    if old_size is None:
        # Fully convolutional networks have no fixed size.
        return _checked(model, image_size)
    if old_size in (image_size, [image_size, image_size]):
        return model
    patch_size = settings.get("patch_size")
    if not isinstance(old_size, int) or not isinstance(patch_size, int | None):
        # Hiera and others have a height and a width.
        raise _one_size_only(model, old_size)
    if patch_size:
        check_patches(image_size, patch_size)
    config = copy.deepcopy(model.config)
    config.image_size = image_size
    try:
        resized = type(model)(config)
        weights = model.state_dict()
        for name, parameter in resized.named_parameters():
            if name.endswith("position_embeddings") and parameter.ndim == 3 and parameter.shape != weights[name].shape:
                weights[name] = _interpolate_positions(weights[name], parameter.shape[1])
        resized.load_state_dict(weights, strict=True)
    except FORWARD_ERRORS as error:
        raise _one_size_only(model, old_size) from error
    return resized


def _one_size_only(model: PreTrainedModel, size: int | list[int]) -> UsageError:
    sides = size if isinstance(size, int) else " x ".join(map(str, size))
    return UsageError(
        f"this {model.config.model_type} model supports only {sides} pixels; remove --image_size, or use another "
        "model, such as facebook/dinov2-small"
    )


def _checked(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """The model itself, after a forward pass of a blank photo of this size has succeeded."""
    outputs_for_blank_photo(model, image_size)
    return model


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
        fitting = f"{below} or {below + patch_size}" if below else str(patch_size)
        raise UsageError(f"--image_size {image_size} is not a multiple of the patch size {patch_size}; use {fitting}")


def outputs_for_blank_photo(model: PreTrainedModel, image_size: int) -> ModelOutput:
    """What the model returns for a blank photo in evaluation mode; `UsageError` if it does not support the size."""
    was_training = model.training
    try:
        with torch.no_grad():
            return model.eval()(pixel_values=torch.zeros(1, 3, image_size, image_size))
    except FORWARD_ERRORS as error:
        raise UsageError(
            f"this {architecture_of(model)} model does not support {image_size} pixels ({in_one_line(error)}); "
            "remove --image_size, or use another model, such as facebook/dinov2-small"
        ) from error
    finally:
        model.train(was_training)
