"""HTML pages from ``templates/`` and ``static/``: each one file, which loads nothing.

Values are escaped unless they are `Markup`. Whatever the data may hold, the browser loads and sends
nothing: each page carries a Content-Security-Policy (https://www.w3.org/TR/CSP3/).
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mlschool_dagster.atomic import replacing

FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The page that `template` makes of `values`."""
    return _environment().get_template(template).render(**values)


def write_page(path: Path, page: str) -> None:
    """Write `page` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def script_json(document: str) -> Markup:
    """JSON that cannot end the script element in which it stands."""
    return Markup(document.replace("<", "\\u003c"))  # noqa: S704 - made harmless here


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["static"] = _static
    return environment


def _static(name: str) -> Markup:
    """The text of a style sheet or program of ours, to stand in its element."""
    return Markup((FOLDER / "static" / name).read_text(encoding="utf-8"))  # noqa: S704
