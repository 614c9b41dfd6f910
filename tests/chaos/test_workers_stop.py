"""Ends of every kind: in order, out of patience, asked twice, and the supervisor killed."""

import asyncio
import json
import signal
import time

import psutil

from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, Outcome, once
from tests.support.upstream import Exchange, Upstream, delta, usage

STREAMS = 40  # so many that no worker of three has none
STREAM = Ask(chat(stream=True))


class Gate:
    """A behaviour: streams begin, and end when the gate opens."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun = 0

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("one"))
        self.begun += 1
        await self.open.wait()
        await exchange.event(delta(" two", "stop"))
        await exchange.event({**delta(None), "choices": [], "usage": usage(7, 2)})
        await exchange.event("[DONE]")
        await exchange.end_stream()


async def open_streams(gateway: Gateway, gate: Gate) -> "list[asyncio.Task[Outcome]]":
    """Begin streams on connections of their own, and wait until each has content."""
    tasks = [asyncio.create_task(once(gateway.port, STREAM)) for _ in range(STREAMS)]
    async with asyncio.timeout(20):
        while gate.begun < STREAMS:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    return tasks


async def exits(gateway: Gateway, seconds: float) -> float:
    """Wait for the supervisor's end; return how long it took."""
    started = time.monotonic()
    await asyncio.to_thread(gateway.process.wait, seconds)
    return time.monotonic() - started


def whole(outcome: Outcome) -> bool:
    return (outcome.status, outcome.failure, outcome.events[-1:]) == (200, "", ["[DONE]"])


async def test_open_streams_finish_before_the_end(upstream: Upstream) -> None:
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url), workers=2) as gateway:
        async with Client(gateway.port) as idle:
            await idle.connect()
            tasks = await open_streams(gateway, gate)
            gateway.signal(signal.SIGTERM)
            await asyncio.sleep(1)
            assert gateway.process.poll() is None
            assert not any(task.done() for task in tasks)
            refused = await once(gateway.port)
            assert "ConnectionRefused" in refused.failure, refused
            gate.open.set()
            outcomes = await asyncio.gather(*tasks)
            await exits(gateway, 15)
        assert all(whole(o) for o in outcomes), outcomes
        assert gateway.process.returncode == 0
        assert gateway.gone(5)
        records = gateway.records(STREAMS)
        assert [r["outcome"] for r in records] == ["ok"] * STREAMS
        gateway.start()
        assert gateway.usage("acme")["completion_tokens"] == 2 * STREAMS


async def test_a_lame_duck_serves_but_is_not_ready(upstream: Upstream) -> None:
    server = {"drain": {"lame_duck": 1.5, "grace": 5}}
    with running(config(upstream.url, server=server), workers=2) as gateway:
        assert gateway.get("/health/ready")[0] == 200
        gateway.signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert gateway.get("/health/ready")[0] == 503
        assert gateway.get("/health/live")[0] == 200
        assert (await once(gateway.port)).status == 200
        await exits(gateway, 15)
        assert gateway.process.returncode == 0


async def test_a_stream_that_outlasts_the_grace_is_ended_visibly(upstream: Upstream) -> None:
    gate = upstream.behaviour = Gate()
    server = {"drain": {"grace": 1}}
    with running(config(upstream.url, server=server), workers=2) as gateway:
        tasks = await open_streams(gateway, gate)
        gateway.signal(signal.SIGTERM)
        seconds = await exits(gateway, 15)
        outcomes = await asyncio.gather(*tasks)
        print(f"ended after {seconds:.1f} s; as the client saw it: {outcomes[0].failure!r}")
        for outcome in outcomes:
            assert "[DONE]" not in outcome.events
            assert outcome.failure or '"error"' in outcome.events[-1], outcome
        assert seconds >= 0.9
        assert gateway.process.returncode == 0
        assert gateway.gone(5)
        records = gateway.records(STREAMS)
        assert len(records) == STREAMS
        assert all(r["usage"]["completion_tokens"] >= 1 for r in records)
        assert all(r["outcome"] != "ok" for r in records)
        gateway.start()
        used = gateway.usage("acme")
        assert used["requests"] == STREAMS
        assert used["completion_tokens"] == sum(r["usage"]["completion_tokens"] for r in records)
        gateway.settled(1)


async def test_a_second_sigterm_ends_at_once(upstream: Upstream) -> None:
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url), workers=2) as gateway:
        tasks = await open_streams(gateway, gate)
        gateway.signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert gateway.process.poll() is None
        gateway.signal(signal.SIGTERM)
        seconds = await exits(gateway, 10)
        assert seconds < 8  # the grace is 30
        assert not any(whole(o) for o in await asyncio.gather(*tasks))
        assert gateway.gone(5)


async def test_workers_outlive_a_killed_supervisor_until_they_are_done(upstream: Upstream) -> None:
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url), workers=3) as gateway:
        family = gateway.family
        tasks = await open_streams(gateway, gate)
        gateway.process.kill()
        gateway.process.wait()
        await asyncio.sleep(1)
        assert len(gateway.family) == len(family) - 1, "workers or the store did not wait"
        gate.open.set()
        outcomes = await asyncio.gather(*tasks)
        assert all(whole(o) for o in outcomes), outcomes
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, 15)
        assert not alive, f"left running: {alive}"
        gateway.start()
        used = gateway.usage("acme")
        assert (used["requests"], used["completion_tokens"]) == (STREAMS, 2 * STREAMS)
        gateway.settled(1)
        gate.open.set()
        assert whole(await once(gateway.port, STREAM))


async def test_what_cannot_be_closed_keeps_no_record_from_being_written() -> None:
    text = json.loads(config("http://127.0.0.1:9/v1"))
    text["providers"]["demo"] = {"kind": "demo"}
    text["models"]["m"]["targets"] = [{"provider": "demo", "model": "demo"}]
    with running(json.dumps(text)) as gateway:
        (path,) = gateway.state.glob("demo-*.sock")
        path.unlink()
        path.mkdir()  # which cannot be unlinked
        assert (await once(gateway.port, Ask(chat()))).status >= 500
        assert gateway.stop() == 0
        assert len(gateway.records(1)) == 1
        assert "could be closed in order" in gateway.log_file.read_text()
