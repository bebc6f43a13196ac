"""Whatever is sent, the answer is rows that keep every rule, or a refusal; memory stays bounded."""

import json
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlschool_dagster.dataset.spec import NumericColumn
from mlschool_dagster.serving.parsing import FORMATS, MAX_ROWS
from mlschool_dagster.serving.validation import InvalidRequestError, Validator
from mlschool_dagster.serving.validation_errors import MAX_FAULTS
from mlschool_dagster_tests.serving.tiny_model import ROW, SPEC

VALIDATOR = Validator(SPEC)
MEDIA_TYPES = ("application/json", "text/csv")
MAX_BODY = 6 * 1024**2
PEAK = 160 * 1024**2

REASONS = {
    "malformed",
    "too deep",
    "too many rows",
    "no rows",
    "no table",
    "misshapen row",
    "unknown column",
}
"""Names that refusals are counted under, beside those that begin with a column of the spec."""

TEXTS = st.text(max_size=20) | st.sampled_from(["", "\0", "NaN", "-", "x" * 10_000, *ROW])
NUMBERS = st.integers() | st.floats() | st.sampled_from([1e308, -0.0, 2**64, 10**4000, True])
JSON = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
CELLS = st.sampled_from([*ROW.values(), "Dream", None]) | JSON
RECORDS = st.builds(
    lambda changes, dropped: {k: v for k, v in {**ROW, **changes}.items() if k not in dropped},
    st.dictionaries(st.sampled_from([*ROW, "wings"]), CELLS, max_size=2),
    st.sets(st.sampled_from(list(ROW)), max_size=1),
)
COLUMNS = st.dictionaries(
    st.sampled_from([*ROW, "wings"]), st.lists(CELLS, min_size=1, max_size=3) | CELLS
)
SPLITS = st.fixed_dictionaries(
    {
        "columns": st.lists(st.sampled_from([*ROW, "wings", 1]), max_size=7) | JSON,
        "data": st.lists(st.lists(CELLS, max_size=7) | JSON, max_size=3) | JSON,
    }
)
CONTENTS = st.lists(RECORDS | JSON, max_size=8) | COLUMNS | SPLITS | JSON
DOCUMENTS = st.dictionaries(st.sampled_from([*FORMATS, "rows"]), CONTENTS, max_size=2) | JSON
TEXT_BODIES = DOCUMENTS.map(lambda document: json.dumps(document).encode())
LITERALS = st.sampled_from(
    [
        *(b"1e400", b"-1e400", b"1" * 5000, b"NaN", b"Infinity", b"1.", b"01", b"--1"),
        *(b"\xff", b"\0", b'"\\ud800"', b'"', b"", b"{}", b'{"a":1,"a":2}'),
        *(b"[" * 2000, b"[" * 30 + b"]" * 30),
    ]
)
SPLICED = st.builds(
    lambda literal, column: (
        json.dumps({"inputs": [{**ROW, column: "?"}]}).encode().replace(b'"?"', literal)
    ),
    LITERALS,
    st.sampled_from(list(ROW)),
)
REPEATED_KEYS = st.builds(
    lambda first, second: (
        b'{"inputs":[{%s,%s}]}' % tuple(json.dumps(row).encode()[1:-1] for row in (first, second))
    ),
    RECORDS,
    RECORDS,
)
CSV = st.builds(
    lambda header, lines: "\n".join([",".join(header), *map(",".join, lines)]).encode(
        "utf-8", "surrogatepass"
    ),
    st.permutations(list(ROW)) | st.lists(TEXTS, max_size=7),
    st.lists(st.lists(CELLS.map(str), max_size=7), max_size=8),
)
WHOLE = TEXT_BODIES | SPLICED | REPEATED_KEYS | CSV
DAMAGED = st.builds(
    lambda body, start, end, between: (
        body[: start % (len(body) + 1)] + between + body[start % (len(body) + 1) + end :]
    ),
    WHOLE,
    st.integers(0, 2000),
    st.integers(0, 10) | st.just(10**6),
    st.binary(max_size=4),
)
BODIES = WHOLE | DAMAGED | st.binary()


def judge(body: bytes, media_type: str, partial: bool) -> None:
    try:
        accepted = VALIDATOR.accept(body, media_type, partial)
    except InvalidRequestError as error:
        assert error.status in (400, 422)
        assert len(error.faults) <= MAX_FAULTS
        json.dumps(error.faults).encode()
        assert_closed(error.reasons)
        assert error.reasons
        return
    assert accepted.rows
    assert len(accepted.rows) == len(accepted.positions) <= accepted.total <= MAX_ROWS
    assert partial or len(accepted.rows) == accepted.total
    left_out = set(range(accepted.total)) - set(accepted.positions)
    assert {fault["row"] for fault in accepted.faults} == left_out
    assert_closed(accepted.reasons)
    for row in accepted.rows:
        assert row.keys() == set(SPEC.input_names)
        for column in SPEC.columns:
            value = row[column.name]
            if value is None:
                assert column.nullable
            elif isinstance(column, NumericColumn):
                assert type(value) in (int, float)
                assert column.minimum <= float(value) <= column.maximum
            else:
                assert value in column.categories


def assert_closed(reasons: Iterable[str]) -> None:
    for reason in reasons:
        assert reason in REASONS or reason.partition(":")[0] in SPEC.input_names


SENT = {
    "body": BODIES,
    "media_type": st.sampled_from(MEDIA_TYPES),
    "partial": st.booleans(),
}


@settings(max_examples=300)
@given(**SENT)
def test_any_body_is_rows_or_a_refusal(body: bytes, media_type: str, partial: bool) -> None:
    judge(body, media_type, partial)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=10_000)
@given(**SENT)
def test_ten_thousand_bodies_are_rows_or_refusals(
    body: bytes, media_type: str, partial: bool
) -> None:
    judge(body, media_type, partial)


def filled(pattern: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """A body as large as any, `pattern` again and again between `before` and `after`."""
    return before + pattern * ((MAX_BODY - len(before) - len(after)) // len(pattern)) + after


NAMES = b",".join(b'"%d":1' % i for i in range(500_000))


JSON_FILLED = [
    filled(b"[],", b'{"inputs":[', b"[]]}"),
    filled(b"{},", b'{"inputs":[', b"{}]}"),
    filled(b"1,", b'{"inputs":{"island":[', b"1]}}"),
    filled(b"1.5,", b'{"inputs":[', b"1]}"),
    filled(b"[],", b'{"dataframe_split":{"columns":[],"data":[', b"[]]}}"),
    filled(b'"ab",', b'{"dataframe_split":{"data":[],"columns":[', b'"ab"]}}'),
    filled(b"NaN,", b'{"inputs":[', b"NaN]}"),
    filled(b"[", b'{"inputs":'),
    b'{"inputs":[{' + NAMES + b"}]}",
]
CSV_FILLED = [
    filled(b"ab,"),
    filled(b"\n", b"island"),
    filled(b"ab\n", b"island\n"),
    filled(b"ab," * 20_000 + b"\n"),
    filled(b'"\nab",'),
    filled(b'"', b"island\n"),
]


@pytest.mark.parametrize(
    ("body", "media_type"),
    [(body, "application/json") for body in JSON_FILLED]
    + [(body, "text/csv") for body in CSV_FILLED],
    ids=range(len(JSON_FILLED) + len(CSV_FILLED)),
)
def test_memory_stays_bounded_whatever_a_body_unfolds_into(body: bytes, media_type: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError):
            VALIDATOR.accept(body, media_type, partial=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK
