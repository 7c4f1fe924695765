"""Which files of a folder are photos, and which are passed over, and why?

Every command lists a folder by these rules. Each file is in exactly one of the lists, so their lengths add up.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from agritransfer.data.readers.source import PHOTO_SUFFIXES
from agritransfer.errors import DataError
from agritransfer.wording import counted, escaped

# Image formats that are not decoded here; such a file is meant as a photo, and its owner must know.
OTHER_FORMATS = {
    **{f".{name}": name.upper() for name in ("gif", "avif", "jxl", "jp2", "svg", "psd", "exr", "hdr", "tga", "ppm")},
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"), "raw"),
}
# Folders that archives, file servers and file systems add; folders with a leading dot are hidden.
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}


@dataclass
class FoundFiles:
    """The files of a folder by name, which is the path inside the folder, as `escaped` writes it.

    `unread` are images in formats that are not decoded here, with the reason; `passed_over` are lines such as
    `.git (hidden, 12 files)`; `empty_folders` have neither files nor folders.
    """

    photos: dict[str, Path] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    others: dict[str, Path] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)
    empty_folders: list[str] = field(default_factory=list)


def find_files(folder: Path) -> FoundFiles:
    """List a folder and all folders in it, sorted by name; raises `DataError` for a folder that cannot be read.

    Links to folders are followed after the folders themselves have been listed, and no folder is listed twice, so a
    link into the same tree is passed over.
    """
    found, listed, links = FoundFiles(), set(), [folder]
    while links:
        link = links.pop(0)
        if os.path.realpath(link) in listed:
            found.passed_over.append(f"{_name(link, folder)} (a link to a folder that is listed already)")
        else:
            _list(link, folder, found, listed, links)
    for files in (found.photos, found.unread, found.others):
        ordered = sorted(files.items())
        files.clear()
        files.update(ordered)
    return found


def unread_format(path: Path) -> str | None:
    """Why an image of this suffix is not decoded, or None."""
    kind = OTHER_FORMATS.get(path.suffix.lower())
    return kind and f"{kind} is not read here; convert it to JPEG or PNG"


def _list(parent: Path, root: Path, found: FoundFiles, listed: set[str], links: list[Path]) -> None:
    listed.add(os.path.realpath(parent))
    try:
        entries = sorted(os.scandir(parent), key=lambda entry: entry.name)
    except OSError as error:
        name = escaped(str(parent))
        raise DataError(f"the folder '{name}' cannot be read: {error.strerror}; correct its permissions") from error
    if not entries:
        found.empty_folders.append(_name(parent, root))
    for entry in entries:
        path = Path(entry)
        if _is_hidden(entry.name):
            found.passed_over.append(f"{_name(path, root)} ({_hidden_contents(path)})")
        elif entry.is_dir() and entry.is_symlink():
            links.append(path)
        elif entry.is_dir():
            _list(path, root, found, listed, links)
        else:
            _sort_file(entry, _name(path, root), found)


def _sort_file(entry: os.DirEntry, name: str, found: FoundFiles) -> None:
    path = Path(entry)
    # Reading from a pipe or a device would wait forever. A link to a missing file is a broken photo, not a stranger.
    if not entry.is_file() and os.path.exists(path):
        found.passed_over.append(f"{name} (not a regular file)")
    elif path.suffix.lower() in PHOTO_SUFFIXES:
        found.photos[name] = path
    elif reason := unread_format(path):
        found.unread[name] = reason
    else:
        found.others[name] = path


def _is_hidden(name: str) -> bool:
    # macOS leaves ._leaf.jpg files without image data, Jupyter leaves copies in .ipynb_checkpoints.
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _hidden_contents(path: Path) -> str:
    kind = "hidden" if path.name.startswith(".") else "system folder"
    if not path.is_dir() or path.is_symlink():
        return kind
    return f"{kind}, {counted(sum(len(files) for _, _, files in os.walk(path)), 'file')}"


def _name(path: Path, root: Path) -> str:
    return escaped(path.relative_to(root).as_posix())
