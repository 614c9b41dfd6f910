"""What is kept stays right when workers die, Redis goes away, values rot and providers are down."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from typing import Any

import psutil
import redis

from tests.integration.test_cache import TEXT, cached, exact, slow, state, text_of
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, Outcome, flood, once
from tests.support.upstream import Exchange, Upstream, completion, delta, like_openai, usage


async def answered(port: int, ask: Ask) -> Outcome:
    """Ask as SDKs do: again where the connection broke before an answer."""
    for _ in range(10):
        outcome = await once(port, ask)
        if not outcome.failure and outcome.status == 200:
            return outcome
        await asyncio.sleep(0.05)
    return outcome


def asking(gateway: Gateway, port: int) -> int:
    """The worker that has a connection to this port."""
    for pid in gateway.worker_pids:
        for one in psutil.Process(pid).net_connections("tcp"):
            if one.raddr and one.raddr.port == port:
                return pid
    raise AssertionError("nobody asks")


async def test_a_leaders_death_costs_one_more_call() -> None:
    async def very_slow(exchange: Exchange) -> None:
        await asyncio.sleep(1.5)
        await like_openai(exchange)

    async with Upstream(behaviour=very_slow) as upstream:
        with running(cached(upstream.url), workers=4) as gateway:
            asks = [Ask(exact(stream=bool(n % 2))) for n in range(1000)]
            load = asyncio.gather(*(answered(gateway.port, ask) for ask in asks))
            async with asyncio.timeout(10):
                while not upstream.received:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            os.kill(asking(gateway, upstream.port), signal.SIGKILL)
            assert {text_of(o) for o in await load} == {TEXT}
            assert len(upstream.received) <= 2


async def test_without_redis_requests_go_on(upstream: Upstream) -> None:
    with running(cached(upstream.url), workers=2) as gateway:
        assert state(await once(gateway.port, Ask(exact()))) == "miss"
        os.kill(gateway.store_pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            for n in range(20):
                outcome = await once(gateway.port, Ask(exact(f"prompt {n}")))
                assert (outcome.status, state(outcome)) == (200, "miss")
            assert time.monotonic() - started < 10  # far less; nothing waits for Redis's timeout
        finally:
            os.kill(gateway.store_pid, signal.SIGCONT)
        async with asyncio.timeout(15):
            while True:
                await once(gateway.port, Ask(exact("again")))
                found = [state(await once(gateway.port, Ask(exact("again")))) for _ in range(8)]
                if found == ["hit"] * 8:
                    break
                await asyncio.sleep(0.2)


async def test_a_damaged_value_is_a_miss_counted_and_deleted(upstream: Upstream) -> None:
    with running(cached(upstream.url), workers=1) as gateway:
        await once(gateway.port, Ask(exact()))
        await once(gateway.port, Ask(exact("another")))
        with gateway.store as store:
            raw: Any = redis.Redis(unix_socket_path=store.connection_pool.connection_kwargs["path"])
            names = store.keys("sluice:cache:{acme}:*")
            assert len(names) == 2
            values = {name: raw.get(name) for name in names}
            # Each where the other belongs, and cut, and changed: none of it is believed.
            for damage in (
                lambda value: value[:-1] + bytes([value[-1] ^ 1]),
                lambda value: value[: len(value) // 2],
                lambda value: b"",
                lambda value: bytes([value[0] ^ 1]) + value[1:],  # of another version
            ):
                before = len(upstream.received)
                for name, value in values.items():
                    raw.set(name, damage(value) or b"x", ex=60)
                await forget(gateway)
                assert text_of(await once(gateway.port, Ask(exact()))) == TEXT
                assert len(upstream.received) == before + 1
            (one, other) = names
            raw.set(one, values[other], ex=60)
            raw.set(other, values[one], ex=60)
            await forget(gateway)
            before = len(upstream.received)
            assert state(await once(gateway.port, Ask(exact()))) == "miss"
            assert state(await once(gateway.port, Ask(exact()))) == "hit"
            assert len(upstream.received) == before + 1
            raw.close()


async def forget(gateway: Gateway) -> None:
    """Let the workers' memories be emptied, as a purge does, and leave Redis as it is."""
    with gateway.store as store:
        store.incr("sluice:cache:version")
    await asyncio.sleep(1.3)


async def test_while_all_targets_are_down_old_answers_serve() -> None:
    down = False

    async def provider(exchange: Exchange) -> None:
        if down:
            await exchange.reply({"error": {"message": "no"}}, 503)
        else:
            await like_openai(exchange)

    async with Upstream(behaviour=provider) as upstream:
        text = cached(upstream.url, cache={"ttl": 1, "stale": 60}, retries={"attempts": 0})
        with running(text, workers=2) as gateway:
            first = await once(gateway.port, Ask(exact()))
            await asyncio.sleep(1.2)
            down = True
            for ask in (Ask(exact()), Ask(exact(stream=True)), Ask(exact())):
                outcome = await once(gateway.port, ask)
                assert (state(outcome), text_of(outcome)) == ("stale", TEXT)
                assert int(outcome.headers["age"]) >= 1
            refused = await once(
                gateway.port, Ask(exact(), headers={"Cache-Control": "stale-if-error=0"})
            )
            assert refused.status >= 500
            down = False
            async with asyncio.timeout(20):  # until its breaker tries again
                while state(await once(gateway.port, Ask(exact()))) not in ("miss", "hit"):
                    await asyncio.sleep(0.2)
            assert (await once(gateway.port, Ask(exact()))).body == first.body
            gateway.settled()
            records = gateway.records(6)
            assert all(r["outcome"] == "ok" for r in records if r["cache"] == "stale")
            assert len({r["id"] for r in records}) == len(records)


async def test_a_replay_outlives_its_answer(upstream: Upstream) -> None:
    text = cached(upstream.url, cache={"ttl": 1, "pace": 0.4})
    with running(text, workers=1) as gateway:
        long = " ".join(["word"] * 200)

        async def long_answer(exchange: Exchange) -> None:
            await exchange.reply(completion(long, usage(7, 200)))

        upstream.behaviour = long_answer
        await once(gateway.port, Ask(exact()))
        expiring = asyncio.ensure_future(once(gateway.port, Ask(exact(stream=True))))
        await asyncio.sleep(0.3)
        with gateway.store as store:  # purged, and expired, in the middle
            store.delete(*store.keys("sluice:cache:{acme}:*"))
            store.incr("sluice:cache:version")
        outcome = await expiring
        assert outcome.ended - outcome.started > 1.5
        assert (state(outcome), text_of(outcome)) == ("hit", long)
        assert state(await once(gateway.port, Ask(exact()))) == "miss"


async def test_when_an_answer_expires_all_ask_once() -> None:
    async with Upstream(behaviour=slow) as upstream:
        with running(cached(upstream.url, cache={"ttl": 2}), workers=2) as gateway:
            for _ in range(3):
                before, begun = len(upstream.received), time.monotonic()
                outcomes = await flood(gateway.port, [Ask(exact()) for _ in range(200)], 200)
                again = int((time.monotonic() - begun) / 2)  # it may expire under a slow flood
                assert {text_of(o) for o in outcomes} == {TEXT}
                assert before + 1 <= len(upstream.received) <= before + 1 + again
                await asyncio.sleep(2.3)


def at_a_full_target(url: str, limits: dict[str, int], **cache: Any) -> str:
    target = {"provider": "p0", "model": "gpt-4o-mini", **limits}
    return cached(url, cache=cache, models={"m": {"targets": [target]}})


async def test_an_old_answer_stands_in_once_where_the_target_is_full(upstream: Upstream) -> None:
    with running(at_a_full_target(upstream.url, {"rpm": 1}, ttl=1, stale=600)) as gateway:
        assert state(await once(gateway.port, Ask(exact()))) == "miss"
        await asyncio.sleep(1.5)
        asks = [Ask(exact(), headers={"Cache-Control": "stale-if-error=600"}) for _ in range(5)]
        found = await asyncio.gather(*(once(gateway.port, ask) for ask in asks))
        assert [(o.status, state(o)) for o in found] == [(200, "stale")] * 5
        gateway.settled()
        assert gateway.usage("acme")["requests"] == 6
        assert len(gateway.records(6)) == 6
        assert len(upstream.received) == 1


async def test_all_who_ask_the_same_of_a_full_target_hear_so_at_once() -> None:
    async def slow_for_one(exchange: Exchange) -> None:
        await asyncio.sleep(5 if exchange.request.json.get("seed") == 1 else 0)
        await like_openai(exchange)

    async with Upstream(behaviour=slow_for_one) as upstream:
        with running(at_a_full_target(upstream.url, {"concurrency": 1})) as gateway:
            first = asyncio.create_task(once(gateway.port, Ask(exact(seed=1))))
            async with asyncio.timeout(5):
                while not upstream.received:
                    await asyncio.sleep(0.02)
            asks = [Ask(exact(seed=2)) for _ in range(60)]
            found = await asyncio.gather(*(once(gateway.port, ask) for ask in asks))
            assert {o.status for o in found} == {429}
            assert len(upstream.received) == 1
            assert (await first).status == 200


async def test_who_stalls_on_a_shared_stream_is_cut_off_in_time() -> None:
    async def long(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(300):
            await exchange.event(delta("x" * 10_000))
        await asyncio.sleep(2)  # all have joined, however busy: none is given the whole at once
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()

    timeouts = {"first_byte": 5, "idle": 5, "total": 5}
    async with Upstream(behaviour=long) as upstream:
        with running(cached(upstream.url, server={"timeouts": timeouts})) as gateway:
            ask = Ask(exact(stream=True))
            with contextlib.ExitStack() as stalled:
                for _ in range(2):
                    sock = stalled.enter_context(socket.socket())
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
                    sock.connect(("127.0.0.1", gateway.port))
                    sock.sendall(ask.wire)
                await asyncio.sleep(0.1)
                fast = await once(gateway.port, ask)
                assert (fast.status, fast.failure) == (200, "")
                async with asyncio.timeout(20):
                    while json.loads(gateway.get("/health")[1])["in_flight"]:
                        await asyncio.sleep(0.1)
                records = await asyncio.to_thread(gateway.records, 3)
    # The first one's call went well, for others; what became of that client is not in its record.
    assert sorted(record["error"] for record in records) == ["", "", "deadline_exceeded"]
    assert len(upstream.received) == 1


async def test_a_purge_reaches_answers_that_are_under_way() -> None:
    async def slow_answer(exchange: Exchange) -> None:
        await asyncio.sleep(0.4)
        await like_openai(exchange)

    async with Upstream(behaviour=slow_answer) as upstream:
        with running(cached(upstream.url, cache={"ttl": 600})) as gateway:
            for number in range(6):  # workers look once a second whether there was one
                asked = asyncio.create_task(once(gateway.port, Ask(exact(seed=number))))
                async with asyncio.timeout(5):
                    while len(upstream.received) <= number:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.33)
                with gateway.store as store:  # what a purge does, just before the answer is there
                    store.incr("sluice:cache:version")
                assert state(await asked) == "miss"
            await asyncio.sleep(1.5)
            again = [await once(gateway.port, Ask(exact(seed=n))) for n in (*range(6), 0)]
            assert [state(one) for one in again] == [*["miss"] * 6, "hit"]


async def test_who_shares_a_failure_is_counted_and_limited() -> None:
    async def failing(exchange: Exchange) -> None:
        await asyncio.sleep(0.5)
        await exchange.reply({"error": {"message": "no"}}, status=500)

    async with Upstream(behaviour=failing) as upstream:
        text = json.loads(cached(upstream.url))
        text["auth"]["keys"][0]["rpm"] = 20
        with running(json.dumps(text)) as gateway:
            found = await asyncio.gather(*(once(gateway.port, Ask(exact())) for _ in range(40)))
            gateway.settled()
            used = gateway.usage("acme")
            records = gateway.records(40)
    failed = sum(o.status == 502 for o in found)
    assert 20 <= failed <= 22  # one more comes every three seconds
    assert sorted(o.status for o in found) == [429] * (40 - failed) + [502] * failed
    assert (used["requests"], used["errors"]) == (failed, failed)
    outcomes = sorted(r["outcome"] for r in records)
    assert outcomes == ["error"] * failed + ["refused"] * (40 - failed)


async def test_who_has_had_a_ping_has_the_old_answer_as_a_stream() -> None:
    down, going = False, asyncio.Event()

    async def provider(exchange: Exchange) -> None:
        if down:
            await going.wait()
            await exchange.reply({"error": {"message": "no"}}, 503)
        else:
            await like_openai(exchange)

    async with Upstream(behaviour=provider) as upstream:
        kept = {"ttl": 1, "stale": 60}
        text = cached(upstream.url, cache=kept, server={"stream_ping": 0.1})
        with running(text, workers=1) as gateway:
            await once(gateway.port, Ask(exact()))
            await asyncio.sleep(1.2)
            down = True
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(3)]
                for client in clients:
                    await client.send(Ask(exact(stream=True)))
                    await client.read_head()
                    assert b"still here" in await client.read_chunk()
                refusing = {"Cache-Control": "stale-if-error=0"}
                picky = await stack.enter_async_context(Client(gateway.port))
                await picky.send(Ask(exact(stream=True), headers=refusing))
                await picky.read_head()
                going.set()
                for client in clients:
                    events = [e for e in await rest_of(client) if not e.startswith(":")]
                    said = [json.loads(event[6:])["choices"][0]["delta"] for event in events[:-1]]
                    assert "".join([one.get("content") or "" for one in said]) == TEXT
                    assert events[-1] == "data: [DONE]"
                assert "error" in (await rest_of(picky))[-1]
            records = await asyncio.to_thread(gateway.records, 5)
            found = sorted((r["outcome"], r["cache"], r["cost_microusd"] > 0) for r in records)
            stale = ("ok", "stale", False)
            assert found[1:] == [("ok", "miss", True), stale, stale, stale]
            assert found[0][0] == "error"
            assert gateway.usage("acme")["requests"] == 5


async def rest_of(client: Client) -> list[str]:
    """The events of a stream from here to its end."""
    data = b""
    while chunk := await client.read_chunk():
        data += chunk
    return [event for event in data.decode().split("\n\n") if event]
