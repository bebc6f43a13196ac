"""The look at the traffic: every ten minutes of the platform's own time."""

import time
from pathlib import Path

import dagster as dg

from mlschool_dagster.defs.monitoring.traffic_volume import traffic_volume_sensor

MINUTE = 60.0


def test_it_looks_every_ten_minutes_even_of_a_simulated_day(clock_offset: Path) -> None:
    cursor: str | None = None
    keys = []
    until_the_hour = 3600 - time.time() % 3600
    for minute in (1, 4, 9, 11, 19, 21, 24 * 60):
        clock_offset.write_text(str(until_the_hour + minute * MINUTE))
        with dg.build_sensor_context(cursor=cursor) as context:
            tick = traffic_volume_sensor.evaluate_tick(context)
        cursor = tick.cursor
        keys += [request.run_key for request in tick.run_requests or ()]
    assert len(set(keys)) == len(keys) == 4
