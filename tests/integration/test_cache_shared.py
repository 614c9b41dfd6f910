"""Calls that several requests share: by which of them what becomes of it is decided."""

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.integration.test_cache import TEXT, cached, exact, key, slow, state, text_of
from tests.support.gateway import running
from tests.support.load import Ask, Client, once
from tests.support.upstream import Exchange, Upstream, completion, like_openai, usage


@pytest.mark.parametrize("how", ["labels", "stream"])
async def test_whom_no_target_takes_is_refused_alone(upstream: Upstream, how: str) -> None:
    gold = key("gold", labels={"tier": "gold"})
    text = json.loads(cached(upstream.url, auth={"keys": [key("plain"), gold]}))
    (target,) = text["models"]["m"]["targets"]
    target["when"] = {"labels": {"tier": "gold"}} if how == "labels" else {"stream": True}
    with running(json.dumps(text), workers=1) as gateway:
        for seed in range(5):
            refused, taken = await asyncio.gather(
                once(gateway.port, Ask(exact(seed=seed), key="sk-test-plain")),
                once(
                    gateway.port, Ask(exact(seed=seed, stream=how == "stream"), key="sk-test-gold")
                ),
            )
            assert refused.status in (400, 200)  # where the other's answer was there first
            assert text_of(taken) == TEXT


async def test_workers_wait_once_for_what_cannot_be_kept() -> None:
    asked, two = 0, asyncio.Event()

    async def cut_short(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.sleep(0.5)  # the others come to wait for it
        elif asked == 3:
            two.set()
        if asked > 1:  # workers in turn would never be two
            async with asyncio.timeout(10):
                await two.wait()
        reply = completion("half", usage(7, 5))
        reply["choices"][0]["finish_reason"] = "length"
        await exchange.reply(reply)

    async with Upstream(behaviour=cut_short) as upstream:
        with running(cached(upstream.url), workers=4) as gateway:
            asks = [once(gateway.port, Ask(exact(max_tokens=9))) for _ in range(40)]
            assert {text_of(o) for o in await asyncio.gather(*asks)} == {"half"}
    assert asked >= 3


@pytest.mark.parametrize("stream", [False, True])
async def test_what_ended_in_a_word_that_nobody_knows_is_kept_for_nobody(stream: bool) -> None:
    """Also where it was translated: the client is told a reason that it knows."""

    async def half(exchange: Exchange) -> None:
        said = {"content": {"parts": [{"text": "half an ans"}]}, "finishReason": "OTHER"}
        answer = {"candidates": [said], "usageMetadata": {"promptTokenCount": 7}}
        if not stream:
            await exchange.reply(answer)
            return
        await exchange.start_stream()
        await exchange.event(answer)
        await exchange.end_stream()

    async with Upstream(behaviour=half) as upstream:
        text = json.loads(cached(upstream.url))
        text["providers"]["p0"]["kind"] = "gemini"
        with running(json.dumps(text), workers=1) as gateway:
            for number in (1, 2):
                outcome = await once(gateway.port, Ask(exact(stream=stream)))
                assert (outcome.status, outcome.headers["x-sluice-cache"]) == (200, "miss")
                assert len(upstream.received) == number


async def test_who_gets_a_kept_answer_can_go_on_with_it() -> None:
    """A signature that came as a stream stands in the whole answer as its provider wrote it."""
    extra = {"google": {"thought_signature": "REAL=="}}
    function = {"name": "look", "arguments": "{}"}
    call = {"id": "call_1", "type": "function", "function": function, "extra_content": extra}

    async def signed(exchange: Exchange) -> None:
        await exchange.start_stream()
        for said, reason in (({"tool_calls": [{"index": 0, **call}]}, None), ({}, "tool_calls")):
            choice = {"index": 0, "delta": said, "finish_reason": reason}
            await exchange.event({"id": "c", "choices": [choice]})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with Upstream(behaviour=signed) as upstream:
        with running(cached(upstream.url), workers=1) as gateway:
            first = await once(gateway.port, Ask(exact(stream=True)))
            kept = await once(gateway.port, Ask(exact()))
            assert [one.headers["x-sluice-cache"] for one in (first, kept)] == ["miss", "hit"]
            (choice,) = json.loads(kept.body)["choices"]
            assert choice["message"]["tool_calls"] == [call]


@pytest.mark.parametrize("hedge", [None, {"after": 0.5}])
async def test_who_shares_a_stream_from_its_comments_on_has_what_follows(hedge: Any) -> None:
    """From whomever: it is counted for the target that answered, not the one that was asked."""

    async def fails(exchange: Exchange) -> None:
        await asyncio.sleep(1)
        await exchange.reply({"error": {"message": "down"}}, 500)

    async def answers(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await like_openai(exchange)

    async with Upstream(behaviour=fails) as one, Upstream(behaviour=answers) as two:
        text = json.loads(cached(one.url, two.url, server={"stream_ping": 0.2}))
        text["models"]["m"]["hedge"] = hedge
        with running(json.dumps(text), workers=1) as gateway:
            asks = [Ask(exact(stream=True)) for _ in range(3)]
            found = await asyncio.gather(*[once(gateway.port, ask) for ask in asks])
            assert {text_of(one) for one in found} == {TEXT}
            assert all(one.body.startswith(b": still here") for one in found)
            assert [(r["provider"], r["status"]) for r in gateway.records(3)] == [("p1", 200)] * 3
            gateway.settled()
            assert gateway.usage("acme", part="provider:p1")["requests"] == 3


@pytest.mark.parametrize("more", [{}, {"fallbacks": ["m"]}])
async def test_a_models_requests_a_minute_count_whatever_is_named_beside(
    more: dict[str, Any],
) -> None:
    async with Upstream(behaviour=slow) as upstream:
        tenants = {name: {"per_model": {"m": {"rpm": 3}}} for name in ("acme", "other")}
        keys = {"keys": [key("hits"), key("joins", tenant="other")]}
        with running(cached(upstream.url, tenants=tenants, auth=keys), workers=1) as gateway:
            hits = Ask(exact(**more), key="sk-test-hits")
            found = [await once(gateway.port, hits) for _ in range(5)]
            assert [one.status for one in found] == [200] * 3 + [429] * 2
            assert [state(one) for one in found[3:]] == ["miss"] * 2  # whom it refuses has nothing
            joins = Ask(exact(**more), key="sk-test-joins")
            found = await asyncio.gather(*[once(gateway.port, joins) for _ in range(5)])
            assert sorted([one.status for one in found]) == [200] * 3 + [429] * 2
            assert {state(one) for one in found if one.status == 429} == {"miss"}
            assert len(upstream.received) == 2


async def test_whose_limits_nobody_knows_is_refused_alone(upstream: Upstream) -> None:
    keys = {"keys": [key("limited", rpm=100), key("free")]}
    text = cached(upstream.url, auth=keys, limits={"on_store_failure": "refuse"})
    with running(text, workers=1) as gateway:
        asks = [Ask(exact(), key=f"sk-test-{name}") for name in ("limited", "free")]
        async with Client(gateway.port) as first, Client(gateway.port) as second:
            for client, ask in zip((first, second), asks, strict=True):
                await client.ask(Ask(key=ask.key))
            os.kill(gateway.store_pid, signal.SIGSTOP)
            try:
                await first.send(asks[0])  # it looks into Redis, and the other one with it
                given = await second.ask(asks[1])
                await first.read_head()
            finally:
                os.kill(gateway.store_pid, signal.SIGCONT)
        assert first.status == 503
        assert text_of(given) == TEXT


async def test_who_leaves_a_kept_stream_at_its_pace_has_left(upstream: Upstream) -> None:
    with running(cached(upstream.url, cache={"pace": 0.2}), workers=1) as gateway:
        assert (await once(gateway.port, Ask(exact(stream=True)))).status == 200
        left = await once(gateway.port, Ask(exact(stream=True), leave_after=1))
        assert left.failure == "left"
        _, record = await asyncio.to_thread(gateway.records, 2)
        assert (record["outcome"], record["status"]) == ("disconnected", 499)


@pytest.mark.parametrize("asked", ["no-cache", "max-age=0"])
async def test_what_one_gets_anew_all_have(asked: str) -> None:
    """Every worker, also one that has the old answer in its memory."""
    number = 0

    async def counting(exchange: Exchange) -> None:
        nonlocal number
        number += 1
        await exchange.reply(completion(f"answer {number}", usage(7, 5)))

    async with Upstream(behaviour=counting) as upstream, AsyncExitStack() as stack:
        gateway = stack.enter_context(running(cached(upstream.url), workers=2))
        clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(8)]

        async def said() -> set[str]:
            return {text_of(await client.ask(Ask(exact()))) for client in clients}

        assert await said() == {"answer 1"}
        anew = await clients[0].ask(Ask(exact(), headers={"cache-control": asked}))
        assert (text_of(anew), state(anew)) == ("answer 2", "miss")
        async with asyncio.timeout(20):
            while await said() != {"answer 2"}:
                await asyncio.sleep(0.1)
        assert number == 2


async def test_an_older_call_does_not_replace_what_was_got_anew() -> None:
    number, going = 0, asyncio.Event()

    async def counting(exchange: Exchange) -> None:
        nonlocal number
        number += 1
        mine = number
        if mine == 1:
            await going.wait()
        await exchange.reply(completion(f"answer {mine}", usage(7, 5)))

    async with Upstream(behaviour=counting) as upstream, AsyncExitStack() as stack:
        gateway = stack.enter_context(running(cached(upstream.url), workers=2))
        clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(8)]
        slow = asyncio.ensure_future(once(gateway.port, Ask(exact())))
        async with asyncio.timeout(10):
            while not number:
                await asyncio.sleep(0.01)
        for client in clients:  # on connections to either worker
            anew = await client.ask(Ask(exact(), headers={"cache-control": "no-cache"}))
            assert text_of(anew) == f"answer {number}"
        newest = f"answer {number}"
        going.set()
        assert text_of(await slow) == "answer 1"
        await asyncio.sleep(1.5)  # until all have heard of what was got anew
        assert {text_of(await client.ask(Ask(exact()))) for client in clients} == {newest}
        assert newest == f"answer {number}"


async def test_what_is_got_anew_and_too_large_leaves_nobody_the_old_one() -> None:
    number = 0

    async def growing(exchange: Exchange) -> None:
        nonlocal number
        number += 1
        more = os.urandom(3000).hex() if number > 1 else ""
        await exchange.reply(completion(f"answer {number} {more}", usage(7, 5)))

    async with Upstream(behaviour=growing) as upstream, AsyncExitStack() as stack:
        text = cached(upstream.url, cache={"max_value_kb": 2})
        gateway = stack.enter_context(running(text, workers=2))
        clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(8)]

        async def said() -> set[str]:
            found = [text_of(await client.ask(Ask(exact()))) for client in clients]
            return {" ".join(one.split()[:2]) for one in found}

        assert await said() == {"answer 1"}
        await clients[0].ask(Ask(exact(), headers={"cache-control": "no-cache"}))
        async with asyncio.timeout(20):
            while "answer 1" in await said():
                await asyncio.sleep(0.1)
