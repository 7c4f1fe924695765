"""Which photos do the files, folders and patterns of a command line name?"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from agritransfer.data.readers.walk import FoundFiles, find_files, is_hidden
from agritransfer.errors import UsageError
from agritransfer.wording import escaped, unescaped

# Entries of a kind that are named when they are passed over; all are counted.
NAMED = 3


@dataclass
class GivenPhotos:
    """The photos that were named, in that order, and what was passed over, with its reason, by `escaped` path.

    `reasons` has "" for each photo that is to be decoded, and why not for the others.
    """

    reasons: dict[Path, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)

    def passed_over_lines(self) -> list[str]:
        """A line for each reason, with its number of entries and the first names."""
        named: dict[str, list[str]] = {}
        for name, reason in self.passed_over.items():
            kind, _, details = reason.partition(", ")
            named.setdefault(kind, []).append(f"{name} ({details})" if details else name)
        return [
            f"passed over, {kind}: {len(names):,} ({', '.join(names[:NAMED])}{', ...' if names[NAMED:] else ''})"
            for kind, names in sorted(named.items())
        ]


def find_given(names: Sequence[str]) -> GivenPhotos:
    """The photos of these files, folders and patterns, each once.

    A file given by its own name is always a photo; folders are listed as for an audit, and so are the matches of
    patterns. Raises `UsageError` for a name without any photo and `DataError` for a folder that cannot be read.
    """
    given = GivenPhotos()
    place_of_folder = cache(os.path.realpath)
    seen = set()
    for name in names:
        found = _found_at(name)
        if not found.reasons:
            passed = "".join(f"; {line}" for line in found.passed_over_lines())
            raise UsageError(
                f"no photo at '{escaped(name)}'{passed}; give files, folders with photos, or a pattern in quotes"
            )
        given.passed_over |= found.passed_over
        for path, reason in found.reasons.items():
            # A folder may be given by several paths, and by links.
            place = (place_of_folder(path.parent), path.name)
            if place in seen:
                given.passed_over[written(path)] = "given more than once"
            else:
                seen.add(place)
                given.reasons[path] = reason
    return given


def written(path: Path) -> str:
    """A path in printable UTF-8, with slashes; `unescaped` reverses it."""
    return escaped(path.as_posix())


def _found_at(name: str) -> GivenPhotos:
    path = Path(name)
    # An empty name would be the current folder.
    if not name.strip():
        return GivenPhotos()
    if os.path.isdir(name):
        return _in_folder(path)
    if os.path.lexists(name):
        return GivenPhotos({path: _fault(path)})
    return _matches_of(path)


def _fault(path: Path) -> str:
    if not os.path.exists(path):
        return "a link to a missing file"
    return "" if os.path.isfile(path) else "not a regular file"


def _in_folder(folder: Path, pattern: Sequence[str] = ()) -> GivenPhotos:
    """The photos of a folder; with a pattern, those whose path inside it matches."""
    found = find_files(folder)
    given = _given(found, folder)
    if not pattern:
        return given

    def matches(path: Path) -> bool:
        return _matches(path.relative_to(folder).parts, pattern)

    passed_over = {
        name: reason
        for name, reason in given.passed_over.items()
        # Something in a folder that is passed over may match.
        if matches(path := Path(unescaped(name))) or path.is_dir()
    }
    return GivenPhotos({path: reason for path, reason in given.reasons.items() if matches(path)}, passed_over)


def _given(found: FoundFiles, folder: Path) -> GivenPhotos:
    reasons = {path: _fault(path) if path.is_symlink() else "" for path in found.photos.values()}
    reasons |= {folder / unescaped(name): reason for name, reason in found.unread.items()}
    skipped = found.skipped | dict.fromkeys(found.others, "not a photo")
    return GivenPhotos(
        dict(sorted(reasons.items())), {written(folder / unescaped(name)): why for name, why in skipped.items()}
    )


def _matches_of(pattern: Path) -> GivenPhotos:
    """The photos that match a pattern, and all photos of the folders that do."""
    base, parts = _literal_part(pattern)
    depth = parts.index("**") if "**" in parts else len(parts)
    given = GivenPhotos()
    # `glob` would follow a loop of links for ever at `**`, and lists hidden files only when asked.
    for match in sorted(glob.glob(os.path.join(glob.escape(str(base)), *parts[:depth]), include_hidden=True)):
        path = Path(match)
        if hidden := [part for part in path.relative_to(base).parts[:-1] if is_hidden(part)]:
            found = GivenPhotos(passed_over={written(path): f"in {escaped(hidden[0])}"})
        elif os.path.isdir(path) and not is_hidden(path.name):
            found = _in_folder(path, parts[depth:])
        else:
            alone = FoundFiles()
            alone.add(path, written(path), os.path.isfile(path))
            found = _given(alone, Path())
        given.reasons |= found.reasons
        given.passed_over |= found.passed_over
    return given


def _literal_part(pattern: Path) -> tuple[Path, list[str]]:
    """The longest beginning of a pattern that is an existing folder, whose name may have brackets, and the rest."""
    folder, parts = Path(pattern.anchor), list(pattern.parts[bool(pattern.anchor) :])
    while parts and os.path.isdir(folder / parts[0]):
        folder /= parts.pop(0)
    return folder, parts


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path or one of its folders matches a pattern, part by part; `**` is any number of folders."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
