"""Dagster's webserver behind the guard: ``python -m mlschool_dagster.local.webserver``.

It takes the options of ``dagster-webserver``, whose own server executes GraphQL mutations that come
by GET, and asks neither for Host nor for Origin.
"""

from typing import Any

from dagster_webserver import cli

from mlschool_dagster.local.web_guard import WebGuard
from mlschool_dagster.settings import Settings

_CREATE = "create_app_from_workspace_process_context"
"""What the command asks for its application; there is no option for middleware."""


def main() -> None:
    """Run the webserver until it is stopped."""
    unguarded = vars(cli)[_CREATE]
    names = Settings.from_environment().hosts

    def create_guarded(*arguments: Any, **options: Any) -> WebGuard:
        return WebGuard(unguarded(*arguments, **options), names, graphql=True)

    setattr(cli, _CREATE, create_guarded)
    cli.cli(auto_envvar_prefix="DAGSTER_WEBSERVER")


if __name__ == "__main__":
    main()
