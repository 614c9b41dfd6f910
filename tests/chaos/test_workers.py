"""Workers that die or hang: the others go on, a successor comes, what is done is counted."""

import asyncio
import itertools
import os
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.support.config import chat, config
from tests.support.gateway import ROOT, Gateway, running
from tests.support.load import Ask, Outcome, once, steady
from tests.support.upstream import Exchange, Upstream, like_openai
from workers.process import HUNG_SECONDS, PING_SECONDS

LEASE_SECONDS = 30
REPLACED_SECONDS = 20.0


async def slow(exchange: Exchange) -> None:
    """Take a moment, so that a killed worker always has requests in flight."""
    await asyncio.sleep(0.2)
    await like_openai(exchange)


def client_ports(pid: int, listening: int) -> set[int]:
    """The client's ends of the connections that a worker has accepted."""
    connections = psutil.Process(pid).net_connections("tcp")
    return {c.raddr.port for c in connections if c.raddr and c.laddr.port == listening}


async def replaced(gateway: Gateway, before: list[int], lost: int) -> float:
    """Wait until there are as many workers as before without the lost one; return how long."""
    started = time.monotonic()
    while len(pids := gateway.worker_pids) < len(before) or lost in pids:
        assert time.monotonic() - started < 30, f"not replaced:\n{gateway.errors}"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


def completed(outcomes: list[Outcome]) -> list[Outcome]:
    return [o for o in outcomes if not o.failure]


async def test_a_killed_worker_costs_only_its_own_requests(upstream: Upstream) -> None:
    upstream.behaviour = slow
    with running(config(upstream.url), workers=4) as gateway:
        before = gateway.worker_pids
        assert len(before) == 4
        async with steady(gateway.port, Ask, connections=40) as outcomes:
            await asyncio.sleep(0.5)
            # The worker with the most clients; stopped, so that it accepts no more of them.
            victim = max(before, key=lambda pid: len(client_ports(pid, gateway.port)))
            os.kill(victim, signal.SIGSTOP)
            own = client_ports(victim, gateway.port)
            os.kill(victim, signal.SIGKILL)
            seconds = await replaced(gateway, before, victim)
            print(f"replaced in {seconds * 1000:.0f} ms; {len(own)} connections were its own")
            await asyncio.sleep(1)
        failed = [o for o in outcomes if o.failure]
        done = completed(outcomes)
        assert own
        assert failed, "the worker had nothing in flight: the test shows nothing"
        assert {o.local_port for o in failed} <= own
        assert all(o.status == 200 for o in done)
        assert seconds < REPLACED_SECONDS
        used = gateway.usage("acme")
        assert len(done) <= used["requests"]
        assert used["completion_tokens"] >= 5 * len(done)

        gateway.settled(LEASE_SECONDS + 15)  # the lost ones expire and are settled
        used, records = gateway.usage("acme"), gateway.records(len(done))
        await asyncio.sleep(0.6)  # records are folded in batches
        records = gateway.records()
        aborted = [r for r in records if r["outcome"] == "aborted"]
        assert len(done) < used["requests"] <= len(outcomes)
        assert aborted
        assert all(
            (r["error"], r["usage_source"], r["key"]) == ("worker_lost", "reserved", "k")
            and r["usage"]["completion_tokens"] == 1024
            for r in aborted
        )
        ids = [r["id"] for r in records]
        assert len(ids) == len(set(ids)), "a request has two records"
        # What the worker had settled but not yet logged has no record, and is counted.
        lost_records = used["requests"] - len(records)
        assert 0 <= lost_records <= len(outcomes)
        completion = sum(r["usage"]["completion_tokens"] for r in records)
        assert used["completion_tokens"] == completion + 5 * lost_records


async def test_a_worker_that_hangs_is_killed_and_replaced(upstream: Upstream) -> None:
    with running(config(upstream.url), workers=2) as gateway:
        before = gateway.worker_pids
        os.kill(before[0], signal.SIGSTOP)
        started = time.monotonic()
        gateway.wait_for(rf"worker \d \(pid {before[0]}\) hung .*aborting", 40)
        gateway.wait_for(rf"worker \d \(pid {before[0]}\) was ended by SIG(ABRT|KILL)", 20)
        await replaced(gateway, before, before[0])
        print(f"replaced after {time.monotonic() - started:.1f} s")
        assert before[1] in gateway.worker_pids
        answers = await asyncio.gather(*(once(gateway.port) for _ in range(40)))
        assert [o.status for o in answers] == [200] * 40


async def test_workers_outlive_a_pause_of_the_machine(upstream: Upstream) -> None:
    with running(config(upstream.url), workers=2) as gateway:
        before, everybody = gateway.worker_pids, gateway.family
        for process in everybody:
            process.suspend()
        await asyncio.sleep(HUNG_SECONDS + 1)
        for process in everybody:
            process.resume()
        answers = await asyncio.gather(*(once(gateway.port) for _ in range(40)))
        assert [o.status for o in answers] == [200] * 40
        await asyncio.sleep(2 * PING_SECONDS)  # all have been asked for a sign of life
        assert gateway.worker_pids == before
        assert "hung" not in gateway.errors


async def test_an_aborted_worker_leaves_a_traceback_and_is_replaced(upstream: Upstream) -> None:
    with running(config(upstream.url), workers=2) as gateway:
        before = gateway.worker_pids
        os.kill(before[0], signal.SIGABRT)
        await replaced(gateway, before, before[0])
        assert "was ended by SIGABRT" in gateway.errors
        assert "Fatal Python error: Aborted" in gateway.errors
        assert (await once(gateway.port)).status == 200


async def test_a_worker_that_keeps_dying_is_started_ever_more_slowly(upstream: Upstream) -> None:
    with running(config(upstream.url), workers=1) as gateway:
        deaths: list[float] = []
        end = time.monotonic() + 5
        while time.monotonic() < end or len(deaths) < 4:
            for pid in gateway.worker_pids:
                os.kill(pid, signal.SIGKILL)
                deaths.append(time.monotonic())
                while pid in gateway.worker_pids:
                    await asyncio.sleep(0.002)
            await asyncio.sleep(0.002)
        gaps = [later - earlier for earlier, later in itertools.pairwise(deaths)]
        print("gaps:", [f"{gap:.2f}" for gap in gaps])
        # At once, then after 0.1, 0.2, 0.4, 0.8, 1.6 s: a loop without a backoff gets to dozens.
        assert 4 <= len(deaths) <= 9
        assert max(gaps) > 2 * min(gaps)
        assert gateway.process.poll() is None
        # Its listener was open all the while: a client waits rather than being refused.
        assert (await once(gateway.port)).status == 200


@pytest.mark.parametrize("workers", [1, 3])
async def test_all_workers_killed_at_once_are_all_replaced(
    upstream: Upstream, workers: int
) -> None:
    with running(config(upstream.url), workers=workers) as gateway:
        before = gateway.worker_pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*(once(gateway.port) for _ in range(20)))
        assert [(o.status, o.failure) for o in answers] == [(200, "")] * 20
        assert len(gateway.worker_pids) == workers
        assert not set(before) & set(gateway.worker_pids)


async def test_a_machine_without_room_for_another_process_loses_no_worker(
    upstream: Upstream,
) -> None:
    """Forks fail while a file is there: as the supervisor sees it, the machine is full."""
    with tempfile.TemporaryDirectory(prefix="sluice-test-") as place:
        full = Path(place) / "full"
        (Path(place) / "sitecustomize.py").write_text(
            "import errno, os\n"
            "fork = os.fork\n"
            "def limited():\n"
            f"    if os.path.exists({str(full)!r}):\n"
            "        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
            "    return fork()\n"
            "os.fork = limited\n"
        )
        environ = {"PYTHONPATH": f"{place}:{ROOT}"}
        with running(config(upstream.url), workers=2, environ=environ) as gateway:
            full.touch()
            os.kill(gateway.worker_pids[0], signal.SIGKILL)
            gateway.wait_for(r"cannot start worker \d: resource temporarily unavailable")
            gateway.signal(signal.SIGHUP)
            gateway.wait_for("reload failed, the old workers go on")
            full.unlink()
            async with asyncio.timeout(20):
                while len(gateway.worker_pids) < 2:
                    await asyncio.sleep(0.1)
            outcomes = [await once(gateway.port, Ask(chat())) for _ in range(20)]
            assert {outcome.status for outcome in outcomes} == {200}
