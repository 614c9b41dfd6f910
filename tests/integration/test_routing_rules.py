"""Where a request goes by what is in it and who asks; what a target is given; other models."""

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import sluice
from tests.support.config import KEY, PRICED_MODEL, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Outcome, flood, once
from tests.support.upstream import Behaviour, Exchange, Upstream, completion, like_openai, usage

IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OTHER = "sk-other-0123456789"
KEYS = [
    {"name": "k", "tenant": "acme", "sha256": digest(KEY), "labels": {"team": "search"}},
    {"name": "o", "tenant": "acme", "sha256": digest(OTHER)},
]


def target(number: int, **more: Any) -> dict[str, Any]:
    return {"provider": f"p{number}", "model": PRICED_MODEL, **more}


@contextlib.asynccontextmanager
async def serving(
    targets: list[dict[str, Any]],
    behaviours: dict[int, Behaviour] | None = None,
    *,
    workers: int = 1,
    models: dict[str, Any] | None = None,
    **model: Any,
) -> AsyncIterator[tuple[Gateway, list[Upstream]]]:
    """A gateway whose model `m` has these targets, each with a provider of its own."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = []
        for i in range(1 + max(int(one["provider"][1:]) for one in targets)):
            behaviour = (behaviours or {}).get(i, like_openai)
            upstreams.append(await stack.enter_async_context(Upstream(behaviour=behaviour)))
        text = config(
            *[one.url for one in upstreams],
            auth={"keys": KEYS},
            models={"m": {"targets": targets, **model}, **(models or {})},
        )
        yield stack.enter_context(running(text, workers=workers)), upstreams


def questions(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {i}"} for i in range(count)]


async def asked(gateway: Gateway, *asks: Ask) -> list[str]:
    """The providers that served these, in order."""
    outcomes = [await once(gateway.port, ask) for ask in asks]
    assert [one.status for one in outcomes] == [200] * len(asks), outcomes
    return [one.headers["x-sluice-provider"] for one in outcomes]


async def test_conditions_say_what_a_target_takes() -> None:
    targets = [
        target(0, when={"images": True}),
        target(1, when={"tools": True}),
        target(2, when={"min_tokens": 1000}),
        target(3, when={"stream": True}),
        target(4, when={"labels": {"team": "search"}}),
        target(5),
    ]
    async with serving(targets) as (gateway, _):
        messages = [{"role": "user", "content": IMAGE}]
        speaks = {"role": "user", "content": '"type": "image"'}
        found = await asked(
            gateway,
            Ask(chat(messages=messages)),
            Ask({**chat(), "tools": [TOOL]}),
            Ask(chat(user="x" * 8000)),
            Ask(chat(stream=True), key=OTHER),
            Ask(chat()),
            Ask(chat(), key=OTHER),
            Ask({**chat(), "tools": [], "messages": [speaks]}, key=OTHER),
        )
    assert found == ["p0", "p1", "p2", "p3", "p4", "p5", "p5"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_conditions_hold_in_every_dialect(path: str) -> None:
    image = {
        "/v1/messages": {"type": "image", "source": {"type": "url", "url": "https://x.test/a"}},
        "/v1/responses": {"type": "input_image", "image_url": "https://x.test/a", "detail": "low"},
    }[path]
    said = {"role": "user", "content": [image]}
    body = {"model": "m", "messages": [said], "max_tokens": 9}
    if path == "/v1/responses":
        body = {"model": "m", "input": [said], "store": False}
    async with serving([target(0, when={"images": False}), target(1)]) as (gateway, _):
        assert await asked(gateway, Ask(body, path=path)) == ["p1"]


async def test_what_no_target_takes_is_refused_by_name() -> None:
    async with serving([target(0, when={"max_tokens": 10})]) as (gateway, upstreams):
        outcome = await once(gateway.port, Ask(chat(user="x" * 400)))
        assert (outcome.status, outcome.json["error"]["param"]) == (400, "model")
        assert "'m'" in outcome.json["error"]["message"]
        assert upstreams[0].received == []


async def test_a_client_gets_the_tags_it_asks_for_or_an_error() -> None:
    targets = [target(0), target(1, tags=["eu"]), target(2, tags=["eu", "fast"])]
    async with serving(targets) as (gateway, _):
        asks = [
            Ask(headers={"x-sluice-tags": tags}) for tags in ("", "eu", "fast", "fast, eu", "eu,,")
        ]
        assert await asked(gateway, *asks) == ["p0", "p1", "p2", "p2", "p1"]
        for tags in ("us", "eu,us"):
            outcome = await once(gateway.port, Ask(headers={"x-sluice-tags": tags}))
            assert (outcome.status, outcome.json["error"]["param"]) == (400, "x-sluice-tags")
            assert "us" in outcome.json["error"]["message"]


async def test_tags_fall_over_to_targets_that_have_them_too() -> None:
    async def fails(exchange: Exchange) -> None:
        await exchange.reply({"error": {"message": "no"}}, 500)

    targets = [target(0), target(1, tags=["eu"]), target(2, tags=["eu"], priority=2)]
    async with serving(targets, {1: fails}) as (gateway, upstreams):
        assert await asked(gateway, Ask(headers={"x-sluice-tags": "eu"})) == ["p2"]
        assert upstreams[0].received == []


async def test_a_canary_gets_its_share_of_users_and_each_stays() -> None:
    async with serving([target(0), target(1, canary=20)]) as (gateway, _):
        users = [Ask(chat(user=f"user-{i}")) for i in range(300)]
        first = await flood(gateway.port, users, connections=8)
        again = await flood(gateway.port, users, connections=8)
        served = [one.headers["x-sluice-provider"] for one in first]
        assert 30 <= served.count("p1") <= 95
        by_user = {json.dumps(one.ask.body): one.headers["x-sluice-provider"] for one in first}
        for one in again:
            assert one.headers["x-sluice-provider"] == by_user[json.dumps(one.ask.body)]
        sessions = [Ask(headers={"x-sluice-session": f"s{i}"}) for i in range(100)]
        placed = await asked(gateway, *sessions)
        assert placed == await asked(gateway, *sessions)
        assert set(placed) == {"p0", "p1"}


async def test_a_canary_that_fails_is_nobodys_trouble() -> None:
    async def fails(exchange: Exchange) -> None:
        await exchange.reply({"error": {"message": "no"}}, 500)

    async with serving([target(0), target(1, canary=50)], {1: fails}) as (gateway, upstreams):
        found = await asked(gateway, *[Ask(chat(user=f"u{i}")) for i in range(40)])
        assert set(found) == {"p0"}
        assert 5 < len(upstreams[1].received) < 35


async def test_a_session_stays_with_one_target_on_every_worker() -> None:
    targets = [target(i) for i in range(3)]
    async with serving(targets, workers=2, affinity="session", strategy="weighted") as (gateway, _):
        asks = [Ask(headers={"x-sluice-session": f"s{i % 30}"}) for i in range(300)]
        found: dict[str, set[str]] = {}
        for one in await flood(gateway.port, asks, connections=12):
            name = one.ask.headers["x-sluice-session"]
            found.setdefault(name, set()).add(one.headers["x-sluice-provider"])
        assert all(len(placed) == 1 for placed in found.values())
        assert {min(placed) for placed in found.values()} == {"p0", "p1", "p2"}


@pytest.mark.parametrize("nobody", [None, "", " ", {}])
async def test_what_says_nothing_of_a_user_is_none(nobody: Any) -> None:
    """Else all such requests would go to one target, and those of a user anywhere."""
    targets = [target(i) for i in range(3)]
    async with serving(targets, affinity="session", strategy="weighted") as (gateway, _):
        name = "metadata" if nobody == {} else "user"
        others = [Ask(chat(messages=[said], **{name: nobody})) for said in questions(60)]
        assert set(await asked(gateway, *others)) == {"p0", "p1", "p2"}
        placed = await asked(
            gateway, *[Ask(chat(prompt_cache_key=nobody, user="u", seed=i)) for i in range(20)]
        )
        assert len(set(placed)) == 1


@pytest.mark.parametrize("affinity", ["session", "prompt"])
async def test_the_same_beginning_goes_to_the_same_target(affinity: str) -> None:
    targets = [target(i) for i in range(3)]
    async with serving(targets, affinity=affinity, strategy="least-busy") as (gateway, _):
        asks = [
            Ask(chat(messages=[{"role": "system", "content": f"{i % 20} {'x' * 2000}"}, *said]))
            for i in range(100)
            for said in ([{"role": "user", "content": f"question {i}"}],)
        ]
        placed = await asked(gateway, *asks)
        assert all(placed[i] == placed[i % 20] for i in range(100))
        assert len(set(placed)) == 3


async def test_a_target_is_given_no_more_than_its_limit_by_all_workers_together() -> None:
    targets = [target(0, rpm=20), target(1, priority=2)]
    async with serving(targets, workers=2) as (gateway, upstreams):
        outcomes = await flood(gateway.port, [Ask() for _ in range(60)], connections=12)
        assert Counter(one.status for one in outcomes) == {200: 60}
        assert len(upstreams[0].received) == 20
        assert len(upstreams[1].received) == 40
        assert gateway.usage("acme")["requests"] == 60
        gateway.settled()
        assert gateway.store.zcard("sluice:leases:{~targets}") == 0


async def test_a_smaller_limit_of_another_model_leaves_the_larger_alone() -> None:
    models = {"small": {"targets": [target(0, rpm=1)]}}
    async with serving([target(0, rpm=120)], models=models) as (gateway, _):
        await asked(gateway, *[Ask() for _ in range(3)])
        small = [await once(gateway.port, Ask(chat(model="small"))) for _ in range(2)]
        assert [one.status for one in small] == [200, 429]
        await asked(gateway, *[Ask() for _ in range(10)])


async def test_a_targets_slots_are_free_again_whatever_became_of_the_attempt() -> None:
    together, most = 0, 0

    async def counts(exchange: Exchange) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0.01)
        together -= 1
        if len(one.received) % 3 == 0:
            exchange.abort()
        elif len(one.received) % 3 == 1:
            await exchange.reply({"error": {"message": "no"}}, 500)
        else:
            await like_openai(exchange)

    targets = [target(0, concurrency=3), target(1, priority=2)]
    async with serving(targets, {0: counts}, workers=2) as (gateway, (one, _)):
        asks = [Ask(chat(stream=bool(i % 2))) for i in range(150)]
        outcomes = await flood(gateway.port, asks, connections=16)
        assert {outcome.status for outcome in outcomes} == {200}
        assert 1 <= most <= 3
        assert len(one.received) >= 6  # of each fate some
        gateway.settled()
        assert gateway.store.zcard("sluice:leases:{~targets}") == 0
        before = len(one.received)
        await once(gateway.port, Ask())
        assert len(one.received) > before


async def test_tokens_that_were_not_used_come_back_to_the_target() -> None:
    async def short(exchange: Exchange) -> None:
        await exchange.reply(completion("fine", usage(5, 5)))

    targets = [target(0, tpm=2000)]
    async with serving(targets, {0: short}) as (gateway, _):
        for _ in range(20):  # each reserves a thousand, and uses ten
            assert (await once(gateway.port, Ask(chat(max_tokens=1000)))).status == 200
        outcome = await once(gateway.port, Ask(chat(max_tokens=5000)))
        assert (outcome.status, outcome.json["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "target" in outcome.json["error"]["message"]


async def test_where_all_targets_are_full_the_client_learns_when_to_come_back() -> None:
    async with serving([target(0, rpm=1)]) as (gateway, upstreams):
        outcomes = [await once(gateway.port, Ask()) for _ in range(2)]
        assert [one.status for one in outcomes] == [200, 429]
        assert 0 < int(outcomes[1].headers["retry-after"]) <= 60
        assert len(upstreams[0].received) == 1


async def test_slots_of_a_worker_that_was_killed_come_back() -> None:
    async def hangs(exchange: Exchange) -> None:
        await asyncio.sleep(3600)

    targets = [target(0, concurrency=1), target(1, priority=2)]
    async with contextlib.AsyncExitStack() as stack:
        slow = await stack.enter_async_context(Upstream(behaviour=hangs))
        other = await stack.enter_async_context(Upstream())
        text = config(slow.url, other.url, models={"m": {"targets": targets}}, limits={"lease": 1})
        gateway = stack.enter_context(running(text))
        async with asyncio.TaskGroup() as group:
            doomed = group.create_task(once(gateway.port, Ask()))
            while not slow.received:
                await asyncio.sleep(0.01)
            assert (await asked(gateway, Ask())) == ["p1"]
            (pid,) = gateway.worker_pids
            os.kill(pid, signal.SIGKILL)
            assert (await doomed).failure
        slow.behaviour = like_openai
        async with asyncio.timeout(15):
            while await asked(gateway, Ask()) != ["p0"]:
                await asyncio.sleep(0.1)


LONG = {"error": {"message": "This model's maximum context length is 10 tokens.", "code": "x"}}
POLICY = {"error": {"message": "rejected", "code": "content_policy_violation"}}


def refusing(body: Any) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.reply(body, 400)

    return behave


def with_fallbacks(**more: Any) -> dict[str, Any]:
    found = {"context_window": ["large", "p3/gpt-4o-mini"], "content_policy": ["lenient"]}
    return {
        "fallbacks": found,
        "models": {
            "large": {"targets": [target(1)]},
            "lenient": {"targets": [target(2)]},
        },
        **more,
    }


@pytest.mark.parametrize(
    ("body", "expected"), [(LONG, "p1"), (POLICY, "p2")], ids=["long", "policy"]
)
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_a_prompt_that_is_refused_goes_to_another_model(
    body: Any, expected: str, *, stream: bool
) -> None:
    targets = [target(0), target(3, canary=0.001)]
    async with serving(targets, {0: refusing(body)}, **with_fallbacks()) as (gateway, _):
        assert await asked(gateway, Ask(chat(stream=stream))) == [expected]
        (record,) = gateway.records(1)
        assert (record["model"], record["provider"]) == ("m", expected)
        assert [tried["status"] for tried in record["tries"]] == [400, 200]
        assert gateway.usage("acme", part="model:m")["requests"] == 1


async def test_the_next_fallback_is_asked_where_one_refuses_too() -> None:
    behaviours = {0: refusing(LONG), 1: refusing(LONG)}
    targets = [target(0), target(3, canary=0.001)]
    async with serving(targets, behaviours, **with_fallbacks()) as (gateway, _):
        assert await asked(gateway, Ask()) == ["p3"]


async def test_where_all_refuse_the_client_has_the_first_ones_words() -> None:
    said = {"error": {"message": "context_length_exceeded: the first"}}
    behaviours = {0: refusing(said), 1: refusing(LONG), 3: refusing(LONG)}
    targets = [target(0), target(3, canary=0.001)]
    async with serving(targets, behaviours, **with_fallbacks()) as (gateway, _):
        outcome: Outcome = await once(gateway.port, Ask())
        assert (outcome.status, outcome.json) == (400, said)
        assert outcome.headers["x-sluice-provider"] == "p0"


async def test_a_fallback_that_takes_no_such_request_is_passed_over() -> None:
    more = with_fallbacks()
    more["models"]["large"] = {"targets": [target(1, when={"tools": True})]}
    targets = [target(0), target(3, canary=0.001)]
    async with serving(targets, {0: refusing(LONG)}, **more) as (gateway, upstreams):
        assert await asked(gateway, Ask()) == ["p3"]
        assert upstreams[1].received == []


async def test_another_refusal_stays_one() -> None:
    said = {"error": {"message": "Invalid value for 'temperature'"}}
    targets = [target(0), target(3, canary=0.001)]
    async with serving(targets, {0: refusing(said)}, **with_fallbacks()) as (gateway, upstreams):
        assert (await once(gateway.port, Ask())).status == 400
        assert [len(one.received) for one in upstreams[1:]] == [0, 0, 0]


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"targets": [target(0, canary=5)]}, "models.m.targets"),
        ({"targets": [target(0), target(0, canary=60), target(0, canary=60)]}, "models.m.targets"),
        (
            {"targets": [target(0)], "fallbacks": {"context_window": ["nobody"]}},
            "models.m.fallbacks.context_window",
        ),
        (
            {"targets": [target(0)], "fallbacks": {"content_policy": ["m"]}},
            "models.m.fallbacks.content_policy",
        ),
        ({"targets": [target(0, when={"token": 5})]}, "models.m.targets[0].when"),
        ({"targets": [target(0)], "affinity": "sticky"}, "models.m.affinity"),
    ],
)
def test_rules_that_make_no_sense_are_told_by_name(model: Any, field: str, tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text(config("http://127.0.0.1:9/v1", models={"m": model}))
    done = sluice(tmp_path, file, "check")
    assert done.returncode != 0
    assert field in done.stderr
