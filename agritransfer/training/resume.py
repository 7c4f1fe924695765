"""From which checkpoint does a run resume?

The same command resumes from the newest complete checkpoint, but only if it ends with the weights of an uninterrupted
run: with other photos, another model or another seed it would not.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from agritransfer.data.dataset import Splits
from agritransfer.errors import UsageError
from agritransfer.runtime.process import say
from agritransfer.training.checkpoints import newest_checkpoint, point_to_best, put_aside
from agritransfer.training.trainer import SETTINGS

# Flags that may differ between the sessions of one run: paths (their contents are compared instead), how photos are
# loaded, what is shown, kept and uploaded, and what happens after training.
MAY_DIFFER = {
    *("output_dir", "dataset_name", "dataset_revision", "shift_dataset_name", "splits_file", "recipe", "restart"),
    *("model_name_or_path", "model_revision", "max_train_samples", "max_eval_samples", "download_only", "skip_test"),
    *("share_splits", "license", "target_error", "push_to_hub", "hub_strategy", "hub_model_id", "hub_private_repo"),
    *("hub_token", "hub_always_push", "hub_revision", "report_to", "run_name", "project", "disable_tqdm", "debug"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics", "local_rank"),
    *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica", "log_on_each_node"),
    *("save_total_limit", "save_on_each_node", "per_device_eval_batch_size", "eval_accumulation_steps", "ddp_timeout"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "pixel_store", "pixel_store_gb"),
}


def run_settings(splits: Splits, base_model: dict[str, Any] | None, *parsed: Any) -> dict[str, Any]:
    """Everything that the final weights of a run depend on: its flags, its photos in order, its base model."""
    *ours, training = parsed
    flags = {name: value for arguments in ours for name, value in dataclasses.asdict(arguments).items()}
    flags |= training.to_dict()
    seen = zip(splits.photos, splits.inspections, strict=True)
    photos = "\n".join(f"{photo.split} {photo.label} {inspection.digest}" for photo, inspection in seen)
    photos += splits.stream.fingerprint if splits.stream else ""
    settings = {
        "model": base_model and model_mark(base_model["name"], base_model["revision"]),
        # From random weights, the model gives its architecture only.
        "architecture": None if base_model else flags.get("model_name_or_path"),
        "labels": splits.labels,
        "photos": hashlib.sha256(photos.encode()).hexdigest()[:12],
        "processes": training.world_size,
        "device": training.device.type,
        **{name: value for name, value in flags.items() if name not in MAY_DIFFER},
    }
    # In the form in which JSON is read back: tuples as lists.
    return json.loads(json.dumps(settings, default=str))


def model_mark(name: str, commit: str | None) -> str:
    """Name and commit of a Hub model; for a folder its name and a digest of its weights."""
    if commit is not None:
        return f"{name} ({commit[:12]})"
    digest = hashlib.sha256()
    for path in sorted(Path(name).glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{Path(name).resolve().name} ({digest.hexdigest()[:12]})"


def checkpoint_to_resume(args: TrainingArguments, settings: dict[str, Any]) -> str | None:
    """The checkpoint to resume from, or None; damaged ones are renamed and reported.

    Raises `UsageError` if the checkpoint belongs to a run with other settings.
    """
    found = [_find(Path(args.output_dir) / "checkpoints") if args.process_index == 0 else None]
    # One process searches and renames, and tells the others.
    (checkpoint,) = broadcast_object_list(found) if args.world_size > 1 else found
    if checkpoint is None:
        return None
    if not checkpoint.is_dir():
        raise UsageError(
            f"process {args.process_index} does not see {checkpoint}; use an --output_dir that all nodes share"
        )
    _refuse_other_settings(json.loads((checkpoint / SETTINGS).read_text(encoding="utf-8")), settings, args.output_dir)
    say(f"resuming from {checkpoint}")
    return str(checkpoint)


def has_checkpoint(args: TrainingArguments) -> bool:
    """Whether the run folder holds a complete checkpoint; one process looks, and tells the others."""
    folder = Path(args.output_dir) / "checkpoints"
    found = [args.process_index == 0 and newest_checkpoint(folder)[0] is not None]
    return (broadcast_object_list(found) if args.world_size > 1 else found)[0]


def _find(folder: Path) -> Path | None:
    newest, faults = newest_checkpoint(folder)
    for checkpoint, fault in faults.items():
        say(f"not used: {checkpoint.name} {fault}; renamed to {put_aside(checkpoint)}")
    if newest is not None:
        point_to_best(newest)
    elif faults:
        say("no complete checkpoint is left; training starts from the beginning")
    return newest


def _refuse_other_settings(then: dict[str, Any], now: dict[str, Any], folder: str) -> None:
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if names:
        changes = "; ".join(f"{name} was {then.get(name)}, is {now.get(name)}" for name in names)
        raise UsageError(
            f"the unfinished run in {folder} has other settings: {changes}; restore them, choose a new --output_dir or "
            "add --restart"
        )
