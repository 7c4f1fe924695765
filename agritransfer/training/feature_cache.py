"""How are the features of a frozen network kept for later runs?

Fitting a head needs the head's input for every photo, which is the same in every run on the same photos, pixels and
weights. The features are float32 and are found again bit for bit.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from agritransfer.models.structure import find_head
from agritransfer.runtime.disk_cache import cache_folder, force_to_disk, make_room, mark_as_used, written_whole
from agritransfer.runtime.process import local_main_process_first, say
from agritransfer.training.partial_forward import activations, batches_of
from agritransfer.training.trainer import ImageTrainer

# To be raised with every change to how features are computed or to the layout of the file.
VERSION = 1
CHECKSUM_BYTES = 4


def features_of(trainer: ImageTrainer, dataset: Dataset, view: int | None) -> np.ndarray:
    """The head's input (photos, width), float32, in an augmented view or, if it is None, with the evaluation pixels.

    The photos are split among the processes, the results gathered. Features of photos whose pixels are in the pixel
    store are kept on disk, without views, within the same limit.
    """
    batches = batches_of(dataset, view)
    if view is not None or dataset.stored is None:
        return _computed(trainer, dataset, batches)
    first = _computed(trainer, dataset, batches[:1])
    path = cache_folder("features") / _name(trainer, dataset, first)
    found = _read(path, (len(dataset), first.shape[1]))
    # Every process computes its share, or none does.
    if all(gather_object([found is not None])):
        mark_as_used(path)
        return found
    features = np.concatenate([first, _computed(trainer, dataset, batches[1:])]) if batches[1:] else first
    with local_main_process_first() as is_first:
        if is_first:
            _keep(path, features, dataset.stored.limit)
    return features


def _computed(trainer: ImageTrainer, dataset: Dataset, batches: list[tuple[int | None, int]]) -> np.ndarray:
    head = find_head(trainer.model)[1]
    with PartialState().split_between_processes(batches) as mine:
        found = [rows.flatten(1).numpy() for rows in activations(trainer, head, dataset, mine)]
    return np.concatenate(gather_object(found))


def _name(trainer: ImageTrainer, dataset: Dataset, first: np.ndarray) -> str:
    """A file name that identifies these features: a digest of everything that they depend on.

    The first batch of them stands for what weights do not show: new adapters, which change nothing before they are
    trained, and the arithmetic of this machine.
    """
    digest = hashlib.sha256(first.tobytes())
    head = _without_adapters(find_head(trainer.model)[0])
    for name, tensor in trainer.model.state_dict().items():
        plain = _without_adapters(name)
        if "lora_" not in name and not plain.startswith(f"{head}."):
            digest.update(plain.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    pixels = [dataset.stored.file.parent.name, dataset.pixels.mark()]
    machine = [trainer.args.device.type, trainer.accelerator.mixed_precision]
    digest.update(json.dumps([VERSION, torch.__version__, transformers.__version__, *pixels, *machine]).encode())
    return digest.hexdigest()[:32]


def _without_adapters(name: str) -> str:
    """The name of a weight before peft wrapped its layer or the head."""
    for part in ("base_model.model.", ".base_layer", ".modules_to_save.default"):
        name = name.replace(part, "")
    return name


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The features of this shape, or None if the file is missing or damaged."""
    if not path.is_file() or path.stat().st_size != 4 * shape[0] * shape[1] + CHECKSUM_BYTES:
        return None
    content = np.fromfile(path, np.uint8)
    features, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    return features.view(np.float32).reshape(shape) if zlib.crc32(features) == int.from_bytes(checksum) else None


def _keep(path: Path, features: np.ndarray, limit: int) -> None:
    try:
        if not make_room(path.parent, features.nbytes, limit):
            say("features: not kept for later runs, no room within --pixel_store_gb and the free disk space")
            return
        with written_whole(path) as begun, begun.open("wb") as file:
            file.write(features)
            file.write(zlib.crc32(features).to_bytes(CHECKSUM_BYTES))
            force_to_disk(file)
    except OSError as error:
        say(f"features: not kept for later runs ({error})")
