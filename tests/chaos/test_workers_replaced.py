"""A reload, whatever becomes of it: what was begun with a worker ends with it."""

import asyncio
import os
import signal
from pathlib import Path

from tests.chaos.test_workers import client_ports
from tests.chaos.test_workers_reload import reload, rewrite
from tests.chaos.test_workers_stop import Gate, exits, open_streams, whole
from tests.support.config import config
from tests.support.gateway import Gateway, running
from tests.support.load import Outcome, once
from tests.support.upstream import Upstream

GRACE = {"drain": {"grace": 0.3}}
BEYOND_GRACE_SECONDS = 2.0


async def stopped_at_birth(gateway: Gateway, count: int) -> list[int]:
    """Ask for a reload; return its first workers, which stand still before they serve."""
    supervisor = gateway.process.pid
    # Written for each look anew, and far sooner than whatever goes through all processes.
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    known = set(children.read_text().split())
    stopped: list[int] = []
    gateway.signal(signal.SIGHUP)
    async with asyncio.timeout(20):
        while len(stopped) < count:
            for pid in children.read_text().split():
                if pid not in known and len(stopped) < count:
                    os.kill(int(pid), signal.SIGSTOP)
                    known.add(pid)
                    stopped.append(int(pid))
            await asyncio.sleep(0)
    return stopped


async def test_a_stream_goes_on_after_a_reload_for_longer_than_a_stop_would_wait(
    upstream: Upstream,
) -> None:
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url, server=GRACE), workers=2) as gateway:
        tasks = await open_streams(gateway, gate)
        await reload(gateway)
        await asyncio.sleep(BEYOND_GRACE_SECONDS)
        assert not any(task.done() for task in tasks)
        gate.open.set()
        assert all(whole(o) for o in await asyncio.gather(*tasks))


async def test_a_stop_after_a_reload_gives_old_workers_no_more_time(upstream: Upstream) -> None:
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url, server=GRACE), workers=2) as gateway:
        tasks = await open_streams(gateway, gate)
        await reload(gateway)
        gateway.signal(signal.SIGTERM)
        await exits(gateway, 15)
        assert not any(whole(o) for o in await asyncio.gather(*tasks))
        assert [r["outcome"] == "ok" for r in gateway.records(len(tasks))] == [False] * len(tasks)


async def test_a_reload_that_fails_cuts_nothing_that_its_workers_serve(upstream: Upstream) -> None:
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url, server=GRACE), workers=2) as gateway:
        before = set(gateway.worker_pids)
        (stopped,) = await stopped_at_birth(gateway, 1)
        tasks: list[asyncio.Task[Outcome]] = []
        async with asyncio.timeout(30):  # until the other one serves, too
            while not tasks or not any(
                client_ports(pid, gateway.port)
                for pid in set(gateway.worker_pids) - before - {stopped}
            ):
                gate.begun = 0
                tasks += await open_streams(gateway, gate)
        os.kill(stopped, signal.SIGKILL)
        await asyncio.to_thread(gateway.wait_for, "reload failed, the old workers go on")
        await asyncio.sleep(BEYOND_GRACE_SECONDS)
        gate.open.set()
        assert all(whole(o) for o in await asyncio.gather(*tasks))
        async with asyncio.timeout(30):
            while set(gateway.worker_pids) != before:
                await asyncio.sleep(0.05)


async def test_nobody_waits_for_workers_that_have_yet_to_start(upstream: Upstream) -> None:
    def with_workers(count: int) -> str:
        return config(upstream.url, server={"workers": count})

    with running(with_workers(1), workers=None) as gateway:
        rewrite(gateway, with_workers(4))
        stopped = await stopped_at_birth(gateway, 4)
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(once(gateway.port) for _ in range(40)))
        os.kill(stopped[0], signal.SIGKILL)
        await asyncio.to_thread(gateway.wait_for, "reload failed, the old workers go on")
        answers += await asyncio.gather(*(once(gateway.port) for _ in range(40)))
        assert [(o.status, o.failure) for o in answers] == [(200, "")] * 80
