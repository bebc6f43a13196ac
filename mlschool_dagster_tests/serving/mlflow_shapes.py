"""Requests of every shape that MLflow's scoring protocol and its clients have.

A systematic product: each content (what the rows hold) in each form (how a table is written), and
beside it what a body, a table and a content type can be otherwise.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mlschool_dagster_tests.serving.tiny_model import ROW

JSON = "application/json"
CSV = "text/csv"

Rows = Sequence[Mapping[str, Any]]
OTHER: dict[str, Any] = {
    "island": "Dream",
    "culmen_length_mm": 39.5,
    "culmen_depth_mm": 17.4,
    "flipper_length_mm": 186.0,
    "body_mass_g": 3800.0,
    "sex": "FEMALE",
}


class Shape(NamedTuple):
    """One request; `name` is ``<what>/<how>``."""

    name: str
    body: bytes
    content_type: str | None


def _both(**changes: Any) -> list[dict[str, Any]]:
    return [{**ROW, **changes}, {**OTHER, **changes}]


def _second(**changes: Any) -> list[dict[str, Any]]:
    return [dict(ROW), {**OTHER, **changes}]


def _without(name: str, **others: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != name} for row in _both(**others)]


NAN = math.nan
CONTENTS: Mapping[str, Rows] = {
    "two rows": [ROW, OTHER],
    "one row": [ROW],
    "many rows": [ROW, OTHER] * 6,
    "no rows": [],
    "integers": _both(culmen_length_mm=48, culmen_depth_mm=16, body_mass_g=5800),
    "whole floats": _both(flipper_length_mm=230.0, body_mass_g=5800.0),
    "17 digits": _both(culmen_length_mm=39.10000000000001, culmen_depth_mm=17.299999999999997),
    "columns in reverse": [dict(reversed(row.items())) for row in (ROW, OTHER)],
    "null number": _second(body_mass_g=None),
    "null integer column": [{**ROW, "flipper_length_mm": None}, dict(OTHER)],
    "null numbers throughout": _both(body_mass_g=None),
    "NaN number": _second(body_mass_g=NAN),
    "null text": _second(sex=None),
    "null text throughout": _both(sex=None),
    "NaN text": _second(sex=NAN),
    "null required text": _second(island=None),
    "NaN required text": _second(island=NAN),
    "empty text": _second(sex=""),
    "empty text for a number": _second(body_mass_g=""),
    "absent number": _without("body_mass_g"),
    "absent number in one row": [ROW, _without("body_mass_g")[1]],
    "absent text": _without("sex"),
    "absent text in one row": [ROW, _without("sex")[1]],
    "absent required": _without("island"),
    "surplus column": _both(note="tagged"),
    "target column": _both(species="Gentoo"),
    "surplus column in one row": [ROW, {**OTHER, "note": "tagged"}],
    "misspelt optional column": _without("sex", Sex="MALE"),
    "misspelt required column": _without("island", Island="Biscoe"),
    "number as text": _both(body_mass_g="5800"),
    "padded number as text": _both(body_mass_g=" 5800 "),
    "number with underscore as text": _both(body_mass_g="5_800"),
    "NaN as text": _second(body_mass_g="NaN"),
    "text for a number": _second(body_mass_g="heavy"),
    "truth for a number": _both(body_mass_g=True),
    "number for a text": _second(sex=1),
    "truth for a text": _second(sex=True),
    "unknown category": _second(island="Anvers"),
    "category in other case": _second(sex="female"),
    "padded category": _second(sex="FEMALE "),
    "null as text": _second(sex="None"),
    "above the range": _second(body_mass_g=20_000.0),
    "below the range": _second(body_mass_g=-1),
    "infinity": _second(body_mass_g=math.inf),
    "beyond 53 bits": _second(body_mass_g=2**53 + 1),
    "beyond 64 bits": _second(body_mass_g=10**30),
    "list for a number": _second(body_mass_g=[3800]),
    "list for a text": _second(sex=["FEMALE"]),
    "object for a number": _second(body_mass_g={"value": 3800}),
}
"""What the rows hold. NaN and infinity are written as Python writes them."""


def _columns(rows: Rows) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows or [ROW] for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _split(rows: Rows) -> dict[str, Any]:
    columns = _columns(rows)
    data = [list(values) for values in zip(*columns.values(), strict=True)]
    return {"index": [*range(len(rows))], "columns": [*columns], "data": data}


FORMS: Mapping[str, Callable[[Rows], Any]] = {
    "split": lambda rows: {"dataframe_split": _split(rows)},
    "records": lambda rows: {"dataframe_records": rows},
    "inputs": lambda rows: {"inputs": rows},
    "inputs by column": lambda rows: {"inputs": _columns(rows)},
    "inputs alone": lambda rows: {"inputs": rows[-1]},
    "instances": lambda rows: {"instances": rows},
    "instances by column": lambda rows: {"instances": _columns(rows)},
}


def _csv(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    columns = _columns(rows)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def product() -> Iterator[Shape]:
    """Each content in each form that can hold it."""
    for content, rows in CONTENTS.items():
        for form, write in FORMS.items():
            if rows or form != "inputs alone":
                body = json.dumps(write(rows)).encode()
                yield Shape(f"{content}/{form}", body, JSON)
        nested = any(isinstance(value, list | dict) for row in rows for value in row.values())
        if not nested:
            yield Shape(f"{content}/CSV", _csv(rows), CSV)


def _document(document: Any) -> bytes:
    return json.dumps(document).encode()


ROWS = [dict(ROW), OTHER]
NAMES = list(ROW)
DATA = [list(row.values()) for row in ROWS]
BARE = _document({"inputs": ROWS})
HEADER, *LINES = _csv(ROWS).decode().splitlines()

BODIES: Mapping[str, bytes] = {
    "empty": b"",
    "cut off": BARE[:-3],
    "more than JSON": BARE + b"x",
    "single quotes": BARE.replace(b'"', b"'"),
    "trailing comma": BARE[:-1] + b",}",
    "not UTF-8": BARE.replace(b"Dream", b"Dr\xe9am"),
    "byte order mark": b"\xef\xbb\xbf" + BARE,
    "UTF-16": BARE.decode().encode("utf-16"),
    "1e400": BARE.replace(b"5800", b"1e400"),
    "half a surrogate pair": BARE.replace(b"Dream", b"\\ud800"),
    "column twice in a record": BARE.replace(b'"sex": "MALE"', b'"sex": "FEMALE", "sex": "MALE"'),
    "rows twice": BARE[:-1] + b"," + BARE[1:],
    "nested deep": b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}",
    "list of rows": _document(ROWS),
    "one row": _document(ROW),
    "text": _document("inputs"),
    "null": b"null",
    "no format": _document({"rows": ROWS}),
    "two formats": _document({"inputs": ROWS, "instances": ROWS}),
    "params": _document({"inputs": ROWS, "params": {"temperature": 0.5}}),
    "params of split": _document(
        {"dataframe_split": {"columns": NAMES, "data": DATA}, "params": {}}
    ),
    "params no object": _document({"dataframe_records": ROWS, "params": [1]}),
    "signature_name": _document({"signature_name": "serving_default", "instances": ROWS}),
    "client_request_id": _document({"dataframe_records": ROWS, "client_request_id": "7"}),
    "unknown key": _document({"inputs": ROWS, "unknown": [1]}),
    "messages": _document({"inputs": ROWS, "messages": []}),
    "inputs null": _document({"inputs": None}),
    "inputs text": _document({"inputs": "Biscoe"}),
    "inputs number": _document({"inputs": 1}),
    "inputs empty object": _document({"inputs": {}}),
    "inputs of lists": _document({"inputs": DATA}),
    "inputs of numbers": _document({"inputs": [1, 2]}),
    "inputs of null and row": _document({"inputs": [None, ROW]}),
    "instances of lists": _document({"instances": DATA}),
    "instances alone": _document({"instances": ROW}),
    "columns of unequal length": _document({"inputs": {**_columns(ROWS), "sex": ["MALE"]}}),
    "value among columns": _document({"inputs": {**_columns(ROWS), "sex": "MALE"}}),
    "records by column": _document({"dataframe_records": _columns(ROWS)}),
    "records of lists": _document({"dataframe_records": DATA}),
    "split without index": _document({"dataframe_split": {"columns": NAMES, "data": DATA}}),
    "split with index": _document(
        {"dataframe_split": {"columns": NAMES, "data": DATA, "index": ["a", 7]}}
    ),
    "split with null index": _document(
        {"dataframe_split": {"columns": NAMES, "data": DATA, "index": None}}
    ),
    "split with short index": _document(
        {"dataframe_split": {"columns": NAMES, "data": DATA, "index": [0]}}
    ),
    "split with an index of names": _document(
        {"dataframe_split": {"columns": NAMES, "data": DATA, "index": "ab"}}
    ),
    "split without columns": _document({"dataframe_split": {"data": DATA}}),
    "split without data": _document({"dataframe_split": {"columns": NAMES}}),
    "split with another key": _document(
        {"dataframe_split": {"columns": NAMES, "data": DATA, "dtypes": {}}}
    ),
    "split with numbered columns": _document(
        {"dataframe_split": {"columns": [*range(6)], "data": DATA}}
    ),
    "split with a short row": _document(
        {"dataframe_split": {"columns": NAMES, "data": [DATA[0], DATA[1][:5]]}}
    ),
    "split with short rows": _document(
        {"dataframe_split": {"columns": NAMES, "data": [row[:5] for row in DATA]}}
    ),
    "split with a long row": _document(
        {"dataframe_split": {"columns": NAMES, "data": [DATA[0], [*DATA[1], 1]]}}
    ),
    "split of records": _document({"dataframe_split": {"columns": NAMES, "data": ROWS}}),
    "split with a column twice": _document(
        {"dataframe_split": {"columns": [*NAMES, "sex"], "data": [[*r, r[-1]] for r in DATA]}}
    ),
    "split with a surplus column twice": _document(
        {"dataframe_split": {"columns": [*NAMES, "x", "x"], "data": [[*r, 1, 2] for r in DATA]}}
    ),
    "split as a list": _document({"dataframe_split": DATA}),
}
"""Bodies sent as JSON."""


def _lines(*lines: str) -> bytes:
    return "\n".join(lines).encode()


TABLES: Mapping[str, bytes] = {
    "empty": b"",
    "header alone": _lines(HEADER),
    "without header": _lines(*LINES),
    "carriage returns": "\r".join([HEADER, *LINES]).encode(),
    "byte order mark": b"\xef\xbb\xbf" + _lines(HEADER, *LINES),
    "blank lines": _lines("", HEADER, "", *LINES, "", ""),
    "row of nothing but commas": _lines(HEADER, *LINES, ",,,,,"),
    "quoted": _lines(*(",".join(f'"{c}"' for c in x.split(",")) for x in (HEADER, *LINES))),
    "with index": _lines(f",{HEADER}", *(f"{i},{line}" for i, line in enumerate(LINES))),
    "spaces after commas": _lines(*(x.replace(",", ", ") for x in (HEADER, *LINES))),
    "spaces after commas in the header": _lines(HEADER.replace(",", ", "), *LINES),
    "semicolons": _lines(*(x.replace(",", ";") for x in (HEADER, *LINES))),
    "tabs": _lines(*(x.replace(",", "\t") for x in (HEADER, *LINES))),
    "short row": _lines(HEADER, LINES[0], LINES[1].rpartition(",")[0]),
    "long row": _lines(HEADER, LINES[0], f"{LINES[1]},7"),
    "long rows": _lines(HEADER, *(f"{line},7" for line in LINES)),
    "column twice": _lines(f"{HEADER},sex", *(f"{line},MALE" for line in LINES)),
    "surplus column twice": _lines(f"{HEADER},x,x", *(f"{line},1,2" for line in LINES)),
    "open quote": _lines(HEADER, *LINES)[:-6] + b'"MALE',
    "not UTF-8": _lines(HEADER, *LINES).replace(b"Dream", b"Dr\xe9am"),
    "hexadecimal": _lines(HEADER, LINES[0].replace("5800", "0x16A8")),
    "decimal comma": _lines(HEADER, LINES[0].replace("48.6", '"48,6"')),
    "thousands": _lines(HEADER, LINES[0].replace("5800", '"5,800"')),
    "comment": _lines("# penguins", HEADER, *LINES),
    **{
        f"{marker} for a number": _lines(HEADER, LINES[0].replace("5800", marker))
        for marker in ("NA", "nan", "NaN", "null", "NULL", "None", "N/A", "n/a", "-", ".", "inf")
    },
    **{
        f"{marker} for a text": _lines(HEADER, LINES[0].replace("MALE", marker))
        for marker in ("NA", "nan", "null", "None", "N/A", "-", ".")
    },
}
"""Bodies sent as CSV."""

TYPES: Mapping[str, tuple[str | None, bytes]] = {
    "none": (None, BARE),
    "charset": ("application/json; charset=utf-8", BARE),
    "charset in capitals": ("application/json; charset=UTF-8", BARE),
    "quoted charset": ('application/json; charset="utf-8"', BARE),
    "charset of CSV": ("text/csv; charset=utf-8", _lines(HEADER, *LINES)),
    "other charset": ("application/json; charset=latin-1", BARE),
    "other charset of CSV": ("text/csv; charset=utf-16", _lines(HEADER, *LINES)),
    "ASCII": ("application/json; charset=us-ascii", BARE),
    "type in capitals": ("Application/JSON", BARE),
    "space before semicolon": ("application/json ; charset=utf-8", BARE),
    "old format parameter": ("application/json; format=pandas-split", BARE),
    "header parameter": ("text/csv; header=present", _lines(HEADER, *LINES)),
    "text": ("text/plain", BARE),
    "form": ("application/x-www-form-urlencoded", BARE),
    "lines of JSON": ("application/jsonlines", b"\n".join(map(_document, ROWS))),
    "newline-delimited JSON": ("application/x-ndjson", b"\n".join(map(_document, ROWS))),
    "text of JSON": ("text/json", BARE),
    "CSV sent as JSON": (JSON, _lines(HEADER, *LINES)),
    "JSON sent as CSV": (CSV, BARE),
    "garbage": ("json", BARE),
}
"""Content types, with a body each."""


def shapes() -> list[Shape]:
    """All of them."""
    return [
        *product(),
        *(Shape(f"{name}/JSON body", body, JSON) for name, body in BODIES.items()),
        *(Shape(f"{name}/CSV body", body, CSV) for name, body in TABLES.items()),
        *(Shape(f"{name}/content type", body, kind) for name, (kind, body) in TYPES.items()),
    ]
