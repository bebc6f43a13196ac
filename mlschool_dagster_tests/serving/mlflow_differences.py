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

JSON_FORMS = tuple(FORMS)
ALL_FORMS = (*JSON_FORMS, "CSV")
BY_COLUMN = ("inputs by column", "instances by column")
TENSORS = tuple(form for form in FORMS if form.startswith("in"))
"""Forms that MLflow reads as numpy arrays, not as a frame."""


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


_MISSING = "A nullable column that a row does not have is null, in every form."

DIFFERENCES: Sequence[Difference] = (
    Difference(
        "no rows",
        ("no rows",),
        ("split", *BY_COLUMN, "CSV"),
        ANSWERS,
        REFUSES,
        "No row was meant less often than it was lost on the way.",
    ),
    Difference(
        "a CSV header without rows",
        ("header alone",),
        ("CSV body",),
        ANSWERS,
        REFUSES,
        "As for no rows.",
    ),
    Difference(
        "null in a column of the spec that is not nullable",
        ("null required text", "NaN required text"),
        ALL_FORMS,
        ANSWERS,
        REFUSES,
        "The model has never seen it missing; what it answers means nothing.",
    ),
    Difference(
        "a number outside the range of its column, infinity included",
        ("above the range", "below the range", "infinity", "beyond 53 bits", "beyond 64 bits"),
        ALL_FORMS,
        ANSWERS,
        REFUSES,
        "It is another unit or a broken sensor, and the model would extrapolate.",
    ),
    Difference(
        "infinity, in other words",
        ("1e400",),
        ("JSON body",),
        ANSWERS,
        REFUSES,
        "As for a number outside the range.",
    ),
    Difference(
        "infinity in CSV",
        ("inf for a number",),
        ("CSV body",),
        ANSWERS,
        REFUSES,
        "As for a number outside the range.",
    ),
    Difference(
        "a category that the spec does not know, if it does not allow that",
        ("unknown category", "category in other case", "number for a text", "truth for a text"),
        ALL_FORMS,
        ANSWERS,
        REFUSES,
        "MLflow has the model see no category at all.",
    ),
    Difference(
        "half a surrogate pair, which is a category that the spec does not know",
        ("half a surrogate pair",),
        ("JSON body",),
        ANSWERS,
        REFUSES,
        "As for such a category.",
    ),
    Difference(
        "`-` as a category",
        ("- for a text",),
        ("CSV body",),
        ANSWERS,
        REFUSES,
        "As for such a category.",
    ),
    Difference(
        "`true` for a number",
        ("truth for a number",),
        ALL_FORMS,
        ANSWERS,
        REFUSES,
        "It is no measurement; MLflow reads it as 1.",
    ),
    Difference(
        "a number with `_` as text",
        ("number with underscore as text",),
        JSON_FORMS,
        ANSWERS,
        REFUSES,
        "Nobody means Python's notation.",
    ),
    Difference(
        "null for a text, in forms that MLflow reads as numpy arrays",
        ("null text", "null text throughout", "NaN text"),
        TENSORS,
        ANSWERS,
        OTHERWISE,
        "MLflow makes the text `None` of it, a category that no model knows; here null is null in "
        "every form.",
    ),
    Difference(
        "null for a text by column",
        ("absent text in one row",),
        BY_COLUMN,
        ANSWERS,
        OTHERWISE,
        "As for null for a text.",
    ),
    Difference(
        "a word for a missing value as text in JSON",
        ("empty text", "null as text"),
        JSON_FORMS,
        ANSWERS,
        OTHERWISE,
        "A text means what it means in CSV ([data.md](data.md)); MLflow has the model see no "
        "category at all.",
    ),
    Difference(
        "white space around a category",
        ("padded category",),
        ALL_FORMS,
        ANSWERS,
        OTHERWISE,
        "It is dropped, as in training; MLflow has the model see no category at all.",
    ),
    Difference(
        "an empty text for a number",
        ("empty text for a number",),
        JSON_FORMS,
        REFUSES,
        ANSWERS,
        "A text means what it means in CSV: it is null.",
    ),
    Difference(
        "`.` for a missing number",
        (". for a number",),
        ("CSV body",),
        REFUSES,
        ANSWERS,
        "It is missing wherever data are read.",
    ),
    Difference(
        "`.` for a missing text",
        (". for a text",),
        ("CSV body",),
        ANSWERS,
        OTHERWISE,
        "It is missing wherever data are read.",
    ),
    Difference(
        "a CSV row of nothing but commas",
        ("row of nothing but commas",),
        ("CSV body",),
        ANSWERS,
        OTHERWISE,
        "A row without any text is no row.",
    ),
    Difference(
        "other separators than commas, or white space around cells",
        ("semicolons", "tabs", "spaces after commas", "spaces after commas in the header"),
        ("CSV body",),
        REFUSES,
        ANSWERS,
        "CSV is read as training data is.",
    ),
    Difference(
        "a row without a nullable column",
        ("absent number", "absent text"),
        ALL_FORMS,
        REFUSES,
        ANSWERS,
        _MISSING,
    ),
    Difference(
        "some rows without a nullable column",
        ("absent number in one row", "absent text in one row"),
        ("inputs alone", "instances"),
        REFUSES,
        ANSWERS,
        _MISSING,
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
        "a surplus column in some `instances`",
        ("surplus column in one row",),
        ("instances",),
        REFUSES,
        ANSWERS,
        "It is left out, as in every other form.",
    ),
    Difference(
        "a list in a single record, or a value among columns",
        ("list for a number", "list for a text"),
        ("inputs alone",),
        ANSWERS,
        REFUSES,
        "MLflow gives the values that stand alone to all rows.",
    ),
    Difference(
        "a value among columns",
        ("value among columns",),
        ("JSON body",),
        ANSWERS,
        REFUSES,
        "As for a list in a single record.",
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
        "a row with fewer cells than the header, in CSV",
        ("short row",),
        ("CSV body",),
        ANSWERS,
        REFUSES,
        "As in `dataframe_split`.",
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
        "a column twice in CSV",
        ("column twice", "surplus column twice"),
        ("CSV body",),
        ANSWERS,
        REFUSES,
        "MLflow takes the first.",
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
