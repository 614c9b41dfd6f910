"""Readers that stop reading endless streams: little is held for each, and not for ever."""

import asyncio
import json
import socket
from typing import Any

import psutil
import pytest
import uvloop

from tests.support.config import KEY, chat, config
from tests.support.gateway import Gateway, running
from tests.support.lean import Script, lean_process
from tests.support.load import Ask, flood, once
from tests.support.soak import KIB, MIB, PROMISED, came, gauge, sized

READERS = sized(100, 500)
# Each event is 4 KB, and all together far more than what kernels buffer on the way.
ENDLESS = Script(events=10**6, gap=0.002, size=4000)
TORRENT = Script(events=10**6, size=4000)
CUT_SECONDS = 5


def unread(port: int, number: int) -> socket.socket:
    """Ask for a stream on a connection with little room, and read nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
    sock.connect(("127.0.0.1", port))
    body = json.dumps(chat(seed=number, stream=True)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    sock.sendall(head.encode() + body)
    return sock


async def settled_rss(worker: psutil.Process, seconds: float = 40.0) -> int:
    """The memory of a worker once it grows no more."""
    loop, last = asyncio.get_running_loop(), 0
    deadline = loop.time() + seconds
    while True:
        now = int(worker.memory_info().rss)
        if abs(now - last) < 128 * KIB or loop.time() > deadline:
            return now
        last = now
        await asyncio.sleep(2)


async def warmed(gateway: Gateway) -> int:
    """The memory of the one worker after some requests."""
    (pid,) = gateway.worker_pids
    outcomes = await flood(gateway.port, [Ask(chat(seed=n)) for n in range(1000)], READERS)
    assert {one.status for one in outcomes} == {200}
    return await settled_rss(psutil.Process(pid))


# Of few readers each has a larger part of what a busy worker needs in any case.
MOST_KIB_EACH = 64 if PROMISED else 112


@pytest.mark.timeout(300)
@pytest.mark.parametrize("script", [ENDLESS, TORRENT], ids=["paced", "torrent"])
def test_stalled_readers_cost_little_and_slow_nobody(script: Script) -> None:
    uvloop.run(stalled_readers(script))


async def stalled_readers(script: Script) -> None:
    with lean_process(script) as lean, running(configured(lean.url)) as gateway:
        (pid,) = gateway.worker_pids
        worker, before = psutil.Process(pid), await warmed(gateway)
        socks = [unread(gateway.port, number) for number in range(READERS)]
        try:
            await came(lambda: gauge(gateway, "sluice_requests_in_flight") == READERS)
            after = await settled_rss(worker)
            each = (after - before) / READERS / KIB
            print(
                f"{READERS} stalled: {each:.1f} KiB each, {(after - before) / MIB:.1f} MiB in all"
            )
            assert (await once(gateway.port, Ask(chat(seed=1)))).status == 200
            assert each <= MOST_KIB_EACH
        finally:
            for sock in socks:
                sock.close()
        await came(lambda: gauge(gateway, "sluice_requests_in_flight") == 0)
        await came(lambda: lean.state()["open"] <= 2)
        left = await settled_rss(worker)
        print(f"{(left - before) / MIB:+.1f} MiB when they have gone")


@pytest.mark.timeout(300)
def test_stalled_readers_have_nothing_of_a_provider_after_the_deadline() -> None:
    uvloop.run(cut_off(let_go=False))


@pytest.mark.timeout(300)
@pytest.mark.skipif(not PROMISED, reason="lasts longer than an idle connection: SLUICE_SOAK=1")
def test_stalled_readers_are_let_go_some_time_after_the_deadline() -> None:
    uvloop.run(cut_off(let_go=True))


async def cut_off(*, let_go: bool) -> None:
    few, timeouts = READERS // 5, {"total": CUT_SECONDS}
    with lean_process(ENDLESS) as lean, running(configured(lean.url, timeouts)) as gateway:
        assert (await once(gateway.port, Ask(chat(seed=1)))).status == 200
        socks = [unread(gateway.port, number) for number in range(few)]

        def is_over() -> bool:
            names = ("sluice_requests_in_flight", "sluice_open_leases")
            return not any(gauge(gateway, name) for name in names)

        try:
            await came(lambda: gauge(gateway, "sluice_requests_in_flight") == few)
            await came(is_over, CUT_SECONDS + 20)
            await came(lambda: lean.state()["open"] <= 2)
            records = gateway.records(1 + few)
            assert [record["outcome"] for record in records].count("error") == few
            if let_go:  # what is left of them is an idle connection, and should end as one
                await came(lambda: gauge(gateway, "sluice_client_connections") <= 2, 100)
        finally:
            for sock in socks:
                sock.close()


def configured(url: str, timeouts: dict[str, Any] | None = None) -> str:
    return config(url, server={"timeouts": timeouts or {}, "overload": {"lag": 5}})
