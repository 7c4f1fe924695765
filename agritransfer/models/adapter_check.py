"""Does the network use an adapter as it is trained, and can the adapter be merged into its layer?"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from agritransfer.errors import UsageError, in_one_line
from agritransfer.models.structure import architecture_of

REMEDY = "use train_finetune.py, or name other layers with --lora_target_modules"


def called_layers(model: PreTrainedModel, image_size: int) -> set[str]:
    """Names of the modules that a photo passes through.

    Some networks read the weight of a layer without calling it, so that an adapter around the layer would be ignored.
    """
    called: set[str] = set()

    def note(name: str, *_: object) -> None:
        called.add(name)

    hooks = [module.register_forward_hook(partial(note, name)) for name, module in model.named_modules()]
    try:
        _pass_a_blank_photo(model, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def check_adapters(model: PeftModel, image_size: int) -> None:
    """Raise `UsageError` if an adapter could not be merged after training, or if the network fails with adapters."""
    for name, layer in model.named_modules():
        # Such as DLA: peft would take it for an adapter when it merges the others.
        if not isinstance(layer, LoraLayer) and "base_layer" in dict(layer.named_children()):
            network = architecture_of(model.get_base_model())
            raise UsageError(
                f"peft cannot merge adapters in {network}, which has a part called 'base_layer'; "
                "use train_finetune.py, or choose another model"
            )
        if isinstance(layer, LoraLayer) and not _can_be_merged(layer):
            kind = type(layer.get_base_layer()).__name__
            raise UsageError(
                f"an adapter cannot be merged into '{name.removeprefix('base_model.model.')}', since a {kind} layer "
                f"does not use its weight as it is stored (it may be standardized or dilated); {REMEDY}"
            )
    try:
        _pass_a_blank_photo(model, image_size)
    except (AttributeError, RuntimeError, TypeError) as error:
        # MobileNet V1 and V2 read the stride of a convolution, which its adapter hides.
        kind = architecture_of(model.get_base_model())
        raise UsageError(f"{kind} does not run with adapters in its layers ({in_one_line(error)}); {REMEDY}") from error


def _can_be_merged(layer: LoraLayer) -> bool:
    """Whether the layer gives the same output before and after a random adapter is merged into its weight."""
    base = layer.get_base_layer()
    # A parametrized weight, such as that of a weight norm, is computed from other parameters.
    if "weight" not in dict(base.named_parameters(recurse=False)):
        return False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tried = copy.deepcopy(layer).eval()
        for matrix in tried.lora_B.values():
            nn.init.normal_(matrix.weight)
        given = _random_input(base)
        try:
            plain, adapted = tried.get_base_layer()(given), tried(given)
        except RuntimeError:
            # peft gives the adapter of a dilated convolution no dilation.
            return False
        tried.merge()
        difference = (tried(given) - adapted).abs().max()
    return bool(difference <= 1e-2 * (adapted - plain).abs().max())


def _random_input(layer: nn.Linear | nn.Conv2d) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return torch.randn(2, layer.in_features)
    side = max(reach * (size - 1) for reach, size in zip(layer.dilation, layer.kernel_size, strict=True)) + 3
    return torch.randn(2, layer.in_channels, side, side)


def _pass_a_blank_photo(model: nn.Module, image_size: int) -> None:
    with _in_evaluation_mode(model), torch.no_grad():
        model(pixel_values=torch.zeros(1, 3, image_size, image_size))


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
