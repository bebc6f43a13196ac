"""FastAPI with pydantic's validation: ``python fastapi_server.py PORT``. Nothing is captured."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from rows import Network, Records

app = FastAPI()
network = Network()


@app.post("/invocations")
async def invocations(records: Records) -> dict[str, Any]:
    """Predictions on the rows."""
    return network.predict(records.dataframe_records)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False)
