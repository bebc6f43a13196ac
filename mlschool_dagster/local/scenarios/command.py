"""The command ``scenario``: run a scenario on an isolated platform and check its outcome."""

import os
import random
import sys
import tempfile
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from mlschool_dagster.capture.windows import LENGTH, Window
from mlschool_dagster.clock import CLOCK, utc_now
from mlschool_dagster.dataset.spec import load_spec
from mlschool_dagster.errors import UserError
from mlschool_dagster.local.platform import Say, absolute_uri, running_platform
from mlschool_dagster.local.processes import free_port
from mlschool_dagster.local.scenarios.catalog import SCENARIOS
from mlschool_dagster.local.scenarios.runner import Clock, ScenarioRunner, inbox
from mlschool_dagster.local.scenarios.scenario import Scenario, Verdict, evaluate
from mlschool_dagster.owned import make_owned, remove_owned
from mlschool_dagster.settings import ALERTS, PREFIXES, Settings
from mlschool_dagster.simulation.traffic import affected_column

LEAD = timedelta(days=1)
"""How long ago a scenario ends, since Dagster has no partitions in the future."""

_PORTS = (20_000, 30_000)


def list_scenarios(say: Say) -> None:
    """Print every scenario, one per line."""
    for name, scenario in SCENARIOS.items():
        say(f"{name:16} {scenario.description}")


def find_scenario(name: str) -> Scenario:
    """The scenario `name`.

    Raises:
        UserError: no scenario has this name; the message lists the names.
    """
    if name not in SCENARIOS:
        raise UserError(f"There is no scenario {name!r}; choose one of: {', '.join(SCENARIOS)}.")
    return SCENARIOS[name]


def restart_isolated(name: str) -> None:
    """Replace this process by the same command with its own state folder and clock, unless set.

    The clock's variable must be set before the first call of `utc_now`.
    """
    if os.environ.get(CLOCK):
        return
    home = Path(tempfile.mkdtemp(prefix=f"mlschool-{name}-"))
    make_owned(home)
    clock = home / "clock"
    clock.write_text("0", encoding="ascii")
    foreign = {
        variable: value
        for variable, value in os.environ.items()
        if not variable.startswith(PREFIXES)
    }
    # A random port, as two platforms that start together would both see the usual one free.
    port = free_port(random.randrange(*_PORTS))
    settings = Settings.from_environment()
    own = {
        "MLSCHOOL_HOME": str(home),
        CLOCK: str(clock),
        "MLSCHOOL_ENDPOINT_PORT": str(port),
        "MLSCHOOL_SPEC": str(settings.spec.absolute()),
        "MLSCHOOL_DATA": absolute_uri(settings.data),
    }
    # No `.env` here names the user's own platform.
    os.chdir(home)
    command = [sys.executable, "-m", "mlschool_dagster.local", "scenario", name]
    os.execve(sys.executable, command, {**foreign, **own})  # noqa: S606 - no shell is meant


def run_scenario(name: str, settings: Settings, say: Say) -> None:
    """Run the scenario `name` and print its verdicts.

    Raises:
        UserError: an expectation did not hold; the state folder is kept for inspection.
    """
    scenario = find_scenario(name)
    spec = load_spec(settings.spec)
    # Refuses a drift that this data cannot have, before anything is started.
    column = affected_column(spec, scenario.changed[0].drift)
    say(f"{name}: {scenario.description}")
    clock = Clock(Path(os.environ[CLOCK]))
    start = Window.of(utc_now() - LEAD - len(scenario.hours) * LENGTH)
    with inbox() as alerts:
        os.environ[ALERTS] = alerts.url
        with running_platform(settings, say) as platform:
            os.environ.update(platform.environment)
            runner = ScenarioRunner(Settings.from_environment(), clock, alerts, say)
            outcome = runner.run(scenario, start)
    verdicts = evaluate(scenario, outcome, column)
    for line in table(verdicts):
        say(line)
    if not all(verdict.holds for verdict in verdicts):
        raise UserError(f"{name} did not end as it should; its state is left in {settings.home}.")
    if Path(os.environ[CLOCK]).parent == settings.home:
        # Only the folder that `restart_isolated` made, not one that the user chose.
        remove_owned(settings.home)


def table(verdicts: Iterable[Verdict]) -> Iterable[str]:
    """Lines of the closing table: expected, actual, and whether it holds."""
    rows = [("expected", "what happened", "")]
    rows += [(v.expectation, v.happened, "yes" if v.holds else "NO") for v in verdicts]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for row in rows:
        yield f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip()
