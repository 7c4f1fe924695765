"""Which folders look like classes but may be something else?

Copies of a class list are the strongest sign: `color/`, `grayscale/` and `segmented/` with the same folders in each
are no crops. Without a sign in the names, `Corn/rust` beside `Tomato/rust` are labels of two levels.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agritransfer.data.readers.folder_names import (
    is_marked,
    is_original,
    is_source,
    split_named,
    splits_meant,
    without_marks,
)
from agritransfer.errors import DataError
from agritransfer.wording import counted, listed

# Folders of a tree that a message names; the others are counted.
SHOWN = 6
# The folders above a photo, from the top.
Parts = tuple[str, ...]


@dataclass
class Tree:
    """A folder: the number of photos directly in it, and the folders with photos in it by name."""

    photos: int = 0
    folders: dict[str, "Tree"] = field(default_factory=dict)

    def total(self) -> int:
        """The number of photos in it and in all folders below it."""
        return self.photos + sum(child.total() for child in self.folders.values())


@dataclass(frozen=True)
class Place:
    """Where a tree of labels lies: in the folder of the dataset, inside these folders, perhaps in each split again."""

    folder: Path
    inside: Parts
    in_splits: bool

    def path(self, *names: str) -> str:
        """The path of a folder of the tree, as a shell needs it."""
        return shlex.quote(str(self.folder.joinpath(*self.inside, *names)))

    def table(self) -> str:
        """How to label the photos where the folders do not."""
        table = shlex.quote(str(self.folder / "metadata.csv"))
        return f"list the photos in {table}, with the columns file_name,label[,split][,group]"


def refuse_doubtful_names(place: Place, labels: Iterable[Parts]) -> None:
    """Raise `DataError` if some of these folders may be splits, versions or sources of the photos and not classes."""
    doubts = []
    for path, tree in _walk(_tree(labels)):
        children = tree.folders
        if names := _alike_without_marks(children) or _marked_beside_classes(path, children):
            doubts.append((_splits if any(map(splits_meant, names)) else _versions, path, tree, names))
        elif names := _repeating(children):
            doubts.append((_repeats, path, tree, names))
        elif names := _sources(path, children):
            doubts.append((_taken_apart, path, tree, names))
    if doubts:
        # The highest of the folders, and of several that with the most names, says best how the tree is meant.
        in_words, path, tree, names = min(doubts, key=lambda doubt: (len(doubt[1]), -len(doubt[3])))
        what, readings = in_words(place, path, tree, names)
        within = "/".join(path) or str(place.folder.joinpath(*place.inside))
        raise DataError(f"'{within}' has folders that may be {what}: {_outline(tree)}; {'; '.join(readings)}")


def what_to_know(labels: Iterable[Parts]) -> list[str]:
    """Notes on folders that are read as classes although they may be something else."""
    notes = []
    for path, tree in _walk(_tree(labels)):
        if path and tree.photos and tree.folders:
            name, below = "/".join(path), "/".join([*path, next(iter(tree.folders))])
            notes.append(f"'{name}' holds photos beside folders of photos; '{name}' and '{below}' are two classes")
        if same := _with_the_same_classes(tree.folders):
            example = "/".join([*path, same[0], next(iter(tree.folders[same[0]].folders))])
            notes.append(
                f"{_listed(same)} contain the same class folders and are read as labels such as '{example}'; "
                "if they are not crops but places, days or versions, use one of them alone or write a metadata.csv"
            )
        flat = [name for name, child in tree.folders.items() if not child.folders]
        doubtful = [name for name in flat if splits_meant(name) or (is_marked(name) and not without_marks(name))]
        sources = [name for name in flat if is_source(name)]
        doubtful += sources if len(sources) > 1 else []
        if doubtful:
            are = (
                "is read as a class; if it is not one" if len(doubtful) == 1 else "are read as classes; if they are not"
            )
            notes.append(f"{_listed(doubtful)} {are}, move the photos out or list them in a metadata.csv")
    return notes


def _tree(labels: Iterable[Parts]) -> Tree:
    root = Tree()
    for label in labels:
        node = root
        for name in label:
            node = node.folders.setdefault(name, Tree())
        node.photos += 1
    return root


def _walk(tree: Tree, path: Parts = ()) -> Iterator[tuple[Parts, Tree]]:
    yield path, tree
    for name, child in tree.folders.items():
        yield from _walk(child, (*path, name))


def _alike_without_marks(children: dict[str, Tree]) -> list[str]:
    """Names that differ only by words for splits or versions: `fold0`, `fold1` or `rust`, `rust_augmented`."""
    alike = defaultdict(list)
    for name in children:
        alike[without_marks(name)].append(name)
    groups = (names for names in alike.values() if len(names) > 1 and any(map(is_marked, names)))
    return [name for names in groups for name in names]


def _marked_beside_classes(path: Parts, children: dict[str, Tree]) -> list[str]:
    """Names of nothing but a split or a version: `train` with class folders beside `rust`, or `rust/augmented`."""
    bare = [name for name in children if is_marked(name) and not without_marks(name)]
    beside = len(children) > 1
    return [name for name in bare if path or (children[name].folders and (beside or split_named(name)))]


def _repeating(children: dict[str, Tree]) -> list[str]:
    """Folders whose folders have the names of those beside them: `PlantVillage/rust` beside `rust`."""
    return [
        name
        for name, child in children.items()
        if (again := child.folders.keys() & (children.keys() - {name}))
        and (len(again) > 1 or len(again) == len(child.folders))
    ]


def _sources(path: Parts, children: dict[str, Tree]) -> list[str]:
    """Places, days or cameras with the same classes in each, or inside of a class."""
    sources = [name for name in children if is_source(name)]
    classes = [name for source in sources for name in children[source].folders]
    crossed = len(sources) > 1 and len(set(classes)) < len(classes)
    inside_class = path and (len(sources) > 1 or len(sources) == len(children))
    return sources if crossed or inside_class else []


def _with_the_same_classes(children: dict[str, Tree]) -> list[str]:
    """Folders of which each shares at least two class names with the others."""
    times = Counter(name for child in children.values() for name in child.folders)
    return [name for name, child in children.items() if sum(times[below] > 1 for below in child.folders) > 1]


def _splits(place: Place, path: Parts, tree: Tree, names: list[str]) -> tuple[str, list[str]]:
    splits = [name for name in names if splits_meant(name)]
    others = [name for name in tree.folders if name not in splits]
    steps = _renamed(place, path, tree, splits)
    if others and not path:
        steps.append(f"move {_listed(others)} into a split folder or out of the way")
    readings = [f"if they are splits, {' and '.join(steps)}"] if steps else []
    if path and not place.in_splits and all(split_named(name) and tree.folders[name].folders for name in tree.folders):
        readings.append(f"for '{'/'.join(path)}' alone, give --dataset_name {place.path(*path)}")
    elif path and not tree.photos and all(map(split_named, tree.folders)):
        readings.append("if they are splits, put the photos of every class into such folders")
    elif not steps:
        readings.append(f"to leave {_listed(names)} out, move it out of {place.path(*path)}")
    trained = [name for name in names if "train" in splits_meant(name)]
    return "splits", [*readings, *_one_alone(place, path, tree, trained or others), f"otherwise, {place.table()}"]


def _renamed(place: Place, path: Parts, tree: Tree, names: list[str]) -> list[str]:
    """How to rename these folders to splits, as far as their names say to which."""
    unclear = [name for name in names if split_named(name) is None]
    targets = [splits_meant(name)[0] for name in unclear]
    if len({without_marks(name) for name in unclear}) > 1:
        return [f"move each into the folder of its split, such as {place.path(*path, targets[0], 'CLASS')}"]
    if len(set(targets)) < len(targets) or set(targets) & tree.folders.keys():
        return ["make them one folder for each of train, validation and test"]
    options = [" or ".join(place.path(*path, split) for split in splits_meant(name)) for name in unclear]
    moves = [f"mv {place.path(*path, name)} {option}" for name, option in zip(unclear, options, strict=True)]
    return [" && ".join(moves)] if moves else []


def _versions(place: Place, path: Parts, tree: Tree, names: list[str]) -> tuple[str, list[str]]:
    first = sorted(names, key=lambda name: (not is_original(name), len(name)))
    one = _one_alone(place, path, tree, first) or [
        f"to use '{first[0]}' alone, move {_listed(first[1:])} away"
        if len(names) > 1
        else f"to leave '{names[0]}' out, move it out of {place.path(*path)}"
    ]
    every = f"to use all, or to read them as classes, {place.table()}; photos of one leaf must share a group"
    return "parts or versions of the same photos", [*one, every]


def _taken_apart(place: Place, path: Parts, tree: Tree, names: list[str]) -> tuple[str, list[str]]:
    first = sorted(names, key=lambda name: "field" in name.lower())
    one = _one_alone(place, path, tree, first)
    if one and len(names) == 2:
        one[0] += f" --shift_dataset_name {place.path(first[1])} (a model of one, tested on the other too)"
    if path:
        one = [f"to use all as one class, move the photos into {place.path(*path)}"]
    return "places, days, plants or cameras", [*one, f"to use all, {place.table()}, each folder as a group"]


def _repeats(place: Place, path: Parts, tree: Tree, names: list[str]) -> tuple[str, list[str]]:
    away = f"to leave {_listed(names)} out, move it out of {place.path(*path)}"
    return "copies of the others", [*_one_alone(place, path, tree, names), away, f"otherwise, {place.table()}"]


def _one_alone(place: Place, path: Parts, tree: Tree, names: list[str]) -> list[str]:
    """How to use the first of these folders as the dataset, if it has class folders of its own."""
    whole = [name for name in names if _has_classes(tree.folders[name])]
    if path or place.in_splits or not whole:
        return []
    return [f"for '{whole[0]}' alone, give --dataset_name {place.path(whole[0])}"]


def _has_classes(tree: Tree) -> bool:
    while len(tree.folders) == 1:
        (tree,) = tree.folders.values()
    return len(tree.folders) > 1


def _outline(tree: Tree) -> str:
    lines = []
    for name, child in list(tree.folders.items())[:SHOWN]:
        folders = f"{counted(len(child.folders), 'folder')}, " if child.folders else ""
        lines.append(f"{name} ({folders}{counted(child.total(), 'photo')})")
    more = len(tree.folders) - SHOWN
    return ", ".join(lines) + (f" and {counted(more, 'more folder')}" if more > 0 else "")


def _listed(names: list[str]) -> str:
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return listed([*(f"'{name}'" for name in names[:SHOWN]), *more])
