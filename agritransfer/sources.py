"""What does a data set hold? Photos and label names, before they are split.

Folders are listed and labelled here, not by `datasets.load_dataset("imagefolder")`, which guesses splits from any word
of a path and merges `Tomato/healthy` with `Corn/healthy`. Data sets of the Hub come through `datasets`.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import huggingface_hub
from huggingface_hub.utils import httpx

from agritransfer.errors import DataError, UsageError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".mpo", ".heic", ".heif"}
PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth"}
TABLE_FILES = ["*.parquet", "*.arrow", "*.md", "*.json"]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Photo:
    """One photo: its row among the images, its name in the data set, label name, split ("" before the cut), group."""

    row: int
    file: str
    label: str
    split: str
    group: str = ""


@dataclass(frozen=True)
class Source:
    """What a data set holds before it is split: `images` has the column `image` (path or bytes, not decoded)."""

    images: datasets.Dataset
    photos: list[Photo]
    labels: list[str]
    revision: str | None = None
    left_out: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()


def read_source(
    name: str,
    *,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    group_pattern: str | None = None,
) -> Source:
    """List the photos and labels of a folder or of a Hub data set.

    Raises `UsageError` when there is none of that name and `DataError` when it cannot be read safely.
    """
    source = _read(name, revision, image_column, label_column, group_column)
    if group_pattern is None:
        return source
    return replace(source, photos=_group_by_pattern(source.photos, group_pattern))


def _group_by_pattern(photos: list[Photo], group_pattern: str) -> list[Photo]:
    try:
        pattern = re.compile(group_pattern)
    except re.error as error:
        raise UsageError(f"--group_pattern '{group_pattern}' is no regular expression: {error}") from error
    found = [pattern.search(photo.file) for photo in photos]
    if not any(found):
        raise UsageError(f"--group_pattern '{group_pattern}' matches no photo, such as '{photos[0].file}'")
    # What stands in the pattern's parentheses names the group; without them all that it matched does.
    names = [match and (match.group(1) if pattern.groups else match.group()) for match in found]
    return [replace(photo, group=name or photo.group) for photo, name in zip(photos, names, strict=True)]


def _read(
    name: str, revision: str | None, image_column: str | None, label_column: str | None, group_column: str | None
) -> Source:
    folder = Path(name)
    if folder.is_dir():
        return _read_folder(folder, group_column)
    if folder.suffix.lower() in PICKLE_SUFFIXES:
        raise DataError(f"'{name}' is a pickle, which can run code when it is read; use a folder of photos or parquet")
    if folder.exists() or not HUB_ID.fullmatch(name):
        raise UsageError(f"'{name}' is neither a folder nor a Hub id such as user/photos; try sample/leaves")
    return _read_hub(name, revision, image_column, label_column, group_column)


def _read_folder(folder: Path, group_column: str | None) -> Source:
    # Path.rglob would pass over class folders that are links, which they often are on a cluster.
    walked = list(os.walk(folder, followlinks=True))
    files = sorted(Path(parent, file) for parent, _, files in walked for file in files)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    pictures = {name: path for name, path in names.items() if _is_photo(name)}
    if not pictures:
        raise DataError(f"'{folder}' holds no photos; it needs class folders such as {folder}/healthy/leaf.jpg")
    if "metadata.csv" in names:
        rows, without_row = _rows_of_metadata(names["metadata.csv"], pictures, group_column)
        empty = []
    elif group_column is not None:
        raise UsageError(f"'{folder}' has no metadata.csv to hold --group_column_name; use --group_pattern")
    else:
        rows, without_row = _rows_of_folders(folder, pictures), []
        empty = [
            Path(parent).relative_to(folder).as_posix() for parent, folders, files in walked if not folders + files
        ]
    others = [
        name for name in names if name not in pictures and name != "metadata.csv" and not name.startswith(".git/")
    ]
    left_out = [f"{name} (not in metadata.csv)" for name in without_row] + [f"{name} (not a photo)" for name in others]
    images = [{"path": str(pictures[row["file"]]), "bytes": None} for row in rows]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return Source(
        datasets.Dataset.from_dict({"image": images}, features=features),
        [Photo(row=i, **row) for i, row in enumerate(rows)],
        sorted({row["label"] for row in rows}),
        left_out=tuple(left_out),
        empty_classes=_classes_without_photos(empty, {row["label"] for row in rows}),
    )


def _classes_without_photos(empty_folders: list[str], labels: set[str]) -> tuple[str, ...]:
    # A class that lacks photos in one split only is not without photos; a split folder is no class.
    classes = {name.split("/", 1)[-1] if name.split("/")[0].lower() in SPLIT_NAMES else name for name in empty_folders}
    return tuple(sorted(name for name in classes - labels if name.lower() not in SPLIT_NAMES and name[0] != "."))


def _is_photo(name: str) -> bool:
    # Finder leaves ._leaf.jpg files that hold no picture, Jupyter leaves copies in .ipynb_checkpoints.
    return Path(name).suffix.lower() in PHOTO_SUFFIXES and not any(part.startswith(".") for part in name.split("/"))


def _rows_of_folders(folder: Path, pictures: dict[str, Path]) -> list[dict[str, str]]:
    tops = {name.split("/")[0] for name in pictures if "/" in name}
    split_of = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    # A class may be called `test`; only where every folder is a split are they splits.
    others = sorted(tops - set(split_of))
    if others and len(set(split_of.values())) > 1:
        raise DataError(f"'{folder}' has the splits {sorted(split_of)} beside other folders: {others}; move those out")
    if others:
        split_of = {}
    if len(set(split_of.values())) < len(split_of):
        raise DataError(f"'{folder}' has two folders for one split: {sorted(split_of)}; merge or rename them")
    rows = []
    for name in pictures:
        parts = name.split("/")
        split = split_of.get(parts[0], "")
        label = "/".join(parts[1:-1] if split else parts[:-1])
        if not label:
            raise DataError(f"'{name}' lies outside of any class folder; move it to {folder}/CLASS/")
        rows.append({"file": name, "label": label, "split": split})
    return rows


def _rows_of_metadata(
    path: Path, pictures: dict[str, Path], group_column: str | None
) -> tuple[list[dict[str, str]], list[str]]:
    table = read_table(path, ["file_name", "label"])
    if group_column is not None and group_column not in table[0]:
        raise UsageError(f"'{path}' has no column '{group_column}' for --group_column_name; it has {list(table[0])}")
    group_column = group_column or "group"
    if absent := [row["file_name"] for row in table if row["file_name"] not in pictures]:
        raise DataError(f"'{path}' names {len(absent)} photos that are not there, such as '{absent[0]}'")
    if unlabelled := [row["file_name"] for row in table if not row["label"]]:
        raise DataError(f"'{path}' gives no label to {len(unlabelled)} photos, such as '{unlabelled[0]}'")
    if repeated := [name for name, times in Counter(row["file_name"] for row in table).items() if times > 1]:
        raise DataError(f"'{path}' names {len(repeated)} photos more than once, such as '{repeated[0]}'")
    rows = []
    for row in table:
        split = (row.get("split") or "").strip().lower()
        if split and split not in SPLIT_NAMES:
            raise DataError(f"'{path}' has the split '{row['split']}'; allowed are train, validation and test")
        split = SPLIT_NAMES.get(split, "")
        rows.append(
            {"file": row["file_name"], "label": row["label"], "split": split, "group": row.get(group_column) or ""}
        )
    if len({row["split"] for row in rows}) > 1 and any(not row["split"] for row in rows):
        raise DataError(f"'{path}' gives a split to some photos only; give one to every photo or to none")
    return rows, sorted(set(pictures) - {row["file"] for row in rows})


def read_table(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least these columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8; save it again as CSV UTF-8") from error
    if not table or not set(columns) <= set(table[0]):
        raise DataError(f"'{path}' needs the columns {','.join(columns)}; others may be there too, such as split,group")
    return table


def _read_hub(
    name: str, revision: str | None, image_column: str | None, label_column: str | None, group_column: str | None
) -> Source:
    what, wanted = f"the Hub data set '{name}'", None
    # Offline it is the folder of an earlier download, such as that of --download_only.
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
        # Without tables the repository is a folder of photos, with the traps of any folder.
        source = _read_folder(folder, group_column)
    # The cache names a snapshot after its commit.
    return replace(source, revision=folder.name)


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what the Hub's clients may raise into a `UsageError` of one line."""
    # ValueError: a name that no Hub id can have, or a data set of several configurations.
    try:
        yield
    except (httpx.HTTPError, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"{what} could not be read: {in_one_line(error)}; check the name and HF_TOKEN") from error


def in_one_line(error: Exception) -> str:
    """What a library complained of, for a message of one line."""
    # Of the Hub's many lines the second says what was not found.
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def refuse_code(name: str, files: Sequence[str]) -> None:
    """Raise `DataError` for a Hub data set that could run code here."""
    script = name.split("/")[-1] + ".py"
    if script in files:
        raise DataError(f"'{name}' is a loading script ({script}), which would run its code here; use a parquet copy")
    if pickles := [file for file in files if Path(file).suffix.lower() in PICKLE_SUFFIXES]:
        raise DataError(
            f"'{name}' holds the pickle {pickles[0]}, which can run code when it is read; use a parquet copy"
        )


def source_of_tables(
    name: str,
    loaded: datasets.DatasetDict,
    image_column: str | None,
    label_column: str | None,
    group_column: str | None,
) -> Source:
    """The photos of a data set of tables, whose keys are its splits."""
    features = next(iter(loaded.values())).features
    image_column, label_column = pick_columns(name, features, image_column, label_column)
    if group_column is not None:
        group_column = _pick_column(name, "group", group_column, [], list(features))
    names = features[label_column].names if isinstance(features[label_column], datasets.ClassLabel) else None
    photos, tables, left_out = [], [], []
    for key, table in loaded.items():
        if key.lower() not in SPLIT_NAMES and len(loaded) > 1:
            left_out.append(f"the split '{key}' ({len(table)} photos)")
            continue
        split = SPLIT_NAMES.get(key.lower(), "") if len(loaded) > 1 else ""
        first_row = sum(map(len, tables))
        labelled = [(i, label) for i, label in enumerate(table[label_column]) if label is not None and label != -1]
        groups = table[group_column] if group_column else [None] * len(table)
        for i, label in labelled:
            label = names[label] if names else str(label)
            group = "" if groups[i] is None else str(groups[i])
            photos.append(Photo(first_row + i, f"{key}/{i:06d}", label, split, group))
        # The Hub's word for a secret label is -1, which Python would take for the last class.
        if without_label := len(table) - len(labelled):
            left_out.append(f"{without_label} photos of the split '{key}', without a label")
        table = table.select_columns([image_column])
        # `datasets` refuses to give a column the name that it has.
        tables.append(table if image_column == "image" else table.rename_column(image_column, "image"))
    if not photos:
        raise DataError(f"'{name}' has no labelled photos in a train, validation or test split: {left_out}")
    images = datasets.concatenate_datasets(tables).cast_column("image", datasets.Image(decode=False))
    used = {photo.label for photo in photos}
    labels = [label for label in names if label in used] if names else sorted(used)
    return Source(images, photos, labels, left_out=tuple(left_out))


def pick_columns(
    name: str, features: datasets.Features, image_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """The columns of the photos and of their labels; found where there is only one candidate."""
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
