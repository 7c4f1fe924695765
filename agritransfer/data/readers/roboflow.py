"""Which labels does a Roboflow table of classes give?

Roboflow exports a classification as `_classes.csv` in `train/`, `valid/` and `test/`: the file name, then a column of
0 and 1 for each class.
"""

from pathlib import Path

from agritransfer.data.readers.photo_names import PhotoNames, refuse_missing, refuse_repeated
from agritransfer.data.readers.source import TableLabels
from agritransfer.data.readers.table import Row, read_rows
from agritransfer.errors import DataError
from agritransfer.wording import counted


def labels_of_roboflow(path: Path, base: str, names: PhotoNames) -> TableLabels:
    """The class of each photo that a `_classes.csv` in the folder `base` lists; raises `DataError` for several."""
    columns, rows = read_rows(path)
    if columns[0].casefold() != "filename" or len(columns) < 2:
        raise DataError(
            f"'{path}' needs the columns filename and one for each class, with 0 or 1; it has {columns}; export the "
            "photos as multi-class classification"
        )
    labelled, unlabelled, absent, several = [], {}, [], []
    for row in rows:
        file, labels = row.text(columns[0]), _labels(row, columns[1:])
        name = names.find(file, base)
        if name is None:
            absent.append((row.place, file))
        elif len(labels) > 1:
            several.append(f"'{file}' ({row.place}: {', '.join(labels)})")
        elif not labels:
            unlabelled[name] = f"without a class in {path.name}"
        elif name in names.unread:
            unlabelled[name] = names.unread[name]
        else:
            labelled.append((name, labels[0], row.place))
    refuse_missing(path, absent, names)
    if several:
        raise DataError(
            f"'{path}' gives {counted(len(several), 'photo')} several classes (multi-label), such as {several[0]}; "
            "a classifier needs one class for each photo: correct or remove these rows"
        )
    refuse_repeated(path, labelled)
    return TableLabels([{"file": name, "label": label, "split": ""} for name, label, _ in labelled], unlabelled)


def _labels(row: Row, classes: list[str]) -> list[str]:
    for label in classes:
        if row.text(label).strip() not in ("0", "1"):
            raise DataError(f"{row.where}: the column '{label}' holds '{row.text(label):.60}'; 0 or 1 is needed")
    return [label for label in classes if row.text(label).strip() == "1"]
