"""Clients that ask, and read nothing of what they are told."""

import asyncio
import contextlib
import socket

import pytest
from aiohttp import web

from gateway.http import protocol
from tests.support.config import chat, config
from tests.support.gateway import running
from tests.support.inside import serving
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, Upstream, completion, usage
from tests.support.wire import Wire, chunked, head_of, post

REQUEST = b"GET %b HTTP/1.1\r\nHost: sluice.test\r\n\r\n"


def unread(address: tuple[str, int], path: bytes) -> socket.socket:
    """A connection full of requests of which nobody reads the answers."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(address)
    client.settimeout(0.5)
    with contextlib.suppress(OSError):  # by time, or because it was cut off
        while True:
            client.sendall(REQUEST % path * 50)
    return client


async def test_a_client_that_pipelines_and_reads_nothing_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 20_000)

    monkeypatch.setattr(protocol, "STALLED_SECONDS", 0.2)
    app = web.Application()
    app.router.add_get("/", answer)
    async with serving(app) as (server, address):
        client = await asyncio.to_thread(unread, address, b"/")
        with client:
            async with asyncio.timeout(10):
                while server.connections:
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", [b"/metrics", b"/nothing/here"])
async def test_a_stop_does_not_wait_for_a_client_that_reads_nothing(path: bytes) -> None:
    with UpstreamThread() as upstream:
        text = config(upstream.url, server={"drain": {"grace": 1}})
        with running(text) as gateway, unread(("127.0.0.1", gateway.port), path):
            assert await asyncio.to_thread(gateway.stop) == 0


ASKED = post(chat("m"))
LANES = {
    "direct": ASKED,
    "aiohttp": head_of("Transfer-Encoding: chunked") + chunked(ASKED[ASKED.index(b"{") :]),
}


@pytest.mark.parametrize("lane", LANES)
async def test_a_stop_waits_for_a_client_that_reads_slowly(upstream: Upstream, lane: str) -> None:
    text = "x" * 8_000_000  # more than the kernel buffers

    async def answers(exchange: Exchange) -> None:
        await exchange.reply(completion(text, usage(7, 5)))

    upstream.behaviour = answers
    with (
        running(config(upstream.url)) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port)) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        reader, writer = await asyncio.open_connection(sock=client)
        writer.write(LANES[lane])
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.to_thread(gateway.settled)
        gateway.process.terminate()
        with contextlib.suppress(ConnectionError):
            while True:  # until the worker takes no connections any more
                await Wire(*await asyncio.open_connection("127.0.0.1", gateway.port)).aclose()
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)  # for longer than idle connections stay open
        rest = b""
        while len(rest) < len(text):
            part = await reader.read(2**20)
            assert part, f"cut after {len(rest)} bytes"
            rest += part
        writer.close()
