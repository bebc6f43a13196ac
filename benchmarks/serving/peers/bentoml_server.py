"""BentoML with one worker: ``bentoml serve bentoml_server:Penguins``. Nothing is captured."""

from typing import Any

import bentoml
from rows import Network, Row


@bentoml.service(workers=1)  # type: ignore[misc]
class Penguins:
    """The network behind BentoML's service."""

    def __init__(self) -> None:
        self.network = Network()

    @bentoml.api(route="/invocations")  # type: ignore[misc]
    async def invocations(self, dataframe_records: list[Row]) -> dict[str, Any]:
        """Predictions on the rows."""
        return self.network.predict(dataframe_records)
