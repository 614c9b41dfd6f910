"""Answers that are kept: who has them, what the client's headers say, what is counted."""

import asyncio
import hashlib
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.admin import ADMIN_KEY, make
from tests.support.command import run
from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, Outcome, flood, once
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, Upstream, completion, delta, like_openai, usage

CACHE = {"enabled": True, "ttl": 60}


def cached(*upstreams: str, cache: dict[str, Any] | None = None, **sections: Any) -> str:
    return config(*upstreams, cache={**CACHE, **(cache or {})}, **sections)


def exact(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A chat request whose answer is kept by default."""
    messages = [{"role": "user", "content": text}]
    return {"model": "m", "temperature": 0, "messages": messages, **fields}


def state(outcome: Outcome) -> str:
    assert outcome.failure == ""
    return outcome.headers.get("x-sluice-cache", "")


async def test_the_second_time_nobody_is_asked(upstream: Upstream) -> None:
    with running(cached(upstream.url), workers=2) as gateway:
        first = await once(gateway.port, Ask(exact()))
        assert (first.status, state(first)) == (200, "miss")
        later = [await once(gateway.port, Ask(exact(user=str(n)))) for n in range(12)]
        assert [(o.status, state(o)) for o in later] == [(200, "hit")] * 12
        assert {o.body for o in later} == {first.body}
        assert all(int(o.headers["age"]) <= 3 for o in later)
        assert all(o.headers["x-sluice-cost-usd"] == "0.000000" for o in later)
        streamed = await once(gateway.port, Ask(exact(stream=True)))
        assert state(streamed) == "hit"
        assert streamed.events[-1] == "[DONE]"
        plain = [await once(gateway.port, Ask(chat())) for _ in range(2)]
        assert [state(o) for o in plain] == ["bypass"] * 2
        assert len(upstream.received) == 3
        gateway.settled()
        used = gateway.usage("acme")
        assert (used["requests"], used["cache_hits"]) == (16, 13)
        assert used["prompt_tokens"] == 3 * 7
        assert used["saved_microusd"] == 13 * used["cost_microusd"] // 3
        records = gateway.records(16)
        assert sorted(r["cache"] for r in records) == ["bypass"] * 2 + ["hit"] * 13 + ["miss"]


def messages(text: str = "hello", **fields: Any) -> Ask:
    """The same as `exact`, in Anthropic's dialect."""
    said = [{"role": "user", "content": text}]
    body = {"model": "m", "temperature": 0, "messages": said, "max_tokens": 50, **fields}
    return Ask(body, path="/v1/messages")


async def slow(exchange: Exchange) -> None:
    """Answer properly, after a while."""
    await asyncio.sleep(0.6)
    await like_openai(exchange)


TEXT = "one two three four five"


def text_of(outcome: Outcome) -> str:
    """What an answer says, whole or streamed, in chat's dialect."""
    assert (outcome.status, outcome.failure) == (200, ""), outcome
    if outcome.body.startswith(b"{"):
        return str(outcome.json["choices"][0]["message"]["content"])
    assert outcome.events[-1] == "[DONE]"
    chunks = [json.loads(one) for one in outcome.events[:-1]]
    parts = [choice["delta"].get("content") for c in chunks for choice in c["choices"]]
    return "".join([part for part in parts if part])


async def test_a_thousand_who_ask_the_same_cost_one_call() -> None:
    async with Upstream(behaviour=slow) as upstream:
        with running(cached(upstream.url), workers=4) as gateway:
            asks = [Ask(exact(stream=bool(n % 2))) for n in range(1000)]
            outcomes = await flood(gateway.port, asks, 1000)
            assert {text_of(o) for o in outcomes} == {TEXT}
            assert len(upstream.received) == 1
            states = [state(o) for o in outcomes]
            assert states.count("miss") == 1
            assert set(states) <= {"miss", "hit", "coalesced"}
            gateway.settled()
            used = gateway.usage("acme")
            assert (used["requests"], used["cache_hits"]) == (1000, 999)
            assert (used["prompt_tokens"], used["completion_tokens"]) == (7, 5)
            assert used["saved_microusd"] == 999 * used["cost_microusd"]
            assert len({r["id"] for r in gateway.records(1000)}) == 1000


async def test_a_stream_is_shared_from_where_it_stands() -> None:
    going = asyncio.Event()

    async def halting(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("one"))
        await exchange.event(delta(" two"))
        await going.wait()
        for word in (" three", " four", " five"):
            await exchange.event(delta(word))
        await exchange.event(delta(None, "stop"))
        await exchange.event({**delta(None), "choices": [], "usage": usage(7, 5)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with Upstream(behaviour=halting) as upstream:
        with running(cached(upstream.url), workers=1) as gateway:
            async with Client(gateway.port) as first, Client(gateway.port) as second:
                for client in (first, second):
                    await client.send(Ask(exact(max_tokens=50, stream=True)))
                    await client.read_head()
                    assert client.status == 200
                    assert b"one" in await client.read_chunk()
                waiting = asyncio.ensure_future(once(gateway.port, Ask(exact(max_tokens=50))))
                translated = asyncio.ensure_future(once(gateway.port, messages()))
                await asyncio.sleep(0.1)
                first.cut()  # the one for whom it is asked
                await asyncio.sleep(0.1)
                going.set()
                rest = b""
                while (chunk := await second.read_chunk()) != b"":
                    rest += chunk
                assert b" five" in rest
                assert b"[DONE]" in rest
                assert text_of(await waiting) == TEXT
                assert (await translated).status == 200
            assert text_of(await once(gateway.port, Ask(exact(max_tokens=50, stream=True)))) == TEXT
            assert len(upstream.received) == 1
            gateway.settled()
            records = gateway.records(5)
            left = [r for r in records if r["outcome"] == "disconnected"]
            assert [(r["cache"], r["usage"]["completion_tokens"]) for r in left] == [("miss", 5)]


async def test_when_all_have_left_the_call_ends() -> None:
    gone = asyncio.Event()

    async def endless(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("one"))
        await exchange.gone()
        gone.set()

    async with Upstream(behaviour=endless) as upstream:
        with running(cached(upstream.url), workers=1) as gateway:
            clients = [Client(gateway.port) for _ in range(3)]
            for client in clients:
                await client.connect()
                await client.send(Ask(exact(stream=True)))
                await client.read_head()
            for client in clients:
                assert not gone.is_set()
                client.cut()
                await asyncio.sleep(0.05)
            async with asyncio.timeout(5):
                await gone.wait()
            gateway.settled()
            assert {r["outcome"] for r in gateway.records(3)} == {"disconnected"}


@pytest.mark.parametrize(
    ("bill", "tokens", "requests"),
    [("leader", 7_000_000, 1), ("split", 7_000_000, 1), ("each", 28_000_000, 4)],
)
async def test_who_pays_for_a_shared_call(bill: str, tokens: int, requests: int) -> None:
    async def dear(exchange: Exchange) -> None:
        await asyncio.sleep(0.6)
        await exchange.reply(completion(TEXT, usage(7_000_000, 500_003)))

    async with Upstream(behaviour=dear) as upstream:
        with running(cached(upstream.url, cache={"bill": bill}), workers=1) as gateway:
            outcomes = await flood(gateway.port, [Ask(exact()) for _ in range(4)], 4)
            assert {text_of(o) for o in outcomes} == {TEXT}
            assert len(upstream.received) == 1
            gateway.settled()
            used, records = gateway.usage("acme"), gateway.records(4)
            billed = {r["id"]: r["cost_microusd"] for r in records}
            for o in outcomes:
                named = round(float(o.headers["x-sluice-cost-usd"]) * 1_000_000)
                assert named == billed[o.headers["x-request-id"]]
            whole = max(r["cost_microusd"] + r["saved_microusd"] for r in records)
            assert used["prompt_tokens"] == tokens
            assert used["cost_microusd"] == whole * requests
            costs = sorted(r["cost_microusd"] for r in records)
            if bill == "split":
                assert costs[-1] - costs[0] <= 4  # a remainder of each of its parts
            assert used["cost_microusd"] + used.get("saved_microusd", 0) == 4 * whole
            for record in records:
                assert sum(record["cost"].values()) == record["cost_microusd"]


def key(name: str, tenant: str = "acme", **settings: Any) -> dict[str, Any]:
    """A client key whose secret is `sk-test-` and its name."""
    digest = hashlib.sha256(f"sk-test-{name}".encode()).hexdigest()
    return {"name": name, "tenant": tenant, "sha256": digest, **settings}


KEYS_USED = ("one", "two")
KEYS = {
    "keys": [
        key("one"),
        key("two", cache={"ttl": 1}),
        key("never", cache={"enabled": False}),
        key("globex", tenant="globex"),
    ]
}


def sluice(gateway: Gateway, *words: str) -> str:
    return run(gateway, "cache", *words)


async def test_what_clients_ask_of_the_cache(upstream: Upstream) -> None:
    async def ask(who: str = "one", text: str = "hello", **headers: str) -> Outcome:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await once(gateway.port, Ask(exact(text), key=f"sk-test-{who}", headers=names))

    async def states(**headers: str) -> list[str]:
        return [state(await ask(**headers)) for _ in range(2)]

    with running(cached(upstream.url, auth=KEYS), workers=1) as gateway:
        refused = await ask(Cache_Control="only-if-cached")
        assert refused.status == 504
        assert refused.json["error"]["code"] == "not_cached"
        assert await states(Cache_Control="no-store") == ["bypass"] * 2
        assert await states() == ["miss", "hit"]
        assert await states(Cache_Control="only-if-cached") == ["hit"] * 2
        assert await states(Cache_Control="No-Cache, x=1") == ["miss"] * 2
        assert await states(Cache_Control="no-store") == ["bypass"] * 2
        assert await states(x_sluice_cache_namespace="a") == ["miss", "hit"]
        assert await states(x_sluice_cache_namespace="b") == ["miss", "hit"]
        assert await states(x_sluice_tags="none-such", text="t") == ["miss"] * 2  # refused
        assert state(await ask(who="two")) == "hit"
        assert state(await ask(who="never")) == ""
        assert await states(who="globex") == ["miss", "hit"]
        await asyncio.sleep(1.1)
        assert state(await ask(Cache_Control="max-age=60")) == "hit"
        assert state(await ask(Cache_Control="max-age=0")) == "miss"
        brief = {"text": "brief", "x_sluice_cache_ttl": "1"}
        assert await states(**brief) == ["miss", "hit"]
        assert await states(who="two", text="two") == ["miss", "hit"]
        await asyncio.sleep(1.1)
        assert state(await ask(**brief)) == "miss"
        assert state(await ask(who="two", text="two")) == "miss"
        for name, value in (
            ("x-sluice-cache-ttl", "soon"),
            ("x-sluice-cache-namespace", "a b"),
            ("cache-control", "max-age=never"),
        ):
            wrong = await once(gateway.port, Ask(exact(), key="sk-test-one", headers={name: value}))
            assert wrong.status == 400
            assert name in wrong.json["error"]["message"]
        zero = {"text": "zero", "x_sluice_cache_ttl": "0"}
        assert await states(**zero) == ["miss", "miss"]

        table = sluice(gateway, "stats", "--by", "namespace").splitlines()
        assert table[0].split() == ["NAMESPACE", "ANSWERS", "BYTES", "HITS", "SAVED"]
        assert {line.split()[0] for line in table[1:]} == {"-", "a", "b", "TOTAL"}
        rows = json.loads(sluice(gateway, "stats", "--by", "key", "--format", "json"))
        used = {name: gateway.usage("acme", part=f"key:{name}")["cache_hits"] for name in KEYS_USED}
        assert {row["group"]: row["hits"] for row in rows if row["group"] in used} == used
        for chosen in (["--namespace", "a"], ["--model", "m"], ["--tenant", "~shared"]):
            rows = json.loads(sluice(gateway, "stats", "--by", "key", *chosen, "--format", "json"))
            assert {(row["hits"], row["saved_microusd"]) for row in rows} <= {(None, None)}
        (_, row) = sluice(gateway, "stats", "--model", "m", "--key", "one").splitlines()
        assert row.split()[3:] == ["-", "-"]
        assert sluice(gateway, "purge", "--namespace", "a") == "purged 1\n"
        assert sluice(gateway, "purge", "--tenant", "globex", "--model", "m") == "purged 1\n"
        await asyncio.sleep(1.2)
        assert state(await ask(x_sluice_cache_namespace="a")) == "miss"
        assert state(await ask(x_sluice_cache_namespace="b")) == "hit"
        assert state(await ask(who="globex")) == "miss"
        assert state(await ask()) == "hit"
        sluice(gateway, "purge", "--key", "one")
        await asyncio.sleep(1.2)
        assert state(await ask()) == "miss"
        assert int(sluice(gateway, "purge", "--all").split()[1]) > 0
        (_, row) = sluice(gateway, "stats", "--model", "m").splitlines()
        assert row.split()[:3] == ["m", "0", "0"]
        assert float(row.split()[4]) > 0
        with gateway.store as store:
            kept = store.keys("sluice:cache:*")
            assert sorted(kept) == ["sluice:cache:renewed", "sluice:cache:version"]


@pytest.mark.parametrize("name", ["temperature", "seed", "background", "x"])
async def test_a_number_out_of_range_is_the_providers_to_read(
    upstream: Upstream, name: str
) -> None:
    body = json.dumps(exact(max_tokens=9)).encode()[:-1] + b',"%b":1e999}' % name.encode()
    with running(cached(upstream.url), workers=1) as gateway:
        outcome = await once(gateway.port, Ask(body))
        assert (outcome.status, state(outcome)) == (200, "bypass")
        assert upstream.received[-1].body.count(b"1e999") == 1


async def test_what_is_kept_is_explicit(upstream: Upstream) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    shown = [{"role": "user", "content": [{"type": "text", "text": "see"}, picture]}]
    large = [{"role": "user", "content": "x" * 3000}]
    escaped = [{"role": "user", "content": "é" * 500}]  # 3,000 bytes of JSON
    base = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    rules = {"tools": False, "images": False, "max_request_kb": 2}
    with running(cached(upstream.url, cache=rules), workers=1) as gateway:

        async def second(body: dict[str, Any], path: str = "/v1/chat/completions") -> str:
            for _ in range(2):
                outcome = await once(gateway.port, Ask(body, path=path))
                assert outcome.status == 200, outcome.body
            return state(outcome)

        assert await second({**base, "temperature": 0}) == "hit"
        assert await second({**base, "temperature": 0.0, "metadata": {"a": "b" * 3000}}) == "hit"
        assert await second({**base, "seed": 1}) == "hit"
        assert await second(base) == "bypass"
        assert await second({**base, "temperature": 0.5}) == "bypass"
        assert await second({**base, "temperature": 0, "tools": tools}) == "bypass"
        assert await second({**base, "temperature": 0, "messages": shown}) == "bypass"
        assert await second({**base, "temperature": 0, "messages": large}) == "bypass"
        assert await second({**base, "temperature": 0, "messages": escaped}) == "bypass"
        assert await second({**base, "temperature": 0, "n": 2}) == "bypass"
        assert await second({"model": "m", "input": "hello"}, "/v1/embeddings") == "hit"
        assert await second({**base, "temperature": 0, "logit_bias": {"1": 1}}) == "hit"
        asked = len(upstream.received)
        other = {**base, "temperature": 0, "logit_bias": {"2": 1}}
        assert await second(other) == "hit"
        assert len(upstream.received) == asked + 1
        named = [{"role": "user", "name": "bob", "content": "hello"}]
        assert await second({**base, "temperature": 0, "messages": named}) == "hit"
        assert len(upstream.received) == asked + 2


@pytest.mark.parametrize(("messages", "expected"), [(4_000, "hit"), (6_000, "bypass")])
async def test_what_has_too_many_parts_to_be_compared_is_let_by(
    upstream: Upstream, messages: int, expected: str
) -> None:
    said = [{"role": "user", "content": "hello"}] * messages
    with running(cached(upstream.url), workers=1) as gateway:
        ask = Ask({"model": "m", "temperature": 0, "messages": said})
        outcomes = [await once(gateway.port, ask) for _ in range(2)]
        assert [o.status for o in outcomes] == [200, 200]
        assert state(outcomes[1]) == expected


async def test_a_hit_obeys_requests_a_minute_and_uses_no_tokens(upstream: Upstream) -> None:
    text = cached(upstream.url, auth={"keys": [key("one", rpm=5, tpm=2000)]})
    with running(text, workers=2) as gateway:
        outcomes = [
            await once(gateway.port, Ask(exact(max_tokens=900), key="sk-test-one"))
            for _ in range(7)
        ]
        assert [o.status for o in outcomes] == [200] * 5 + [429] * 2
        assert [state(o) for o in outcomes] == ["miss"] + ["hit"] * 4 + ["miss"] * 2
        assert outcomes[4].headers["x-ratelimit-remaining-requests"] == "0"
        gateway.settled()
        used = gateway.usage("acme")
        assert (used["requests"], used["cache_hits"], used["prompt_tokens"]) == (5, 4, 7)


async def echoing(exchange: Exchange) -> None:
    """Answer with who asks, as the request says it, and what."""
    asked = exchange.request.json
    text = f"{asked['user']} asked {asked['messages'][0]['content']}"
    if asked.get("stream"):
        await exchange.start_stream()
        await exchange.event(delta(text))
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()
    else:
        await exchange.reply(completion(text, usage(7, 5)))


async def test_no_tenant_ever_sees_anothers_answer() -> None:
    chance = random.Random(7)

    def ask() -> Ask:
        who = chance.choice(("one", "globex"))
        stream = chance.random() < 0.5
        body = exact(f"prompt {chance.randrange(300)}", user=who, stream=stream)
        return Ask(body, key=f"sk-test-{who}")

    async with Upstream(behaviour=echoing) as upstream:
        with running(cached(upstream.url, auth=KEYS), workers=2) as gateway:
            outcomes = await flood(gateway.port, [ask() for _ in range(10_000)], 50)
            for outcome in outcomes:
                body = outcome.ask.body
                said = f"{body['user']} asked {body['messages'][0]['content']}"
                assert text_of(outcome) == said
            assert len(upstream.received) <= 600
            gateway.settled()
            used = [gateway.usage(tenant) for tenant in ("acme", "globex")]
            assert sum(one["requests"] for one in used) == 10_000
            assert sum(one["cache_hits"] for one in used) == 10_000 - len(upstream.received)


@pytest.mark.parametrize(
    ("share", "same_tenant", "another"),
    [("key", "miss", "miss"), ("tenant", "hit", "miss"), ("all", "hit", "hit")],
)
async def test_who_may_have_anothers_answer(
    upstream: Upstream, share: str, same_tenant: str, another: str
) -> None:
    text = cached(upstream.url, auth=KEYS, cache={"share": share})
    with running(text, workers=1) as gateway:
        found = [
            state(await once(gateway.port, Ask(exact(), key=f"sk-test-{who}")))
            for who in ("one", "two", "globex")
        ]
        assert found == ["miss", same_tenant, another]


async def test_what_is_too_large_is_kept_for_nobody_and_limits_keep_their_room() -> None:
    async def long_answer(exchange: Exchange) -> None:
        await exchange.reply(completion(os.urandom(6000).hex(), usage(7, 5)))

    async with Upstream(behaviour=long_answer) as upstream:
        text = cached(upstream.url, cache={"max_value_kb": 2, "memory_mb": 0})
        with running(text, workers=1) as gateway:
            for _ in range(2):
                assert state(await once(gateway.port, Ask(exact()))) == "miss"
        text = cached(upstream.url, cache={"memory_mb": 0}, redis={"memory_mb": 16})
        with running(text, workers=1) as gateway:
            assert state(await once(gateway.port, Ask(exact("first")))) == "miss"
            assert state(await once(gateway.port, Ask(exact("first")))) == "hit"
            with gateway.store as store:
                used = store.info("memory")["used_memory"]
                store.config_set("maxmemory", int(used / 0.8))
            await asyncio.sleep(1.3)
            for _ in range(2):
                assert state(await once(gateway.port, Ask(exact("later")))) == "miss"


async def test_a_purge_reaches_answers_that_are_in_memory_alone(upstream: Upstream) -> None:
    with running(cached(upstream.url, cache={"redis": False}), workers=1) as gateway:
        found = [state(await once(gateway.port, Ask(exact()))) for _ in range(2)]
        assert found == ["miss", "hit"]
        sluice(gateway, "purge", "--all")
        async with asyncio.timeout(10):
            while state(await once(gateway.port, Ask(exact()))) != "miss":
                await asyncio.sleep(0.1)


async def test_metrics_and_virtual_keys(upstream: Upstream) -> None:
    text = cached(upstream.url, auth={"admin_key": ADMIN_KEY, "keys": KEYS["keys"]})
    with running(text, workers=1) as gateway:
        _, secret = await make(gateway, cache={"enabled": False})
        assert state(await once(gateway.port, Ask(exact(), key=secret))) == ""
        for expected in ("miss", "hit", "hit"):
            assert state(await once(gateway.port, Ask(exact(), key="sk-test-one"))) == expected
        await asyncio.sleep(0.5)
        status, metrics = gateway.get("/metrics", {"Authorization": f"Bearer {ADMIN_KEY}"})
        assert status == 200
        assert b'sluice_cache_requests_total{state="hit"} 2.0' in metrics
        assert b'sluice_cache_requests_total{state="miss"} 1.0' in metrics
        assert b"sluice_cache_entries 1.0" in metrics


async def test_a_long_stream_is_not_held_up_by_who_waits_for_the_whole() -> None:
    going = asyncio.Event()
    word = "word " * 200

    async def long_stream(exchange: Exchange) -> None:
        if not exchange.request.json.get("stream"):
            await exchange.reply(completion("whole", usage(7, 5)))
            return
        await exchange.start_stream()
        await exchange.event(delta("one"))
        await going.wait()
        for _ in range(5600):
            await exchange.event(delta(word))
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with Upstream(behaviour=long_stream) as upstream:
        with running(cached(upstream.url), workers=1) as gateway:
            async with Client(gateway.port, limit=2**24) as stalled:
                streaming = asyncio.ensure_future(once(gateway.port, Ask(exact(stream=True))))
                await stalled.send(Ask(exact(stream=True)))
                await stalled.read_head()
                waiting = asyncio.ensure_future(once(gateway.port, Ask(exact())))
                await asyncio.sleep(0.3)
                going.set()
                async with asyncio.timeout(20):
                    assert len(text_of(await streaming)) == 5600 * len(word) + 3
                    assert text_of(await waiting) == "whole"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reason", ["length", "content_filter", "error", "abort", None])
async def test_what_does_not_say_that_it_is_whole_is_not_kept(
    gateway_of_endings: tuple[Gateway, Upstream], stream: bool, reason: str | None
) -> None:
    gateway, upstream = gateway_of_endings
    body = exact(f"{reason} {stream}", stop=[reason or "null"], stream=stream)
    asked = len(upstream.received)
    for number in (1, 2):
        outcome = await once(gateway.port, Ask(body))
        assert (outcome.status, state(outcome)) == (200, "miss")
        assert len(upstream.received) == asked + number


@pytest.fixture(scope="module")
def gateway_of_endings() -> Iterator[tuple[Gateway, Upstream]]:
    async def ending(exchange: Exchange) -> None:
        asked = exchange.request.json
        (reason,) = asked["stop"]
        reason = None if reason == "null" else reason
        if not asked.get("stream"):
            reply = completion("half", usage(7, 5))
            reply["choices"][0]["finish_reason"] = reason
            await exchange.reply(reply)
            return
        await exchange.start_stream()
        await exchange.event(delta("half"))
        await exchange.event(delta(None, reason))
        await exchange.event("[DONE]")
        await exchange.end_stream()

    with UpstreamThread(behaviour=ending) as thread, running(cached(thread.url)) as gateway:
        yield gateway, thread.upstream


@pytest.mark.parametrize("bill", ["leader", "split"])
async def test_one_clients_limits_and_patience_are_its_own(bill: str) -> None:
    keys = {"keys": [key("one", rpm=2), key("two"), key("three")]}
    async with Upstream(behaviour=slow) as upstream:
        text = cached(upstream.url, cache={"bill": bill}, auth=keys)
        with running(text, workers=1) as gateway:
            for n in range(2):
                assert (
                    state(await once(gateway.port, Ask(exact(f"{n}"), key="sk-test-one"))) == "miss"
                )
            asks = [Ask(exact(), key="sk-test-one") for _ in range(20)]
            asks += [Ask(exact(), key="sk-test-two") for _ in range(20)]
            before = len(upstream.received)
            outcomes = await flood(gateway.port, asks, 40)
            assert {o.status for o in outcomes if o.ask.key == "sk-test-one"} == {429}
            healthy = [o for o in outcomes if o.ask.key == "sk-test-two"]
            assert {text_of(o) for o in healthy} == {TEXT}
            assert len(upstream.received) == before + 1
            hasty = Ask(exact("hasty"), key="sk-test-two", headers={"x-sluice-timeout": "0.2"})
            first = asyncio.ensure_future(once(gateway.port, hasty))
            await asyncio.sleep(0.05)
            patient = await once(gateway.port, Ask(exact("hasty"), key="sk-test-three"))
            assert (await first).status == 504
            assert text_of(patient) == TEXT
            gateway.settled()
            used, calls = gateway.usage("acme"), len(upstream.received)
            assert used["prompt_tokens"] == 7 * (calls - 1)  # the hasty one's is estimated
            held = [gateway.store.hgetall(name) for name in gateway.store.keys("sluice:lease:*")]
            assert held == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_split_adds_up_when_the_first_one_leaves(stream: bool) -> None:
    async with Upstream(behaviour=slow) as upstream:
        keys = {"keys": [key("one"), key("two", rpm=1)]}
        text = cached(upstream.url, cache={"bill": "split"}, auth=keys)
        with running(text, workers=1) as gateway:
            await once(gateway.port, Ask(exact("before"), key="sk-test-two"))
            async with Client(gateway.port) as first:
                await first.send(Ask(exact(stream=stream), key="sk-test-one"))
                await asyncio.sleep(0.1)
                others = [Ask(exact(stream=stream), key="sk-test-one") for _ in range(2)]
                others += [Ask(exact(stream=stream), key="sk-test-two")]
                load = asyncio.gather(*(once(gateway.port, ask) for ask in others))
                await asyncio.sleep(0.2)
                first.cut()
                outcomes = await load
            assert sorted(o.status for o in outcomes) == [200, 200, 429]
            assert len(upstream.received) == 2
            gateway.settled()
            used = gateway.usage("acme")
            assert (used["prompt_tokens"], used["completion_tokens"]) == (14, 10)
            billed = [r for r in gateway.records(5) if r["status"] == 429]
            assert [r["usage"]["prompt_tokens"] for r in billed] == [0]


@pytest.mark.parametrize("beside", [{}, {"citations": []}, {"citations": ["https://a.example"]}])
async def test_what_a_stream_says_beside_its_text_is_replayed(beside: dict[str, Any]) -> None:
    async def provider(exchange: Exchange) -> None:
        await exchange.start_stream()
        for part in (delta("hi"), delta(None, "stop")):
            await exchange.event({**part, **beside})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with Upstream(behaviour=provider) as upstream:
        with running(cached(upstream.url), workers=1) as gateway:
            first, second = [await once(gateway.port, Ask(exact(stream=True))) for _ in range(2)]
            assert [state(one) for one in (first, second)] == ["miss", "hit"]
            assert (first.body == second.body) == any(beside.values())
            whole = await once(gateway.port, Ask(exact()))
            assert (state(whole), text_of(whole)) == ("hit", "hi")


async def test_what_the_hub_does_not_know_is_replayed_as_it_was() -> None:
    async def provider(exchange: Exchange) -> None:
        asked = exchange.request.json
        if exchange.request.path.endswith("/responses"):
            reply = {
                "id": "resp_1",
                "object": "response",
                "status": "completed",
                "model": "gpt",
                "output": [
                    {
                        "type": "message",
                        "id": "m",
                        "role": "assistant",
                        "status": "completed",
                        "content": [{"type": "output_text", "text": "hi", "annotations": []}],
                    }
                ],
                "metadata": asked.get("metadata"),
                "usage": {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12},
            }
            await exchange.reply(reply)
            return
        await exchange.start_stream()
        for index, text in enumerate(asked["prompt"]):
            chunk = {"id": "c", "object": "text_completion", "created": 1, "model": "gpt"}
            choice = {"index": index, "text": text, "finish_reason": "stop"}
            await exchange.event({**chunk, "choices": [choice]})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with Upstream(behaviour=provider) as upstream:
        with running(cached(upstream.url, cache={"requests": "all"}), workers=1) as gateway:

            async def ask(path: str, **fields: Any) -> Outcome:
                return await once(gateway.port, Ask({"model": "m", **fields}, path=path))

            texts = [
                await ask("/v1/completions", prompt=["a", "b"], stream=True, seed=1)
                for _ in range(2)
            ]
            assert [state(o) for o in texts] == ["miss", "hit"]
            assert texts[0].body == texts[1].body
            told = [
                await ask("/v1/responses", input="hi", metadata={"order": order})
                for order in ("one", "two", "two")
            ]
            assert [o.json["metadata"]["order"] for o in told] == ["one", "two", "two"]
            assert [state(o) for o in told] == ["miss", "hit", "hit"]
            talks = [
                await ask("/v1/responses", input="hi", conversation="conv_1") for _ in range(2)
            ]
            assert [state(o) for o in talks] == ["bypass"] * 2
