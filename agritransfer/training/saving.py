"""How are trained weights saved, and does the saved model give the same logits?"""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedConfig

from agritransfer.data.dataset import Splits
from agritransfer.errors import StorageError
from agritransfer.images.photo_dataset import collate
from agritransfer.images.preprocessing import PhotoProcessor
from agritransfer.models.loading import labels_of, load_classifier
from agritransfer.models.lora import load_adapter, merge_lora
from agritransfer.runtime.process import full_precision
from agritransfer.training.checkpoints import follow_umask
from agritransfer.training.trainer import ImageTrainer

# Two forward passes with the same float32 weights differ only by rounding.
LOGIT_TOLERANCE = 1e-3


@full_precision()
def save_model(trainer: ImageTrainer, processor: PhotoProcessor, splits: Splits, base_model: dict | None) -> None:
    """Save the trained weights as a plain transformers model, with LoRA also as `adapter/`, and check both.

    Raises `StorageError` if a saved model does not give the logits of the trained model or names other classes.
    """
    if not trainer.args.should_save:
        return
    # For --bf16, accelerate wraps the forward pass in autocast, which would round the logits to compare with.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    folder = Path(trainer.args.output_dir)
    sample = splits.dataset("validation", processor)
    mean, std = processor.normalization
    pixels = (collate([sample[i] for i in range(min(8, len(sample)))])["pixel_values"] - mean) / std
    model = model.float().cpu().eval()
    trained = _logits(model, pixels)
    if isinstance(model, PeftModel):
        model.save_pretrained(folder / "adapter")
        follow_umask(folder / "adapter")
        # The adapter alone would predict the base model's labels.
        model.get_base_model().config.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink()
        adapted = load_adapter(folder / "adapter", base_model, processor)
        _check_labels(adapted.config, splits.labels, "the adapter")
        _check_same(trained, _logits(adapted, pixels), "the adapter")
        model = merge_lora(model)
    model.save_pretrained(folder)
    processor.save(folder)
    follow_umask(folder)
    saved = load_classifier(folder)[0]
    _check_labels(saved.config, splits.labels, "the saved model")
    _check_same(trained, _logits(saved, pixels), "the saved model")


def _logits(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(pixel_values=pixels).logits


def _check_labels(config: PreTrainedConfig, labels: list[str], what: str) -> None:
    if (found := labels_of(config)) != labels:
        raise StorageError(f"the classes of {what} are named {found} instead of {labels}; do not use it")


def _check_same(trained: torch.Tensor, loaded: torch.Tensor, what: str) -> None:
    difference = (trained - loaded).abs().max().item()
    if difference > LOGIT_TOLERANCE * max(1.0, trained.abs().max().item()):
        raise StorageError(f"the logits of {what} differ from the trained model's by {difference:.3g}; do not use it")
