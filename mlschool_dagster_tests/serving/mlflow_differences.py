"""Where this endpoint does not do what MLflow's scoring server does with the same version, and why.

`test_mlflow_protocol` holds the table true. ``docs/mlflow.md`` shows it; after a change of the
table, ``python -m mlschool_dagster_tests.serving.mlflow_differences`` writes it there.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mlschool_dagster_tests.serving.mlflow_shapes import FORMS

PAGE = Path(__file__).parents[2] / "docs" / "mlflow.md"
START, END = "<!-- differences -->\n", "<!-- end of differences -->\n"

ANSWERS, REFUSES, OTHERWISE = "answers", "refuses", "answers otherwise"


class Difference(NamedTuple):
    """What MLflow's server does with shapes and what this endpoint does instead.

    ``contents`` are what the shapes hold and ``forms`` how they are written, as in their names.
    """

    sent: str
    contents: Sequence[str]
    forms: Sequence[str]
    mlflow: str
    ours: str
    why: str

    def shapes(self) -> Iterator[str]:
        """The names of the shapes."""
        return (f"{content}/{form}" for content in self.contents for form in self.forms)


_NO_CSV = (
    "MLflow's server reads no CSV for a model whose signature leaves types open, and refuses "
    "integers and empty columns in any form if it does not; here CSV is read as training data is "
    "([data.md](data.md))."
)

DIFFERENCES: Sequence[Difference] = (
    Difference(
        "CSV",
        (
            "two rows",
            "one row",
            "many rows",
            "integers",
            "whole floats",
            "17 digits",
            "columns in reverse",
            "null number",
            "null integer column",
            "null numbers throughout",
            "NaN number",
            "null text",
            "null text throughout",
            "NaN text",
            "empty text",
            "empty text for a number",
            "absent number",
            "absent number in one row",
            "absent text",
            "absent text in one row",
            "surplus column",
            "target column",
            "surplus column in one row",
            "number as text",
            "padded number as text",
            "NaN as text",
            "padded category",
            "null as text",
        ),
        ("CSV",),
        REFUSES,
        ANSWERS,
        _NO_CSV,
    ),
    Difference(
        "CSV as people have it: with an index, semicolons, white space, words for missing values",
        (
            "carriage returns",
            "byte order mark",
            "blank lines",
            "row of nothing but commas",
            "quoted",
            "with index",
            "spaces after commas",
            "spaces after commas in the header",
            "semicolons",
            "tabs",
            "NA for a number",
            "nan for a number",
            "NaN for a number",
            "null for a number",
            "NULL for a number",
            "None for a number",
            "N/A for a number",
            "n/a for a number",
            ". for a number",
            "NA for a text",
            "nan for a text",
            "null for a text",
            "None for a text",
            "N/A for a text",
            ". for a text",
        ),
        ("CSV body",),
        REFUSES,
        ANSWERS,
        "As for CSV.",
    ),
    Difference(
        "`text/csv; charset=utf-8`",
        ("charset of CSV",),
        ("content type",),
        REFUSES,
        ANSWERS,
        "As for CSV.",
    ),
    Difference(
        "no rows, in `dataframe_split`",
        ("no rows",),
        ("split",),
        ANSWERS,
        REFUSES,
        "No row was meant less often than it was lost on the way.",
    ),
    Difference(
        "an unknown column where a nullable one is missing",
        ("misspelt optional column",),
        tuple(form for form in FORMS if form != "inputs alone"),
        ANSWERS,
        REFUSES,
        "It may be the misspelt name of the missing one, which MLflow takes for null.",
    ),
    Difference(
        "some `instances` without a nullable column, or with a surplus one",
        ("absent number in one row", "absent text in one row", "surplus column in one row"),
        ("instances",),
        REFUSES,
        ANSWERS,
        "Null, or left out, as in every other form.",
    ),
    Difference(
        "a surplus column in a single record",
        ("surplus column", "target column", "surplus column in one row"),
        ("inputs alone",),
        REFUSES,
        ANSWERS,
        "It is left out, as in every other form.",
    ),
    Difference(
        "a list or an object in a single record",
        ("list for a number", "object for a number"),
        ("inputs alone",),
        ANSWERS,
        REFUSES,
        "MLflow makes columns of the record, or takes the object for missing.",
    ),
    Difference(
        "a value among columns",
        ("value among columns",),
        ("JSON body",),
        ANSWERS,
        REFUSES,
        "MLflow gives it to all rows.",
    ),
    Difference(
        "a row with fewer values than columns, in `dataframe_split`",
        ("split with a short row",),
        ("JSON body",),
        ANSWERS,
        REFUSES,
        "MLflow fills up with null from the right, whichever value is lacking.",
    ),
    Difference(
        "records as the data of `dataframe_split`",
        ("split of records",),
        ("JSON body",),
        ANSWERS,
        REFUSES,
        "`dataframe_records` is for records.",
    ),
    Difference(
        "a surplus column twice in `dataframe_split`",
        ("split with a surplus column twice",),
        ("JSON body",),
        ANSWERS,
        REFUSES,
        "Columns with one name cannot be told apart.",
    ),
    Difference(
        "JSON in UTF-16",
        ("UTF-16",),
        ("JSON body",),
        ANSWERS,
        REFUSES,
        "JSON is UTF-8 (RFC 8259).",
    ),
    Difference(
        "`messages`, `prompt` or `input` beside the rows",
        ("messages",),
        ("JSON body",),
        REFUSES,
        ANSWERS,
        "No model here talks; it is ignored, as all else beside the rows.",
    ),
    Difference(
        "a content type in capitals, a quoted charset, `us-ascii`, or another parameter",
        (
            *("type in capitals", "quoted charset", "ASCII"),
            *("old format parameter", "header parameter"),
        ),
        ("content type",),
        REFUSES,
        ANSWERS,
        "They mean the same (RFC 9110).",
    ),
)


def table() -> str:
    """The table for the page."""
    lines = ["| sent | MLflow's server | this endpoint | why |", "| --- | --- | --- | --- |"]
    lines += (f"| {d.sent} | {d.mlflow} | {d.ours} | {d.why} |" for d in DIFFERENCES)
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with the table of now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return before + START + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
