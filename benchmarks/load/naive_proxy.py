"""The proxy that a good newcomer writes: Starlette in front, one shared httpx client behind.

python -m benchmarks.load.naive_proxy --upstream http://127.0.0.1:8000 --port 4000
"""

import argparse
import contextlib
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


def create_app(upstream: str) -> Starlette:
    client = httpx.AsyncClient(
        base_url=upstream,
        timeout=httpx.Timeout(600, connect=5),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,
    )

    async def forward(request: Request) -> StreamingResponse:
        outgoing = client.build_request(
            request.method,
            request.url.path,
            params=request.query_params,
            headers=[(k, v) for k, v in request.headers.items() if k not in HOP_BY_HOP],
            content=await request.body(),
        )
        incoming = await client.send(outgoing, stream=True)
        headers = {k: v for k, v in incoming.headers.items() if k not in HOP_BY_HOP}
        return StreamingResponse(
            incoming.aiter_raw(),
            status_code=incoming.status_code,
            headers=headers,
            background=BackgroundTask(incoming.aclose),
        )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    methods = ["GET", "POST"]
    return Starlette(routes=[Route("/{path:path}", forward, methods=methods)], lifespan=lifespan)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(
        create_app(args.upstream),
        port=args.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
