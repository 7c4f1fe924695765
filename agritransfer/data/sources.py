"""Which reader reads this dataset?"""

import re
from dataclasses import replace
from pathlib import Path

from agritransfer.data.readers.folder import read_folder
from agritransfer.data.readers.label_files import is_label_file, read_label_file
from agritransfer.data.readers.metadata import Columns
from agritransfer.data.readers.source import HUB_ID, PICKLE_SUFFIXES, Photo, Source
from agritransfer.errors import DataError, UsageError


def read_source(
    name: str,
    *,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    group_pattern: str | None = None,
) -> Source:
    """List the photos and labels of a folder or of a Hub dataset.

    Raises `UsageError` if there is no dataset of that name and `DataError` if it cannot be read safely.
    """
    source = _read(name, revision, image_column, label_column, group_column)
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


def _read(
    name: str, revision: str | None, image_column: str | None, label_column: str | None, group_column: str | None
) -> Source:
    folder, columns = Path(name), Columns(image_column, label_column, group_column)
    if folder.is_dir():
        return read_folder(folder, columns)
    if folder.is_file() and is_label_file(folder, image_column):
        return read_label_file(folder, columns)
    if folder.suffix.lower() in PICKLE_SUFFIXES:
        raise DataError(f"'{name}' is a pickle, which can run code when it is read; use a folder of photos or parquet")
    if folder.exists() or not HUB_ID.fullmatch(name):
        raise UsageError(f"'{name}' is neither a folder nor a Hub id such as user/photos; try sample/leaves")
    # Imported here, since `datasets` takes longer to import than a small folder takes to audit.
    from agritransfer.data.readers.hub import read_hub

    return read_hub(name, revision, image_column, label_column, group_column)
