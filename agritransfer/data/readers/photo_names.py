"""Which photo does a path in a table mean?

A path means a photo if it is its name in other words: with `./`, backslashes, surrounding blanks, or the other Unicode
form of an accent. Another case or another folder is only a near miss, which the refusal names.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from agritransfer.data.readers.source import PHOTO_SUFFIXES
from agritransfer.data.readers.table import is_one_line
from agritransfer.data.readers.walk import FoundFiles, unread_format
from agritransfer.errors import DataError
from agritransfer.wording import counted, escaped, listed


class PhotoNames:
    """The photos of a folder, and `unread`, its images in formats that are not decoded here, found by their paths."""

    def __init__(self, root: Path, photos: Iterable[str], unread: dict[str, str]):
        self.root = os.path.abspath(root)
        self.unread = unread
        self.names = {*photos, *unread}

    def find(self, path: str, base: str = "") -> str | None:
        """The photo that a path means, relative to the folder `base` of this folder; None if it means none."""
        if (name := f"{base}/{path}" if base else path) in self.names:
            return name
        if not is_one_line(path):
            return None
        for spelling in dict.fromkeys([path, path.strip(), path.strip().replace("\\", "/")]):
            name = self._name(spelling, base)
            for known in (name, escaped(name)) if "\\" in name else (name,):
                if known in self.names:
                    return known
        alike = self._by_form.get(_key(name, exact=True), [])
        return alike[0] if len(alike) == 1 else None

    def find_by_file(self, path: str) -> list[str]:
        """The photos with the file name of this path or URL; those of its folders as well, if several have the name."""
        path = file_part(path)
        for spelling in (path, unquote(path)):
            if alike := self._by_file.get(_key(PurePosixPath(spelling).name, exact=True), []):
                spelling = "/" + spelling.lstrip("/")
                within = [name for name in alike if spelling.endswith(f"/{name}") or f"/{name}".endswith(spelling)]
                return within or alike
        return []

    def near(self, path: str) -> str:
        """What the refusal of a missing photo adds, such as `; the folder has 'leaf.JPG'`."""
        name = unquote(path.strip().replace("\\", "/"))
        file = _key(os.path.basename(name))
        # Label Studio puts eight digits before the name of a photo that is uploaded; Kaggle's tables lack the suffix.
        keys = [self._by_key.get(_key(os.path.normpath(name))), self._by_key_of_file.get(file)]
        keys += [self._by_key_of_file.get(re.sub(r"^[0-9a-f]{8}-", "", file)), self._by_key_of_stem.get(file)]
        alike = next(filter(None, keys), None)
        return f"; the folder has '{alike[0]}'" if alike else ""

    def _name(self, path: str, base: str) -> str:
        full = os.path.normpath(os.path.join(self.root, base, path))
        return full.removeprefix(self.root.rstrip(os.sep) + os.sep)

    def _index(self, key) -> dict[str, list[str]]:
        index = defaultdict(list)
        for name in sorted(self.names):
            index[key(name)].append(name)
        return index

    @cached_property
    def _by_form(self) -> dict[str, list[str]]:
        return self._index(lambda name: _key(name, exact=True))

    @cached_property
    def _by_file(self) -> dict[str, list[str]]:
        return self._index(lambda name: _key(name.rsplit("/")[-1], exact=True))

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        return self._index(_key)

    @cached_property
    def _by_key_of_file(self) -> dict[str, list[str]]:
        return self._index(lambda name: _key(name.rsplit("/")[-1]))

    @cached_property
    def _by_key_of_stem(self) -> dict[str, list[str]]:
        return self._index(lambda name: _key(PurePosixPath(name).stem))


def names_beside(table: Path, paths: Iterable[str]) -> tuple[PhotoNames, dict[str, Path]]:
    """The photos in the folders that the paths of a table on this machine name, which need not be below the table."""
    root = Path(os.path.abspath(table.parent))
    folders = {os.path.dirname(os.path.normpath(root / path.strip().replace("\\", "/"))) for path in paths}
    found = FoundFiles()
    for folder in sorted(filter(os.path.isdir, folders)):
        for path in _files_in(folder):
            name = escaped(os.path.relpath(path, root) if path.is_relative_to(root) else str(path))
            if path.suffix.lower() in PHOTO_SUFFIXES:
                found.photos[name] = path
            elif reason := unread_format(path):
                found.unread[name] = reason
    return PhotoNames(root, found.photos, found.unread), found.photos


def refuse_missing(table: Path, absent: list[tuple[str, str]], names: PhotoNames) -> None:
    """Raise `DataError` if there are absent photos, each the place and the path in the table."""
    if not absent:
        return
    place, path = absent[0]
    hint = "; that file is hidden, elsewhere or no photo" if os.path.isfile(table.parent / path) else names.near(path)
    raise DataError(
        f"'{table}' lists {counted(len(absent), 'missing photo')}, such as {path!r:.120} ({place}){hint}; correct the "
        "paths, which are relative to the folder of the table, or remove these entries"
    )


def refuse_repeated(table: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Raise `DataError` if a photo occurs twice among the rows, each the photo, its label and its place."""
    places = defaultdict(list)
    for name, label, place in rows:
        places[name].append((label, place))
    if repeated := [name for name, found in places.items() if len(found) > 1]:
        found = [f"{place} as '{label}'" for label, place in places[repeated[0]]]
        raise DataError(
            f"'{table}' lists {counted(len(repeated), 'photo')} more than once, such as '{repeated[0]}' "
            f"({listed(found[:5])}); keep one row"
        )


def file_part(path: str) -> str:
    """The path of the file in a path or URL, such as that of an export of Label Studio."""
    path = path.strip().replace("\\", "/")
    try:
        parts = urlsplit(path)
    except ValueError:
        # Square brackets in a text that is no URL.
        return path
    # Label Studio serves a file of its own disk as /data/local-files/?d=FILE.
    if local := parse_qs(parts.query).get("d"):
        return local[0]
    return parts.path if parts.scheme or path.startswith("/data/") else path


def _key(name: str, exact: bool = False) -> str:
    name = unicodedata.normalize("NFC", name)
    return name if exact else name.casefold()


def _files_in(folder: str) -> list[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder '{folder}' cannot be read: {error.strerror}; correct its permissions") from error
    # A link to a missing file is a broken photo; a pipe would be waited for forever.
    return [Path(entry) for entry in entries if entry.is_file() or not os.path.exists(entry)]
