"""SIGHUP: a new generation of workers takes over and no request notices."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import unused_port
from tests.support.config import KEY, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, once, steady
from tests.support.upstream import Exchange, Upstream, delta, like_openai, usage
from tests.support.wire import Wire, connected, head_of, post
from workers.supervisor import MAX_DRAINING_GENERATIONS

RELOADS = 20
OTHER_KEY = "sk-other-0123456789"


def served_count(gateway: Gateway) -> int:
    """How often the supervisor said that it serves."""
    return gateway.errors.count("serving on ")


async def reload(gateway: Gateway, seconds: float = 40.0) -> None:
    """Ask for a reload and wait for its end, good or bad."""
    before, deadline = served_count(gateway), time.monotonic() + seconds
    gateway.signal(signal.SIGHUP)
    while served_count(gateway) == before:
        assert time.monotonic() < deadline, f"no reload:\n{gateway.errors}"
        await asyncio.sleep(0.01)


def rewrite(gateway: Gateway, text: str) -> None:
    gateway.config_file.write_text(text)


def keys(*named: tuple[str, str]) -> dict[str, Any]:
    return {"keys": [{"name": n, "tenant": "acme", "sha256": digest(key)} for n, key in named]}


async def paced(exchange: Exchange) -> None:
    """Stream for two seconds; answer anything else at once."""
    if not exchange.request.json.get("stream"):
        await like_openai(exchange)
        return
    await exchange.start_stream()
    for _ in range(20):
        await exchange.event(delta("word "))
        await asyncio.sleep(0.1)
    await exchange.event(delta(None, "stop"))
    await exchange.event({**delta(None), "choices": [], "usage": usage(7, 20)})
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def test_twenty_reloads_under_load_fail_no_request(upstream: Upstream) -> None:
    upstream.behaviour = paced
    streamed = Ask(chat(stream=True))
    with running(config(upstream.url), workers=2) as gateway:
        first = set(gateway.worker_pids)
        async with (
            steady(gateway.port, Ask, connections=12) as unary,
            # Slower than a reload: such a connection is idle most of the time, across several.
            steady(gateway.port, Ask, connections=6, pause=0.7) as lazy,
            steady(gateway.port, lambda: streamed, connections=6) as streams,
        ):
            for _ in range(RELOADS):
                await reload(gateway)
        outcomes = [*unary, *lazy, *streams]
        print(f"{len(unary)} unary, {len(lazy)} lazy, {len(streams)} streams")
        assert [(o.status, o.failure) for o in outcomes if o.status != 200 or o.failure] == []
        assert all(o.events[-1] == "[DONE]" and len(o.events) == 22 for o in streams)
        assert not first & set(gateway.worker_pids)
        assert served_count(gateway) == RELOADS + 1
        gateway.settled()
        used = gateway.usage("acme")
        assert used["requests"] == len(outcomes)
        assert used["completion_tokens"] == 5 * (len(unary) + len(lazy)) + 20 * len(streams)
        records = gateway.records(len(outcomes))
        assert len({r["id"] for r in records}) == len(records) == len(outcomes)


async def test_a_bad_configuration_is_refused_and_the_old_one_goes_on(upstream: Upstream) -> None:
    good = json.dumps(json.loads(config(upstream.url)), indent=1)
    with running(good, workers=2) as gateway:
        before = gateway.worker_pids
        for bad, field in (
            (good.replace('"name": "k"', '"nam": "k"'), "auth.keys"),
            (good.replace('"kind": "openai"', '"kind": "nobody"'), "providers.p0.kind"),
            (good.replace('"priority": 1', '"priority": "first"'), "models.m.targets"),
        ):
            wrong = {x for x in bad.splitlines() if x not in good.splitlines()}
            numbers = [n for n, x in enumerate(bad.splitlines(), 1) if x in wrong]
            rewrite(gateway, bad)
            start = len(gateway.errors)
            await reload(gateway)
            said = gateway.errors[start:]
            assert "reload refused" in said
            # The nearest line that names the field: the field's own, or its entry's first.
            lines = [n for n in range(numbers[0] - 1, numbers[0] + 1) if f"yaml:{n}: " in said]
            assert lines, said
            assert f": {field}" in said
            assert (await once(gateway.port)).status == 200
            assert gateway.worker_pids == before
        rewrite(gateway, "{ not: yaml: at all")
        await reload(gateway)
        assert "sluice.yaml:1: not YAML" in gateway.errors
        assert (await once(gateway.port)).status == 200
        rewrite(gateway, good)
        await reload(gateway)
        assert (await once(gateway.port)).status == 200
        async with asyncio.timeout(10):  # the old ones may still be on their way out
            while set(before) & set(gateway.worker_pids):
                await asyncio.sleep(0.05)


async def test_a_changed_configuration_takes_effect(upstream: Upstream) -> None:
    with running(config(upstream.url, auth=keys(("k", KEY))), workers=2) as gateway:
        before = gateway.worker_pids
        assert (await once(gateway.port, Ask(key=OTHER_KEY))).status == 401
        rewrite(gateway, config(upstream.url, auth=keys(("o", OTHER_KEY))))
        await reload(gateway)
        async with asyncio.timeout(10):  # the old ones may be about to take a last connection
            while (await once(gateway.port)).status == 200:
                await asyncio.sleep(0.05)
            while set(before) & set(gateway.worker_pids):
                await asyncio.sleep(0.05)
        asks = [Ask(key=key) for key in (KEY, OTHER_KEY) for _ in range(10)]
        answers = await asyncio.gather(*(once(gateway.port, ask) for ask in asks))
        assert [o.status for o in answers] == [401] * 10 + [200] * 10
        gateway.settled()
        assert gateway.usage("acme", part="key:o")["requests"] == 10


async def test_limits_and_usage_outlive_a_reload(upstream: Upstream) -> None:
    limited = keys(("k", KEY))
    limited["keys"][0] |= {"rpm": 1, "burst": 3}
    with running(config(upstream.url, auth=limited), workers=2) as gateway:
        assert [(await once(gateway.port)).status for _ in range(2)] == [200, 200]
        await reload(gateway)
        assert [(await once(gateway.port)).status for _ in range(2)] == [200, 429]
        gateway.settled()
        assert gateway.usage("acme")["requests"] == 3


async def test_a_reload_changes_the_number_of_workers(upstream: Upstream) -> None:
    def with_workers(count: int) -> str:
        return config(upstream.url, server={"workers": count})

    with running(with_workers(2), workers=None) as gateway:
        assert len(gateway.worker_pids) == 2
        for count in (4, 1, 3):
            async with steady(gateway.port, Ask, connections=12) as outcomes:
                rewrite(gateway, with_workers(count))
                await reload(gateway)
                await asyncio.sleep(0.3)
            assert [o.failure for o in outcomes if o.status != 200 or o.failure] == []
            deadline = time.monotonic() + 20  # the old generation drains
            while len(gateway.worker_pids) != count:
                assert time.monotonic() < deadline, gateway.worker_pids
                await asyncio.sleep(0.05)
            answers = await asyncio.gather(*(once(gateway.port) for _ in range(40)))
            assert [(o.status, o.failure) for o in answers] == [(200, "")] * 40
            assert f"({count} workers," in gateway.errors.splitlines()[-1]


async def test_a_reload_that_changes_the_store_is_refused(upstream: Upstream) -> None:
    with running(config(upstream.url)) as gateway:
        rewrite(gateway, config(upstream.url, redis={"memory_mb": 64}))
        await reload(gateway)
        assert "reload refused" in gateway.errors
        assert ": redis.memory_mb: a change needs a restart" in gateway.errors
        assert (await once(gateway.port)).status == 200


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ('ledger: {directory: "~no-such-user/x"}', "ledger.directory"),
        ('tracing: {enabled: true, endpoint: "http://[::1:4318"}', "tracing.endpoint"),
        ('auth: {keys: [{name: a, key: "abcdefgh\\ud800"}]}', "auth.keys[0].key"),
        ("metrics: {enabled: !!bool foo}", "metrics.enabled"),
        ("server: {workers: 2000000}", "server.workers"),
        ("auth: {enabled: false}\nserver: {address: '192.0.2.1:80'}", "server.address"),
    ],
)
async def test_no_file_ends_a_gateway_that_serves(bad: str, field: str) -> None:
    with running("log: {requests: false}", workers=None, host=None) as gateway:
        before = gateway.worker_pids
        rewrite(gateway, bad)
        await reload(gateway)
        assert f"reload refused, the old configuration goes on: {gateway.config_file}" in (
            gateway.errors
        )
        assert f": {field}: " in gateway.errors
        assert gateway.worker_pids == before
        assert gateway.get("/health/live")[0] == 200


async def test_more_workers_than_there_is_room_for_are_refused(upstream: Upstream) -> None:
    """More descriptors than this process may have, and more segments than there are."""
    with running(config(upstream.url), workers=None) as gateway:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        for workers, why in ((100, "too many open files"), (500, "a restart makes some for 500")):
            rewrite(gateway, config(upstream.url, server={"workers": workers}))
            await reload(gateway)
            assert why in gateway.errors
            answers = await asyncio.gather(*(once(gateway.port) for _ in range(20)))
            assert [(o.status, o.failure) for o in answers] == [(200, "")] * 20


async def test_the_first_key_opens_the_port_to_others(upstream: Upstream) -> None:
    """Without an address the default one changes with it, and the port stays."""
    port = unused_port()
    with running(config(upstream.url, auth=None), host=None, port=port) as gateway:
        assert f"http://127.0.0.1:{port} " in gateway.errors
        rewrite(gateway, config(upstream.url))
        await reload(gateway)
        assert f"http://0.0.0.0:{port} " in gateway.errors
        async with asyncio.timeout(30):  # the old ones serve until they have heard that they end
            while (await once(port, Ask(key=OTHER_KEY))).status == 200:
                await asyncio.sleep(0.05)
        answers = [await once(port, Ask(key=key)) for key in (OTHER_KEY, KEY) for _ in range(10)]
        assert [one.status for one in answers] == [401] * 10 + [200] * 10


async def test_a_worker_that_ends_amid_a_reload_comes_back_as_it_was(upstream: Upstream) -> None:
    """The reload is to another address, and fails after that."""
    old, new = unused_port(), unused_port()

    def at(port: int) -> str:
        return config(upstream.url, server={"address": f"127.0.0.1:{port}"})

    with running(at(old), workers=2, host=None, port=None) as gateway:
        supervisor = psutil.Process(gateway.process.pid)
        known = {child.pid for child in supervisor.children()}
        before = gateway.worker_pids
        rewrite(gateway, at(new))
        gateway.signal(signal.SIGHUP)
        fresh: set[int] = set()
        async with asyncio.timeout(20):
            while not fresh:
                fresh = {child.pid for child in supervisor.children()} - known
        for pid in fresh:
            os.kill(pid, signal.SIGSTOP)
        os.kill(before[0], signal.SIGKILL)
        async with asyncio.timeout(20):  # two new ones and the successor
            while len({child.pid for child in supervisor.children()} - known) < 3:
                await asyncio.sleep(0.02)
        for pid in fresh:  # one that stands still would be waited for
            os.kill(pid, signal.SIGKILL)
        gateway.wait_for("reload failed, the old workers go on")
        async with asyncio.timeout(20):
            while len(gateway.worker_pids) != 2:
                await asyncio.sleep(0.02)
            answers = await asyncio.gather(*(once(old) for _ in range(40)))
        assert [(o.status, o.failure) for o in answers] == [(200, "")] * 40
        assert (await once(new)).failure.startswith("ConnectionRefused")


async def test_a_reload_that_has_to_wait_says_so(upstream: Upstream) -> None:
    go_on = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await go_on.wait()
        await like_openai(exchange)

    upstream.behaviour = held
    with running(config(upstream.url)) as gateway:
        asks = []
        for _ in range(MAX_DRAINING_GENERATIONS):
            asks.append(asyncio.create_task(once(gateway.port)))
            async with asyncio.timeout(20):
                while len(upstream.received) < len(asks):
                    await asyncio.sleep(0.02)
            await reload(gateway)
        served = served_count(gateway)
        gateway.signal(signal.SIGHUP)
        await asyncio.to_thread(gateway.wait_for, "a reload waits until old workers have ended")
        assert served_count(gateway) == served
        go_on.set()
        assert [(await ask).status for ask in asks] == [200] * len(asks)
        async with asyncio.timeout(40):
            while served_count(gateway) == served:
                await asyncio.sleep(0.05)


async def test_a_reload_moves_to_another_address_and_back(upstream: Upstream) -> None:
    """Nobody is left waiting at an address that is not served any more."""
    ports = [unused_port(), unused_port()]

    def at(port: int) -> str:
        return config(upstream.url, server={"address": f"127.0.0.1:{port}"})

    with tempfile.TemporaryDirectory() as place:
        gateway = Gateway(Path(place), at(ports[0]), host=None, port=None)
        try:
            for now, before in ((ports[1], ports[0]), (ports[0], ports[1])):
                rewrite(gateway, at(now))
                await reload(gateway)
                assert (await once(now, Ask(chat()))).status == 200
                async with asyncio.timeout(20):  # until the old workers' last connections are done
                    while (await once(before, Ask(chat()))).failure == "":
                        await asyncio.sleep(0.1)
                assert "refused" not in gateway.errors
        finally:
            gateway.kill()


ADMIN_KEYS = ("the-admin-key-a8d2f07b41", "the-admin-key-93c6e15d28")
SETTLED_SECONDS = 1.0  # in which old workers have heard of a reload, on a busy machine too


async def test_keys_that_are_taken_away_open_nothing_on_connections_of_before(
    upstream: Upstream,
) -> None:
    upstream.behaviour = paced
    text = json.loads(config(upstream.url))
    auth = {**keys(("kept", KEY), ("gone", OTHER_KEY)), "admin_key": ADMIN_KEYS[0]}
    with running(json.dumps({**text, "auth": auth})) as gateway:
        async with contextlib.AsyncExitStack() as stack:

            async def wire() -> Wire:
                return await stack.enter_async_context(connected(gateway.port))

            listing = [head_of(path="/admin/keys", method="GET", key=one) for one in ADMIN_KEYS]
            asks = [post(chat(), key=KEY), post(chat(), key=OTHER_KEY), listing[0]]
            wires = [await wire() for _ in asks]
            for one, ask in zip(wires, asks, strict=True):
                await one.send(ask)
                assert (await one.reply()).status == 200
            stream = await wire()  # an old worker that is busy keeps its connections for longer
            await stream.send(post(chat(stream=True), key=OTHER_KEY))
            auth = {**keys(("kept", KEY)), "admin_key": ADMIN_KEYS[1]}
            rewrite(gateway, json.dumps({**text, "auth": auth}))
            await reload(gateway)
            await asyncio.sleep(SETTLED_SECONDS)
            statuses = []
            for one, ask in zip(wires, asks, strict=True):
                await one.send(ask)
                statuses.append((await one.reply()).status)
            assert statuses == [200, 401, 403]
            assert (await stream.reply()).status == 200, "what was begun goes on"
            fresh = await wire()
            await fresh.send(listing[1])
            assert (await fresh.reply()).status == 200
