"""What does a model predict for a set of photos?"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import PreTrainedModel

from agritransfer.images.photo_dataset import PhotoDataset, collate
from agritransfer.images.preprocessing import PhotoProcessor
from agritransfer.models.loading import labels_of, load_classifier
from agritransfer.models.structure import find_head
from agritransfer.runtime.process import full_precision


def predict(model: PreTrainedModel, dataset: PhotoDataset, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (photos, classes) and features, the head's input (photos, width), both float32.

    The photos are split among the processes of the run.
    """
    state = PartialState()
    with state.split_between_processes(list(range(len(dataset)))) as mine:
        loader = DataLoader(Subset(dataset, mine), batch_size=batch_size, collate_fn=collate)
        bar = tqdm(loader, desc="scoring", delay=2, leave=False, disable=None if state.is_main_process else True)
        outputs = list(model_outputs(model, dataset.pixels.processor, (batch["pixel_values"] for batch in bar)))
    logits, features = zip(*outputs, strict=True) if outputs else ((), ())
    return np.concatenate(gather_object(list(logits))), np.concatenate(gather_object(list(features)))


class TrainedClassifier:
    """A trained model from any source, with its `labels` and image processor.

    Raises `UsageError` if the folder has no safetensors model of a type that transformers supports.
    """

    def __init__(self, folder: Path):
        self.model, self.processor = load_classifier(folder)
        self.labels = labels_of(self.model.config)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The pixels of an upright RGB photo after resizing and cropping: uint8 (3, side, side)."""
        return self.processor.pixels(image).numpy()

    def outputs(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Logits (photos, classes) and the head's input (photos, width) of each batch of pixels, one by one."""
        return model_outputs(self.model, self.processor, map(torch.from_numpy, batches))


def model_outputs(
    model: PreTrainedModel, processor: PhotoProcessor, batches: Iterable[torch.Tensor]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits (photos, classes) and the head's input (photos, width) of batches of uint8 pixels, one by one.

    Computed in full float32 on every device.
    """
    device = PartialState().device
    model = model.to(device).eval()
    mean, std = (statistic.to(device) for statistic in processor.normalization)
    seen = []
    hook = find_head(model)[1].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].flatten(1).float().cpu().numpy())
    )
    try:
        for pixels in batches:
            # Not around the loop: a generator would leave the setting changed for its caller.
            with full_precision(device.type), torch.inference_mode():
                logits = model((pixels.to(device) - mean) / std).logits.float().cpu().numpy()
            yield logits, seen.pop()
    finally:
        hook.remove()
