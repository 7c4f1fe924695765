"""Which photos and labels does a dataset on the Hub hold?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import huggingface_hub

from agritransfer.data.readers.folder import read_folder
from agritransfer.data.readers.kind import Contents, contents_of, files_in, refuse_archives, refuse_config
from agritransfer.data.readers.parquet import holds_images, read_parquet_folder
from agritransfer.data.readers.reading_errors import hub_errors
from agritransfer.data.readers.saved import DESCRIPTIONS, read_saved
from agritransfer.data.readers.source import PICKLE_SUFFIXES, Columns, Source
from agritransfer.data.readers.walk import find_files
from agritransfer.errors import DataError, UsageError

# Besides the tables: what says how they are read.
TABLE_FILES = ["*.parquet", "*.arrow", "*.md", "dataset_infos.json", *(f"*{name}" for name in DESCRIPTIONS)]


def read_hub(name: str, revision: str | None, config: str | None, columns: Columns) -> Source:
    """The photos of a dataset on the Hub, read from its tables if it has any and otherwise as a folder of files."""
    files = None
    # Offline, snapshot_download returns the folder of an earlier download, such as that of --download_only.
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        with hub_errors(name, revision):
            info = huggingface_hub.HfApi().dataset_info(name, revision=revision)
        files = [file.rfilename for file in info.siblings]
        refuse_code(name, files)
        _refuse_without_photos(name, contents_of(files))
    has_tables = files is not None and _has_tables(contents_of(files))
    folder = _download(name, revision, TABLE_FILES if has_tables else None)
    here = files_in(folder)
    contents = contents_of(here)
    if contents.saved:
        refuse_config(name, config)
        source = read_saved(name, folder, columns, files)
    elif any(holds_images(folder / file) for file in contents.tables):
        source = read_parquet_folder(name, folder, config, columns, files)
    elif contents.photos or contents_of(files or []).photos:
        refuse_config(name, config)
        # A repository without tables of photos is a folder of photos like any other.
        whole = _download(name, revision, None) if has_tables else folder
        source = read_folder(whole, find_files(whole), columns)
    else:
        source = read_parquet_folder(name, folder, config, columns, files)
    # The cache names the folder of a snapshot after its commit.
    return replace(source, revision=folder.name)


def _has_tables(contents: Contents) -> bool:
    return bool(contents.tables) or contents.saved


def _download(name: str, revision: str | None, wanted: list[str] | None) -> Path:
    with hub_errors(name, revision):
        return Path(
            huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted)
        )


def refuse_code(name: str, files: Sequence[str]) -> None:
    """Raise `DataError` for a Hub dataset that could run code on this machine."""
    script = name.split("/")[-1] + ".py"
    if script in files:
        raise DataError(f"'{name}' has a loading script ({script}), which would run code here; use a parquet copy")
    if pickles := [file for file in files if Path(file).suffix.lower() in PICKLE_SUFFIXES]:
        raise DataError(
            f"'{name}' contains the pickle {pickles[0]}, which can run code when it is read; use a parquet copy"
        )


def _refuse_without_photos(name: str, contents: Contents) -> None:
    if contents.photos or _has_tables(contents):
        return
    folder = name.split("/")[-1]
    refuse_archives(name, contents, fetch=f"hf download {name} --repo-type dataset --local-dir {folder}")
    raise UsageError(
        f"the Hub dataset '{name}' holds no photos, parquet files or saved dataset; look at "
        f"{huggingface_hub.constants.ENDPOINT}/datasets/{name}/tree/main"
    )
