"""How do visitors report a wrong answer?

Corrections are stored only with the visitor's consent, in a dataset named by the owner of the page. Its photos are in
class folders, which the training scripts can read; the wrong answers are beside them, one per line.
"""

import json
import tempfile
import uuid
from concurrent.futures import TimeoutError as NotYet
from datetime import UTC, datetime
from pathlib import Path

import httpx2
from huggingface_hub import CommitScheduler
from huggingface_hub.errors import HfHubHTTPError

from classifier import Answer
from photos import Photo

NONE_OF_THESE = "none_of_these"
MINUTES = 5
SECONDS_TO_WAIT = 20
STORED_SIDE = 1024


class NotStored(Exception):
    """The correction is stored locally only; the next upload includes it."""


class Feedback:
    """Corrections for the private dataset `repo_id`; `model` and `commit` identify the model that was wrong."""

    def __init__(self, repo_id: str, model: str, commit: str | None, labels: list[str]):
        self.repo_id, self.model, self.commit = repo_id, model, commit
        self.choices = [*labels, NONE_OF_THESE]
        self.folder = Path(tempfile.mkdtemp(prefix="feedback-"))
        # Each start of the Space writes a new file, since the scheduler can only append.
        self.answers = self.folder / "answers" / f"{uuid.uuid4().hex}.jsonl"
        self.answers.parent.mkdir()
        self.scheduler = CommitScheduler(
            repo_id=repo_id, repo_type="dataset", folder_path=self.folder, private=True, every=MINUTES
        )

    def store(self, photo: Photo, answer: Answer, label: str) -> None:
        """Store a photo under the visitor's label; raises `NotStored` if the upload fails or takes too long."""
        if label not in self.choices:
            raise ValueError(f"'{label}' is not a label of {self.model}")
        name = f"{label}/{uuid.uuid4().hex}.jpg"
        line = {
            "file_name": name,
            "label": label,
            "answered": answer.labels[0],
            "probability": round(answer.probabilities[0], 4),
            "verdict": answer.verdict,
            "model": self.model,
            "commit": self.commit,
            "date": datetime.now(UTC).date().isoformat(),
        }
        # Only the pixels are stored: no EXIF, location or time.
        bare = photo.picture.copy()
        bare.info.clear()
        bare.thumbnail((STORED_SIDE, STORED_SIDE))
        with self.scheduler.lock:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            bare.save(self.folder / name, "JPEG", quality=90)
            with self.answers.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        try:
            self.scheduler.trigger().result(SECONDS_TO_WAIT)
        except (HfHubHTTPError, httpx2.HTTPError, OSError, NotYet) as error:
            raise NotStored(str(error)) from error
