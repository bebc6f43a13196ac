"""Alert rules and Grafana's dashboards: each rule tried both ways, each query asked for real."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mlschool_dagster.monitoring.metrics_history import MetricsHistory
from mlschool_dagster.promotion.ledger import open_ledger
from mlschool_dagster.promotion.rollout import Entry, Step
from mlschool_dagster.serving.metrics import Metrics
from mlschool_dagster.settings import ROOT
from mlschool_dagster_tests.monitoring import traffic_month
from mlschool_dagster_tests.monitoring.samples import START
from mlschool_dagster_tests.postgres import PostgresServer

FOLDER = ROOT / "infra" / "dashboards"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in FOLDER.rglob("*.json")}
SOURCES = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/sources.yaml").read_text())
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
PASSWORDS = {
    f"{name}_POSTGRES_PASSWORD": f"only-for-tests-{name.lower()}"
    for name in ("DAGSTER", "MLFLOW", "CAPTURES", "HISTORY", "GRAFANA", "ENDPOINT")
}
WINDOWS = 30
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian: apt-get install prometheus)",
)


def targets(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Every query of the dashboards to a data source of `kind`, by where it stands."""
    return [
        (f"{name}: {panel['title']}", target)
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
        if target["datasource"]["type"] == kind
    ]


def resolved(expression: str) -> str:
    """A dashboard's PromQL as Grafana sends it for all endpoints."""
    return expression.replace("$__rate_interval", "5m").replace("$instance", ".*")


EXPRESSIONS = [
    *((rule["alert"], rule["expr"]) for rule in RULES),
    *((place, target["expr"]) for place, target in targets("prometheus")),
]
STATEMENTS = [
    *((p, t["rawSql"], t["format"]) for p, t in targets("grafana-postgresql-datasource")),
    *(
        (f"{name}: {annotation['name']}", annotation["target"]["rawSql"], "annotation")
        for name, dashboard in DASHBOARDS.items()
        for annotation in dashboard["annotations"]["list"]
    ),
]


def promtool(*arguments: str) -> None:
    told = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


@needs_promtool
def test_each_rule_fires_when_it_should_and_only_then() -> None:
    promtool("check", "rules", "rules.yml")
    promtool("test", "rules", "rules_test.yml")
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    tried = [
        (trial["alertname"], bool(trial["exp_alerts"]))
        for test in tests
        for trial in test["alert_rule_test"]
    ]
    assert sorted(tried) == sorted((r["alert"], fires) for r in RULES for fires in (True, False))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "runbook"}


def test_queries_name_only_what_the_endpoint_tells() -> None:
    metrics = Metrics("any")
    exposition = metrics.exposition()[0].decode()
    metrics.close()
    told = {
        f"{family.name}{suffix}"
        for family in text_string_to_metric_families(exposition)
        for suffix in SUFFIXES[family.type]
    }
    # These two are made from another when they are read, and only while a version serves.
    told |= {"mlschool_model_age_seconds", "mlschool_model_info"}
    for place, expression in EXPRESSIONS:
        named = set(re.findall(r"\bmlschool_\w+", expression))
        assert named <= told, place
        assert named or "up{" in expression, place


@needs_promtool
def test_every_expression_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": resolved(expression)}
        for number, (_, expression) in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(path))


def test_every_panel_of_the_endpoint_shows_the_chosen_endpoint_alone() -> None:
    variables = DASHBOARDS["endpoint"]["templating"]["list"]
    queries = {v["name"]: v["query"] for v in variables if v["type"] == "query"}
    assert queries == {
        "endpoint": "label_values(mlschool_endpoint_info, endpoint)",
        "instance": 'label_values(mlschool_endpoint_info{endpoint=~"$endpoint"}, instance)',
    }
    for place, target in targets("prometheus"):
        # One that is down has no names to choose from, so `up` is of all.
        named = re.findall(r"\bmlschool_\w+", target["expr"])
        assert len(named) == target["expr"].count('{instance=~"$instance"'), place


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_asks_sources_that_one_chooses_and_offers_those_provisioned(name: str) -> None:
    known = {(source["type"], source["uid"]) for source in SOURCES["datasources"]}
    variables = DASHBOARDS[name]["templating"]["list"]
    offered = [variable for variable in variables if variable["type"] == "datasource"]
    assert {(choice["query"], choice["current"]["value"]) for choice in offered} <= known
    chosen = {(choice["query"], f"${{{choice['name']}}}") for choice in offered}
    panels = DASHBOARDS[name]["panels"]
    asked = {
        (t["datasource"]["type"], t["datasource"]["uid"]) for p in panels for t in p["targets"]
    }
    assert asked <= chosen
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)


@needs_promtool
def test_an_endpoint_without_requests_shows_nothing_rather_than_no_number(tmp_path: Path) -> None:
    """No rate is nought divided by nought, and the quantile of nothing is none."""
    metrics = Metrics("any")
    metrics.request(200, "1", "primary", 0.1)
    metrics.request(422, "", "", 0.1)
    metrics.commit(0.1, 1)
    exposition = metrics.exposition()[0].decode()
    metrics.close()
    labels = '{instance="a", job="endpoint"'
    samples = [line.rpartition(" ")[0] for line in exposition.splitlines() if line[0] != "#"]
    series = [
        {"series": re.sub(r"^(\w+){?(.*?)}?$", rf"\1{labels}, \2}}", sample), "values": "1x40"}
        for sample in samples
    ]
    queries = [resolved(t["expr"]) for _, t in targets("prometheus")]
    trials = [
        {"expr": f"({query}) != ({query})", "eval_time": "20m", "exp_samples": []}
        for query in queries
    ]
    path = tmp_path / "idle.yml"
    test = {"interval": "1m", "input_series": series, "promql_expr_test": trials}
    path.write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    promtool("test", "rules", str(path))


@pytest.fixture(scope="module")
def history() -> Iterator[PostgresServer]:
    """A server set up as the compose file's, with a day of monitoring and a promotion."""
    with PostgresServer() as server:
        subprocess.run(
            [ROOT / "infra" / "docker" / "databases.sh"],
            env={**server.administration(), **PASSWORDS},
            check=True,
        )
        uri = address(server, "history")
        metrics = MetricsHistory(uri)
        traffic_month.fill(metrics, WINDOWS)
        metrics.close()
        ledger = open_ledger(uri)
        for step in (Step.REQUESTED, Step.COMPARED, Step.CANARY):
            ledger.append(Entry("e1", START, step, "2", "somebody", "drift", {}))
        ledger.close()
        yield server


def address(server: PostgresServer, user: str) -> str:
    password = PASSWORDS[f"{user.upper()}_POSTGRES_PASSWORD"]
    return f"postgresql://{user}:{password}@127.0.0.1:{server.port}/history"


@pytest.mark.parametrize(
    ("statement", "shape"),
    [pytest.param(statement, shape, id=place) for place, statement, shape in STATEMENTS],
)
def test_every_statement_finds_what_the_reports_recorded(
    statement: str, shape: str, history: PostgresServer
) -> None:
    shown = traffic_month.windows(WINDOWS)[5:]
    asked = statement.replace("$__timeFrom()", f"'{shown[0].start:%Y-%m-%dT%H:%M:%SZ}'")
    asked = asked.replace("$__timeTo()", f"'{shown[-1].end:%Y-%m-%dT%H:%M:%SZ}'")
    assert "$" not in asked
    with psycopg.connect(address(history, "grafana"), options="-c timezone=Asia/Tokyo") as asking:
        cursor = asking.execute(asked.encode())
        names = [column.name for column in cursor.description or ()]
        rows = cursor.fetchall()
    assert rows
    if shape != "table":
        times = [row[names.index("time")] for row in rows]
        assert times == sorted(times)
        assert shown[0].start <= times[0] <= times[-1] <= shown[-1].end
        assert times[0].utcoffset() == timedelta(hours=9)


def test_grafana_may_read_the_history_and_nothing_else(history: PostgresServer) -> None:
    with psycopg.connect(address(history, "grafana"), autocommit=True) as asking:
        for statement in (b"DELETE FROM metrics", b"CREATE TABLE more (number int)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                asking.execute(statement)
    elsewhere = address(history, "grafana").replace("/history", "/captures")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(elsewhere)
