"""Which folders are splits, and which are classes?

Folders are read as classes only if no sign speaks against it. Where the tree can be read in one way only, it is read
in that way and a note says how; where it can be read in several, `doubts.py` refuses it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from agritransfer.data.readers.doubts import Parts, Place, refuse_doubtful_names, what_to_know
from agritransfer.data.readers.folder_names import is_marked, split_named, without_marks
from agritransfer.data.readers.walk import FoundFiles
from agritransfer.errors import DataError
from agritransfer.wording import counted, listed


@dataclass(frozen=True)
class Layout:
    """How a folder is read: a row (file, label, split) for each photo, and in words what is not plain.

    `inside` are the folders above all labels, such as `dataset/images`, that are left out of the labels.
    """

    rows: list[dict[str, str]]
    empty_classes: tuple[str, ...]
    notes: tuple[str, ...]
    inside: str = ""


def rows_of_folders(folder: Path, found: FoundFiles) -> Layout:
    """The label and split of each photo by the folders above it; raises `DataError` if they can be read in two ways."""
    above = {name: tuple(name.split("/")[:-1]) for name in found.photos}
    without_photos = {tuple(name.split("/")[:-1]) for name in found.unread}
    without_photos |= {tuple(name.split("/")) for name in found.empty_folders}
    inside = _common_folders([*above.values(), *without_photos])
    notes = [f"read inside '{'/'.join(inside)}', which holds everything"] if inside else []
    above = {name: parts[len(inside) :] for name, parts in above.items()}
    without_photos = {parts[len(inside) :] for parts in without_photos if len(parts) > len(inside)}
    level = _split_level(above.values())
    split_of, labels = dict.fromkeys(above, ""), above
    if level is not None:
        others = {tuple(name.split("/")[:-1]) for name in found.others}
        others = {parts[len(inside) :] for parts in others if parts[: len(inside)] == inside}
        _check_splits(folder.joinpath(*inside), above.values(), without_photos | others, level)
        split_of = {name: split_named(parts[level]) for name, parts in above.items()}
        labels, more_notes = _without_splits(above, level)
        notes += more_notes
    empty_classes = _empty_classes(without_photos, set(labels.values()), level)
    labels, further, more_notes = _without_idle_levels(labels)
    _check_loose(folder, [name for name, label in labels.items() if not label])
    place = Place(folder, (*inside, *(["*"] if level == 0 else []), *further), in_splits=level == 0)
    refuse_doubtful_names(place, labels.values())
    notes += [*more_notes, *what_to_know(labels.values())]
    rows = [{"file": name, "label": "/".join(labels[name]), "split": split_of[name]} for name in above]
    return Layout(rows, empty_classes, tuple(notes), "/".join((*inside, *further)))


def _common_folders(paths: Collection[Parts]) -> Parts:
    """The folders that hold all others, as an archive adds when it is unpacked; a split or a lone class is none."""
    common = ()
    while len(heads := {path[len(common) : len(common) + 1] for path in paths}) == 1:
        head = heads.pop()
        if not head or split_named(head[0]) or all(len(path) == len(common) + 1 for path in paths):
            break
        common += head
    return common


def _split_level(paths: Collection[Parts]) -> int | None:
    """The level at which every photo has a folder named as a split: 0 for `train/rust`, 1 for `rust/train`."""
    shortest = min(map(len, paths))
    return next((level for level in range(shortest) if all(split_named(path[level]) for path in paths)), None)


def _check_splits(folder: Path, paths: Collection[Parts], further: Iterable[Parts], level: int) -> None:
    names = {path[: level + 1] for path in paths}
    for parent in {name[:-1] for name in names}:
        beside = sorted(name[-1] for name in names if name[:-1] == parent)
        if len({split_named(name) for name in beside}) < len(beside):
            raise DataError(f"'{folder}' has several folders for one split: {beside}; merge or rename them")
    splits = {split_named(name[-1]) for name in names}
    for path in sorted(further):
        if len(path) > level and split_named(path[level]) and split_named(path[level]) not in splits:
            raise DataError(
                f"the split folder '{'/'.join(path[: level + 1])}' contains no photos; add some to '{folder}', or "
                "remove the folder to have that split made"
            )
    if level == 0:
        labelled = {path[0] for path in paths if len(path) > 1}
        for (name,) in sorted(names) if labelled else []:
            if name not in labelled:
                raise DataError(
                    f"the photos of '{name}' are not in class folders, so they have no labels; to train without them, "
                    f"move '{folder / name}' out of '{folder}'; to use them, move each to '{folder / name}/CLASS/'"
                )


def _check_loose(folder: Path, loose: list[str]) -> None:
    if loose:
        target = f"{(folder / loose[0]).parent}/CLASS/"
        others = counted(len(loose) - 1, "other photo")
        if len(loose) == 1:
            raise DataError(f"'{loose[0]}' is not in a class folder; move it to {target}")
        raise DataError(f"'{loose[0]}' and {others} are not in class folders; move each into one, such as {target}")


def _without_splits(above: dict[str, Parts], level: int) -> tuple[dict[str, Parts], list[str]]:
    """The labels of the photos: the folders above each without that of the split, and notes on how it was read."""
    paths = above.values()
    end, notes = level + 1, []
    if level:
        notes.append(f"the splits are inside the class folders, as in '{'/'.join(min(paths))}'")
    if all(len(path) > end and split_named(path[end]) == split_named(path[level]) for path in paths):
        notes.append(f"each split folder is inside another, as in '{'/'.join(min(paths))}'; they are read as one")
        end += 1
    return {name: path[:level] + path[end:] for name, path in above.items()}, notes


def _without_idle_levels(labels: dict[str, Parts]) -> tuple[dict[str, Parts], Parts, list[str]]:
    """The labels without levels that say nothing: folders above all of them, here returned, and `rust/images`."""
    common, notes = _common_folders(labels.values()), []
    if common:
        notes.append(f"'{'/'.join(common)}' is in every split and not part of the labels")
    labels = {name: label[len(common) :] for name, label in labels.items()}
    level = 1
    while all(len(label) > level for label in labels.values()):
        names = {label[level] for label in labels.values()}
        doubled = all(label[level] == label[level - 1] for label in labels.values())
        if doubled or (len(names) == 1 and all(is_marked(name) and not without_marks(name) for name in names)):
            folders = "its own name again" if doubled else listed(sorted(names))
            notes.append(f"every class folder contains a folder with {folders}, which is not part of the label")
            labels = {name: label[:level] + label[level + 1 :] for name, label in labels.items()}
        else:
            level += 1
    return labels, common, notes


def _empty_classes(without_photos: set[Parts], labels: set[Parts], level: int | None) -> tuple[str, ...]:
    # A class counts as empty only if no split has photos of it, and none of the folders below it.
    if level is not None:
        without_photos = {
            path[:level] + path[level + 1 :] if len(path) > level and split_named(path[level]) else path
            for path in without_photos
        }
    empty = {path for path in without_photos if not any(label[: len(path)] == path for label in labels)}
    return tuple(sorted("/".join(path) for path in empty))
