"""The command ``scenario``: a story on a platform of its own, and whether it ended as it should."""

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
from mlschool_dagster.local.scenario_inbox import inbox
from mlschool_dagster.local.scenario_stage import Clock, Stage
from mlschool_dagster.local.scenario_stories import STORIES
from mlschool_dagster.local.scenario_story import Judged, Story, judge
from mlschool_dagster.owned import make_owned, remove_owned
from mlschool_dagster.settings import ALERTS, PREFIXES, Settings
from mlschool_dagster.simulation.drift import affected_column

LEAD = timedelta(days=1)
"""How long ago a story ends: Dagster knows no windows of the future."""

_PORTS = (20_000, 30_000)


def tell(say: Say) -> None:
    """List the stories, a line each."""
    for name, story in STORIES.items():
        say(f"{name:16} {story.tells}")


def story_named(name: str) -> Story:
    """The story `name`.

    Raises:
        UserError: there is none; the sentence names those that there are.
    """
    if name not in STORIES:
        raise UserError(f"There is no scenario {name!r}; choose one of: {', '.join(STORIES)}.")
    return STORIES[name]


def stage_of_its_own(name: str) -> None:
    """Become the same command on a state folder and a clock of its own, unless it has them.

    The clock must be known before anything asks for the time.
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
    # Of two platforms that start side by side, both would be promised the usual port.
    port = free_port(random.randrange(*_PORTS))
    settings = Settings.from_environment()
    own = {
        "MLSCHOOL_HOME": str(home),
        CLOCK: str(clock),
        "MLSCHOOL_ENDPOINT_PORT": str(port),
        "MLSCHOOL_SPEC": str(settings.spec.absolute()),
        "MLSCHOOL_DATA": absolute_uri(settings.data),
    }
    # Where no `.env` leads back to somebody's own platform.
    os.chdir(home)
    command = [sys.executable, "-m", "mlschool_dagster.local", "scenario", name]
    os.execve(sys.executable, command, {**foreign, **own})  # noqa: S606 - no shell is meant


def play(name: str, settings: Settings, say: Say) -> None:
    """Play the story `name` and say how it ended.

    Raises:
        UserError: it did not end as it should; its state folder is left for a look.
    """
    story = story_named(name)
    spec = load_spec(settings.spec)
    # Whether this data can drift like that is known before anything is started.
    column = affected_column(spec, story.changed[0].drift)
    say(f"{name}: {story.tells}")
    clock = Clock(Path(os.environ[CLOCK]))
    start = Window.of(utc_now() - LEAD - len(story.hours) * LENGTH)
    with inbox() as alerts:
        os.environ[ALERTS] = alerts.url
        with running_platform(settings, say) as platform:
            os.environ.update(platform.environment)
            outcome = Stage(Settings.from_environment(), clock, alerts, say).play(story, start)
    judged = judge(story, outcome, column)
    for line in table(judged):
        say(line)
    if not all(verdict.holds for verdict in judged):
        raise UserError(f"{name} did not end as it should; its state is left in {settings.home}.")
    if Path(os.environ[CLOCK]).parent == settings.home:
        # The folder of this play, not one that somebody gave it.
        remove_owned(settings.home)


def table(judged: Iterable[Judged]) -> Iterable[str]:
    """The closing table, a line each."""
    rows = [("expected", "what happened", "")]
    rows += [(j.expectation, j.happened, "yes" if j.holds else "NO") for j in judged]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for row in rows:
        yield f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip()
