"""Which layers get low-rank adapters?"""

import warnings
from pathlib import Path

import peft
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from agritransfer.errors import UsageError, in_one_line
from agritransfer.images.preprocessing import PhotoProcessor
from agritransfer.models.adapter_check import REMEDY, called_layers, check_adapters
from agritransfer.models.freezing import freeze_batchnorm_statistics
from agritransfer.models.loading import labels_of, load_pretrained
from agritransfer.models.structure import architecture_of, find_blocks, find_head

# peft 0.21 uses a name that transformers 5.23 deprecates, so every run would print this warning.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def add_lora(
    model: PreTrainedModel,
    *,
    image_size: int,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: list[str] | None,
    use_dora: bool,
    use_rslora: bool,
    layers: str = "all",
) -> PeftModel:
    """Freeze the model and add low-rank adapters, in all blocks or the last N (`layers`); the head stays trainable.

    Raises `UsageError` for layers whose adapters the network would ignore or that could not be merged after training.
    """
    _check_numbers(r, alpha, dropout)
    head, called = find_head(model)[0], called_layers(model, image_size)
    if target_modules is None:
        targets = [target for target in find_lora_targets(model) if target in called]
    else:
        targets = _named_targets(model, target_modules, head)
    if not targets:
        raise UsageError(f"no layer for LoRA was found in {architecture_of(model)}; {REMEDY}")
    if ignored := [target for target in targets if target not in called]:
        raise UsageError(f"the network reads the weight of '{ignored[0]}' and would ignore its adapter; {REMEDY}")
    if layers != "all":
        targets = _in_last_blocks(model, layers, targets)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        # Otherwise the new head would silently stay random.
        modules_to_save=[head],
        use_dora=use_dora,
        use_rslora=use_rslora,
    )
    try:
        adapted = peft.get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        # peft builds adapters of a convolution's own class, whose arguments it can only guess.
        raise UsageError(f"peft cannot adapt {architecture_of(model)} ({in_one_line(error)}); {REMEDY}") from error
    freeze_batchnorm_statistics(adapted)
    check_adapters(adapted, image_size)
    return adapted


def _check_numbers(r: int, alpha: int, dropout: float) -> None:
    for flag, value, fits, allowed in (
        ("r", r, r > 0, "above 0"),
        # Adapters that are multiplied by zero or see only zeros would never move.
        ("alpha", alpha, alpha > 0, "above 0"),
        ("dropout", dropout, 0 <= dropout < 1, "from 0 to below 1"),
    ):
        if not fits:
            raise UsageError(f"--lora_{flag} {value} switches the adapters off; use a value {allowed}")


def _in_last_blocks(model: PreTrainedModel, layers: str, targets: list[str]) -> list[str]:
    blocks = find_blocks(model)
    if not layers.isdecimal() or not 0 < int(layers) < len(blocks):
        raise UsageError(f"--lora_layers {layers} is invalid; use all or a number of blocks below {len(blocks)}")
    kept = tuple(block + "." for block in blocks[-int(layers) :])
    inside = [target for target in targets if target.startswith(kept)]
    if not inside:
        raise UsageError(f"none of the target layers is in the last {layers} blocks; use a larger --lora_layers")
    return inside


def find_lora_targets(model: PreTrainedModel) -> list[str]:
    """Full names of the layers to adapt: attention projections, else linear layers, else plain convolutions."""
    inside = tuple(block + "." for block in find_blocks(model)) or ("",)
    head = find_head(model)[0]
    layers = {name: module for name, module in model.named_modules() if name.startswith(inside) and name != head}
    attention = tuple(name + "." for name, module in layers.items() if "Attention" in type(module).__name__)
    linears = {name: module for name, module in layers.items() if isinstance(module, nn.Linear)}
    # A projection keeps the width, or computes query, key and value at once; position-bias networks do neither.
    projections = [
        name
        for name, module in linears.items()
        if attention
        and name.startswith(attention)
        and module.out_features in (module.in_features, 3 * module.in_features)
    ]
    # peft can merge neither grouped nor dilated convolutions.
    convolutions = [
        name
        for name, module in layers.items()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and set(module.dilation) == {1}
    ]
    return projections or list(linears) or convolutions


def _named_targets(model: PreTrainedModel, names: list[str], head: str) -> list[str]:
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name != head
    }
    targets = [layer for layer in layers if any(layer == name or layer.endswith("." + name) for name in names)]
    for name in names:
        if not any(layer == name or layer.endswith("." + name) for layer in layers):
            known = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
            raise UsageError(f"--lora_target_modules {name} matches no layer; use some of {', '.join(known)}")
    for layer in targets:
        module = layers[layer]
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            raise UsageError(
                f"'{layer}' is a depthwise convolution: each of its {module.groups} filters sees one channel only, "
                "so it has no matrix for a low-rank update; choose linear layers or ungrouped convolutions"
            )
    return targets


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapters merged into its weights; the given model cannot be used afterwards."""
    return model.merge_and_unload()


def load_adapter(folder: Path, base_model: dict, processor: PhotoProcessor) -> PeftModel:
    """A saved adapter on its base model, with the labels of its folder and the image size of the processor."""
    labels = labels_of(AutoConfig.from_pretrained(folder))
    base = load_pretrained(base_model["name"], base_model["revision"], labels, processor.image_size)
    return PeftModel.from_pretrained(base, folder).eval()
