"""What does an exported run answer for a set of photos, without torch?"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession, SessionOptions
from PIL import Image

from agritransfer.errors import UsageError
from agritransfer.evaluation.results import read_calibration
from agritransfer.images.recipe_pixels import normalize, recipe_pixels
from agritransfer.runtime.process import available_cores

# To be raised with every change to the metadata of an exported file.
SCHEMA = 3
MODEL_FILE = Path("onnx/model.onnx")


class ExportedClassifier:
    """The ONNX file of a run with its `labels` and preprocessing.

    Raises `UsageError` if the file was not exported from the run as it is now.
    """

    def __init__(self, run: Path):
        if is_older(run / MODEL_FILE, run / "model.safetensors"):
            raise _outdated(run)
        self.session = InferenceSession(run / MODEL_FILE, _options(), providers=["CPUExecutionProvider"])
        facts = _read_metadata(self.session)
        if facts.get("schema") != SCHEMA:
            raise UsageError(f"{run / MODEL_FILE} was exported by another version; run: agritransfer export {run}")
        calibration, _ = read_calibration(run) or (None, None)
        # Another training does not fit the same temperature to its last digit.
        if facts["calibration"] != calibration:
            raise _outdated(run)
        self.labels: list[str] = facts["labels"]
        self.recipe: dict[str, Any] = facts["preprocessing"]

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The pixels that the model sees of an upright RGB photo: uint8 (3, side, side)."""
        return recipe_pixels(image, self.recipe)

    def outputs(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Logits (photos, classes) and the head's input (photos, width) of each batch of pixels, one by one."""
        for pixels in batches:
            yield tuple(self.session.run(["logits", "features"], {"pixel_values": normalize(pixels, self.recipe)}))


def is_older(file: Path, other: Path) -> bool:
    """Whether a file was written before another one that exists."""
    return other.is_file() and file.stat().st_mtime < other.stat().st_mtime


def _outdated(run: Path) -> UsageError:
    return UsageError(f"{run / MODEL_FILE} does not belong to the weights of this run; export the run again")


def _options() -> SessionOptions:
    options = SessionOptions()
    # Within a container or a Slurm job, the default is the number of cores of the whole machine.
    options.intra_op_num_threads = available_cores()
    # Threads that spin while they wait would take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _read_metadata(session: InferenceSession) -> dict[str, Any]:
    return {name: json.loads(fact) for name, fact in session.get_modelmeta().custom_metadata_map.items()}
