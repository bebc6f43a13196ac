"""Client of an endpoint that speaks the scoring protocol over HTTP."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from mlschool_dagster.capture.records import Role
from mlschool_dagster.dataset.spec import InputValue
from mlschool_dagster.deployment.endpoint import Prediction
from mlschool_dagster.errors import RefusedError, UserError
from mlschool_dagster.serving.probes import PROBE_HEADER

EVENT_ID_HEADER = "X-Amzn-SageMaker-Inference-Id"
VARIANT_HEADER = "X-Amzn-SageMaker-Target-Variant"


class EndpointClient:
    """A client of the endpoint `name` at `url`, usable from several threads.

    `timeout` bounds each wait on the network, in seconds. With `token`, each request presents it.
    """

    def __init__(
        self, name: str, url: str, timeout: float = 30.0, token: str | None = None
    ) -> None:
        self._name = name
        self._url = url
        # An endpoint's address is given, never to be sent through a proxy from the environment.
        self._http = httpx.Client(
            base_url=url,
            timeout=timeout,
            trust_env=False,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
        )

    def invoke(
        self,
        rows: Sequence[Mapping[str, InputValue]],
        inference_id: str | None = None,
        variant: Role | None = None,
        probe_key: str | None = None,
    ) -> list[Prediction]:
        """Predict as `Endpoint.invoke` does; with `variant`, the version in that role answers.

        A probe presents the `probe_key` of the endpoint's home.
        """
        headers = {}
        if inference_id is not None:
            headers[EVENT_ID_HEADER] = inference_id
        if variant is not None:
            headers[VARIANT_HEADER] = variant
        if probe_key is not None:
            headers[PROBE_HEADER] = probe_key
        try:
            response = self._http.post(
                "/invocations", json={"dataframe_records": list(rows)}, headers=headers
            )
        except httpx.TimeoutException:
            raise UserError(
                f"The endpoint {self._name} at {self._url} did not answer in time; see its log."
            ) from None
        except httpx.TransportError:
            raise UserError(
                f"The endpoint {self._name} at {self._url} cannot be reached; materialize endpoint."
            ) from None
        if response.is_success:
            return self._predictions(response)
        document = _object(response)
        message = str(document.get("error", f"The endpoint answered {response.status_code}."))
        if response.is_client_error:
            raise RefusedError(message, document.get("faults", ()))
        raise UserError(
            f"The endpoint {self._name} at {self._url} answered {response.status_code} "
            f"({message.rstrip('.')}); see its log and try again."
        )

    def text(self, path: str) -> str | None:
        """The text at `path`; None if the endpoint does not answer with success."""
        try:
            response = self._http.get(path)
        except httpx.TransportError:
            return None
        return response.text if response.is_success else None

    def _predictions(self, response: httpx.Response) -> list[Prediction]:
        document = _object(response)
        try:
            return [
                Prediction(
                    prediction=entry["prediction"],
                    confidence=entry["confidence"],
                    probabilities=entry["probabilities"],
                    event_id=entry["event_id"],
                    model_version=document["model_version"],
                )
                for entry in document["predictions"]
            ]
        except (KeyError, TypeError):
            raise UserError(
                f"What answers at {self._url} is not the endpoint {self._name}; "
                "materialize endpoint on another port."
            ) from None


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
