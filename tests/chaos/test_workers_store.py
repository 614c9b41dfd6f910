"""The embedded store: killed, hung, or started again with what it held before."""

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path

import psutil
import redis

from tests.support.command import run
from tests.support.config import KEY, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, once, steady
from tests.support.upstream import Exchange, Upstream, like_openai

LIMITED = {"keys": [{"name": "k", "tenant": "acme", "sha256": digest(KEY), "rpm": 1_000_000}]}


async def slow(exchange: Exchange) -> None:
    await asyncio.sleep(0.02)
    await like_openai(exchange)


async def store_again(gateway: Gateway, killed: int) -> None:
    """Wait for the killed store's successor."""
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(ProcessLookupError, psutil.Error, redis.RedisError):
            if gateway.store_pid != killed and gateway.store.ping():
                return
        assert time.monotonic() < deadline, gateway.errors
        await asyncio.sleep(0.02)


def runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


async def test_a_killed_store_comes_back_and_no_completed_request_is_lost(
    upstream: Upstream,
) -> None:
    upstream.behaviour = slow
    text = config(upstream.url, auth=LIMITED, limits={"on_store_failure": "refuse"})
    with running(text, workers=2) as gateway:
        async with steady(gateway.port, Ask, connections=20, pause=0.01) as outcomes:
            await asyncio.sleep(0.5)
            killed = gateway.store_pid
            os.kill(killed, signal.SIGKILL)
            await store_again(gateway, killed)
            await asyncio.sleep(1)
        assert not any(o.failure for o in outcomes)
        # Where the limits cannot be decided, the client hears so; anything else is an answer.
        statuses = {o.status for o in outcomes}
        assert statuses <= {200, 503}, statuses
        assert all(
            o.json["error"]["code"] == "store_unavailable" for o in outcomes if o.status != 200
        )
        assert [o.status for o in outcomes[-20:]] == [200] * 20
        assert "starting it again" in gateway.errors
        gateway.settled(45)
        served = sum(o.status == 200 for o in outcomes)
        used = gateway.usage("acme")
        answered = [r for r in gateway.records(len(outcomes)) if r["outcome"] == "ok"]
        assert len(answered) == served
        assert used["requests"] >= served
        assert used["completion_tokens"] >= 5 * served


async def test_requests_without_limits_are_served_and_counted_while_the_store_is_away(
    upstream: Upstream,
) -> None:
    upstream.behaviour = slow
    with running(config(upstream.url), workers=2) as gateway:
        async with steady(gateway.port, Ask, connections=20, pause=0.01) as outcomes:
            await asyncio.sleep(0.5)
            killed = gateway.store_pid
            os.kill(killed, signal.SIGKILL)
            since = asyncio.get_running_loop().time()
            await store_again(gateway, killed)
            back = asyncio.get_running_loop().time()
            await asyncio.sleep(1)
        assert {(o.status, o.failure) for o in outcomes} == {(200, "")}
        gateway.settled(45)
        assert any(since < o.started and o.ended < back for o in outcomes), "none while it was away"
        served = sum(o.status == 200 for o in outcomes)
        used = gateway.usage("acme")
        assert served > 0
        assert used["requests"] == served
        assert used["completion_tokens"] == 5 * served


async def test_a_store_that_hangs_fails_requests_in_time_and_recovers(upstream: Upstream) -> None:
    limits = {"on_store_failure": "refuse"}
    text = config(upstream.url, auth=LIMITED, limits=limits, redis={"timeout": 0.5})
    with running(text, workers=2) as gateway:
        assert (await once(gateway.port)).status == 200
        pid = gateway.store_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            outcomes = await asyncio.gather(*(once(gateway.port) for _ in range(10)))
            assert [o.status for o in outcomes] == [503] * 10
            assert {o.json["error"]["code"] for o in outcomes} == {"store_unavailable"}
            assert all(int(o.headers["retry-after"]) >= 1 for o in outcomes)
            assert gateway.get("/health/live")[0] == 200
            assert gateway.get("/health/ready")[0] == 503
        finally:
            os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 20
        while (await once(gateway.port)).status != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert gateway.get("/health/ready")[0] == 200
        assert gateway.store_pid == pid, "it was stopped, not ended"


async def test_usage_and_limits_survive_a_restart(upstream: Upstream) -> None:
    key = {"name": "k", "tenant": "acme", "sha256": digest(KEY), "rpm": 1, "burst": 2}
    with running(config(upstream.url, auth={"keys": [key]}), workers=2) as gateway:
        assert (await once(gateway.port)).status == 200
        gateway.settled()
        before = gateway.usage("acme")
        assert gateway.stop() == 0
        gateway.start()
        assert gateway.usage("acme") == before
        assert [(await once(gateway.port)).status for _ in range(2)] == [200, 429]
        gateway.settled()
        assert gateway.usage("acme")["requests"] == 2
        assert gateway.usage("acme", time.strftime("%Y-%m", time.gmtime()))["requests"] == 2


async def test_a_store_begins_only_when_the_one_before_has_ended(upstream: Upstream) -> None:
    with running(config(upstream.url), workers=1) as gateway:
        assert (await once(gateway.port)).status == 200
        old = gateway.store_pid
        keeper = psutil.Process(old).parent()
        assert keeper is not None
        os.kill(old, signal.SIGSTOP)  # slow to end, as on a slow disk
        keeper.kill()
        gateway.wait_for("waits for the one before it to end")
        assert runs(old)
        os.kill(old, signal.SIGCONT)
        await store_again(gateway, old)
        assert not runs(old)
        assert (await once(gateway.port)).status == 200
        async with asyncio.timeout(20):
            while gateway.usage("acme").get("requests") != 2:
                await asyncio.sleep(0.05)


async def test_a_store_that_does_not_end_is_ended(upstream: Upstream) -> None:
    with running(config(upstream.url), workers=1) as gateway:
        old = gateway.store_pid
        keeper = psutil.Process(old).parent()
        assert keeper is not None
        os.kill(old, signal.SIGSTOP)
        keeper.kill()
        await store_again(gateway, old)
        assert not runs(old)


async def test_a_store_whose_socket_is_gone_is_started_again(upstream: Upstream) -> None:
    with running(config(upstream.url), workers=1) as gateway:
        assert (await once(gateway.port)).status == 200
        gateway.settled()
        old = gateway.store_pid
        (gateway.state / "redis.sock").unlink()
        await store_again(gateway, old)
        assert gateway.usage("acme")["requests"] == 1


async def test_the_store_is_private(upstream: Upstream) -> None:
    with running(config(upstream.url)) as gateway:
        assert (gateway.state / "redis.sock").stat().st_mode & 0o777 == 0o600
        assert gateway.state.stat().st_mode & 0o777 == 0o700
        listening = [
            c for p in gateway.family for c in p.net_connections("tcp") if c.status == "LISTEN"
        ]
        assert {c.laddr.port for c in listening} == {gateway.port}


async def test_a_state_directory_may_have_any_name(upstream: Upstream) -> None:
    with tempfile.TemporaryDirectory(prefix="sluice-test-") as directory:
        place = Path(directory) / 'a %41?b#c[\u00e9]"d\\e\nf'
        place.mkdir()
        gateway = Gateway(place, config(upstream.url))
        try:
            assert (await once(gateway.port, Ask())).status == 200
            assert run(gateway, "redis-cli", "PING") == "PONG\n"
            assert gateway.stop() == 0, gateway.errors
            assert gateway.gone(5)
        finally:
            gateway.kill()
