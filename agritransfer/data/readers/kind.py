"""Does a path hold photos, tables of photos or archives?

Answered by file names alone, without `datasets`, which takes longer to import than a small folder takes to audit.
"""

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agritransfer.data.readers.source import PHOTO_SUFFIXES
from agritransfer.data.readers.walk import OTHER_FORMATS
from agritransfer.errors import UsageError
from agritransfer.wording import counted, escaped

# What unpacks the archive {0} into the folder {1}.
UNPACK = {
    ".zip": "unzip {0} -d {1}",
    **dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz"), "mkdir -p {1} && tar -xf {0} -C {1}"),
    ".7z": "7z x {0} -o{1}",
    ".rar": "unrar x {0} {1}/",
}
HUB_ADDRESS = re.compile(
    r"(?:https?://[^/]+/|hf://|hf\.co/|huggingface\.co/)?datasets/(?P<id>[\w.-]+/[\w.-]+)(?:[/?#@].*)?"
)
# What `Dataset.save_to_disk` writes beside the tables, and what `DatasetDict.save_to_disk` does.
SAVED = ({"state.json", "dataset_info.json"}, {"dataset_dict.json"})


@dataclass(frozen=True)
class Contents:
    """The files of a folder or repository by kind, as paths inside it."""

    photos: list[str]
    tables: list[str]
    archives: list[str]
    saved: bool


def contents_of(names: Iterable[str]) -> Contents:
    """Sort these paths by kind; hidden files and those in hidden folders are left out."""
    names = [name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts)]
    suffix_of = {name: PurePosixPath(name).suffix.lower() for name in names}
    return Contents(
        photos=[name for name, suffix in suffix_of.items() if suffix in PHOTO_SUFFIXES or suffix in OTHER_FORMATS],
        tables=[name for name, suffix in suffix_of.items() if suffix == ".parquet"],
        archives=[name for name, suffix in suffix_of.items() if suffix in UNPACK],
        saved=any(described <= suffix_of.keys() for described in SAVED),
    )


def files_in(folder: Path) -> list[str]:
    """The paths of all files of a folder, inside it, sorted."""
    found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def refuse_archive(path: Path) -> None:
    """Raise `UsageError` with the command that unpacks it if this file is an archive."""
    if (command := UNPACK.get(path.suffix.lower())) is None:
        return
    target = path.with_name(path.name.split(".")[0] or "photos")
    shards = "; if it is a WebDataset shard, give its folder with --streaming" if path.suffix.lower() == ".tar" else ""
    unpack = command.format(shlex.quote(str(path)), shlex.quote(str(target)))
    raise UsageError(
        f"'{escaped(str(path))}' is an archive; unpack it first: {unpack}, then --dataset_name "
        f"{shlex.quote(str(target))}{shards}"
    )


def refuse_archives(name: str, contents: Contents, fetch: str = "") -> None:
    """Raise `UsageError` if a folder or repository holds archives but no photos or tables.

    `fetch` is the command that downloads it.
    """
    if contents.photos or contents.tables or contents.saved or not contents.archives:
        return
    first = contents.archives[0]
    if all(file.lower().endswith(".tar") for file in contents.archives):
        remedy = "add --streaming if these are WebDataset shards, or unpack them"
    else:
        remedy = "unpack them"
    also = f" ({fetch})" if fetch else ""
    raise UsageError(
        f"'{name}' holds no photos or parquet files but {counted(len(contents.archives), 'archive')}, such as {first}; "
        f"{remedy}{also} and give the folder to --dataset_name"
    )


def refuse_address(name: str) -> None:
    """Raise `UsageError` with the Hub id if this is the address of a dataset's page."""
    if found := HUB_ADDRESS.match(name):
        raise UsageError(f"'{name}' is an address; give the Hub id: {found['id']}")


def refuse_config(name: str, config: str | None) -> None:
    """Raise `UsageError` if a configuration is asked of a dataset that can have none."""
    if config is not None:
        raise UsageError(
            f"'{name}' has no configurations, which only folders and Hub datasets of parquet files have; remove "
            "--dataset_config_name"
        )
