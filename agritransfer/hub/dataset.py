"""How is a photo dataset published so that others can train on exactly the same photos?

It is published as Parquet with its splits and labels. The bytes of the photos do not change, so a run on the Hub
dataset has the same fingerprint as a run on the folder.
"""

import math
import tempfile
from collections import Counter
from pathlib import Path

import datasets
import huggingface_hub
from huggingface_hub import DatasetCard, DatasetCardData
from tqdm import tqdm

from agritransfer.data.dataset import SPLITS, Splits, load_splits
from agritransfer.data.readers.labels import refuse_odd_names
from agritransfer.errors import DataError, PublishError, UsageError
from agritransfer.evaluation.report import markdown_table
from agritransfer.hub.client import download, last_part, patient_client, tag_commit, upload
from agritransfer.wording import as_code, counted, in_markdown

TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
# Photos per file; a reader holds one file in memory at a time.
SHARD = 2000


def publish_dataset(
    splits: Splits, repo_id: str, licence: str | None, private: bool, replace: bool = False
) -> dict[str, str]:
    """Upload the photos of these splits, download and compare them; returns {url, commit, tag, fingerprint}.

    Raises `DataError` if photos with GPS coordinates would be public and `PublishError` if the Hub does not serve the
    same photos.
    """
    # Before the upload: as a table, these labels would not be read again.
    refuse_odd_names(splits.name, splits.labels)
    placed = [note for note in splits.warnings if "GPS" in note]
    if placed and not private:
        raise DataError(f"{placed[0]}; or publish to a private repository")
    api = huggingface_hub.HfApi()
    with patient_client(), tempfile.TemporaryDirectory() as parent:
        export = Path(parent) / "export"
        write_parquet(splits, export)
        (export / "README.md").write_text(str(dataset_card(splits, repo_id, licence)), encoding="utf-8")
        message = counted(len(splits.photos), "photo")
        commit = upload(api, export, repo_id, message, kind="dataset", replace=replace)
        download(api, repo_id, commit, export, Path(parent) / "cache", kind="dataset")
        served = _fingerprint_of(repo_id, commit)
        if served != splits.fingerprint:
            raise PublishError(f"'{repo_id}' on the Hub holds other photos or labels than this dataset; do not use it")
        return {
            "url": f"{huggingface_hub.constants.ENDPOINT}/datasets/{repo_id}",
            "commit": commit,
            "tag": tag_commit(api, repo_id, commit, kind="dataset"),
            "fingerprint": served,
        }


def _fingerprint_of(repo_id: str, commit: str) -> str:
    try:
        return load_splits(repo_id, revision=commit, on_leakage="keep").fingerprint
    except (UsageError, DataError) as error:
        raise PublishError(f"the uploaded dataset cannot be read ({error})") from error


def write_parquet(splits: Splits, folder: Path) -> None:
    """Write `data/SPLIT-00000-of-00001.parquet` with the columns image, label, file and, if there are groups, group."""
    with_groups = any(photo.group for photo in splits.photos)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=splits.labels),
            "file": datasets.Value("string"),
            **({"group": datasets.Value("string")} if with_groups else {}),
        }
    )
    (folder / "data").mkdir(parents=True)
    bar = tqdm(total=len(splits.photos), desc="packing photos", delay=2, leave=False, disable=None)
    for split in SPLITS:
        photos = splits.of(split)
        for number, name in enumerate(_shard_names(splits, split)):
            part = photos[number * SHARD : (number + 1) * SHARD]
            images = [splits.images[photo.row]["image"] for photo in part]
            rows = {
                "image": [
                    {"bytes": image["bytes"] or Path(image["path"]).read_bytes(), "path": None} for image in images
                ],
                "label": [photo.label for photo in part],
                "file": [photo.file for photo in part],
                **({"group": [photo.group for photo in part]} if with_groups else {}),
            }
            datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / name)
            bar.update(len(part))
    bar.close()


def _shard_names(splits: Splits, split: str) -> list[str]:
    count = math.ceil(len(splits.of(split)) / SHARD)
    return [f"data/{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def dataset_card(splits: Splits, repo_id: str, licence: str | None) -> DatasetCard:
    """The card of a published dataset: counts, splits, audit."""
    number, labels = len(splits.photos), ", ".join(map(in_markdown, splits.labels[:40]))
    size = SIZES[min(max(len(str(number)) - 3, 0), len(SIZES) - 1)]
    card_data = DatasetCardData(
        pretty_name=repo_id.split("/")[-1],
        task_categories=["image-classification"],
        tags=["agriculture", "agritransfer"],
        size_categories=[size],
        license=licence,
        configs=[
            {
                "config_name": "default",
                # By name, so that a file of others in the repository is not read as ours.
                "data_files": [{"split": split, "path": _shard_names(splits, split)} for split in SPLITS],
            }
        ],
    )
    return DatasetCard.from_template(
        card_data=card_data,
        template_path=str(TEMPLATE),
        title=repo_id.split("/")[-1],
        repo_id=repo_id,
        summary=f"{number:,} photos of {len(splits.labels)} classes: {labels}.",
        counts=_counts(splits),
        cut=_cut(splits),
        audit=_audit(splits),
        fingerprint=splits.fingerprint,
        licence=f"{licence}." if licence else "No license was chosen; ask the publisher before you use this dataset.",
    )


def _counts(splits: Splits) -> str:
    count = Counter((photo.split, photo.label) for photo in splits.photos)
    rows = [[in_markdown(label), *(f"{count[split, label]:,}" for split in SPLITS)] for label in splits.labels]
    return markdown_table(["photos", *SPLITS], rows)


def _cut(splits: Splits) -> str:
    name = as_code(last_part(splits.name))
    if splits.method == "official":
        return f"The splits are the official ones of {name}."
    kept = "; copies of a photo and given groups are never divided" if splits.method == "group" else ""
    return f"{name} was split by class with seed {splits.seed}{kept}."


def _audit(splits: Splits) -> str:
    verb = "dropped" if splits.leaks_dropped else "kept"
    lines = [
        "Every photo was decoded and checked for copies, including mirrored, rotated, resized and re-encoded ones.",
        "",
        f"- broken photos, skipped: {len(splits.broken)}",
        f"- training photos that are also in the validation or test split, {verb}: {len(splits.leaked)}",
        *(f"- {in_markdown(warning)}" for warning in (*splits.notes, *splits.warnings)),
    ]
    return "\n".join(lines)
