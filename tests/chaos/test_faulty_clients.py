"""Clients that stall, break off and lie, by the dozen: the gateway serves on, in bounded memory."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import psutil
import pytest

from tests.support.config import chat, config
from tests.support.gateway import Gateway, untroubled
from tests.support.load import Ask, flood, once
from tests.support.numbered import Gate, by_number, number, said
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, completion, delta, like_openai, usage
from tests.support.wire import Wire, connected, post

MEBIBYTE = 2**20
STALLED, IDLE, PIPELINED, UNREAD = 50, 200, 300, 60
# A stalled stream holds what one read brought behind the mark at which it is paused: 256 and 64 KB.
STALLED_BYTES = STALLED * 640 * 1024
UNREAD_BYTES = IDLE_BYTES = 16 * MEBIBYTE
LINGER_NOT = struct.pack("ii", 1, 0)
STREAM = chat(stream=True)
GOOD = json.dumps(chat()).encode()


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamThread]:
    """The upstream behind the gateway."""
    with UpstreamThread() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """The gateway; at the end its worker is the one it began with, and nothing is left open."""
    patient = {"connect": 10, "first_byte": 60, "first_token": 60, "idle": 60, "total": 120}
    with untroubled(config(provider.url, server={"timeouts": patient})) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log_file.read_text() + gateway.errors


def worker_of(gateway: Gateway) -> psutil.Process:
    """The one worker."""
    (pid,) = gateway.worker_pids
    return psutil.Process(pid)


async def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a callable says so."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


async def works(gateway: Gateway, provider: UpstreamThread) -> None:
    """The gateway serves an ordinary client."""
    provider.reset(like_openai)
    outcome = await once(gateway.port)
    assert (outcome.status, outcome.failure) == (200, "")


def reset(wire: Wire) -> None:
    """Leave with RST, as a client does that is killed."""
    sock = wire.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    transport = wire.writer.transport
    assert isinstance(transport, asyncio.WriteTransport)
    transport.abort()


# -- clients that do not read ----------------------------------------------------------------------


class Torrents:
    """A behaviour: streams without end, each until its other side goes."""

    def __init__(self) -> None:
        self.sent = self.begun = self.ended = 0
        self._piece = json.dumps(delta("x" * 16_000))

    async def __call__(self, exchange: Exchange) -> None:
        exchange.writer.transport.set_write_buffer_limits(high=0)
        sock = exchange.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.begun += 1
        try:
            await exchange.start_stream()
            while True:
                await exchange.event(self._piece)
                self.sent += len(self._piece)
        finally:
            self.ended += 1


async def stalled(stack: AsyncExitStack, port: int) -> Wire:
    """A client that reads nothing of what it is answered."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    # Its own side reads a little ahead, and then not any more.
    wire = Wire(*await asyncio.open_connection(sock=sock, limit=1024))
    stack.push_async_callback(wire.aclose)
    return wire


async def settled_at(count: Callable[[], int], seconds: float = 60.0) -> int:
    """Wait until a count stays what it is for a second."""
    last = -1
    async with asyncio.timeout(seconds):
        while last != count():
            last = count()
            await asyncio.sleep(1)
    return last


async def test_clients_that_read_nothing_cost_little_memory(
    served: Gateway, provider: UpstreamThread
) -> None:
    await works(served, provider)
    torrents = Torrents()
    provider.reset(torrents)
    worker = worker_of(served)
    before = worker.memory_info().rss
    async with AsyncExitStack() as stack:
        for _ in range(STALLED):
            wire = await stalled(stack, served.port)
            wire.writer.write(post(STREAM))
        await until(lambda: torrents.begun == STALLED)
        await settled_at(lambda: torrents.sent)  # all are paused: nothing more is taken
        assert torrents.ended == 0
        assert worker.memory_info().rss - before < STALLED_BYTES
        await works(served, provider)
    await until(lambda: torrents.ended == STALLED)
    served.settled()


class Bulky:
    """A behaviour: one answer of a mebibyte after the other."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.asked += 1
        await exchange.reply(completion("x" * MEBIBYTE, usage(7, 5)))


async def all_at_once(wire: Wire, bulky: Bulky) -> None:
    wire.writer.write(post(chat()) * UNREAD)


async def one_by_one(wire: Wire, bulky: Bulky) -> None:
    for asked in range(UNREAD):
        wire.writer.write(post(chat()))
        with contextlib.suppress(TimeoutError):
            await until(lambda asked=asked: bulky.asked > asked, seconds=2)  # type: ignore[misc]
        if bulky.asked <= asked:
            return


@pytest.mark.parametrize("asks", [all_at_once, one_by_one])
async def test_a_client_that_asks_and_reads_nothing_is_held_back(
    served: Gateway, provider: UpstreamThread, asks: Callable[[Wire, Bulky], Awaitable[None]]
) -> None:
    await works(served, provider)
    bulky = Bulky()
    provider.reset(bulky)
    worker = worker_of(served)
    before = worker.memory_info().rss
    async with AsyncExitStack() as stack:
        await asks(await stalled(stack, served.port), bulky)
        asked = await settled_at(lambda: bulky.asked)
        grown = worker.memory_info().rss - before
    served.settled()
    assert 0 < asked < UNREAD
    assert grown < UNREAD_BYTES


# -- clients that send many requests at once -------------------------------------------------------


async def test_hundreds_of_pipelined_requests_are_answered_in_order(
    served: Gateway, provider: UpstreamThread
) -> None:
    provider.reset(by_number)
    async with connected(served.port) as wire:
        sending = asyncio.create_task(wire.send(b"".join(map(number, range(PIPELINED)))))
        told = [said([await wire.reply()])[0] for _ in range(PIPELINED)]
        await sending
    assert told == [str(i) for i in range(PIPELINED)]


async def test_a_client_that_pipelines_and_is_killed_has_asked_once(
    served: Gateway, provider: UpstreamThread
) -> None:
    gate = Gate()
    provider.reset(gate)
    async with connected(served.port) as wire:
        await wire.send(b"".join(map(number, range(20))))  # fewer than reading stops at
        await gate.until_asked()
        reset(wire)
    try:
        await gate.until_left()
    finally:
        gate.open()
    served.settled()
    await works(served, provider)
    assert gate.asked == 1


# -- clients that break off, and lie ---------------------------------------------------------------

REQUEST = post(chat())
HEAD_BYTES = REQUEST.index(b"\r\n\r\n") + 4


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(1, id="first byte"),
        pytest.param(9, id="first line"),
        pytest.param(HEAD_BYTES // 2, id="head"),
        pytest.param(HEAD_BYTES - 1, id="head but its last byte"),
        pytest.param(HEAD_BYTES, id="head alone"),
        pytest.param(HEAD_BYTES + 1, id="first byte of the body"),
        pytest.param(len(REQUEST) - 1, id="all but the last byte"),
    ],
)
async def test_clients_that_are_killed_in_a_request_have_asked_nothing(
    served: Gateway, provider: UpstreamThread, sent: int
) -> None:
    await asyncio.sleep(0.6)  # what was before is written by then
    before = len(served.records())
    provider.reset(like_openai)
    files = worker_of(served).num_fds()
    for _ in range(20):
        async with connected(served.port) as wire:
            await wire.send(REQUEST[:sent])
            await asyncio.sleep(0.002)
            reset(wire)
    outcome = await once(served.port)
    assert (outcome.status, len(provider.received)) == (200, 1)
    await until(lambda: len(served.records()) > before)
    await until(lambda: worker_of(served).num_fds() <= files)
    assert [r["id"] for r in served.records()[before:]] == [outcome.headers["x-request-id"]]


async def test_a_body_that_is_longer_than_it_says_is_no_second_request(
    served: Gateway, provider: UpstreamThread
) -> None:
    provider.reset(like_openai)
    for cut in (1, 9, len(GOOD)):
        async with connected(served.port) as wire:
            await wire.send(post(GOOD, length=len(GOOD) - cut) + post(chat()))
            assert said(await wire.replies()) in (
                ["invalid_json", "invalid_http"],
                ["invalid_http"],
            )
    assert provider.received == []


async def test_a_body_that_is_shorter_than_it_says_swallows_what_follows(
    served: Gateway, provider: UpstreamThread
) -> None:
    provider.reset(like_openai)
    async with connected(served.port) as wire:
        await wire.send(post(GOOD, length=len(GOOD) + 20) + post(chat()))
        told = said(await wire.replies())  # the parser may give up the whole segment
    assert told in (["invalid_json", "invalid_http"], ["invalid_http"])
    assert provider.received == []


# -- clients that say nothing ----------------------------------------------------------------------


async def test_hundreds_of_idle_connections_are_in_nobodys_way(
    served: Gateway, provider: UpstreamThread
) -> None:
    await works(served, provider)
    provider.reset(by_number)
    worker = worker_of(served)
    memory, files = worker.memory_info().rss, worker.num_fds()
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(connected(served.port)) for _ in range(IDLE)]
        for wire in wires[::2]:  # half of them have been served before
            await wire.send(number(0))
            assert said([await wire.reply()]) == ["0"]
        outcomes = await flood(served.port, [Ask(chat(seed=1)) for _ in range(IDLE)], 8)
        assert {(one.status, one.failure) for one in outcomes} == {(200, "")}
        for wire in wires:  # and all of them may still ask
            await wire.send(number(2))
            assert said([await wire.reply()]) == ["2"]
        assert worker.memory_info().rss - memory < IDLE_BYTES
    await until(lambda: worker.num_fds() < files + 32)
    served.settled()
