"""More than a worker takes: who is refused, how, and what goes on all the while; fresh workers."""

import asyncio
import contextlib
import os
import signal
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from tests.support.config import KEY, bearer, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, flood, once
from tests.support.upstream import Exchange, Upstream, delta, like_openai

OTHER = "sk-other-0123456789"
KEYS = [
    {"name": "k", "tenant": "acme", "sha256": digest(KEY)},
    {"name": "o", "tenant": "other", "sha256": digest(OTHER)},
]


class Gated:
    """Answers when the gate is opened."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        while not self.gate.is_set():  # the gateway's side may leave: nothing is left behind
            await asyncio.sleep(0.01)
        await like_openai(exchange)


@contextlib.asynccontextmanager
async def serving(
    server: dict[str, Any], **options: Any
) -> AsyncIterator[tuple[Gateway, Upstream, Gated]]:
    gated = Gated()
    async with Upstream(behaviour=gated) as upstream:
        text = config(upstream.url, auth={"keys": KEYS}, server=server)
        with running(text, **options) as gateway:
            yield gateway, upstream, gated


async def waiting(upstream: Upstream, count: int) -> None:
    """Wait until so many requests have reached the provider."""
    async with asyncio.timeout(10):
        while len(upstream.received) < count:
            await asyncio.sleep(0.01)


async def test_what_is_too_much_is_refused_at_once_and_health_answers() -> None:
    async with serving({"overload": {"requests": 4}}) as (gateway, upstream, gated):
        held = [asyncio.create_task(once(gateway.port, Ask())) for _ in range(4)]
        await waiting(upstream, 4)
        for path, body in (
            ("/v1/chat/completions", chat()),
            ("/v1/chat/completions", chat(stream=True)),
            ("/v1/messages", {**chat(), "max_tokens": 5}),
        ):
            refused = await once(gateway.port, Ask(body, path=path))
            assert refused.status == 503
            assert refused.headers["retry-after"] == "1"
            error = refused.json["error"]
            assert error.get("code", error["type"]) in ("overloaded", "overloaded_error")
        async with Client(gateway.port) as client:
            passed = await client.ask(Ask(path="/providers/p0/chat/completions"))
            assert passed.status == 503
        assert gateway.get("/health/ready")[0] == 200
        assert gateway.get("/v1/models", bearer())[0] == 200
        assert len(upstream.received) == 4
        gated.gate.set()
        assert {(await one).status for one in held} == {200}
        assert (await once(gateway.port, Ask())).status == 200
        gateway.settled()
        assert gateway.usage("acme")["requests"] == 5  # those that were refused cost nothing
        outcomes = Counter(record["outcome"] for record in gateway.records(9))
        assert outcomes == {"ok": 5, "refused": 4}
        async with asyncio.timeout(10):
            while b"sluice_requests_shed_total 4.0" not in gateway.get("/metrics")[1]:
                await asyncio.sleep(0.2)


async def test_a_tenant_that_floods_leaves_another_its_share() -> None:
    async with serving({"overload": {"requests": 8}}) as (gateway, upstream, gated):
        flooding = [asyncio.create_task(once(gateway.port, Ask())) for _ in range(30)]
        await waiting(upstream, 8)
        mine = [asyncio.create_task(once(gateway.port, Ask(key=OTHER))) for _ in range(4)]
        await waiting(upstream, 12)
        gated.gate.set()
        assert {(await one).status for one in mine} == {200}
        statuses = Counter([(await one).status for one in flooding])
        assert statuses == {200: 8, 503: 22}


async def test_room_comes_back_whatever_became_of_a_request() -> None:
    async with serving({"overload": {"requests": 3}}) as (gateway, upstream, gated):
        for i in range(3):  # clients that leave
            async with Client(gateway.port) as client:
                await client.send(Ask(chat(stream=bool(i % 2))))
                await waiting(upstream, i + 1)
        async with asyncio.timeout(10):
            while b"sluice_requests_in_flight 0.0" not in gateway.get("/metrics")[1]:
                await asyncio.sleep(0.1)
        gated.gate.set()
        asks = [Ask(chat(model=model)) for model in ("m", "nobody's", "m")] * 5
        for ask in asks:
            assert (await once(gateway.port, ask)).status in (200, 404)
        assert b"sluice_requests_in_flight 0.0" in gateway.get("/metrics")[1]


async def test_connections_of_one_address_are_bounded() -> None:
    server = {"overload": {"connections_per_address": 5}}
    async with serving(server) as (gateway, _, gated):
        gated.gate.set()
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(5)]
            for client in clients:
                assert (await client.ask()).status == 200
            for _ in range(3):
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError, OSError)):
                    await refused_one(gateway)
            assert (await clients[0].ask()).status == 200  # those that are there go on
        async with asyncio.timeout(10):
            while (await once(gateway.port, Ask())).status != 200:
                await asyncio.sleep(0.05)


async def refused_one(gateway: Gateway) -> None:
    """Connect, and send a request that nobody reads."""
    async with Client(gateway.port) as client:
        await client.send(Ask())
        await client.read_head()


async def test_connections_in_all_are_bounded() -> None:
    async with serving({"overload": {"connections": 3}}) as (gateway, _, gated):
        gated.gate.set()
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(3)]
            for client in clients:
                assert (await client.ask()).status == 200
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError, OSError)):
                await refused_one(gateway)


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="the system has no rlimit")
async def test_a_worker_without_file_descriptors_goes_on_and_recovers() -> None:
    async with serving({}) as (gateway, _, gated):
        gated.gate.set()
        async with Client(gateway.port) as client:
            assert (await client.ask()).status == 200
            worker = psutil.Process(gateway.worker_pids[0])
            before = worker.rlimit(psutil.RLIMIT_NOFILE)
            worker.rlimit(psutil.RLIMIT_NOFILE, (worker.num_fds() + 10, before[1]))
            crowd = []
            for _ in range(60):
                with contextlib.suppress(OSError):
                    crowd.append(await asyncio.open_connection("127.0.0.1", gateway.port))
            for _ in range(5):
                assert (await client.ask()).status == 200
            for _, writer in crowd:
                writer.close()
            worker.rlimit(psutil.RLIMIT_NOFILE, before)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    if (await once(gateway.port, Ask())).status == 200:
                        break
                await asyncio.sleep(0.1)
        assert gateway.worker_pids == [worker.pid]
        assert worker.cpu_times().user < 30  # it did not turn in circles


# -- fresh workers ---------------------------------------------------------------------------------


async def test_workers_are_replaced_after_their_requests_and_none_fails() -> None:
    server = {"recycle": {"requests": 100}}
    async with serving(server, workers=2) as (gateway, _, gated):
        gated.gate.set()
        before = set(gateway.worker_pids)
        async with asyncio.timeout(60):
            while before & set(gateway.worker_pids):
                asks = [Ask(chat(stream=bool(i % 2))) for i in range(200)]
                outcomes = await flood(gateway.port, asks, connections=8)
                assert Counter((one.status, one.failure) for one in outcomes) == {(200, ""): 200}
                await asyncio.sleep(0.3)
        text = gateway.errors
        assert "exited with" not in text
        assert "was ended by" not in text


async def test_a_stream_ends_with_the_worker_that_began_it() -> None:
    go_on = asyncio.Event()

    async def steps(exchange: Exchange) -> None:
        if not exchange.request.json.get("stream"):
            await like_openai(exchange)
            return
        await exchange.start_stream()
        await exchange.event(delta("one"))
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        await exchange.event(delta("two", "stop"))
        await exchange.end_stream()

    async with Upstream(behaviour=steps) as upstream:
        server = {"recycle": {"requests": 20}, "drain": {"grace": 1}}
        with running(config(upstream.url, server=server)) as gateway:
            async with Client(gateway.port) as client:
                old, _ = await recycling(gateway, client)  # beyond the grace of a stop
                assert old in gateway.worker_pids
                go_on.set()
                body = await client.read_body()
                assert b"two" in body
                assert b"[DONE]" in body
            async with asyncio.timeout(30):
                while old in gateway.worker_pids:
                    await asyncio.sleep(0.1)
            assert (await once(gateway.port, Ask())).status == 200
            gateway.settled()


async def test_a_worker_with_too_much_memory_is_replaced_and_not_in_circles() -> None:
    """The bound is below what a fresh worker has: each still lives for a while."""
    async with serving({"recycle": {"rss_mb": 64}}) as (gateway, _, gated):
        gated.gate.set()
        (old,) = gateway.worker_pids
        async with asyncio.timeout(40):
            while old in gateway.worker_pids:
                assert (await once(gateway.port, Ask())).status == 200
                await asyncio.sleep(0.2)
        (fresh,) = gateway.worker_pids
        for _ in range(10):
            assert (await once(gateway.port, Ask())).status == 200
            await asyncio.sleep(0.1)
        assert fresh in gateway.worker_pids


async def recycling(gateway: Gateway, client: Client) -> tuple[int, int]:
    """Let the one worker be replaced while a stream is open; return the old and the new one."""
    (old,) = gateway.worker_pids
    await client.send(Ask(chat(stream=True)))
    await client.read_head()
    assert b"one" in await client.read_chunk()
    async with asyncio.timeout(30):
        while len(gateway.worker_pids) < 2:
            await once(gateway.port, Ask())
            await asyncio.sleep(0.05)
    (new,) = set(gateway.worker_pids) - {old}
    await asyncio.sleep(3)  # until the new one serves alone
    return old, new


async def holds(exchange: Exchange) -> None:
    """Begin a stream and leave it open."""
    if not exchange.request.json.get("stream"):
        await like_openai(exchange)
        return
    await exchange.start_stream()
    await exchange.event(delta("one"))
    await exchange.gone()


ONE_BY_ONE = {"recycle": {"requests": 20}, "drain": {"grace": 1}}


async def test_a_fresh_worker_that_dies_is_replaced_while_the_old_one_drains() -> None:
    async with Upstream(behaviour=holds) as upstream:
        with running(config(upstream.url, server=ONE_BY_ONE)) as gateway:
            async with Client(gateway.port) as client:
                old, new = await recycling(gateway, client)
                os.kill(new, signal.SIGKILL)
                async with asyncio.timeout(20):
                    while set(gateway.worker_pids) <= {old, new}:
                        await asyncio.sleep(0.05)
                async with asyncio.timeout(20):
                    while (await once(gateway.port, Ask())).status != 200:
                        await asyncio.sleep(0.05)
                assert old in gateway.worker_pids


async def test_a_stop_gives_a_worker_that_was_replaced_no_more_time_than_others() -> None:
    async with Upstream(behaviour=holds) as upstream:
        with running(config(upstream.url, server=ONE_BY_ONE)) as gateway:
            async with Client(gateway.port) as client:
                await recycling(gateway, client)
                assert gateway.stop() == 0  # which waits for much less than a request's total
                body = await client.read_body()
                assert b"error" in body


async def test_connections_over_tls_are_counted_once_each(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    tls = {"certificate": str(certificate), "key": str(key)}
    server = {"tls": tls, "overload": {"connections_per_address": 3}}
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.check_hostname = False
    async with serving(server) as (gateway, _, gated):
        gated.gate.set()
        for _ in range(12):
            async with Client(gateway.port, tls=context) as client:
                assert (await client.ask()).status == 200
