"""Bodies that never end: what a worker holds of all of them is bounded, whoever sends them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from gateway.config.schema import Server
from gateway.core.errors import ApiError
from gateway.core.record import RequestRecord
from gateway.http import body
from gateway.http.client import ClientWriter
from gateway.http.hot import HotRoutes
from gateway.http.protocol import GatewayProtocol
from gateway.http.request_head import RequestHead
from gateway.http.server import GatewayServer
from gateway.pipeline.services import Services
from gateway.policy.access import Principal
from tests.support.inside import serving
from tests.support.wire import CHAT_PATH, Wire, chunked, connected, head_of, post

MOST = 1_000_000  # of one body
ROOM = 4 * MOST
PART = b"x" * (MOST - 1000)
CHUNKED = "Transfer-Encoding: chunked"
LANES = {
    "direct": lambda path: post(PART, path=path, length=MOST),
    "aiohttp": lambda path: head_of(CHUNKED, path=path) + chunked(PART, end=False),
    "expecting": lambda path: (
        head_of("Expect: 100-continue", f"Content-Length: {MOST}", path=path) + PART
    ),
}


class Keys:
    """A keyring that knows everybody."""

    def find(self, secret: str | None) -> Principal:
        return Principal("k", "acme", ("*",), ())

    async def authenticate(self, secret: str | None) -> Principal:
        return self.find(secret)


class Hot(HotRoutes):
    """The hot routes with an answer of their own."""

    async def serve(self, protocol: GatewayProtocol, head: RequestHead, body: bytes) -> None:
        ClientWriter(protocol, True, chunked=True).reply(200, "text/plain", b"", b"%d" % len(body))


@pytest.fixture
def records() -> list[RequestRecord]:
    """What was recorded."""
    return []


@pytest.fixture
async def served(
    monkeypatch: pytest.MonkeyPatch, records: list[RequestRecord]
) -> AsyncIterator[tuple[GatewayServer, int]]:
    monkeypatch.setattr(body, "LEAST_ROOM_BYTES", ROOM)
    config = SimpleNamespace(server=Server(max_request_size=MOST))
    admission = SimpleNamespace(now=time.time, after_settled=lambda deliver: deliver())
    services: Any = SimpleNamespace(
        config=config,
        keyring=Keys(),
        admission=admission,
        append=lambda record: None,
        emit=records.append,
    )
    async with serving(web.Application(), Hot(cast(Services, services))) as (server, address):
        yield server, address[1]


async def held(stack: AsyncExitStack, port: int, data: bytes) -> Wire:
    """A connection with a request that lacks its end."""
    wire = await stack.enter_async_context(connected(port))
    await wire.send(data)
    return wire


async def taken(server: GatewayServer, least: int, most: int) -> None:
    """Wait until the worker holds as much."""
    async with asyncio.timeout(10):
        while not least <= server.room.taken <= most:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("lane", LANES)
async def test_more_than_there_is_room_for_is_refused(
    served: tuple[GatewayServer, int], records: list[RequestRecord], lane: str
) -> None:
    server, port = served
    async with AsyncExitStack() as stack:
        for count in range(1, 5):
            await held(stack, port, LANES[lane](CHAT_PATH))
            await taken(server, count * len(PART), count * MOST)
        for path, kind in ((CHAT_PATH, "server_error"), ("/v1/messages", "overloaded_error")):
            wire = await held(stack, port, LANES[lane](path))
            reply = await wire.reply()
            while reply.status == 100:
                reply = await wire.reply()
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert reply.json["error"]["type"] == kind
        small = await held(stack, port, post(b"{}"))  # which takes no room
        assert (await small.reply()).body == b"2"
    assert [(one.key, one.status, one.error) for one in records] == [("k", 503, "overloaded")] * 2
    await taken(server, 0, 0)


@pytest.mark.parametrize("size", [10, 200_000, MOST])
@pytest.mark.parametrize("times", [1, 3])
async def test_what_is_served_or_too_slow_gives_its_room_back(
    served: tuple[GatewayServer, int], size: int, times: int
) -> None:
    server, port = served
    async with connected(port) as wire:
        for _ in range(times):
            data = post(b"x" * size)
            await wire.send(data[:-3])
            await taken(server, min(size, 1) * (len(data) - 3), len(data))
            await wire.send(data[-3:])
            assert (await wire.reply()).body == str(size).encode()
            assert server.room.taken == 0
            await wire.send(post(b"x")[:20])  # a part of a head takes none
            await wire.send(post(b"x")[20:])
            assert (await wire.reply()).body == b"1"
    assert server.room.taken == 0


async def test_a_body_that_fails_gives_its_room_back() -> None:
    room = body.Room(MOST)
    message: Any = SimpleNamespace(compression=None, headers={})

    class Parts:
        def is_eof(self) -> bool:
            return False

        async def readany(self) -> bytes:
            return b"x" * 1000

    payload: Any = Parts()
    with pytest.raises(ApiError, match="larger"):
        await body.read_body(message, payload, 10_000, 10, room)
    assert room.taken == 0
