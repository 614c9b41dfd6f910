"""Names of upstreams while their name server fails, hangs or has changed its mind."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.core.errors import UpstreamError
from gateway.core.target import Origin
from gateway.upstream import dial
from gateway.upstream.connection import Connection
from tests.integration.conftest import unused_port

CONNECT_SECONDS = 20.0


class Names:
    """A name server that tests tell what to answer: a port of this host, an error, nothing."""

    def __init__(self, port: int) -> None:
        self.answer: int | Exception | None = port
        self.asked = 0

    async def getaddrinfo(self, _host: str, _port: int, **_options: Any) -> list[Any]:
        self.asked += 1
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        place = ("127.0.0.1", self.answer)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place)]


@pytest.fixture
async def listening() -> AsyncIterator[int]:
    served: set[Any] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*served)


@pytest.fixture
async def names(listening: int, monkeypatch: pytest.MonkeyPatch) -> Names:
    found = Names(listening)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found.getaddrinfo)
    monkeypatch.setattr(dial, "NAMES_SECONDS", 0.0)
    return found


async def reached(dialer: dial.Dialer) -> bool:
    def make() -> Connection:
        return Connection(asyncio.get_running_loop(), lambda _: None, lambda _: None)

    connection = await dialer.dial(make, CONNECT_SECONDS)
    connection.abort()
    return True


def dialer() -> dial.Dialer:
    return dial.Dialer(Origin(scheme="http", host="model.test", port=80))


@pytest.mark.parametrize("trouble", [socket.gaierror(socket.EAI_AGAIN, "try again"), None])
async def test_addresses_that_were_found_serve_while_no_name_server_answers(
    names: Names, trouble: Exception | None
) -> None:
    one = dialer()
    assert await reached(one)
    names.answer = trouble
    for _ in range(3):
        assert await reached(one)
    assert names.asked == 2, "asked at every connection, though it does not answer"


async def test_a_name_that_never_was_found_is_an_error(names: Names) -> None:
    names.answer = socket.gaierror(socket.EAI_NONAME, "unknown")
    with pytest.raises(UpstreamError, match="does not resolve"):
        await reached(dialer())


async def test_a_name_that_points_elsewhere_by_now_is_asked_for_again(
    names: Names, listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "NAMES_SECONDS", 3600.0)
    one = dialer()
    names.answer = unused_port()
    with pytest.raises(UpstreamError):
        await reached(one)
    names.answer = listening
    assert await reached(one)
    assert await reached(one)
    assert names.asked == 2
