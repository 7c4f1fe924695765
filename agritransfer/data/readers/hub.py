"""Which photos and labels does a dataset on the Hub hold?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
from huggingface_hub.utils import httpx

from agritransfer.data.readers.folder import read_folder
from agritransfer.data.readers.metadata import Columns
from agritransfer.data.readers.source import PICKLE_SUFFIXES, SPLIT_NAMES, Photo, Source
from agritransfer.errors import DataError, UsageError, in_one_line
from agritransfer.wording import counted

TABLE_FILES = ["*.parquet", "*.arrow", "*.md", "*.json"]


def read_hub(
    name: str, revision: str | None, image_column: str | None, label_column: str | None, group_column: str | None
) -> Source:
    """The photos of a dataset on the Hub, read from its tables if it has any and otherwise as a folder of files."""
    what, wanted = f"the Hub dataset '{name}'", None
    # Offline, snapshot_download returns the folder of an earlier download, such as that of --download_only.
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        with hub_errors(what):
            info = huggingface_hub.HfApi().dataset_info(name, revision=revision)
        files = [file.rfilename for file in info.siblings]
        refuse_code(name, files)
        wanted = TABLE_FILES if any(file.endswith((".parquet", ".arrow")) for file in files) else None
    with hub_errors(what):
        folder = Path(
            huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted)
        )
    if any(folder.rglob("*.parquet")) or any(folder.rglob("*.arrow")):
        with hub_errors(what):
            loaded = datasets.load_dataset(str(folder))
        source = source_of_tables(name, loaded, image_column, label_column, group_column)
    else:
        # A repository without tables is a folder of photos like any other.
        source = read_folder(folder, Columns(image_column, label_column, group_column))
    # The cache names the folder of a snapshot after its commit.
    return replace(source, revision=folder.name)


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn the errors of the Hub's clients into a `UsageError` of one line."""
    # ValueError: an invalid Hub id, or a dataset with several configurations.
    try:
        yield
    except (httpx.HTTPError, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"{what} could not be read: {in_one_line(error)}; check the name and HF_TOKEN") from error


def refuse_code(name: str, files: Sequence[str]) -> None:
    """Raise `DataError` for a Hub dataset that could run code on this machine."""
    script = name.split("/")[-1] + ".py"
    if script in files:
        raise DataError(f"'{name}' has a loading script ({script}), which would run code here; use a parquet copy")
    if pickles := [file for file in files if Path(file).suffix.lower() in PICKLE_SUFFIXES]:
        raise DataError(
            f"'{name}' contains the pickle {pickles[0]}, which can run code when it is read; use a parquet copy"
        )


def source_of_tables(
    name: str,
    loaded: datasets.DatasetDict,
    image_column: str | None,
    label_column: str | None,
    group_column: str | None,
) -> Source:
    """The photos of a dataset of tables, one table per split."""
    features = next(iter(loaded.values())).features
    image_column, label_column = pick_columns(name, features, image_column, label_column)
    if group_column is not None:
        group_column = _pick_column(name, "group", group_column, [], list(features))
    names = features[label_column].names if isinstance(features[label_column], datasets.ClassLabel) else None
    photos, tables, left_out = [], [], []
    for key, table in loaded.items():
        if key.lower() not in SPLIT_NAMES and len(loaded) > 1:
            left_out.append(f"the split '{key}' ({counted(len(table), 'photo')})")
            continue
        split = SPLIT_NAMES.get(key.lower(), "") if len(loaded) > 1 else ""
        first_row = sum(map(len, tables))
        labelled = [(i, label) for i, label in enumerate(table[label_column]) if label is not None and label != -1]
        groups = table[group_column] if group_column else [None] * len(table)
        for i, label in labelled:
            label = names[label] if names else str(label)
            group = "" if groups[i] is None else str(groups[i])
            photos.append(Photo(first_row + i, f"{key}/{i:06d}", label, split, group))
        # The Hub marks a hidden label with -1, which Python would take for the last class.
        if without_label := len(table) - len(labelled):
            left_out.append(f"{counted(without_label, 'photo')} without a label in the split '{key}'")
        table = table.select_columns([image_column])
        # `datasets` refuses to rename a column to its own name.
        tables.append(table if image_column == "image" else table.rename_column(image_column, "image"))
    if not photos:
        raise DataError(f"'{name}' has no labeled photos in a train, validation or test split; left out: {left_out}")
    images = datasets.concatenate_datasets(tables).cast_column("image", datasets.Image(decode=False))
    used = {photo.label for photo in photos}
    labels = [label for label in names if label in used] if names else sorted(used)
    return Source(images, photos, labels, left_out=tuple(left_out))


def pick_columns(
    name: str, features: datasets.Features, image_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """The columns of the photos and the labels, found if there is only one candidate each."""
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    class_labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    by_name = [column for column in features if column in ("label", "labels")]
    return (
        _pick_column(name, "image", image_column, images, list(features)),
        _pick_column(name, "label", label_column, class_labels or by_name, list(features)),
    )


def _pick_column(name: str, role: str, chosen: str | None, candidates: list[str], columns: list[str]) -> str:
    if chosen is None and len(candidates) == 1:
        return candidates[0]
    if chosen is None:
        raise UsageError(f"'{name}' has {candidates or 'no'} {role} columns; name one with --{role}_column_name")
    if chosen not in columns:
        raise UsageError(f"'{name}' has no column '{chosen}' for --{role}_column_name; it has {columns}")
    return chosen
