"""Which reader reads this dataset?"""

import re
from dataclasses import replace
from pathlib import Path

from agritransfer.data.readers.folder import read_folder
from agritransfer.data.readers.kind import (
    contents_of,
    refuse_address,
    refuse_archive,
    refuse_archives,
    refuse_config,
)
from agritransfer.data.readers.label_files import is_label_file, read_label_file
from agritransfer.data.readers.source import HUB_ID, PICKLE_SUFFIXES, Columns, Photo, Source
from agritransfer.data.readers.walk import find_files
from agritransfer.errors import DataError, UsageError


def read_source(
    name: str,
    *,
    revision: str | None = None,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    group_pattern: str | None = None,
) -> Source:
    """List the photos and labels of a folder, a parquet file or a Hub dataset; `config` chooses its configuration.

    Raises `UsageError` if there is no dataset of that name and `DataError` if it cannot be read safely.
    """
    source = _read(name, revision, config, Columns(image_column, label_column, group_column))
    if group_pattern is None:
        return source
    return replace(source, photos=_group_by_pattern(source.photos, group_pattern))


def _group_by_pattern(photos: list[Photo], group_pattern: str) -> list[Photo]:
    try:
        pattern = re.compile(group_pattern)
    except re.error as error:
        raise UsageError(
            f"--group_pattern '{group_pattern}' is not a valid regular expression ({error}); correct it"
        ) from error
    found = [pattern.search(photo.file) for photo in photos]
    if not any(found):
        raise UsageError(
            f"--group_pattern '{group_pattern}' matches none of the file names, such as '{photos[0].file}'; change it"
        )
    # The first pair of parentheses captures the name of the group; without one, the whole match is the name.
    names = [match and (match.group(1) if pattern.groups else match.group()) for match in found]
    return [replace(photo, group=name or photo.group) for photo, name in zip(photos, names, strict=True)]


def _read(name: str, revision: str | None, config: str | None, columns: Columns) -> Source:
    path = Path(name)
    # The readers of tables of photos are imported where they are needed: `datasets` takes longer to import than a small
    # folder takes to audit.
    if path.is_dir():
        return _read_folder(name, path, config, columns)
    if path.is_file() and is_label_file(path, columns.image):
        refuse_config(name, config)
        return read_label_file(path, columns)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise DataError(f"'{name}' is a pickle, which can run code when it is read; use a folder of photos or parquet")
    if path.is_file():
        refuse_archive(path)
    if path.is_file() and path.suffix.lower() == ".parquet":
        from agritransfer.data.readers.parquet import read_parquet_file

        refuse_config(name, config)
        return read_parquet_file(path, columns)
    refuse_address(name)
    if path.exists() or not HUB_ID.fullmatch(name):
        raise UsageError(f"'{name}' is neither a folder nor a Hub id such as user/photos; try sample/leaves")
    from agritransfer.data.readers.hub import read_hub

    return read_hub(name, revision, config, columns)


def _read_folder(name: str, folder: Path, config: str | None, columns: Columns) -> Source:
    found = find_files(folder)
    contents = contents_of([*found.photos, *found.unread, *found.others])
    refuse_archives(name, contents)
    if contents.saved:
        from agritransfer.data.readers.saved import read_saved

        refuse_config(name, config)
        return read_saved(name, folder, columns)
    if contents.tables:
        from agritransfer.data.readers.parquet import holds_images, read_parquet_folder

        with_images = next((file for file in contents.tables if holds_images(found.others[file])), None)
        if with_images is not None and contents.photos:
            raise DataError(
                f"'{name}' holds both photos ({len(contents.photos)}, such as {contents.photos[0]}) and a table of "
                f"photos ({with_images}); move one of the two to a folder of its own"
            )
        if with_images is not None or not contents.photos:
            return read_parquet_folder(name, folder, config, columns)
    refuse_config(name, config)
    return read_folder(folder, found, columns)
