"""How is a finished run published?

Only an allow-list of files leaves the run folder, with all local paths removed. A run counts as published only after it
was downloaded again and its files and predictions were compared with the local ones.
"""

import json
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import numpy as np
import onnxruntime
import torch
import yaml
from accelerate import PartialState
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, TrainingArguments, pipeline

from agritransfer.data.shards import open_stream
from agritransfer.data.sources import read_source
from agritransfer.errors import DataError, PublishError, UsageError, in_one_line
from agritransfer.evaluation.predictions import read_predictions
from agritransfer.evaluation.results import KNOWN_FILE, read_results
from agritransfer.hub.checkpoints import upload_what_failed
from agritransfer.hub.client import (
    LOST,
    Destination,
    download,
    last_part,
    patient_client,
    preflight,
    tag_commit,
    upload,
)
from agritransfer.hub.model_card import eval_results, model_card
from agritransfer.hub.ownership import local_files
from agritransfer.images.broken_photos import BrokenPhoto
from agritransfer.images.decoding import decode_photo
from agritransfer.models.loading import check_labels, load_processor
from agritransfer.models.lora import load_adapter
from agritransfer.runtime.process import full_precision, say
from agritransfer.training.saving import LOGIT_TOLERANCE

# The allow-list. Checkpoints hold pickles, predictions.csv names every photo, status.json is of local use only.
PUBLISHED = (
    "model.safetensors",
    "config.json",
    "preprocessor_config.json",
    KNOWN_FILE,
    "adapter/*",
    "onnx/*",
    "figures/*.png",
)
STRATEGIES = ("end", "every_save", "checkpoint")
COMPARED = 8
EXAMPLE_SIDE = 1024


@dataclass(frozen=True)
class Published:
    """A run that was published and verified."""

    url: str
    commit: str
    tag: str
    files: dict[str, str]
    seconds: float


def destination_of(args: TrainingArguments, share_splits: bool, licence: str | None) -> Destination | None:
    """The checked destination of `--push_to_hub` and the other Hub flags; None without `--push_to_hub`.

    The Trainer's own upload is switched off: it fails silently and uploads the command line.
    Raises `UsageError` before training if the Hub would refuse the upload.
    """
    if not args.push_to_hub:
        return None
    args.push_to_hub = False
    if args.hub_strategy not in STRATEGIES:
        raise UsageError(f"--hub_strategy {args.hub_strategy.value} is not supported; use {', '.join(STRATEGIES)}")
    private = args.hub_private_repo is not False
    name = args.hub_model_id or Path(args.output_dir).name
    remedy = "choose another --hub_model_id, or train without --push_to_hub and then run: agritransfer publish "
    remedy += f"{args.output_dir} --repo_id {name} --replace, which overwrites only files whose name is needed"
    repo_id = preflight(name, private, Path(args.output_dir), remedy=remedy)
    say(f"will be published as {repo_id} ({'private' if private else 'public'})")
    return Destination(repo_id, private, str(args.hub_strategy.value), share_splits, licence)


def publish_run(folder: Path, destination: Destination | None) -> Published | None:
    """Publish a finished run and verify it; None if there is no destination.

    Raises `PublishError` if that fails; the run folder remains complete.
    """
    if destination is None or not PartialState().is_main_process:
        return None
    try:
        published = _publish(folder, destination)
    except PublishError as error:
        again = retry_command(folder, destination)
        raise PublishError(f"not published: {error}; the complete run is in {folder}; to retry: {again}") from error
    facts = {"repo_id": destination.repo_id, "url": published.url, "commit": published.commit, "tag": published.tag}
    (folder / "published.json").write_text(json.dumps({**facts, "sha256": published.files}, indent=2) + "\n")
    print(f"published and verified in {published.seconds:.0f} s: {published.url} ({published.tag}, {published.commit})")
    return published


def retry_command(folder: Path, destination: Destination) -> str:
    """The command that publishes this run with the same options."""
    command = ["agritransfer", "publish", str(folder), "--repo_id", destination.repo_id]
    command += [] if destination.private else ["--hub_private_repo", "false"]
    command += [] if destination.share_splits else ["--share_splits", "false"]
    command += ["--license", destination.licence] if destination.licence else []
    command += ["--examples", *map(str, destination.examples)] if destination.examples else []
    command += ["--replace"] if destination.replace else []
    return shlex.join(command)


def _publish(folder: Path, destination: Destination) -> Published:
    started = time.perf_counter()
    results = read_results(folder)
    for saved in (folder, folder / "adapter"):
        if (saved / "config.json").is_file():
            check_labels(AutoConfig.from_pretrained(saved), results["dataset"]["labels"], saved)
    photos = photos_to_compare(folder, results)
    api = huggingface_hub.HfApi()
    with patient_client(), tempfile.TemporaryDirectory() as parent:
        export = Path(parent) / "export"
        base_licence = _licence_of_base(api, results["base_model"])
        write_export(folder, export, destination, base_licence)
        _check_card(export)
        macro_f1 = results["test"]["macro_f1"]
        message = f"{results['strategy']} on {last_part(results['dataset']['name'])}, test macro F1 {macro_f1:.3f}"
        commit = upload(api, export, destination.repo_id, message, replace=destination.replace)
        served = download(api, destination.repo_id, commit, export, Path(parent) / "cache")
        check_answers(results, destination.repo_id, commit, served, Path(parent) / "cache", photos)
        tag = tag_commit(api, destination.repo_id, commit)
        upload_what_failed(folder, destination)
        return Published(
            url=f"{huggingface_hub.constants.ENDPOINT}/{destination.repo_id}",
            commit=commit,
            tag=tag,
            files={name: sha256 for name, (sha256, _) in local_files(export).items()},
            seconds=time.perf_counter() - started,
        )


def write_export(folder: Path, export: Path, destination: Destination, base_licence: str | None) -> None:
    """Copy the files to publish to the empty folder `export`, without local paths."""
    results = published_results(read_results(folder))
    for pattern in PUBLISHED:
        for path in sorted(folder.glob(pattern)):
            target = export / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    adapter_config = export / "adapter" / "adapter_config.json"
    if adapter_config.is_file():
        config = json.loads(adapter_config.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": results["base_model"]["name"]}
        config |= {"revision": results["base_model"]["revision"]}
        adapter_config.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    targets = {export / "examples" / f"{path.stem}.jpg": path for path in destination.examples}
    if len(targets) < len(destination.examples):
        raise UsageError("two photos of --examples have the same name; rename one of them")
    for target, path in targets.items():
        write_example(path, target)
    if destination.share_splits:
        shutil.copyfile(folder / "splits.csv", export / "splits.csv")
    (export / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if entries := eval_results(results):
        (export / ".eval_results").mkdir()
        (export / ".eval_results" / "test.yaml").write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    files = {path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file()}
    card = model_card(
        results,
        destination.repo_id,
        files,
        licence=destination.licence,
        base_licence=base_licence,
        adapter_fits_base=_adapter_fits_base(export / "adapter", results["base_model"]),
    )
    (export / "README.md").write_text(str(card), encoding="utf-8")


def write_example(photo: Path, target: Path) -> None:
    """Write an example photo for visitors: upright, small and without metadata such as place and time.

    Raises `DataError` if it cannot be decoded.
    """
    try:
        picture = decode_photo(photo)
    except BrokenPhoto as error:
        raise DataError(f"the example '{photo}' cannot be read: {error}; choose another photo") from error
    bare = Image.new("RGB", picture.size)
    bare.paste(picture)
    bare.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    target.parent.mkdir(exist_ok=True)
    bare.save(target, "JPEG", quality=90)


def _adapter_fits_base(adapter: Path, base: dict[str, Any] | None) -> bool:
    """Whether the adapter was trained at the input size of its base model; a model without a fixed size fits."""
    if not adapter.is_dir() or base["revision"] is None:
        return True
    sizes = {
        AutoConfig.from_pretrained(name, revision=revision).to_dict().get("image_size")
        for name, revision in ((str(adapter), None), (base["name"], base["revision"]))
    }
    return len(sizes) == 1


def published_results(results: dict[str, Any]) -> dict[str, Any]:
    """The results of a run, with every local path shortened to its last part."""
    dataset, base, shift = results["dataset"], results["base_model"], results["shift"]
    # Runs of earlier versions do not have it.
    architecture = results.get("architecture")
    on_hub = {entry["name"] for entry in (dataset, base, architecture) if entry and entry["revision"] is not None}

    def short(word: str) -> str:
        flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        return f"{flag}{equals}{value if value in on_hub else last_part(value)}"

    words = shlex.split(results["command"])
    hub_model_id = words[words.index("--hub_model_id") + 1] if "--hub_model_id" in words else None
    on_hub.add(hub_model_id)
    return {
        **results,
        "dataset": {**dataset, "name": short(dataset["name"])},
        "base_model": base and {**base, "name": short(base["name"])},
        "architecture": architecture and {**architecture, "name": short(architecture["name"])},
        "shift": shift and {**shift, "name": short(shift["name"])},
        "command": shlex.join(map(short, words)),
    }


def _licence_of_base(api: huggingface_hub.HfApi, base: dict[str, Any] | None) -> str | None:
    if base is None or base["revision"] is None:
        return None
    try:
        card = api.hf_hub_download(base["name"], "README.md", revision=base["revision"])
    except (HfHubHTTPError, httpx2.HTTPError):
        # The card then says that it is unknown.
        return None
    return huggingface_hub.ModelCard.load(card).data.license


def _check_card(export: Path) -> None:
    """Validate the card with the Hub before anything is uploaded."""
    try:
        huggingface_hub.ModelCard.load(export / "README.md").validate()
    except LOST as error:
        raise PublishError(f"the Hub rejects the model card: {in_one_line(error)}") from error


def photos_to_compare(folder: Path, results: dict[str, Any]) -> tuple[list[Image.Image], np.ndarray]:
    """Evenly chosen test photos of a run and their logits (photos, classes) in the test.

    Raises `DataError` if the photos can no longer be found.
    """
    dataset, words = results["dataset"], shlex.split(results["command"])
    columns = {
        name: words[words.index(f"--{name}_name") + 1] if f"--{name}_name" in words else None
        for name in ("image_column", "label_column")
    }
    # Runs from before --dataset_config_name lack its entry.
    version = {"revision": dataset["revision"], "config": dataset.get("config")}
    try:
        if dataset.get("streamed"):
            source, _ = open_stream(dataset["name"], **version, **columns)
        else:
            source = read_source(dataset["name"], **version, **columns)
    except (UsageError, DataError) as error:
        raise DataError(
            f"the test photos of this run are not at '{dataset['name']}'; publish where the run was trained ({error})"
        ) from error
    tested = read_predictions(folder / "predictions.csv", "test", dataset["labels"])
    rows = {photo.file: photo.row for photo in source.photos}
    chosen = np.linspace(0, len(tested.files) - 1, min(COMPARED, len(tested.files))).round().astype(int)
    if lost := [tested.files[place] for place in chosen if tested.files[place] not in rows]:
        raise DataError(f"the test photo '{lost[0]}' is no longer in '{dataset['name']}'; restore it and publish again")
    images = [source.images[rows[tested.files[place]]]["image"] for place in chosen]
    return [decode_photo(image["bytes"] or image["path"]) for image in images], tested.logits[chosen]


@full_precision()
def check_answers(
    results: dict[str, Any],
    repo_id: str,
    commit: str,
    served: Path,
    cache: Path,
    photos: tuple[list[Image.Image], np.ndarray],
) -> None:
    """Load the published model in every way that the card shows and compare its logits with those of the test.

    Raises `PublishError` for the first one that differs.
    """
    pictures, tested = photos
    labels, base = results["dataset"]["labels"], results["base_model"]
    classifier = pipeline(
        "image-classification", model=repo_id, revision=commit, model_kwargs={"cache_dir": str(cache)}, device="cpu"
    )
    answers = [classifier(picture, top_k=len(labels), function_to_apply="none") for picture in pictures]
    by_name = [{answer["label"]: answer["score"] for answer in of} for of in answers]
    if {frozenset(of) for of in by_name} != {frozenset(labels)}:
        raise PublishError(f"the pipeline on {repo_id} has other labels than the run: {sorted(by_name[0])}")
    _check_logits("the pipeline", tested, np.array([[of[label] for label in labels] for of in by_name]))

    processor = load_processor(str(served), None, None)
    mean, std = processor.normalization
    pixels = (torch.stack([processor.pixels(picture) for picture in pictures]).float() - mean) / std
    model = AutoModelForImageClassification.from_pretrained(
        repo_id, revision=commit, cache_dir=str(cache), dtype=torch.float32, use_safetensors=True
    )
    models = {"AutoModelForImageClassification": model.eval()}
    if (served / "adapter").is_dir() and base["revision"] is not None:
        models["the adapter on its base"] = load_adapter(served / "adapter", base, processor)
    for way, model in models.items():
        with torch.inference_mode():
            _check_logits(way, tested, model(pixel_values=pixels).logits.numpy())
    if (served / "onnx/model.onnx").is_file():
        session = onnxruntime.InferenceSession(served / "onnx/model.onnx", providers=["CPUExecutionProvider"])
        _check_logits("ONNX Runtime", tested, session.run(["logits"], {"pixel_values": pixels.numpy()})[0])


def _check_logits(way: str, tested: np.ndarray, found: np.ndarray) -> None:
    difference = float(np.abs(tested - found).max())
    if difference > LOGIT_TOLERANCE * max(1.0, float(np.abs(tested).max())):
        raise PublishError(
            f"{way}: the logits differ from those of the tested model by {difference:.3g}; do not use it"
        )
