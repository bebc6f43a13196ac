"""The server as its clients see it: a real process, spoken to over HTTP."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlschool_dagster.capture.records import SMOKE_TEST_PREFIX
from mlschool_dagster.capture.store import open_store
from mlschool_dagster.capture.windows import Window
from mlschool_dagster.clock import utc_now
from mlschool_dagster.serving.probes import probe_key
from mlschool_dagster.serving.request_body import MAX_BODY
from mlschool_dagster_tests.serving.server import (
    Server,
    peak_memory,
    running_server,
    wait_for,
)
from mlschool_dagster_tests.serving.test_hostile_bodies import BODIES, MEDIA_TYPES
from mlschool_dagster_tests.serving.tiny_model import ROW, tiny_model

JSON_TYPE = {"content-type": "application/json"}
VALID = json.dumps({"inputs": [ROW]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("home")) as server:
        yield server


def test_it_answers_what_the_model_predicts(server: Server) -> None:
    rows = [ROW, {**ROW, "island": "Dream", "sex": None, "body_mass_g": 3200}]
    answer = server.invoke(rows).json()
    expected = tiny_model(1).probabilities(rows)
    assert answer["model_version"] == "1"
    for entry, shares in zip(answer["predictions"], expected, strict=True):
        assert list(entry["probabilities"].values()) == pytest.approx(list(shares))
        assert entry["confidence"] == max(entry["probabilities"].values())
        assert entry["probabilities"][entry["prediction"]] == entry["confidence"]


def test_each_row_answered_is_one_capture(server: Server) -> None:
    rows = [ROW, {**ROW, "sex": None}]
    answer = server.invoke(rows, x_amzn_sagemaker_inference_id="two-rows").json()
    assert [entry["event_id"] for entry in answer["predictions"]] == ["two-rows", "two-rows#1"]
    captured = [c for c in server.captures() if c.event_id.startswith("two-rows")]
    for capture, row, entry in zip(captured, rows, answer["predictions"], strict=True):
        assert capture.inputs == row
        assert (capture.endpoint, capture.model_version) == ("penguins", "1")
        assert capture.prediction == entry["prediction"]
        assert capture.probabilities == entry["probabilities"]


def test_an_id_belongs_to_one_request_with_exactly_its_rows(server: Server) -> None:
    other = {**ROW, "body_mass_g": 3200}
    asked = [
        ("job", [ROW, other], 200),
        ("job", [ROW], 409),
        ("job", [ROW, other, ROW], 409),
        ("job", [other, ROW], 409),
        ("job", [ROW, other], 200),
        ("job-1", [ROW], 200),
        ("job-1", [ROW, ROW], 409),
        ("job#1", [ROW], 200),
        ("job#1", [other, ROW], 409),
        ("job", [ROW, other], 200),
    ]
    for name, rows, status in asked:
        assert server.invoke(rows, x_request_id=name).status_code == status, (name, rows)
    kept = [c.event_id for c in server.captures() if c.event_id.startswith("job")]
    assert kept == ["job", "job#1", "job-1", "job#1#"]


def test_what_was_answered_partly_is_a_request_of_the_rows_that_were(server: Server) -> None:
    url, headers = "/invocations?on_error=partial", {"x-request-id": "mended"}
    bad, other = {**ROW, "body_mass_g": -1}, {**ROW, "body_mass_g": 3200}
    asked = [
        ([bad, ROW, other], 200),
        ([other, ROW, other], 409),
        ([bad, ROW], 409),
        ([bad, ROW, other], 200),
    ]
    for rows, status in asked:
        answer = server.client.post(url, json={"inputs": rows}, headers=headers)
        assert answer.status_code == status, rows
    kept = [c.event_id for c in server.captures() if c.event_id.startswith("mended")]
    assert kept == ["mended", "mended#1"]


@pytest.mark.parametrize("header", ["x_amzn_sagemaker_inference_id", "x_request_id"])
def test_the_caller_may_name_the_event(server: Server, header: str) -> None:
    for _ in range(2):
        answer = server.invoke([ROW], **{header: f"named by {header}"})
        assert answer.json()["predictions"][0]["event_id"] == f"named by {header}"
    assert [c.event_id for c in server.captures()].count(f"named by {header}") == 1


def test_unnamed_events_get_ids_of_their_own(server: Server) -> None:
    ids = {entry["event_id"] for entry in server.invoke([ROW] * 20).json()["predictions"]}
    assert len(ids) == 20


def test_an_event_id_with_other_input_is_a_conflict(server: Server) -> None:
    assert server.invoke([ROW], x_request_id="taken").status_code == 200
    conflict = server.invoke([{**ROW, "sex": None}], x_request_id="taken")
    assert conflict.status_code == 409
    assert "event id" in conflict.json()["error"]
    assert [c.inputs["sex"] for c in server.captures() if c.event_id == "taken"] == ["MALE"]


@pytest.mark.parametrize("name", ["", "x" * 201, "tab\there"])
def test_an_event_id_that_cannot_be_kept_is_refused(server: Server, name: str) -> None:
    assert server.invoke([ROW], x_request_id=name).status_code == 400


def test_probes_are_answered_but_are_no_traffic(server: Server) -> None:
    before = len(server.captures())
    key = {"x_mlschool_probe_key": probe_key(server.home)}
    assert server.invoke([ROW], x_request_id=f"{SMOKE_TEST_PREFIX}1", **key).status_code == 200
    assert len(server.captures()) == before
    # The key alone makes no probe, so that a client that has it cannot hide by mistake.
    assert server.invoke([ROW], **key).status_code == 200
    assert len(server.captures()) == before + 1


@pytest.mark.parametrize("header", ["x_request_id", "x_amzn_sagemaker_inference_id"])
@pytest.mark.parametrize("key", [None, "", "x", "half", "\xff"])
def test_only_who_deploys_makes_a_probe(server: Server, header: str, key: str | None) -> None:
    written = server.health()["captures_written"]
    right = probe_key(server.home)
    presented = {} if key is None else {"x_mlschool_probe_key": right[:9] if key == "half" else key}
    for variant in ({}, {"x_amzn_sagemaker_target_variant": "shadow"}):
        name = {header: f"{SMOKE_TEST_PREFIX}2"}
        refused = server.client.post(
            "/invocations",
            content=VALID,
            headers=[
                (field.replace("_", "-").encode(), value.encode("latin-1"))
                for field, value in {
                    "content_type": "application/json",
                    **name,
                    **presented,
                    **variant,
                }.items()
            ],
        )
        assert refused.status_code == 400
        assert "use another one" in refused.json()["error"]
    assert server.health()["captures_written"] == written


def test_the_key_of_probes_is_for_the_user_of_the_server_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(probe_key, [tmp_path / "home"] * 8))
    assert len(keys) == 1
    (path,) = (tmp_path / "home").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() in keys


def test_invalid_input_is_reported_field_by_field_and_not_captured(server: Server) -> None:
    before = server.health()["captures_written"]
    refused = server.invoke([ROW, {**ROW, "body_mass_g": -5800}])
    assert refused.status_code == 422
    assert refused.json()["faults"] == [
        {"row": 1, "column": "body_mass_g", "reason": "must be between 1000 and 10000 g, not -5800"}
    ]
    assert server.health()["captures_written"] == before


def test_what_other_clients_write_for_no_value_is_null(server: Server) -> None:
    body = json.dumps({"inputs": [{**ROW, "body_mass_g": float("nan")}]})
    headers = {**JSON_TYPE, "x-request-id": "not-a-number"}
    assert server.client.post("/invocations", content=body, headers=headers).status_code == 200
    [capture] = [c for c in server.captures() if c.event_id == "not-a-number"]
    assert capture.inputs == {**ROW, "body_mass_g": None}


@pytest.mark.parametrize(
    "content_type",
    [
        *("text/plain", "", "application/jsonx", "multipart/form-data"),
        *("text/csv; charset=latin-1", 'application/json; odd="a;b"; charset=utf-16'),
    ],
)
def test_another_content_type_is_refused(server: Server, content_type: str) -> None:
    answer = server.client.post(
        "/invocations", content=VALID, headers={"content-type": content_type}
    )
    assert answer.status_code == 415


def test_parameters_of_the_content_type_are_fine(server: Server) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert server.client.post("/invocations", content=VALID, headers=headers).status_code == 200


def test_a_compressed_body_is_refused(server: Server) -> None:
    headers = {**JSON_TYPE, "content-encoding": "gzip"}
    assert server.client.post("/invocations", content=VALID, headers=headers).status_code == 415


def test_csv_is_answered_like_json(server: Server) -> None:
    text = ",".join(ROW) + "\n" + ",".join(map(str, ROW.values())) + "\n"
    answer = server.client.post("/invocations", content=text, headers={"content-type": "text/csv"})
    (of_csv,) = answer.json()["predictions"]
    (of_json,) = server.invoke([ROW]).json()["predictions"]
    assert of_csv["probabilities"] == of_json["probabilities"]


def test_a_repetition_is_answered_as_it_was_the_first_time(server: Server) -> None:
    first, again = (server.invoke([ROW], x_request_id="again").json() for _ in range(2))
    assert first == again


def test_good_rows_are_answered_beside_bad_ones_where_the_caller_asks_for_it(
    server: Server,
) -> None:
    rows = [ROW, {**ROW, "body_mass_g": -1}, {**ROW, "sex": "BOTH"}, ROW]
    url, headers = "/invocations?on_error=partial", {"x-request-id": "partly"}
    answer = server.client.post(url, json={"inputs": rows}, headers=headers)
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    assert [entry and entry["event_id"] for entry in predictions] == [
        "partly",
        None,
        None,
        "partly#1",
    ]
    assert {(fault["row"], fault["column"]) for fault in answer.json()["faults"]} == {
        (1, "body_mass_g"),
        (2, "sex"),
    }
    kept = [c.event_id for c in server.captures() if c.event_id.startswith("partly")]
    assert kept == ["partly", "partly#1"]


def test_a_request_without_a_good_row_is_refused_even_partly(server: Server) -> None:
    answer = server.client.post("/invocations?on_error=partial", json={"inputs": [{}]})
    assert answer.status_code == 422
    assert server.client.post("/invocations?on_error=maybe", content=VALID).status_code in (
        400,
        415,
    )


def test_only_probes_reach_a_version_that_takes_no_traffic(server: Server) -> None:
    header = {"x-amzn-sagemaker-target-variant": "candidate", "content-type": "application/json"}
    assert server.client.post("/invocations", content=VALID, headers=header).status_code == 400


def test_refusals_are_counted_by_reason_and_window(server: Server) -> None:
    store = open_store(server.store_uri)
    window = Window.of(utc_now())
    reason = "flipper_length_mm: is not in range"
    before = store.refusals(window).get(reason, 0)
    for _ in range(3):
        server.invoke([{**ROW, "flipper_length_mm": 1}])
    wait_for(lambda: store.refusals(window).get(reason, 0) == before + 3)
    store.close()


def test_it_describes_itself(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    assert "/invocations" in document["paths"]
    assert server.client.get("/docs").headers["content-type"].startswith("text/html")


def test_it_reports_to_prometheus_what_happened(server: Server) -> None:
    server.invoke([ROW])
    exposition = server.client.get("/metrics").text
    assert 'mlschool_requests_total{role="primary",status="200",version="1"}' in exposition


def test_a_large_batch_is_answered_while_small_requests_go_on(server: Server) -> None:
    rows = 5000
    with ThreadPoolExecutor(1) as thread:
        large = thread.submit(server.client.post, "/invocations", json={"inputs": [ROW] * rows})
        while not large.done():
            assert server.invoke([ROW]).status_code == 200
    assert len(large.result().json()["predictions"]) == rows


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(server: Server, chunked: bool) -> None:
    size = MAX_BODY + 1
    content = (b" " * 65536 for _ in range(size // 65536 + 1)) if chunked else b" " * size
    try:
        status = server.client.post("/invocations", content=content, headers=JSON_TYPE).status_code
    except httpx.WriteError:
        # The server answered and hung up before all was sent, as HTTP allows.
        status = 413
    assert status == 413
    assert server.invoke([ROW]).status_code == 200


def test_a_body_just_below_the_limit_is_read(server: Server) -> None:
    content = VALID + b" " * (MAX_BODY - len(VALID))
    assert server.client.post("/invocations", content=content, headers=JSON_TYPE).status_code == 200


def test_a_request_that_breaks_off_leaves_no_capture(server: Server) -> None:
    before = server.health()["captures_written"]
    host, port = server.client.base_url.host, server.client.base_url.port
    head = f"POST /invocations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, port or 0)) as connection:
        connection.sendall(f"{head}Content-Length: {len(VALID) + 10}\r\n\r\n".encode() + VALID)
    assert server.invoke([ROW]).status_code == 200
    assert server.health()["captures_written"] == before + 1


def test_what_is_not_there_is_reported_in_json(server: Server) -> None:
    assert server.client.get("/invocations").status_code == 405
    unknown = server.client.get("/nowhere")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "Not Found.")


def test_it_reports_its_state(server: Server) -> None:
    assert server.client.get("/ping").status_code == 200
    version = server.client.get("/version").json()
    assert (version["endpoint"], version["version"]) == ("penguins", "1")
    health = server.health()
    assert (health["status"], health["failure"]) == ("ready", None)
    assert health["pid"] == server.workers[0].pid


def send(server: Server, body: bytes, media_type: str) -> None:
    """Whatever `body` is, it is answered or refused, and only what is answered is captured."""
    before = server.health()["captures_written"]
    answer = server.client.post("/invocations", content=body, headers={"content-type": media_type})
    assert answer.status_code < 500
    rows = len(answer.json()["predictions"]) if answer.is_success else 0
    assert rows or answer.json()["error"]
    assert server.health()["captures_written"] == before + rows


ANY_BODY = given(body=BODIES, media_type=st.sampled_from(MEDIA_TYPES))
ONE_SERVER = [HealthCheck.function_scoped_fixture]


@settings(max_examples=200, suppress_health_check=ONE_SERVER)
@ANY_BODY
def test_hostile_bodies_are_refused_and_never_captured(
    server: Server, body: bytes, media_type: str
) -> None:
    send(server, body, media_type)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=10_000, suppress_health_check=ONE_SERVER)
@ANY_BODY
def test_ten_thousand_hostile_bodies_are_refused_and_never_captured(
    server: Server, body: bytes, media_type: str
) -> None:
    send(server, body, media_type)
    assert all(peak_memory(process) < 300e6 for process in server.workers)


@pytest.mark.slow
def test_its_memory_stays_bounded_whatever_a_body_unfolds_into(server: Server) -> None:
    size = MAX_BODY - 100
    bodies = (
        b'{"inputs":[' + b"[]," * (size // 3) + b"[]]}",
        b'{"inputs":{"island":[' + b"1," * (size // 2) + b"1]}}",
        b'{"inputs":[{' + b",".join(b'"%d":1' % i for i in range(550_000)) + b"}]}",
        b'{"dataframe_split":{"columns":[],"data":[' + b"[]," * (size // 3 - 10) + b"[]]}}",
    )
    for body in bodies:
        assert server.client.post("/invocations", content=body, headers=JSON_TYPE).is_client_error
    assert all(peak_memory(process) < 300e6 for process in server.workers)


@pytest.mark.slow
@pytest.mark.parametrize(("connections", "rows"), [(400, 10_000), (500, 1_000)])
def test_its_memory_stays_bounded_however_many_ask_much_and_read_nothing(
    tmp_path: Path, connections: int, rows: int
) -> None:
    text = ",".join(ROW) + "\n" + (",".join(map(str, ROW.values())) + "\n") * rows
    head = f"Host: localhost\r\nContent-Type: text/csv\r\nContent-Length: {len(text)}\r\n"
    request = f"POST /invocations HTTP/1.1\r\n{head}\r\n{text}".encode()
    with running_server(tmp_path) as server, ExitStack() as stack:
        address = (server.client.base_url.host, server.client.base_url.port or 0)
        asking = [
            stack.enter_context(socket.create_connection(address)) for _ in range(connections)
        ]
        threads = [Thread(target=send_or_fail, args=(each, request)) for each in asking]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Each is answered or refused, and a refusal says when to retry.
        answers = [connection.recv(4096) for connection in asking]
        assert {answer[:12] for answer in answers} == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        for answer in answers:
            assert (b"503" in answer[:12]) == (b"\r\nretry-after: " in answer)
        assert server.client.get("/ping").status_code == 200
        assert all(peak_memory(process) < 300e6 for process in server.workers)


def send_or_fail(connection: socket.socket, data: bytes) -> None:
    # Who is refused before all is sent may be cut off.
    with suppress(ConnectionError):
        connection.sendall(data)


def test_what_a_connection_may_cost_and_its_names_are_settings(tmp_path: Path) -> None:
    options = ["--connections", "2", "--keep-alive-seconds", "1", "--preconnect-seconds", "60"]
    with running_server(tmp_path, options=[*options, "--hosts", "a.example, b.example"]) as server:
        address = (server.client.base_url.host, server.client.base_url.port or 0)
        for name, status in (("a.example", 200), ("B.example:80", 200), ("c.example", 421)):
            answer = server.client.get("/version", headers={"host": name})
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/json"
        with ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection(address, 30))]
            for _ in range(2):
                asking = stack.enter_context(socket.create_connection(address, 30))
                asking.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert asking.recv(4096).startswith(b"HTTP/1.1 200")
                connections.append(asking)
            # The one that was silent for longest made room, the others were silent for too long.
            for connection in connections:
                assert connection.recv(4096) == b""


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_another_method_is_refused_with_the_one_to_use(server: Server, method: str) -> None:
    refused = server.client.request(method, "/invocations")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    if method not in ("GET", "HEAD"):
        refused = server.client.request(method, "/ping")
        allowed = set(refused.headers["allow"].split(", "))
        assert (refused.status_code, allowed) == (405, {"GET", "HEAD"})
        assert refused.json()["error"]


def test_what_is_refused_on_the_wire_is_counted_too(server: Server) -> None:
    address = (server.client.base_url.host, server.client.base_url.port or 0)
    with socket.create_connection(address, 30) as connection:
        connection.sendall(b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 505")
    assert server.client.get("/version", headers={"host": "evil.example"}).status_code == 421
    exposition = server.client.get("/metrics").text
    for status in (421, 505):
        assert f'mlschool_requests_total{{role="",status="{status}",version=""}}' in exposition
