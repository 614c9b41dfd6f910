"""Budgets, requests at once, and limits of several scopes: decided at once, given back exactly."""

import asyncio
import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from gateway.pipeline.allowance import SLICE_TOKENS
from tests.support.admin import ADMIN_KEY, admin, make, until
from tests.support.config import PRICED_MODEL, bearer, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, completion, delta, like_openai, usage

PER_REQUEST = {"input": 0, "output": 0, "per_request": 1}
PER_TOKEN = {"input": 0, "output": 1000}  # dollars a million: a thousandth of a dollar a token


def governed(*urls: str, price: dict[str, Any] | None = None, **limits: Any) -> str:
    """One model at a price, and limits by the section they belong to: key, tenant, everybody."""
    text = json.loads(config(*urls))
    text["auth"]["keys"][0] |= limits.get("key", {})
    text["tenants"] = {"acme": limits.get("tenant", {})}
    text["limits"] = {"global": limits.get("everybody", {})}
    text["models"]["m"]["price"] = price or PER_REQUEST
    text["models"]["other"] = text["models"]["m"]
    return json.dumps(text)


async def post(url: str, **fields: Any) -> tuple[int, Any, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            url + "/v1/chat/completions", json=chat(**fields), headers=bearer()
        ) as response,
    ):
        return response.status, await response.json(), response.headers


async def read_stream(url: str, **fields: Any) -> tuple[int, list[str]]:
    """Return the status and the events of a stream."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            url + "/v1/chat/completions", json=chat(stream=True, **fields), headers=bearer()
        ) as response,
    ):
        text = (await response.read()).decode()
        return response.status, text.strip().split("\n\n")


async def until_asked(upstream: Upstream) -> None:
    """Wait until the provider has a request."""
    async with asyncio.timeout(10):
        while not upstream.received:
            await asyncio.sleep(0.01)


def held(gateway: Gateway, name: str) -> dict[str, int]:
    """What Redis has of a limit, by the last part of its name."""
    with contextlib.closing(gateway.store) as store:
        found = store.hgetall(f"sluice:limit:{name}")
    return {field: int(value) for field, value in found.items()}


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


async def test_a_budget_pays_for_what_it_covers_and_no_more(upstream: Upstream) -> None:
    budget = {"budget": {"usd": 5, "per": "day"}}
    with running(governed(upstream.url, key=budget)) as gateway:
        answers = [await post(gateway.url) for _ in range(7)]
        gateway.settled()
        state = held(gateway, f"{{acme}}:key:k:budget:day:{today()}")
    assert [status for status, _, _ in answers] == [200] * 5 + [429] * 2
    _, body, headers = answers[-1]
    assert body["error"]["code"] == "budget_exceeded"
    assert (
        "$5 per day of this key does not cover this request: $0 is left. The period ends in"
        in (body["error"]["message"])
    )
    assert headers["x-should-retry"] == "false"
    assert state == {"spent": 5_000_000, "reserved": 0, "capacity": 5_000_000}


async def test_a_rolling_window_and_a_total_hold_beside_a_calendar_period(
    upstream: Upstream,
) -> None:
    budgets = {
        "budget": [{"usd": 9, "per": "month"}, {"usd": 2, "per": "30d"}, {"usd": 8, "per": "total"}]
    }
    with running(governed(upstream.url, tenant=budgets)) as gateway:
        statuses = [(await post(gateway.url))[0] for _ in range(3)]
        gateway.settled()
        window = held(gateway, "{acme}:tenant:budget:30d")
        total = held(gateway, "{acme}:tenant:budget:total:total")
    assert statuses == [200, 200, 429]
    assert (window["spent"], window["reserved"]) == (2_000_000, 0)
    assert window[str(window["slot"])] == 2_000_000
    assert (total["spent"], total["reserved"]) == (2_000_000, 0)


async def test_money_leaves_a_rolling_window_when_its_slot_does(upstream: Upstream) -> None:
    with running(governed(upstream.url, key={"budget": {"usd": 1, "per": "30d"}})) as gateway:
        first, second = (await post(gateway.url))[0], (await post(gateway.url))[0]
        gateway.settled()
        name = "sluice:limit:{acme}:key:k:budget:30d"
        with contextlib.closing(gateway.store) as store:
            slot = int(store.hget(name, "slot"))
            spent = store.hget(name, str(slot))
            store.hdel(name, str(slot))
            store.hset(name, mapping={str(slot - 30): spent, "slot": slot - 1})
            still = (await post(gateway.url))[0]
            store.hdel(name, str(slot - 30))
            store.hset(name, mapping={str(slot - 31): spent, "slot": slot - 1})
        after = (await post(gateway.url))[0]
    assert (first, second, still, after) == (200, 429, 429, 200)


async def test_only_so_many_requests_run_at_once(upstream: Upstream) -> None:
    release = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await release.wait()
        await exchange.reply(completion("done", usage(1, 1)))

    upstream.behaviour = slow
    with running(governed(upstream.url, tenant={"concurrency": 3}), workers=2) as gateway:
        tasks = [asyncio.create_task(post(gateway.url)) for _ in range(10)]
        done: set[asyncio.Task[Any]] = set()
        while len(done) < 7:
            done, _ = await asyncio.wait(tasks, timeout=10, return_when="FIRST_COMPLETED")
            tasks_left = [task for task in tasks if not task.done()]
            if len(done) >= 7 or not tasks_left:
                break
            await asyncio.sleep(0.02)
        in_use = held(gateway, "{acme}:tenant:concurrency")["in_use"]
        release.set()
        answers = [await task for task in tasks]
        gateway.settled()
        after = held(gateway, "{acme}:tenant:concurrency")["in_use"]
        again = (await post(gateway.url))[0]
    assert sorted(status for status, _, _ in answers) == [200] * 3 + [429] * 7
    refused = next(body for status, body, _ in answers if status == 429)
    assert refused["error"]["message"] == "Limit of 3 requests at once reached for this tenant."
    assert (in_use, after, again) == (3, 0, 200)


async def test_what_one_scope_refuses_no_other_scope_loses(upstream: Upstream) -> None:
    text = governed(
        upstream.url,
        key={"rpm": 100, "budget": {"usd": 100, "per": "total"}},
        tenant={"tpm": 10_000_000, "per_model": {"m": {"rpm": 2}}},
        everybody={"concurrency": 50},
    )
    with running(text) as gateway:
        statuses = [(await post(gateway.url))[0] for _ in range(4)]
        elsewhere = (await post(gateway.url, model="other"))[0]
        gateway.settled()
        rpm = held(gateway, "{acme}:key:k:rpm")
        budget = held(gateway, "{acme}:key:k:budget:total:total")
        together = held(gateway, "gateway:concurrency")
        model = held(gateway, "{acme}:tenant:model:m:rpm")
    assert statuses == [200, 200, 429, 429]
    assert elsewhere == 200
    assert rpm["level"] == 97  # three were admitted; the refused ones took nothing
    assert (budget["spent"], budget["reserved"]) == (3_000_000, 0)
    assert together["in_use"] == 0
    assert model["level"] == 0


@pytest.mark.parametrize("cache", [{}, {"enabled": True, "requests": "all"}])
async def test_a_limit_of_a_providers_models_holds_under_all_their_names(
    upstream: Upstream, cache: dict[str, Any]
) -> None:
    text = json.loads(governed(upstream.url, tenant={"per_model": {"p0/*": {"rpm": 4}}}))
    text["cache"] = cache
    own = {"targets": [{"provider": "p0"}]}
    text["models"] |= {PRICED_MODEL: own, "claude-sonnet[1m]": own}
    named = [PRICED_MODEL, "gpt-4o", f"p0/{PRICED_MODEL}", "claude-sonnet[1m]"]
    with running(json.dumps(text)) as gateway:
        passed = [(await post(gateway.url, model=model))[0] for model in named]
        refused = [(await post(gateway.url, model=model))[0] for model in named]
        ask = Ask(chat(PRICED_MODEL), path="/providers/p0/chat/completions")
        refused.append((await once(gateway.port, ask)).status)
        elsewhere = (await post(gateway.url))[0]  # the operator's name for it
    assert (passed, refused, elsewhere) == ([200] * 4, [429] * 5, 200)


async def test_a_limit_in_shadow_reports_and_refuses_nobody(upstream: Upstream) -> None:
    limits = {"rpm": 2, "shadow": ["rpm"], "budget": {"usd": 1, "per": "day", "shadow": True}}
    with running(governed(upstream.url, key=limits)) as gateway:
        statuses = [(await post(gateway.url))[0] for _ in range(4)]
        gateway.settled()
        records = gateway.records(4)
        metrics = gateway.get("/metrics")[1].decode()
    assert statuses == [200] * 4
    assert [len(record["shadow"]) for record in records] == [0, 1, 2, 2]
    assert 'sluice_shadow_refusals_total{limit="key:requests"} 2.0' in metrics
    assert 'sluice_shadow_refusals_total{limit="key:usd:day"} 3.0' in metrics


async def test_budgets_in_shadow_report_each_for_itself_what_they_would_have_refused(
    upstream: Upstream,
) -> None:
    budgets = [{"usd": 1, "per": per, "shadow": True} for per in ("day", "30d")]
    with running(governed(upstream.url, tenant={"budget": budgets})) as gateway:
        statuses = [(await post(gateway.url, model=name))[0] for name in ("m", "m", "no", "no")]
        gateway.settled()
        records = gateway.records(4)
        metrics = gateway.get("/metrics")[1].decode().splitlines()
    assert statuses == [200, 200, 404, 404]
    both = ["tenant:usd:day", "tenant:usd:30d"]
    assert [record["shadow"] for record in records] == [[], both, [], []]
    assert {line for line in metrics if line.startswith("sluice_shadow_refusals_total")} == {
        f'sluice_shadow_refusals_total{{limit="{one}"}} 1.0' for one in both
    }


async def test_a_model_without_a_price_is_refused_under_a_budget(upstream: Upstream) -> None:
    text = json.loads(governed(upstream.url, key={"budget": {"usd": 5}}))
    text["models"]["m"] = {"targets": [{"provider": "p0", "model": "nobody-knows"}]}
    with running(json.dumps(text)) as gateway:
        status, body, _ = await post(gateway.url)
    assert (status, body["error"]["code"], body["error"]["param"]) == (
        403,
        "price_unknown",
        "model",
    )
    assert upstream.received == []
    with running(json.dumps(text | {"pricing": {"default": PER_REQUEST}})) as gateway:
        assert (await post(gateway.url))[0] == 200


async def wordy(exchange: Exchange) -> None:
    """Stream far more than any slice, without ever saying what was used."""
    await exchange.start_stream()
    with contextlib.suppress(ConnectionError):
        for _ in range(4000):
            await exchange.event(delta(" word word word word"))
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()


@pytest.mark.parametrize("maximum", [{"max_tokens": 100_000}, {}, {"max_tokens": 400}])
async def test_a_stream_takes_slices_and_ends_when_its_budget_is_spent(
    upstream: Upstream, maximum: dict[str, int]
) -> None:
    """Whatever the client says, or its provider makes of it."""
    upstream.behaviour = wordy
    budget = {"budget": {"usd": 3, "per": "day"}}  # 3,000 tokens: two slices and not a third
    with running(governed(upstream.url, price=PER_TOKEN, key=budget)) as gateway:
        status, events = await read_stream(gateway.url, **maximum)
        gateway.settled()
        state = held(gateway, f"{{acme}}:key:k:budget:day:{today()}")
        (record,) = gateway.records(1)
    assert status == 200
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert (error["code"], "The period ends in" in error["message"]) == ("budget_exceeded", True)
    assert not any("[DONE]" in event for event in events)
    assert record["outcome"] == "error"
    assert record["error"] == "budget_exceeded"
    assert state["reserved"] == 0
    assert 1_000_000 < state["spent"] <= 3_000_000


async def test_a_stream_within_its_budget_takes_slices_to_its_end(upstream: Upstream) -> None:
    upstream.behaviour = wordy
    budget = {"budget": {"usd": 100, "per": "day"}}
    with running(governed(upstream.url, price=PER_TOKEN, key=budget)) as gateway:
        _, events = await read_stream(gateway.url, max_tokens=100_000)
        gateway.settled()
        state = held(gateway, f"{{acme}}:key:k:budget:day:{today()}")
        (record,) = gateway.records(1)
    assert events[-1] == "data: [DONE]"
    assert len(events) == 4002
    assert state["reserved"] == 0
    assert state["spent"] == record["cost_microusd"] == record["usage"]["completion_tokens"] * 1000


async def test_a_request_that_fails_gives_its_reservation_back(upstream: Upstream) -> None:
    async def broken(exchange: Exchange) -> None:
        await exchange.reply({"error": {"message": "no"}}, status=500)

    upstream.behaviour = broken
    limits = {"concurrency": 1, "budget": {"usd": 1, "per": "day"}}
    with running(governed(upstream.url, key=limits)) as gateway:
        statuses = [(await post(gateway.url))[0] for _ in range(3)]
        gateway.settled()
        budget = held(gateway, f"{{acme}}:key:k:budget:day:{today()}")
        slots = held(gateway, "{acme}:key:k:concurrency")
    assert statuses == [502] * 3
    assert (budget["spent"], budget["reserved"], slots["in_use"]) == (0, 0, 0)


async def test_a_limit_for_a_model_holds_by_its_provider_s_name_too(upstream: Upstream) -> None:
    limits = {"per_model": {"gpt-4o-mini": {"rpm": 2}}}
    with running(governed(upstream.url, key=limits)) as gateway:
        names = ("p0/gpt-4o-mini", "p0/gpt-4o-mini", "p0/gpt-4o-mini", "p0/gpt-4o")
        statuses = [(await post(gateway.url, model=name))[0] for name in names]
    assert statuses == [200, 200, 429, 200]


async def too_long_for_small(exchange: Exchange) -> None:
    """Refuse a prompt as too long for one model; the other one answers it."""
    if exchange.request.json["model"] == "gpt-4o-mini":
        told = {"message": "too long", "code": "context_length_exceeded"}
        await exchange.reply({"error": told}, status=400)
    else:
        await exchange.reply(completion("fine", usage(0, 2000)))


@pytest.mark.parametrize(
    ("price", "budget", "status"),
    [
        (None, 9, 400),  # nobody knows its price
        ({"input": 0, "output": 4000}, 9, 200),
        ({"input": 0, "output": 4000}, 3, 400),  # it is dearer than what is left
    ],
)
async def test_a_fallback_is_paid_for_like_any_model(
    upstream: Upstream, price: dict[str, Any] | None, budget: float, status: int
) -> None:
    upstream.behaviour = too_long_for_small
    limits = {"budget": {"usd": budget, "per": "day"}}
    text = json.loads(governed(upstream.url, price=PER_TOKEN, key=limits))
    text["models"]["m"] |= {"fallbacks": {"context_window": ["big"]}}
    large: dict[str, Any] = {"targets": [{"provider": "p0", "model": "nobody-knows"}]}
    text["models"]["big"] = large | ({"price": price} if price else {})
    with running(json.dumps(text)) as gateway:
        found, _, headers = await post(gateway.url, max_tokens=1000)
        gateway.settled()
        state = held(gateway, f"{{acme}}:key:k:budget:day:{today()}")
    assert found == status
    assert len(upstream.received) == (2 if status == 200 else 1)
    spent = 8_000_000 if status == 200 else 0
    assert (state["spent"], state["reserved"]) == (spent, 0)
    assert headers.get("x-sluice-model", "") == ("nobody-knows" if status == 200 else "gpt-4o-mini")


async def test_what_is_made_in_the_background_is_made_for_nobody_who_pays(
    upstream: Upstream,
) -> None:
    upstream.behaviour = like_openai
    body = {"model": "m", "input": "hello", "background": True}
    with running(governed(upstream.url, key={"budget": {"usd": 5, "per": "day"}})) as gateway:
        own = await once(gateway.port, Ask(body, path="/v1/responses"))
        passed = await once(
            gateway.port, Ask(body | {"model": "gpt-4o-mini"}, path="/providers/p0/v1/responses")
        )
        plain = await once(gateway.port, Ask(body | {"background": False}, path="/v1/responses"))
    for refused in (own, passed):
        assert (refused.status, refused.json["error"]["param"]) == (400, "background")
    assert plain.status == 200
    assert len(upstream.received) == 1


async def test_a_price_a_request_is_due_though_no_tokens_are_told_of(upstream: Upstream) -> None:
    async def picture(exchange: Exchange) -> None:
        await exchange.reply({"created": 1, "data": [{"url": "http://x/y.png"}]})

    upstream.behaviour = picture
    text = json.loads(governed(upstream.url, key={"budget": {"usd": 2, "per": "day"}}))
    text["pricing"] = {"default": {"input": 0, "output": 0, "per_request": 0.5}}
    with running(json.dumps(text)) as gateway:
        asks = [
            Ask({"model": "painter", "prompt": "a cat"}, path="/providers/p0/v1/images/generations")
            for _ in range(6)
        ]
        found = [await once(gateway.port, ask) for ask in asks]
        gateway.settled()
        state = held(gateway, f"{{acme}}:key:k:budget:day:{today()}")
        records = gateway.records(6)
    assert [o.status for o in found] == [200] * 4 + [429] * 2
    assert (state["spent"], state["reserved"]) == (2_000_000, 0)
    assert [r["cost_microusd"] for r in records if r["status"] == 200] == [500_000] * 4


async def test_a_budget_that_is_lowered_ends_what_streams(upstream: Upstream) -> None:
    lowered = asyncio.Event()

    async def going_on(exchange: Exchange) -> None:
        if not exchange.request.json.get("stream"):
            await exchange.reply(completion("one", usage(7, 1)))
            return
        await exchange.start_stream()
        await exchange.event(delta("word "))
        await lowered.wait()
        with contextlib.suppress(ConnectionError):
            for _ in range(60):
                await exchange.event(delta("word " * 100))
            await exchange.event(delta(None, "stop"))
            await exchange.event("[DONE]")
            await exchange.end_stream()

    upstream.behaviour = going_on
    text = json.loads(governed(upstream.url, price=PER_TOKEN))
    text["auth"]["admin_key"] = ADMIN_KEY
    with running(json.dumps(text)) as gateway:
        number, secret = await make(gateway, budget={"usd": 50, "per": "day"})
        ask = Ask(chat(stream=True, max_tokens=9000), key=secret)
        streaming = asyncio.create_task(once(gateway.port, ask))
        await until_asked(upstream)
        less = {"budget": {"usd": 2, "per": "day"}}
        assert (await admin(gateway, "PATCH", f"/keys/{number}", less)).status == 200
        name = f"{{acme}}:key:{number}:budget:day:{today()}"

        async def heard() -> bool:
            await once(gateway.port, Ask(chat(max_tokens=1), key=secret))
            return held(gateway, name)["capacity"] == 2_000_000

        await until(heard)
        lowered.set()
        outcome = await streaming
        gateway.settled()
        state = held(gateway, name)
    assert json.loads(outcome.events[-1])["error"]["code"] == "budget_exceeded"
    assert (state["reserved"], state["capacity"]) == (0, 2_000_000)
    assert state["spent"] <= 2_000_000 + SLICE_TOKENS * 1000


async def test_a_stream_of_a_fallback_is_bounded_though_its_first_model_costs_nothing(
    upstream: Upstream,
) -> None:
    async def refuse_or_go_on(exchange: Exchange) -> None:
        if exchange.request.json["model"] == "gpt-4o-mini":
            await too_long_for_small(exchange)
        else:
            await wordy(exchange)

    upstream.behaviour = refuse_or_go_on
    limits = {"budget": {"usd": 3, "per": "day"}}
    text = json.loads(governed(upstream.url, price={"input": 0, "output": 0}, key=limits))
    text["models"]["m"] |= {"fallbacks": {"context_window": ["big"]}}
    target = {"provider": "p0", "model": "nobody-knows"}
    text["models"]["big"] = {"targets": [target], "price": PER_TOKEN}
    with running(json.dumps(text)) as gateway:
        status, events = await read_stream(gateway.url, max_tokens=100_000)
        gateway.settled()
        state = held(gateway, f"{{acme}}:key:k:budget:day:{today()}")
    assert status == 200
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "budget_exceeded"
    assert (state["spent"] <= 3_000_000, state["reserved"]) == (True, 0)


async def test_a_text_of_many_bytes_a_token_is_not_cut_within_its_own_maximum(
    upstream: Upstream,
) -> None:
    async def hindi(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(300):
            await exchange.event(delta("\u0928\u092e\u0938\u094d\u0924\u0947 "))
        await exchange.event(delta(None, "stop"))
        await exchange.event({**delta(None), "choices": [], "usage": usage(3, 600)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    upstream.behaviour = hindi
    limits = {"budget": {"usd": 0.7, "per": "day"}}
    with running(governed(upstream.url, price=PER_TOKEN, key=limits)) as gateway:
        _, events = await read_stream(gateway.url, max_tokens=650)
    assert events[-1] == "data: [DONE]"


async def test_a_reply_that_is_left_before_its_text_is_estimated(upstream: Upstream) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta(""))
        await exchange.gone()

    upstream.behaviour = silent
    with running(governed(upstream.url, key={"tpm": 1_000_000})) as gateway:
        body = chat("gpt-4o-mini", stream=True) | {
            "messages": [{"role": "user", "content": "word " * 5000}]
        }
        ask = Ask(body, path="/providers/p0/v1/chat/completions", leave_after=1)
        await once(gateway.port, ask)
        (record,) = await asyncio.to_thread(gateway.records, 1)
    assert record["usage_source"] == "partial"
    assert record["usage"]["prompt_tokens"] > 4000
