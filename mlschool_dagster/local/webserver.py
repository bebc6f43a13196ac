"""Dagster's webserver behind the guard: ``python -m mlschool_dagster.local.webserver``.

It takes the options of ``dagster-webserver``, whose own server executes GraphQL mutations that come
by GET, and asks neither for Host nor for Origin.
"""

from importlib import import_module
from typing import Any

from mlschool_dagster.dagster_internals import CREATE_WEB_APPLICATION, WEBSERVER
from mlschool_dagster.local.web_guard import WebGuard
from mlschool_dagster.settings import Settings


def main() -> None:
    """Run the webserver until it is stopped."""
    cli = import_module(WEBSERVER)
    unguarded = vars(cli)[CREATE_WEB_APPLICATION]
    names = Settings.from_environment().hosts

    def create_guarded(*arguments: Any, **options: Any) -> WebGuard:
        return WebGuard(unguarded(*arguments, **options), names, graphql=True)

    setattr(cli, CREATE_WEB_APPLICATION, create_guarded)
    cli.cli(auto_envvar_prefix="DAGSTER_WEBSERVER")


if __name__ == "__main__":
    main()
