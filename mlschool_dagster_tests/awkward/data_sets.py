"""Awkward data sets: specs with their rows, drawn from kinds of columns that real tables have.

`draw` makes one of a seed, the named ones below go through all kinds. A data set keeps
the rules that the documentation states, so that whoever refuses it has to say which it breaks.
"""

import csv
import io
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str
"""A cell as it stands in the file; empty is missing."""


@dataclass(frozen=True)
class Kind:
    """A kind of column: its entry in the spec (without its name), and how a cell is drawn."""

    name: str
    entry: dict[str, Any]
    cell: Callable[[random.Random, int], Cell]


@dataclass(frozen=True)
class AwkwardData:
    """A data set: the document of its spec, and its rows as they stand in a CSV file.

    ``probes`` are rows of inputs beyond those of the file that the spec allows as well: unknown
    categories, the ends of ranges, nothing at all.
    """

    name: str
    document: dict[str, Any]
    rows: list[dict[str, Cell]]
    probes: list[dict[str, Any]] = field(default_factory=list)

    def csv(self) -> str:
        """The rows as a CSV file with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def _numeric(
    name: str,
    minimum: float,
    maximum: float,
    cell: Callable[[random.Random, int], float | int | str],
    nullable: bool = False,
) -> Kind:
    entry = {"type": "numeric", "minimum": minimum, "maximum": maximum, "nullable": nullable}
    return Kind(name, entry, lambda rng, row: str(cell(rng, row)))


def _categorical(
    name: str,
    categories: Sequence[str],
    cell: Callable[[random.Random, int], str] | None = None,
    **entry: Any,
) -> Kind:
    names = list(categories)
    return Kind(
        name,
        {"type": "categorical", "categories": names, **entry},
        cell or (lambda rng, row: rng.choice(names)),
    )


def _either(chance: float, rare: str, usual: str) -> Callable[[random.Random, int], str]:
    return lambda rng, row: rare if rng.random() < chance else usual


NUMERIC = [
    _numeric("normal", -100, 100, lambda rng, row: round(rng.gauss(0, 10), 3)),
    _numeric("digits", -10, 10, lambda rng, row: repr(rng.random())),
    _numeric("constant", 0, 100, lambda rng, row: 42),
    _numeric("nearly_constant", 0, 100, lambda rng, row: [39.1, 39.1000000000001][row == 3]),
    _numeric("integers", 0, 1000, lambda rng, row: rng.randrange(1000)),
    _numeric("ties", 0, 5, lambda rng, row: rng.randrange(3)),
    _numeric("zeros", 0, 10_000, lambda rng, row: rng.randrange(1, 9) if row % 97 == 96 else 0),
    _numeric("heavy_tail", 0, 1e12, lambda rng, row: min(1e12, rng.lognormvariate(0, 5))),
    _numeric("wide_range", -1e6, 1e6, lambda rng, row: rng.gauss(0, 1)),
    _numeric("offset", 1e9, 2e9, lambda rng, row: 1e9 + rng.random()),
    _numeric("tiny", 0, 1e-20, lambda rng, row: repr(rng.random() * 1e-21)),
    _numeric("huge", -1e15, 1e15, lambda rng, row: repr(rng.gauss(0, 1e14))),
    _numeric("some_missing", -50, 50, lambda rng, row: rng.gauss(0, 9) if row % 3 else "", True),
    _numeric("mostly_missing", 0, 9, lambda rng, row: "" if row % 50 else rng.random(), True),
    _numeric("all_missing", 0, 1, lambda rng, row: "", True),
    _numeric("two_values", -1, 1, lambda rng, row: rng.choice(["-1", "1"])),
    _numeric("negative_zero", -1, 1, lambda rng, row: rng.choice(["-0.0", "0", "0.5"])),
    _numeric("exponents", 0, 1e6, lambda rng, row: f"{rng.random() * 1e5:e}"),
    _numeric("spaced", 0, 10, lambda rng, row: f"  {rng.random():.3f} "),
]

CATEGORICAL = [
    _categorical("binary", ["no", "yes"]),
    _categorical("single", ["only"]),
    _categorical("many", [f"c{number:03}" for number in range(150)]),
    _categorical("rare", ["usual", "rare"], lambda rng, row: "rare" if row == 2 else "usual"),
    _categorical("open", ["low", "high"], allow_unknown=True),
    _categorical("dollars", ["$0_to_$10", "$10_to_$20", "{x}", "a_b", "100%", "^2\\frac"]),
    _categorical("like_numbers", ["0", "1", "1.0", "007"]),
    _categorical("like_missing", ["NA", "None", "null", "nan", "yes"]),
    _categorical("like_truth", ["True", "False", "no", "yes"]),
    _categorical("unicode", ["Ærø", "Ζεύς", "東京", "🐧", "e\u0301"]),
    _categorical(
        "punctuation", ["a,b", 'say "x"', "semi;colon", "<script>alert(1)</script>", "a&b"]
    ),
    _categorical("cases", ["Yes", "yes", "YES"]),
    _categorical("long", ["x" * 200, "x" * 199 + "y"]),
    _categorical("some_missing_too", ["a", "b"], _either(0.3, "", "a"), nullable=True),
    _categorical("never_known", ["a", "b"], lambda rng, row: "", nullable=True),
    _categorical("open_dollars", ["$1", "$2"], allow_unknown=True, nullable=True),
]

COLUMN_NAMES = [
    *("age", "Größe", "weight (kg)", "価格", "x1", "class", "index", "count", "row", "level_0"),
    *("a.b", "a-b", "a/b", "$cost_per_{unit}", "100%", "lambda", "mean", "target", "values", "T"),
    *("columns", "data", "inputs", "column", "metric", "version", "role_", "rows", "score", "size"),
]
"""Names that a column may have, many of which somebody's code means something else by."""

FOUND = ("all_missing", "constant", "nearly_constant", "zeros", "dollars")
"""Kinds that found a fault as the only column."""

CLASSES = [
    ["no", "yes"],
    ["0", "1"],
    ["True", "False"],
    ["a", "b", "c"],
    ["$cheap_", "{dear}", "100%"],
    ["東京", "Ærø", "e\u0301"],
    ["NA", "None"],
    [f"k{number}" for number in range(12)],
    ["only one so far", "never seen twice"],
]


def draw(seed: int) -> AwkwardData:
    """The data set number `seed`."""
    rng = random.Random(seed)
    shape = rng.choice(["numeric", "categorical", "mixed", "mixed", "mixed", "single"])
    most = 1 if shape == "single" else rng.choice([2, 3, 5, 8])
    kinds = {"numeric": NUMERIC, "categorical": CATEGORICAL}.get(shape, NUMERIC + CATEGORICAL)
    chosen = [rng.choice(kinds) for _ in range(most)]
    names = rng.sample(COLUMN_NAMES, most)
    columns = dict(zip(names, chosen, strict=True))
    return assemble(
        f"seed {seed}", columns, rng.choice(CLASSES), rng.choice([40, 90, 200, 350]), rng
    )


def assemble(
    name: str,
    columns: dict[str, Kind],
    classes: Sequence[str],
    rows: int,
    rng: random.Random,
    target: str = "outcome",
) -> AwkwardData:
    """A data set of `columns` with a target that hangs on nothing, at least two rows a class."""
    document = {
        "name": "awkward",
        "description": f"An awkward data set: {name}",
        "target": {"name": target, "classes": list(classes)},
        "columns": [
            {"name": column, "description": kind.name, **kind.entry}
            for column, kind in columns.items()
        ],
        "contract": {
            "minimum_rows": 4,
            "maximum_missing_share": 1.0,
            "maximum_duplicate_share": 1.0,
        },
    }
    outcomes = [*classes, *classes, *(rng.choice(classes) for _ in range(rows - 2 * len(classes)))]
    rng.shuffle(outcomes)
    table = [
        {column: kind.cell(rng, row) for column, kind in columns.items()} | {target: outcome}
        for row, outcome in enumerate(outcomes)
    ]
    return AwkwardData(name, document, table, _probes(columns))


def _probes(columns: dict[str, Kind]) -> list[dict[str, Any]]:
    """Inputs that the spec allows and no row of the file has."""
    ends = [
        {name: kind.entry.get(end, _first(kind)) for name, kind in columns.items()}
        for end in ("minimum", "maximum")
    ]
    nothing = {n: None if k.entry.get("nullable") else _first(k) for n, k in columns.items()}
    unknown = [
        {
            n: text if kind.entry.get("allow_unknown") else _first(kind)
            for n, kind in columns.items()
        }
        for text in ("never heard of", "$10_to_$20", "\N{PENGUIN}", "<b>", "x" * 200)
    ]
    is_open = any(kind.entry.get("allow_unknown") for kind in columns.values())
    return [*ends, nothing, *(unknown if is_open else [])]


def _first(kind: Kind) -> Any:
    return kind.entry["categories"][0] if "categories" in kind.entry else kind.entry["minimum"]


def _wide() -> AwkwardData:
    names = [f"x{number}" for number in range(200)]
    kinds = [NUMERIC[0], NUMERIC[4], CATEGORICAL[0], NUMERIC[12]]
    columns = {name: kinds[at % len(kinds)] for at, name in enumerate(names)}
    return assemble("200 columns", columns, ["a", "b"], 120, random.Random(1))


def _of_kind(kind: Kind) -> AwkwardData:
    # Names of letters only, so that what fails is the kind.
    name = "".join(letter for letter in kind.name if letter in string.ascii_lowercase)
    return assemble(kind.name, {name: kind}, ["a", "b"], 60, random.Random(2))


def _together(name: str, kinds: Sequence[Kind], classes: Sequence[str], rows: int) -> AwkwardData:
    columns = {f"column {number}": kind for number, kind in enumerate(kinds)}
    return assemble(name, columns, classes, rows, random.Random(3))


ALL_KINDS = _together("all kinds", NUMERIC + CATEGORICAL, CLASSES[4], 300)
"""The data set that goes the whole way in the fast suite."""

TWO_ROWS_A_CLASS = _together("two rows a class", [NUMERIC[0], CATEGORICAL[0]], ["a", "b", "c"], 6)

NAMED = [
    _together("all numeric kinds", NUMERIC, ["a", "b", "c"], 200),
    _together("all categorical kinds", CATEGORICAL, ["no", "yes"], 200),
    _wide(),
]

SINGLE = [_of_kind(kind) for kind in NUMERIC + CATEGORICAL if kind.name in FOUND]
"""Data sets of a single column that found a fault: each stays."""
