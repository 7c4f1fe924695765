"""How are the rows of a table file read, whatever its format?

CSV (separated by commas, semicolons, tabs or bars), JSON Lines and parquet. A row that cannot be read for certain is
refused with its line.
"""

import csv
import io
import json
import re
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agritransfer.errors import DataError, in_one_line
from agritransfer.wording import counted

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class Row:
    """One row of the table in the file `path`; `place` is where it stands there, such as `line 17`."""

    path: Path
    place: str
    cells: dict[str, object]

    @property
    def where(self) -> str:
        """The beginning of a message about this row."""
        return f"'{self.path}', {self.place}"

    def text(self, column: str) -> str:
        """A cell as text, "" if it is empty, null or NaN; raises `DataError` if it holds more than one value."""
        value = self.cells.get(column)
        # NaN, the only value that differs from itself, is how pandas marks an empty cell.
        if value is None or value != value:
            return ""
        if not isinstance(value, str | int | float):
            kind = "several values" if isinstance(value, list) else f"a {type(value).__name__}"
            raise DataError(f"{self.where}: the column '{column}' holds {kind}, {value!r:.60}; one text is needed")
        return str(value)

    def line(self, column: str) -> str:
        """A cell as text of one line, without surrounding blanks; raises `DataError` for a control character."""
        text = self.text(column).strip()
        if not is_one_line(text):
            raise DataError(
                f"{self.where}: the column '{column}' holds a line break or a control character, {text!r:.60}; remove "
                "it, and close each double quote"
            )
        return text


def is_one_line(text: str) -> bool:
    """Whether a text has no line break, control character or half of a surrogate pair, so that it can be printed."""
    return text.isprintable() or not any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in text)


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """The columns and the rows of a table file; raises `DataError` if it cannot be read whole."""
    readers = {".jsonl": _read_json_lines, ".parquet": _read_parquet}
    columns, rows = readers.get(path.suffix.lower(), _read_delimited)(path)
    times = Counter(column.casefold() for column in columns if column)
    if doubled := next((column for column in columns if times[column.casefold()] > 1), None):
        raise DataError(f"'{path}' has the column '{doubled}' {times[doubled.casefold()]} times; keep one")
    if not rows:
        raise DataError(f"'{path}' has no rows; add one for each photo")
    return columns, rows


def read_table(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """These columns of a table file, cell by cell as they are; raises `DataError` if one is missing."""
    found, rows = read_rows(path)
    if not set(columns) <= set(found):
        raise DataError(f"'{path}' needs rows with the columns {','.join(columns)}; it has {found}")
    return [{column: row.text(column) for column in columns} for row in rows]


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 as Excel writes it; raises `DataError` for any other."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}; restore it or correct its permissions") from error
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"'{path}' is not UTF-8 (line {line}); save it as UTF-8 (Excel: CSV UTF-8)") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"'{path}', line {line}: there is a NUL character; save the file again, as UTF-8")
    return text


def _read_delimited(path: Path) -> tuple[list[str], list[Row]]:
    text = read_text(path)
    # Excel writes the separator into a first line of its own.
    named = re.match(r"sep=([,;\t|])[\r\n]", text)
    separator = named[1] if named else _separator(text)
    records = _records(path, text, separator)[1 if named else 0 :]
    if not records:
        return [], []
    columns = [cell.strip() for cell in records[0][1]]
    rows = []
    for line, cells in records[1:]:
        row = Row(path, f"line {line}", dict(zip(columns, cells, strict=False)))
        # pandas writes its index as a first column without a name; a later one has lost its column.
        unnamed = [cell for column, cell in zip(columns[1:], cells[1:], strict=False) if not column]
        if extra := [cell for cell in (*unnamed, *cells[len(columns) :]) if cell.strip()]:
            raise DataError(
                f"{row.where}: {counted(len(extra), 'cell')} more than columns, such as '{extra[0].strip():.60}'; "
                f"put a cell that contains '{separator}' in double quotes"
            )
        rows.append(row)
    return columns, rows


def _separator(text: str) -> str:
    # Only the header tells: in the rows a comma may belong to a label.
    header = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    # A cell of the csv module may not exceed 128 KB.
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([header[:100_000]], delimiter=separator), [])))


def _records(path: Path, text: str, separator: str) -> list[tuple[int, list[str]]]:
    # With newline="" the lines may end in CR, LF or both, and a quoted cell keeps its line breaks.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    records, line = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"'{path}', line {line} cannot be read as CSV ({error}); close each double quote, and keep each cell "
            "below 128 KB"
        ) from error
    return records


def _read_json_lines(path: Path) -> tuple[list[str], list[Row]]:
    columns, rows = {}, []
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            pairs = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"'{path}', line {line} cannot be read as JSON ({in_one_line(error)}); correct it"
            ) from error
        if not isinstance(pairs, _Pairs):
            raise DataError(f'\'{path}\', line {line}: each line must be an object such as {{"file_name": "1.jpg"}}')
        cells = dict(pairs)
        if len(cells) < len(pairs):
            raise DataError(f"'{path}', line {line}: a column occurs twice in {[name for name, _ in pairs]}; keep one")
        columns.update(cells)
        rows.append(Row(path, f"line {line}", cells))
    return list(columns), rows


class _Pairs(list):
    """The names and values of a JSON object, names that occur twice included."""


def _read_parquet(path: Path) -> tuple[list[str], list[Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        columns = pyarrow.parquet.read_schema(path).names
        if len(set(columns)) < len(columns):
            return columns, []
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' cannot be read as parquet ({in_one_line(error)}); write it again") from error
    values = [column.to_pylist() for column in table.columns]
    rows = [
        Row(path, f"row {number}", dict(zip(columns, cells, strict=True)))
        for number, cells in enumerate(zip(*values, strict=True), start=1)
    ]
    for column, names in _class_names(table.schema).items():
        _name_classes(rows, column, names)
    return columns, rows


def _class_names(schema) -> dict[str, list[str]]:
    # `datasets` writes a ClassLabel as numbers, and their names into the schema.
    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features", {})
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and column in schema.names
    }


def _name_classes(rows: Sequence[Row], column: str, names: list[str]) -> None:
    for row in rows:
        value = row.cells[column]
        if value is not None and not 0 <= value < len(names):
            raise DataError(f"{row.where}: the label {value} has no name; the names are {names}")
        row.cells[column] = value if value is None else names[value]
