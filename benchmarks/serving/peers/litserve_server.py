"""LitServe with one worker: ``python litserve_server.py PORT``. Nothing is captured."""

import sys
from typing import Any

import litserve
from rows import Network, Records, Row


class Penguins(litserve.LitAPI):  # type: ignore[misc]
    """The network behind LitServe's request, batch and worker."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.network = Network()

    def decode_request(self, request: dict[str, Any]) -> list[Row]:
        """The rows of a request."""
        return Records.model_validate(request).dataframe_records

    def predict(self, rows: list[Row]) -> dict[str, Any]:
        """Predictions on `rows`."""
        return self.network.predict(rows)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """The answer's body."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Penguins(api_path="/invocations"), accelerator="cpu", workers_per_device=1
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
