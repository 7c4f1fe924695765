"""What does the model predict?

The files are those of `export`: ONNX models with preprocessing and calibration in their metadata, and the features of
known photos. The 8-bit model has a temperature, thresholds and known photos of its own.
"""

import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from safetensors.numpy import load_file

from photos import Photo, advice, model_pixels, read_photo, seen_part

SCHEMA = 3
# The known photos as each exported file represents them.
KNOWN_FILES = {
    "model.onnx": "known_features.safetensors",
    "model_quantized.onnx": "onnx/known_features_quantized.safetensors",
}
# To find the faster file, each runs this many times, within this many seconds in total.
TRIALS = 20
TRIAL_SECONDS = 1.0
# A photo ties with itself whichever runtime computed it.
ROUNDING = np.float32(1e-5)


@dataclass(frozen=True)
class Answer:
    """The answer for one photo.

    `verdict`: "answer", "not sure" (the probability of the first label is too low) or "unknown" (unlike the known
    photos). `labels`, most probable first, with calibrated `probabilities`. `evidence` (rows, columns): how much each
    cell of the area `seen` (left, top, right, bottom; 0 to 1 is the photo) contributes to the first label.
    """

    verdict: str
    labels: list[str]
    probabilities: list[float]
    evidence: np.ndarray
    seen: tuple[float, float, float, float]
    advice: list[str]


class Classifier:
    """A model exported to `folder`/onnx, with its results in `folder`."""

    def __init__(self, folder: Path):
        if not (folder / "onnx/model.onnx").is_file():
            raise FileNotFoundError(f"no onnx/model.onnx in {folder}; export the run: agritransfer export RUN")
        self.results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        self.examples = sorted(map(str, (folder / "examples").glob("*.jpg")))
        self.name, self.session = fastest_session(folder / "onnx")
        facts = self.session.get_modelmeta().custom_metadata_map
        facts = {name: json.loads(fact) for name, fact in facts.items()}
        if facts.get("schema") != SCHEMA:
            raise ValueError(f"{folder}/onnx has another version; export the run again: agritransfer export RUN")
        self.labels: list[str] = facts["labels"]
        self.recipe: dict[str, Any] = facts["preprocessing"]
        self.image_size: int = facts["image_size"]
        self.calibration: dict[str, Any] = facts["calibration"]
        # The page states the threshold of the file that is served.
        self.results["calibration"] = self.calibration
        self.evidence: dict[str, Any] = facts["evidence"]
        reduced = facts["reduced_decoding"]
        self.least_side: int | None = reduced["least_side"] if reduced["passed"] else None
        self.known = load_file(folder / KNOWN_FILES[self.name]) if self.calibration["unknown"] else None

    def read(self, source: Path | bytes) -> Photo:
        """Decode a photo at the size that this model needs; raises `PhotoError`."""
        return read_photo(source, self.least_side)

    def answer(self, photo: Photo) -> Answer:
        """Classify one photo."""
        pixels = model_pixels(photo.picture, self.recipe)
        logits, features, evidence = self.session.run(["logits", "features", "evidence"], {"pixel_values": pixels})
        scaled = logits[0].astype(np.float64) / self.calibration["temperature"]
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        return Answer(
            self._verdict(float(probabilities.max()), features[0]),
            [self.labels[index] for index in order],
            [float(probabilities[index]) for index in order],
            evidence[0, order[0]],
            seen_part(photo.picture, self.recipe),
            advice(photo, self.image_size),
        )

    def _verdict(self, confidence: float, features: np.ndarray) -> str:
        if (
            self.known is not None
            and self._strangeness(confidence, features) > self.calibration["unknown"]["threshold"]
        ):
            return "unknown"
        threshold = self.calibration["threshold"]
        return "answer" if threshold is not None and confidence >= threshold else "not sure"

    def _strangeness(self, confidence: float, features: np.ndarray) -> float:
        """How unlike the known photos: p-values of confidence and distance, combined by Fisher's method."""
        unit = features / max(float(np.linalg.norm(features)), 1e-12)
        distance = 1 - (self.known["features"].astype(np.float32) @ unit).max()
        count = len(self.known["distance"])
        as_unsure = np.searchsorted(self.known["confidence"], np.float32(confidence) + ROUNDING, side="right")
        as_far = count - np.searchsorted(self.known["distance"], distance - ROUNDING, side="left")
        return float(-np.log((as_unsure + 1) / (count + 1)) - np.log((as_far + 1) / (count + 1)))


def fastest_session(folder: Path) -> tuple[str, InferenceSession]:
    """The name and session of the faster exported file; 8 bits are not faster on every machine.

    `export` writes the 8-bit file only if its verdicts agree with those of the trained model.
    """
    sessions = {path.name: _session(path) for path in sorted(folder.glob("*.onnx"))}
    if len(sessions) == 1:
        return next(iter(sessions.items()))
    side = json.loads(next(iter(sessions.values())).get_modelmeta().custom_metadata_map["image_size"])
    pixels = np.zeros((1, 3, side, side), np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    end = time.perf_counter() + TRIAL_SECONDS
    for trial in range(TRIALS + 1):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(["logits"], {"pixel_values": pixels})
            # The first run of each file is a warm-up.
            if trial > 0:
                seconds[name].append(time.perf_counter() - started)
        if trial > 0 and time.perf_counter() > end:
            break
    name = min(seconds, key=lambda name: statistics.median(seconds[name]))
    return name, sessions[name]


def _session(path: Path) -> InferenceSession:
    options = SessionOptions()
    # A container may have fewer cores than its machine; only Linux reports that.
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    options.inter_op_num_threads = 1
    # Spinning threads would slow decoding down.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
