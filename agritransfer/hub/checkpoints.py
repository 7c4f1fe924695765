"""How does an unfinished run survive the loss of its disk?

Checkpoints are uploaded to the Hub with their manifest, and the same command restores them on an empty disk.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from accelerate import PartialState
from huggingface_hub.errors import RevisionNotFoundError
from transformers import TrainerCallback

from agritransfer.errors import PublishError, UsageError, in_one_line
from agritransfer.hub.client import LOST, Destination, last_part, patient_client, upload
from agritransfer.hub.ownership import NEVER
from agritransfer.images.preprocessing import PhotoProcessor
from agritransfer.runtime.process import say
from agritransfer.training.checkpoints import best_of, newest_checkpoint, write_manifest
from agritransfer.training.run import Run
from agritransfer.training.trainer import ImageTrainer

CHECKPOINT_BRANCH = "last-checkpoint"


def upload_checkpoints(run: Run, trainer: ImageTrainer, destination: Destination | None) -> None:
    """Upload what the trainer saves, as set by `--hub_strategy`, and restore the last checkpoint if there is none.

    Does nothing without a destination.
    """
    if destination is not None:
        trainer.add_callback(UploadCheckpoints(destination, trainer.processor))
        fetch_checkpoint(run.folder, destination, run.data_args.restart)


def copy_checkpoint(checkpoint: Path, target: Path, patterns: Sequence[str] = ("*",)) -> None:
    """Copy the files of a checkpoint to a new folder, without the local paths that the libraries write to them."""
    target.mkdir()
    for path in sorted(path for pattern in patterns for path in checkpoint.glob(pattern)):
        # The card that peft writes contains the local path of the base model.
        if path.name not in (*NEVER, "README.md"):
            shutil.copyfile(path, target / path.name)
    for name, key in (
        ("adapter_config.json", "base_model_name_or_path"),
        ("trainer_state.json", "best_model_checkpoint"),
    ):
        if (target / name).is_file():
            facts = json.loads((target / name).read_text(encoding="utf-8"))
            if facts[key] and Path(facts[key]).is_dir():
                facts[key] = last_part(facts[key])
            (target / name).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def copy_resumable(checkpoint: Path, target: Path) -> None:
    """Copy what a machine with an empty disk needs to resume: the checkpoint and the one with the best weights."""
    target.mkdir()
    for path in {checkpoint, best_of(checkpoint) or checkpoint}:
        copy_checkpoint(path, target / path.name)
        write_manifest(target / path.name)


def fetch_checkpoint(folder: Path, destination: Destination, restart: bool) -> None:
    """With `--hub_strategy checkpoint`, download the last checkpoint from the Hub if this disk has none.

    Raises `UsageError` if the Hub cannot be reached: a new run would overwrite the checkpoint there.
    """
    ours = folder / "checkpoints"
    if restart or destination.hub_strategy != "checkpoint" or not PartialState().is_main_process:
        return
    if any(ours.glob("checkpoint-*")):
        return
    try:
        with patient_client(), tempfile.TemporaryDirectory() as cache:
            served = huggingface_hub.snapshot_download(
                destination.repo_id, revision=CHECKPOINT_BRANCH, cache_dir=cache, allow_patterns="checkpoint-*"
            )
            # Its manifest is checked when the run resumes.
            shutil.copytree(served, ours, dirs_exist_ok=True)
    except RevisionNotFoundError:
        return
    except LOST as error:
        raise UsageError(
            f"the last checkpoint of {destination.repo_id} could not be downloaded ({in_one_line(error)}); retry, or "
            "start over with --restart"
        ) from error
    say(f"downloaded the last checkpoint of {destination.repo_id} from the Hub")


def upload_what_failed(folder: Path, destination: Destination) -> None:
    """After training, retry the last upload to the checkpoint branch if it failed."""
    last, _ = newest_checkpoint(folder / "checkpoints")
    if CHECKPOINT_BRANCH not in destination.failed or last is None:
        return
    with tempfile.TemporaryDirectory() as parent:
        copy_resumable(last, Path(parent) / "checkpoints")
        message = f"{last.name}, after training"
        api = huggingface_hub.HfApi()
        upload(api, Path(parent) / "checkpoints", destination.repo_id, message, branch=CHECKPOINT_BRANCH)


class UploadCheckpoints(TrainerCallback):
    """Uploads each save as set by `--hub_strategy`; training waits for the upload and continues if it fails.

    `every_save`: the current weights, on main, until the final publish replaces them. `checkpoint`: in addition,
    everything needed to resume, on a separate branch. The Trainer's own upload runs in the background and fails
    silently.
    """

    def __init__(self, destination: Destination, processor: PhotoProcessor):
        self.destination, self.processor = destination, processor
        self.api = huggingface_hub.HfApi()

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or self.destination.hub_strategy == "end":
            return
        checkpoint = Path(args.output_dir) / "checkpoints" / f"checkpoint-{state.global_step}"
        with tempfile.TemporaryDirectory() as parent:
            weights, whole = Path(parent) / "weights", Path(parent) / "whole"
            copy_checkpoint(checkpoint, weights, ("*.safetensors", "config.json", "adapter_config.json"))
            self.processor.save(weights)
            self._upload(weights, "main", f"training in progress, step {state.global_step}")
            if self.destination.hub_strategy == "checkpoint":
                copy_resumable(checkpoint, whole)
                self._upload(whole, CHECKPOINT_BRANCH, f"checkpoint of step {state.global_step}")

    def _upload(self, folder: Path, branch: str, message: str) -> None:
        repo_id, failed = self.destination.repo_id, self.destination.failed
        try:
            with patient_client():
                if branch != "main":
                    self.api.create_branch(repo_id, branch=branch, exist_ok=True)
                upload(self.api, folder, repo_id, message, branch=branch, attempts=1)
        except (PublishError, *LOST) as error:
            failed[branch] = in_one_line(error)
            say(f"upload to {branch} failed: {failed[branch]}; training continues and the next save retries")
        else:
            failed.pop(branch, None)
