"""A provider's connection, by itself: what it may cost, and that nobody gets a broken one."""

import asyncio
import contextlib
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import trustme
import uvloop

from gateway.core.errors import Failure, UpstreamError
from gateway.core.target import Deadlines, Origin
from gateway.pipeline.call import Call
from gateway.pipeline.flight import Flight
from gateway.providers.openai_stream import OpenAIStream
from gateway.upstream.connection import MAX_HEAD_BYTES
from gateway.upstream.exchange import MAX_BODY_BYTES, Reply
from gateway.upstream.pool import Pool
from gateway.upstream.relay import Relay
from gateway.upstream.small_reads import SMALL_BYTES

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Answer = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def pool_to(
    answer: Answer, tls: ssl.SSLContext | None = None, **origin: Any
) -> AsyncIterator[Pool]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await answer(writer)
        writer.close()

    served: set[Any] = set()
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(Origin("https" if tls else "http", "127.0.0.1", port, **origin))
    try:
        yield pool
    finally:
        pool.close()
        server.close()
        await asyncio.gather(*served)


async def get(
    pool: Pool, sink: Relay | None = None, seconds: float = 5.0, request: bytes = REQUEST
) -> Reply:
    until = asyncio.get_running_loop().time() + 30
    return await pool.send(request, sink, Deadlines(2, seconds, seconds, 30), until)


def secured(directory: Path) -> tuple[ssl.SSLContext, dict[str, str]]:
    """What a server needs for TLS, and an origin to trust it."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(directory / "ca.pem")
    return tls, {"ca_file": str(directory / "ca.pem")}


class Told:
    """Whose request it is: keeps what it is told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def queued(self, seconds: float) -> None:
        assert seconds > 0
        self.words.append("queued")

    def sent(self, waited: float) -> None:
        self.words.append("sent")

    def unsent(self) -> None:
        self.words.append("unsent")


@pytest.mark.parametrize(
    ("first_byte", "total", "failure"),
    [(30, 0.2, Failure.TOTAL_TIMEOUT), (0.2, 30, Failure.BUSY)],
)
async def test_who_waits_in_a_full_pool_is_told_which_time_is_up(
    first_byte: float, total: float, failure: Failure
) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        await may_answer.wait()
        writer.write(WHOLE)

    may_answer, loop = asyncio.Event(), asyncio.get_running_loop()
    first, late, patient = Told(), Told(), Told()
    times = Deadlines(2, first_byte, 30, 30)
    async with pool_to(answer, max_connections=1) as pool:
        until = loop.time() + 30
        holding = loop.create_task(pool.send(REQUEST, None, Deadlines(2, 30, 30, 30), until, first))
        while not first.words:
            await asyncio.sleep(0)
        with pytest.raises(UpstreamError) as caught:
            await pool.send(REQUEST, None, times, loop.time() + total, late)
        assert caught.value.failure is failure
        waiting = loop.create_task(
            pool.send(REQUEST, None, Deadlines(2, 30, 30, 30), until, patient)
        )
        await asyncio.sleep(0)
        may_answer.set()
        assert [(await one).status for one in (holding, waiting)] == [200, 200]
    assert (first.words, late.words) == (["sent"], ["queued"]), "opening one is no wait for a place"
    assert patient.words == ["queued", "sent"]


class _Reading:
    """As much of a call as a flight asks of one that reads."""

    route = client = flight = relay = allowance = None
    left = False


async def _take_and_pause(flight: Flight) -> None:
    """Hear of the last piece before the call itself does, and have no room for it."""
    reader = flight.join(cast(Call, _Reading()), asyncio.get_running_loop().time() + 30)
    reader.takes = True
    while not flight.has_more(reader):
        await flight.news()
    flight.piece(reader)
    reader.pause()


async def test_who_pauses_when_all_has_come_stops_nobody_elses_answer() -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\ndata: [DONE]\n\n'
    head = CHUNKED.replace(b"OK\r\n", b"OK\r\nContent-Type: text/event-stream\r\n")

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))

    loop = asyncio.get_running_loop()
    async with pool_to(answer) as pool:
        for _ in range(3):
            flight = Flight("leader", lambda _: None, lambda: False)
            taking = asyncio.create_task(_take_and_pause(flight))
            await asyncio.sleep(0)
            relay = Relay(OpenAIStream(True), flight, bytes, len, loop.time, lambda _: False)
            assert (await get(pool, relay)).status == 200
            relay.end()
            await taking
        assert pool.size == 1


async def test_trailers_that_never_end_are_a_failure() -> None:
    sent = 0

    async def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CHUNKED + b"2\r\n{}\r\n0\r\nX-Trailer: ")
        while True:
            writer.write(b"a" * 8192)
            sent += 8192
            await writer.drain()

    async with pool_to(answer) as pool:
        with pytest.raises(UpstreamError, match="trailers are too large"):
            await get(pool)
        await asyncio.sleep(0.1)
        assert MAX_HEAD_BYTES < sent < 32 * 1024 * 1024


async def test_ordinary_trailers_and_large_bodies_pass() -> None:
    body = b"x" * 4_000_000

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"%x\r\n%b\r\n0\r\nX-A: %b\r\n\r\n" % (len(body), body, b"a" * 999))

    async with pool_to(answer) as pool:
        for _ in range(2):
            assert (await get(pool)).body == body
        assert pool.size == 1


async def test_a_body_in_the_smallest_chunks_takes_little_more_than_its_bytes() -> None:
    pieces = 400_000

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for _ in range(pieces // 1000):
            writer.write(b"2\r\n{}\r\n" * 1000)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with pool_to(answer) as pool:
        tracemalloc.start()
        try:
            assert (await get(pool, seconds=30)).body == b"{}" * pieces
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 6 * 1024 * 1024 < MAX_BODY_BYTES


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_place_given_to_one_who_is_gone_goes_to_the_next(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the very turn in which it was given."""
    release = asyncio.Event()
    timeouts: list[Any] = []
    made = asyncio.timeout_at

    def timeout(moment: float) -> asyncio.Timeout:
        timeouts.append(made(moment))
        found: asyncio.Timeout = timeouts[-1]
        return found

    async def answer(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(WHOLE)

    async with pool_to(answer, max_connections=1) as pool:
        first = asyncio.create_task(get(pool))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(asyncio, "timeout_at", timeout)
        second = asyncio.create_task(get(pool))
        await asyncio.sleep(0.05)
        third = asyncio.create_task(get(pool))
        await asyncio.sleep(0.05)
        wake, woken = pool._wake_one, 0

        def wake_one(connection: Any) -> bool:
            nonlocal woken
            found = wake(connection)
            woken += 1
            if woken == 1:
                if how == "cancelled":
                    second.cancel()
                else:
                    timeouts[0]._on_timeout()
            return found

        monkeypatch.setattr(pool, "_wake_one", wake_one)
        release.set()
        assert (await first).status == 200
        assert (await third).status == 200
        with pytest.raises((asyncio.CancelledError, UpstreamError)):
            await second
        assert pool.size == 1


@pytest.mark.parametrize("secure", [False, True])
async def test_nobody_waits_behind_a_body_that_its_provider_does_not_read(
    secure: bool, tmp_path: Path
) -> None:
    asked, over = 0, asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(WHOLE)
        if asked == 1:
            await over.wait()
            raise ConnectionError

    tls, origin = secured(tmp_path) if secure else (None, {})
    async with pool_to(answer, tls, **origin) as pool:
        try:
            request = b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 16_000_000
            assert (await get(pool, request=request)).status == 200
            assert [(await get(pool)).status for _ in range(2)] == [200, 200]
            assert (asked, pool.size) == (3, 1)
        finally:
            over.set()


class _PerTurn:
    """A sink that counts what it gets in each turn of the loop."""

    def __init__(self, careful: bool, frame_bytes: int) -> None:
        self.careful = careful
        self._frame_bytes = frame_bytes
        self.got = [0]

    def begin(self, *_: Any) -> bool:
        self._turn()
        return True

    def _turn(self) -> None:
        self.got.append(0)
        self._next = asyncio.get_running_loop().call_soon(self._turn)

    def feed(self, data: bytes) -> bool:
        self.got[-1] += len(data)
        return False

    def feed_frame(self, frame: bytes) -> bool:
        if len(frame) != self._frame_bytes:
            return False
        self.got[-1] += len(frame)
        return True

    def stop(self) -> None:
        self._next.cancel()


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(("careful", "most"), [(True, SMALL_BYTES), (False, 256 * 1024)])
def test_who_sends_without_a_pause_is_read_once_in_a_turn(
    careful: bool, most: int, secure: bool, tmp_path: Path
) -> None:
    """The loop that workers run reads up to 32 times before it lets others have their turn."""
    event = b"data: " + b"x" * 1000 + b"\n\n"
    chunk = b"%x\r\n%b\r\n" % (len(event), event)

    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in (CHUNKED + chunk, chunk):
            writer.write(piece)
            await asyncio.sleep(0.05)
        writer.write(chunk * 3000 + b"0\r\n\r\n")

    async def read() -> None:
        tls, origin = secured(tmp_path) if secure else (None, {})
        sink = _PerTurn(careful, len(chunk))
        async with pool_to(answer, tls, **origin) as pool:
            assert (await get(pool, cast(Relay, sink))).status == 200
        sink.stop()
        assert sum(sink.got) >= 3002 * len(event)
        largest, *others = sorted(sink.got, reverse=True)
        assert largest <= most
        assert max(others) <= SMALL_BYTES

    uvloop.run(read())
