"""The limit: a Starlette application that returns the body, on the endpoint's server settings."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def invocations(request: Request) -> Response:
    """The body, as it came."""
    return Response(await request.body(), media_type="application/json")


if __name__ == "__main__":
    app = Starlette(routes=[Route("/invocations", invocations, methods=["POST"])])
    uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, server_header=False)
