"""How are pretrained models and their image processors loaded?"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)

from agritransfer.arguments import DataArguments, ModelArguments, ResizeMode
from agritransfer.errors import UsageError
from agritransfer.images.pixel_check import check_pixels
from agritransfer.images.preprocessing import PhotoProcessor, describe_processor
from agritransfer.images.resize_modes import with_resize_mode
from agritransfer.models.head_check import check_head
from agritransfer.models.image_size import set_image_size
from agritransfer.models.source_check import LOADING_ERRORS, cannot_load, refuse_adapter
from agritransfer.models.structure import find_blocks, find_head, is_timm

# Progress bars for a second of loading would clutter the output.
transformers.logging.disable_progress_bar()


def load_backbone(
    model_args: ModelArguments, data_args: DataArguments, labels: Sequence[str]
) -> tuple[PreTrainedModel, PhotoProcessor, dict[str, str | None]]:
    """The pretrained network with a head for `labels`, its image processor, and its entry in `results.json`."""
    name, revision = model_args.model_name_or_path, model_args.model_revision
    processor = load_processor(name, revision, data_args.image_size, data_args.resize_mode)
    model = load_pretrained(name, revision, labels, processor.image_size)
    processor.configure(model.config)
    return model, processor, {"name": name, "revision": hub_commit(name, revision)}


def load_processor(
    model_name_or_path: str, revision: str | None, image_size: int | None, resize_mode: ResizeMode = "processor"
) -> PhotoProcessor:
    """The model's own image processor, or one of another size or geometry if asked for.

    Raises `UsageError` if our pixels would not be those of the processor.
    """
    try:
        with without_warnings():
            library = AutoImageProcessor.from_pretrained(model_name_or_path, revision=revision, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise cannot_load("image processor", model_name_or_path, revision, error) from error
    processor = describe_processor(library)
    if image_size not in (None, processor.image_size):
        processor = processor.resized(image_size)
    check_pixels(processor)
    return checked_resize_mode(processor, resize_mode)


def checked_resize_mode(processor: PhotoProcessor, resize_mode: ResizeMode) -> PhotoProcessor:
    """A checked processor with this geometry, checked in its turn."""
    if resize_mode != "processor":
        check_pixels(processor := with_resize_mode(processor, resize_mode))
    return processor


def load_classifier(folder: Path) -> tuple[PreTrainedModel, PhotoProcessor]:
    """A trained classifier with its head and labels, and its image processor, loaded as any user would load them.

    Raises `UsageError` if it is not a safetensors model of a type that transformers supports.
    """
    try:
        with without_warnings():
            model = AutoModelForImageClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    except LOADING_ERRORS as error:
        raise cannot_load("model", str(folder), None, error) from error
    return _in_channels_last(model.eval()), load_processor(str(folder), None, None)


def load_pretrained(
    model_name_or_path: str, revision: str | None, labels: Sequence[str], image_size: int
) -> PreTrainedModel:
    """A pretrained backbone with a head for `labels`, in float32, for square photos of `image_size` pixels.

    The head is initialized anew, unless the model already has exactly these labels: then it is kept, in our order.
    Raises `UsageError` if it is not a complete safetensors model of a type that transformers supports.
    """
    refuse_adapter(model_name_or_path)
    try:
        with without_warnings():
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
    except LOADING_ERRORS as error:
        raise cannot_load("model", model_name_or_path, revision, error) from error
    name_classes(model.config, labels)
    model = set_image_size(model, image_size)
    check_head(model, image_size)
    head_name, head = find_head(model)
    fresh = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    if lost := sorted(key for key in fresh if not key.startswith(head_name)):
        raise UsageError(
            f"'{model_name_or_path}' lacks {len(lost)} weights of its backbone, such as {lost[0]}; copy config.json "
            "and model.safetensors from the same model, or use another model"
        )
    _refuse_more_blocks(model, report["unexpected_keys"], model_name_or_path)
    if set(known_labels) == set(labels) and not fresh:
        order = [known_labels.index(label) for label in labels]
        head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
    else:
        # Otherwise a head of the same size for other labels would be kept.
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    return _in_channels_last(model)


def _refuse_more_blocks(model: PreTrainedModel, unexpected: Iterable[str], name: str) -> None:
    """Raise `UsageError` for weights of blocks that the network does not have; other unused weights are of no harm."""
    lists = {block.rpartition(".")[0] + "." for block in find_blocks(model)}
    if extra := sorted(key for key in unexpected if key.startswith(tuple(lists))):
        raise UsageError(
            f"the weights of '{name}' have more layers than its config.json says, such as {extra[0]} (number of unused "
            f"weights: {len(extra)}); copy config.json and model.safetensors from the same model"
        )


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
    # For most families this follows from the names; PVT stores it apart.
    config.num_labels = len(labels)
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


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence the library, which warns about every new head and about timm's processor; what matters is checked."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
