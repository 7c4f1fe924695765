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

    `unread` are images in formats that are not decoded here, with the reason; `skipped` are hidden files, system
    folders and the like, with the reason; `empty_folders` have no files or folders but hidden ones.
    """

    photos: dict[str, Path] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    others: dict[str, Path] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    empty_folders: list[str] = field(default_factory=list)

    @property
    def passed_over(self) -> list[str]:
        """The skipped entries as lines, such as `.git (hidden, 12 files)`."""
        return [f"{name} ({reason})" for name, reason in self.skipped.items()]

    def add(self, path: Path, name: str, is_file: bool) -> None:
        """Put one entry that is no folder to be listed into its list, under this name; `is_file`: a regular file."""
        if is_hidden(path.name):
            self.skipped[name] = _hidden_contents(path)
        # Reading from a pipe or a device would wait forever. A link to a missing file is a broken photo, no stranger.
        elif not is_file and os.path.exists(path):
            self.skipped[name] = "not a regular file"
        elif path.suffix.lower() in PHOTO_SUFFIXES:
            self.photos[name] = path
        elif reason := unread_format(path):
            self.unread[name] = reason
        else:
            self.others[name] = path


def find_files(folder: Path) -> FoundFiles:
    """List a folder and all folders in it, sorted by name; raises `DataError` for a folder that cannot be read.

    Links to folders are followed after the folders themselves have been listed, and no folder is listed twice, so a
    link into the same tree is passed over.
    """
    found, listed = FoundFiles(), set()
    folders, links = [(folder, os.path.realpath(folder))], []
    while folders or links:
        path, place = folders.pop() if folders else links.pop(0)
        # A link may lead to a folder around this one, in which this one is found again.
        if place in listed:
            found.skipped[_name(path, folder)] = "a link to a folder that is listed already"
            continue
        listed.add(place)
        for inner, is_link in _list(path, folder, found):
            place_of_inner = os.path.realpath(inner) if is_link else os.path.join(place, inner.name)
            (links if is_link else folders).append((inner, place_of_inner))
    for files in (found.photos, found.unread, found.others, found.skipped):
        ordered = sorted(files.items())
        files.clear()
        files.update(ordered)
    return found


def unread_format(path: Path) -> str | None:
    """Why an image of this suffix is not decoded, or None."""
    kind = OTHER_FORMATS.get(path.suffix.lower())
    return kind and f"{kind} is not read here; convert it to JPEG or PNG"


def _list(parent: Path, root: Path, found: FoundFiles) -> list[tuple[Path, bool]]:
    """Add the files of one folder to `found`; returns the folders in it, and for each whether it is a link."""
    try:
        entries = sorted(os.scandir(parent), key=lambda entry: entry.name)
    except OSError as error:
        name = escaped(str(parent))
        raise DataError(f"the folder '{name}' cannot be read: {error.strerror}; correct its permissions") from error
    if all(is_hidden(entry.name) for entry in entries):
        found.empty_folders.append(_name(parent, root))
    folders = []
    for entry in entries:
        path, is_link = Path(entry), entry.is_symlink()
        # `DirEntry.is_dir` raises an error for a link to itself.
        if is_hidden(entry.name) or not (os.path.isdir(path) if is_link else entry.is_dir()):
            # Only links need a look at the disk, which takes long on a network.
            found.add(path, _name(path, root), entry.is_file(follow_symlinks=False) or os.path.isfile(path))
        else:
            folders.append((path, is_link))
    return folders


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over: hidden, or made by the system."""
    # macOS leaves ._leaf.jpg files without image data, Jupyter leaves copies in .ipynb_checkpoints.
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _hidden_contents(path: Path) -> str:
    kind = "hidden" if path.name.startswith(".") else "system folder"
    if not path.is_dir() or path.is_symlink():
        return kind
    return f"{kind}, {counted(sum(len(files) for _, _, files in os.walk(path)), 'file')}"


def _name(path: Path, root: Path) -> str:
    return escaped(path.relative_to(root).as_posix())
