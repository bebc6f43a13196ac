"""What Schemathesis derives from the OpenAPI document holds for a real server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlschool_dagster_tests.serving.server import running_server

SECONDS = 45


@pytest.mark.slow
@pytest.mark.timeout(6 * SECONDS)
def test_the_server_keeps_to_its_document_whatever_is_derived_from_it(tmp_path: Path) -> None:
    """No failure of the server, no status, content type, header or schema that is not documented.

    What the document refuses, the server refuses. That it takes all that the document takes is no
    promise: CSV is any text to a schema, and so is an order of columns. Where a schema can say it,
    `test_openapi` shows that both take the same.
    """
    with running_server(tmp_path) as server:
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("schemathesis")), "run"),
                *(f"{server.client.base_url}/openapi.json", "--checks", "all"),
                *("--exclude-checks", "positive_data_acceptance", "--generation-deterministic"),
                *("--max-time", str(SECONDS), "--continue-on-failure", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.invoke([]).status_code == 422
        assert server.captures()
        levels = {json.loads(line)["level"] for line in server.log.splitlines()}
        assert levels <= {"info", "warning"}
