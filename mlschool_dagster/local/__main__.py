"""The command line: ``python -m mlschool_dagster.local COMMAND``."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mlschool_dagster.credentials import move_tracking_password, scrub_logs_and_tracebacks
from mlschool_dagster.errors import UserError
from mlschool_dagster.local.jobs import run_job
from mlschool_dagster.local.platform import local_endpoint, running_platform, stop_leftovers
from mlschool_dagster.owned import PRIVATE, is_owned, remove_owned
from mlschool_dagster.settings import REST_SECONDS, Settings, unset_empty


def main() -> int:
    """Run the command named by the first argument; 0 only if all of it happened."""
    commands: dict[str, Callable[..., None]] = {
        "doctor": doctor,
        "demo": demo,
        "demo-docker": demo_in_containers,
        "dev": dev,
        "scenario": scenario,
        "stop": stop_leftovers,
        "clean": clean,
    }
    name, *arguments = sys.argv[1:] or [""]
    if name not in commands or len(arguments) > (name == "scenario"):
        print(f"usage: python -m mlschool_dagster.local {{{','.join(commands)}}} [scenario's name]")
        return 2
    # A shell that starts a job in the background lets it ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    os.umask(PRIVATE)
    os.environ.update(environment_file(Path.cwd()))
    unset_empty()
    move_tracking_password()
    scrub_logs_and_tracebacks()
    try:
        if name == "doctor":
            # Settings that cannot be used are what it is there for.
            doctor()
        else:
            commands[name](Settings.from_environment(), *arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def environment_file(folder: Path) -> dict[str, str]:
    """The variables of the file `.env` in `folder`, which win over the shell's, as in Dagster."""
    values = _env_file(folder)
    return {name: value for name, value in values.items() if value is not None}


def _env_file(folder: Path) -> dict[str, str | None]:
    from dotenv import dotenv_values

    return dotenv_values(folder / ".env")


def doctor() -> None:
    """Say what of the environment is missing or odd.

    Raises:
        UserError: something is wrong.
    """
    from mlschool_dagster.local.doctor import examine, report

    report(examine(os.environ, _env_file(Path.cwd())), print)


_STARTED = time.monotonic()


def say(text: str) -> None:
    """Print `text` with the seconds since the start."""
    print(f"{time.monotonic() - _STARTED:6.1f} s  {text}", flush=True)


def demo(settings: Settings) -> None:
    """The loop once, from raw data to reports, on a platform that is stopped afterwards."""
    # Somebody watches: labels that come at once are reported on at once.
    os.environ.setdefault(REST_SECONDS, "1")
    with running_platform(settings, say) as platform:
        os.environ.update(platform.environment)
        from mlschool_dagster.local.demo import Demonstration

        Demonstration(Settings.from_environment(), platform, say).run()


def demo_in_containers(settings: Settings) -> None:
    """The loop once through containers, of which some are killed; they are removed afterwards."""
    from mlschool_dagster.local.containers import demo_docker

    demo_docker(say)


def dev(settings: Settings) -> None:
    """The platform until Ctrl-C; what the endpoint served last, it serves again."""
    with running_platform(settings, say) as platform:
        os.environ.update(platform.environment)
        from mlschool_dagster.defs.monitoring.dashboard import PAGE

        desired = local_endpoint(settings).status().desired
        if desired is not None:
            run_job("deployment_job", settings, say)
        say(f"Dagster   {platform.dagster_url}")
        say(f"MLflow    {platform.mlflow_url}")
        say(f"reports   {platform.files_url}")
        say(f"dashboard {platform.files_url}/{PAGE}")
        status = local_endpoint(Settings.from_environment()).status()
        say(
            f"endpoint  {status.url if status.serving else 'starts when its asset is materialized'}"
        )
        say("Ctrl-C stops all of it")
        threading.Event().wait()


def scenario(settings: Settings, name: str = "") -> None:
    """Run the scenario `name` on an isolated platform; without a name, list the scenarios."""
    from mlschool_dagster.local.scenarios.command import (
        find_scenario,
        list_scenarios,
        restart_isolated,
        run_scenario,
    )

    if not name:
        list_scenarios(print)
        return
    find_scenario(name)
    restart_isolated(name)
    run_scenario(name, settings, say)


def clean(settings: Settings) -> None:
    """Stop what was left running and remove the state folder, if the platform made it.

    Raises:
        UserError: the folder is not the platform's, or something in it cannot be removed.
    """
    if not settings.home.exists() or not any(settings.home.iterdir()):
        return
    settings.make_home()
    if is_owned(settings.home):
        stop_leftovers(settings)
    remove_owned(settings.home)


if __name__ == "__main__":
    sys.exit(main())
