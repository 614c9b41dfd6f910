"""Clients that leave or stall: the provider's connection follows at once, in bounded memory."""

import asyncio
import json
import socket
import time

import psutil
import pytest

from tests.integration.conftest import Wired, wait
from tests.support.config import KEY, chat
from tests.support.load import LEFT, Ask, Client, flood, once
from tests.support.upstream import Exchange, delta, like_openai

PATIENT_STREAM = Ask(chat("patient", stream=True))
MIB = 2**20


async def logged(wired: Wired) -> int:
    """The number of records once those of earlier tests, which leave in batches, are all out."""
    await asyncio.sleep(0.6)
    return len(wired.gateway.records())


class Watched:
    """A behaviour that sees when the gateway goes: two words of a stream, or silence."""

    def __init__(self, stream: bool) -> None:
        self.stream = stream
        self.begun = self.left = 0
        self.left_at = 0.0

    async def __call__(self, exchange: Exchange) -> None:
        if self.stream:
            await exchange.start_stream()
            await exchange.event(delta("one"))
            await exchange.event(delta(" two"))
        self.begun += 1
        await exchange.gone()
        self.left += 1
        self.left_at = time.monotonic()
        exchange.keep_alive = False


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_a_client_that_leaves_closes_the_upstream_connection(
    wired: Wired, stream: bool
) -> None:
    watched = Watched(stream)
    wired.behave(watched)
    before = await logged(wired)
    async with Client(wired.port) as client:
        await client.send(Ask(chat("patient", stream=stream)))
        if stream:
            await client.read_head()
            while client.arrived.count(b"\n\n") < 2:
                await client.read_chunk()
        await asyncio.to_thread(wait, lambda: watched.begun)
        await asyncio.sleep(0.1)
        assert watched.left == 0
        left = time.monotonic()
        client.cut()
        await asyncio.to_thread(wait, lambda: watched.left)
        assert watched.left_at - left < 5  # its deadlines are at 20 s
    await asyncio.to_thread(wait, lambda: len(wired.gateway.records()) > before)
    await asyncio.sleep(0.5)
    (record,) = wired.gateway.records()[before:]
    assert record["outcome"] == "disconnected"
    assert record["usage_source"] == "partial"
    assert record["usage"]["completion_tokens"] == (2 if stream else 0)
    assert record["usage"]["prompt_tokens"] > 0
    assert record["cost_microusd"] > 0
    wired.gateway.settled()


async def test_many_clients_that_leave_leave_nothing_behind(wired: Wired) -> None:
    watched = Watched(stream=True)
    wired.behave(watched)
    wired.gateway.settled()
    before, counted = await logged(wired), wired.gateway.usage("acme")["requests"]
    asks = [Ask(chat("patient", stream=True), leave_after=1 + n % 2) for n in range(100)]
    await flood(wired.port, asks, 25)
    await asyncio.to_thread(wait, lambda: watched.left == 100)
    await asyncio.to_thread(wait, lambda: len(wired.gateway.records()) >= before + 100)
    wired.gateway.settled()
    assert wired.gateway.usage("acme")["requests"] == counted + 100
    metrics = wired.gateway.get("/metrics")[1].decode()
    assert "sluice_open_leases 0.0" in metrics
    wired.behave()
    assert (await once(wired.port, Ask(chat("patient")))).status == 200


async def test_a_client_that_leaves_the_queue_gives_its_place_away(wired: Wired) -> None:
    watched = Watched(stream=False)
    wired.behave(watched)
    narrow = Ask(chat("narrow"))
    served, queued = ([Client(wired.port) for _ in range(n)] for n in (2, 4))
    for client in served:
        await client.send(narrow)
    await asyncio.to_thread(wait, lambda: watched.begun == 2)
    for client in queued:
        await client.send(narrow)
    await asyncio.sleep(0.3)
    for client in (*queued, *served):
        await client.aclose()
        await asyncio.sleep(0.05)
    await asyncio.to_thread(wait, lambda: watched.left == 2)
    assert watched.begun == 2
    wired.behave()
    outcomes = await flood(wired.port, [narrow] * 8, 8)
    assert [(o.status, o.failure) for o in outcomes] == [(200, "")] * 8
    assert len(wired.first.received) == 8, "one that had left was sent"


async def test_clients_that_leave_disturb_no_other(wired: Wired) -> None:
    """What a cancelled request lets go of may be another's by then: it must not be cut."""

    async def paced(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(4):
            await exchange.event(delta("word "))
            await asyncio.sleep(0.002)
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()

    wired.behave(paced)
    body = chat("patient", stream=True)
    asks = [Ask(body, leave_after=1 + n % 5) if n % 4 else Ask(body) for n in range(4000)]
    outcomes = await flood(wired.port, asks, 40)
    cut = [o for o in outcomes if o.failure not in ("", LEFT)]
    assert len(cut) == 0, f"{len(cut)} cut, such as {cut[0]}"
    stayed = [o for o in outcomes if o.ask.leave_after is None]
    assert all(o.events[-1] == "[DONE]" for o in stayed)


class Torrent:
    """A behaviour that streams as much as it can and counts what it got rid of."""

    def __init__(self, total: int) -> None:
        self.total, self.sent = total, 0
        self.piece = json.dumps(delta("x" * 16_000))

    async def __call__(self, exchange: Exchange) -> None:
        exchange.writer.transport.set_write_buffer_limits(high=0)
        sock = exchange.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        await exchange.start_stream()
        while self.sent < self.total:
            await exchange.event(self.piece)
            self.sent += len(self.piece)
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()


async def test_a_client_that_stalls_pauses_the_provider(wired: Wired) -> None:
    torrent = Torrent(64 * MIB)
    wired.behave(torrent)
    (pid,) = wired.gateway.worker_pids
    worker = psutil.Process(pid)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.connect(("127.0.0.1", wired.port))
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock, limit=65536)
    before = worker.memory_info().rss
    body = json.dumps(chat("patient", stream=True)).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await asyncio.sleep(1.5)
    stalled_at = torrent.sent
    await asyncio.sleep(1)
    grown = worker.memory_info().rss - before
    print(f"stalled at {stalled_at / MIB:.1f} MiB, worker grew by {grown / MIB:.1f} MiB")
    assert 0 < torrent.sent < 32 * MIB
    assert torrent.sent == stalled_at, "still sending"
    assert grown < 16 * MIB
    # Others are served meanwhile, and the slow one still gets everything.
    assert (await once(wired.port, Ask(chat("nobody")))).status == 502
    received, tail = 0, b""
    async with asyncio.timeout(60):
        while b"0\r\n\r\n" not in tail[-5:]:
            data = await reader.read(1 << 20)
            assert data, "cut"
            received += len(data)
            tail = (tail + data)[-64:]
    assert torrent.sent >= torrent.total
    assert received > torrent.sent
    assert b"data: [DONE]\n\n" in tail
    assert worker.memory_info().rss - before < 24 * MIB
    writer.close()
    await writer.wait_closed()


async def test_a_stalled_client_that_leaves_frees_the_provider(wired: Wired) -> None:
    torrent = Torrent(64 * MIB)
    wired.behave(torrent)
    before = wired.first.upstream.open_connections
    async with Client(wired.port, limit=65536) as client:
        await client.send(PATIENT_STREAM)
        await client.read_head()
        await asyncio.sleep(1)
        assert torrent.sent < torrent.total
    wired.behave(like_openai)
    await asyncio.to_thread(wait, lambda: wired.first.upstream.open_connections <= before)
    wired.gateway.settled()


async def test_a_full_pool_makes_requests_wait(wired: Wired) -> None:
    watched = Watched(stream=False)
    wired.behave(watched)
    holders = [Client(wired.port) for _ in range(2)]
    for client in holders:
        await client.send(Ask(chat("narrow")))
    await asyncio.to_thread(wait, lambda: watched.begun == 2)
    waiting = asyncio.create_task(once(wired.port, Ask(chat("narrow"))))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    assert len(wired.first.received) == 2
    for client in holders:
        await client.aclose()
    await asyncio.to_thread(wait, lambda: watched.begun == 3)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.to_thread(wait, lambda: watched.left == 3)
