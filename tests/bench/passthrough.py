"""The bare Python reference: aiohttp's server in front of aiohttp's ClientSession, one process.

Started as `python -m tests.bench.passthrough --upstream http://127.0.0.1:PORT`, it prints its port.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector, web

_SESSION = web.AppKey("session", ClientSession)
_UPSTREAM = web.AppKey("upstream", str)
_FORWARDED = ("authorization", "content-type", "accept")


async def _forward(request: web.Request) -> web.StreamResponse:
    session, url = request.app[_SESSION], request.app[_UPSTREAM] + request.path
    headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
    body = await request.read()
    async with session.request(request.method, url, data=body, headers=headers) as reply:
        if reply.content_type == "text/event-stream":
            return await _relay(request, reply)
        return web.Response(
            body=await reply.read(), status=reply.status, content_type=reply.content_type
        )


async def _relay(request: web.Request, reply: ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(
        status=reply.status, headers={"content-type": reply.headers["content-type"]}
    )
    await response.prepare(request)
    async for chunk in reply.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


async def _session(app: web.Application) -> AsyncIterator[None]:
    connector = TCPConnector(limit=0)
    async with ClientSession(connector=connector, timeout=ClientTimeout(total=60)) as session:
        app[_SESSION] = session
        yield


async def _serve(host: str, port: int, upstream: str) -> None:
    app = web.Application()
    app[_UPSTREAM] = upstream
    app.cleanup_ctx.append(_session)
    app.router.add_route("*", "/{path:.*}", _forward)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="aiohttp server + ClientSession passthrough")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--upstream", required=True)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(options.host, options.port, options.upstream))


if __name__ == "__main__":
    main()
