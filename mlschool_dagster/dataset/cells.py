"""Parsing of cells and CSV: one table of rules for training data, batches and requests alike.

`RULES` describes them; ``docs/data.md`` has a copy. Belongs here: CSV, and single cells.
Does not belong here: where the text comes from, and whether a value is allowed.
"""

import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from mlschool_dagster.dataset.spec import DataSpec

MISSING = frozenset(
    {"", ".", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>"}
)
"""How a missing value may be written."""
DELIMITERS = ",;\t|"

RULES = {
    "white space around a cell or a name": "is dropped, and so is a byte order mark, wherever",
    "a missing value": "is an empty cell, or one of "
    + ", ".join(f"`{text}`" for text in sorted(MISSING) if text),
    "a category or class that is written like a missing value": "is itself where the data spec "
    "declares it",
    "a number": "is what Python's `float` reads, to the last of its digits; digits are ASCII, a "
    "decimal point is a point, and `1_000` or `1,000` are none; what reads as not a number is "
    "missing",
    "any other text in a numeric column": "is no number: training and requests are refused, a "
    "batch sets the row aside",
    "a row without any text": "is no row, as `,,,` is none; in a table of one column, only an "
    "empty line is none",
    "a row with more or fewer cells than the header": "is refused, or set aside by a batch",
    "the separator": "is a comma, semicolon, tab or vertical bar: the one by which the header "
    "names most columns of the data spec",
    "quotes": 'are `"`, doubled within a cell; a line may end within them',
    "a column without a name": "is ignored, as is the index that pandas writes",
    "columns": "come in any order; those that the data spec does not know are ignored in training, "
    "carried along by a batch, and left out of a request's row unless another column is missing, "
    "whose misspelt name they may be",
    "a text in JSON": "is read as a cell, unless it is a category as it is",
}
"""The table of rules: text of a cell, and its value. In Parquet, texts are read as cells are."""

Reader = Callable[[str], float | str | None]


def number(cell: str) -> float | str | None:
    """The number in `cell`, None if that is missing, or the text if it is no number."""
    text = cell.strip()
    try:
        value = float(text)
    except ValueError:
        return None if text in MISSING else text
    # Python reads 5_800 and digits of any script, which nobody means.
    if "_" in text or not text.isascii():
        return text
    return None if value != value else value


def text_reader(categories: Collection[str] = ()) -> Reader:
    """A function from a cell to its text, None if that is missing and none of `categories`."""
    missing = MISSING.difference(categories)

    def text_of(cell: str) -> str | None:
        text = cell.strip()
        return None if text in missing else text

    return text_of


def cell_readers(spec: DataSpec) -> Mapping[str, Reader]:
    """For each input column of `spec`, and its target, what reads a cell of it."""
    return {
        **{column.name: number for column in spec.numeric},
        **{column.name: text_reader(column.categories) for column in spec.categorical},
        spec.target.name: text_reader(spec.target.classes),
    }


class CsvRecords:
    """The records of a CSV text: `header`, and by iteration all after it that are rows.

    ``header`` has the names of the columns, empty if there is no record at all. `line` is the one
    (from 1) at which the newest record starts; after an error, the one that is malformed.

    Raises:
        csv.Error: the text is malformed, or repeats its header.
    """

    def __init__(self, lines: Iterable[str], required: Collection[str]) -> None:
        """Read the header of `lines`, which should name the columns `required`."""
        rest = (line.replace("\ufeff", "") for line in lines)
        skipped, first = 0, ""
        for first in rest:
            if first.strip(DELIMITERS + " \r\n"):
                break
            skipped += 1
        reader = _reader(chain([first], rest), _delimiter(first, required), strict=True)
        self._reader, self._skipped = reader, skipped
        self.line = skipped + 1
        self.header = [name.strip() for name in next(reader, [])]
        self._names_columns = bool(set(self.header).intersection(required))

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the cells of each row, however many it has."""
        reader, header = self._reader, self.header
        is_narrow = len(header) == 1
        while True:
            self.line = self._skipped + reader.line_num + 1
            cells: list[str] | None = next(reader, None)
            if cells is None:
                return
            if any(map(str.strip, cells)):
                # Most rows differ from it in their first cell.
                if cells[0].strip() == header[0] and self._repeats_header(cells):
                    raise csv.Error("it repeats the header, as joined files do")
            elif not (is_narrow and cells):
                continue
            yield cells

    def _repeats_header(self, cells: list[str]) -> bool:
        return self._names_columns and [cell.strip() for cell in cells] == self.header


def _reader(lines: Iterable[str], delimiter: str, *, strict: bool) -> Any:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=strict)


def _delimiter(header: str, required: Collection[str]) -> str:
    """The delimiter that separates most names `required` in `header`; a comma if none does."""

    def named(delimiter: str) -> int:
        try:
            cells: list[str] = next(_reader([header], delimiter, strict=False), [])
        except csv.Error:
            # Without its separator, a wide header is one cell that is too long.
            return 0
        return len(set(required).intersection(cell.strip() for cell in cells))

    return max(DELIMITERS, key=named)
