"""The gateway's connections in the test's own process, before routes that the test gives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

from aiohttp import web

from gateway.config.schema import Overload
from gateway.http.server import GatewayServer, HotHandler


@contextlib.asynccontextmanager
async def serving(
    routes: web.Application, hot: HotHandler | None = None
) -> AsyncIterator[tuple[GatewayServer, tuple[str, int]]]:
    """The server and its address, for the length of a block."""
    runner = web.AppRunner(routes, access_log=None)
    await runner.setup()
    assert runner.server is not None
    none = cast(HotHandler, SimpleNamespace(max_body_bytes=1))  # what no request is for
    server = GatewayServer(runner.server, hot or none, 30, Overload())
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield server, listener.sockets[0].getsockname()
    finally:
        listener.close()
        await server.shutdown(1)
        await runner.cleanup()
