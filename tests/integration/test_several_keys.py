"""A provider with several keys does what one with a single key does: goes on, is asked again."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, once
from tests.support.upstream import Behaviour, Exchange, Upstream, delta, like_openai

KEYS = pytest.mark.parametrize("keys", [["k1"], ["k1", "k2"]], ids=["one key", "two keys"])


@contextlib.asynccontextmanager
async def serving(
    keys: Iterable[str],
    *behaviours: Behaviour,
    second: dict[str, Any] | None = None,
    **sections: Any,
) -> AsyncIterator[tuple[Gateway, list[Upstream]]]:
    """A gateway whose first provider has these keys; `second`: what the others are."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(behaviour=one)) for one in behaviours]
        text = json.loads(config(*[one.url for one in upstreams]))
        del text["providers"]["p0"]["api_key"]
        text["providers"]["p0"]["api_keys"] = list(keys)
        for i in range(1, len(upstreams)):
            text["providers"][f"p{i}"] |= second or {}
        for name, more in sections.items():
            text[name] = text.get(name, {}) | more
        yield stack.enter_context(running(json.dumps(text), workers=1)), upstreams


@KEYS
async def test_a_stream_that_is_cut_goes_on_at_the_same_provider(keys: list[str]) -> None:
    asked = 0

    async def cuts_once(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        await exchange.start_stream()
        await exchange.event(delta(f"part {asked} "))
        if asked == 1:
            exchange.abort()
            return
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()

    target = {"provider": "p0", "model": "gpt-4o-mini"}
    models = {"m": {"targets": [target], "on_stream_failure": "continue"}}
    async with serving(keys, cuts_once, models=models) as (gateway, _):
        outcome = await once(gateway.port, Ask(chat(stream=True)))
        assert outcome.events[-1] == "[DONE]"
        assert b"part 1 " in outcome.body
        assert b"part 2 " in outcome.body
        (record,) = gateway.records(1)
        assert (record["outcome"], record["continued"]) == ("ok", 1)


def limiting(times: int, retry_after: str) -> Behaviour:
    """Refuse so many requests for their number, then answer."""
    left = times

    async def behave(exchange: Exchange) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            error = {"error": {"message": "slow down"}}
            await exchange.reply(error, 429, {"Retry-After": retry_after})
        else:
            await like_openai(exchange)

    return behave


@KEYS
async def test_all_keys_that_are_limited_are_asked_when_they_say(keys: list[str]) -> None:
    again = {"attempts": 1}
    async with serving(keys, limiting(len(keys), "1"), retries=again) as (gateway, upstreams):
        outcome = await once(gateway.port, Ask(chat()))
        assert outcome.status == 200
        asked = [one.headers["authorization"] for one in upstreams[0].received]
        assert len(asked) == len(keys) + 1
        assert set(asked) == {f"Bearer {key}" for key in keys}


async def test_a_key_that_is_refused_does_not_hurry_one_that_is_limited() -> None:
    async def behave(exchange: Exchange) -> None:
        limited = exchange.request.headers["authorization"] == "Bearer k1"
        status, headers = (429, {"Retry-After": "60"}) if limited else (401, {})
        await exchange.reply({"error": {"message": "no"}}, status, headers)

    async with serving(["k1", "k2"], behave, retries={"attempts": 3}) as (gateway, upstreams):
        assert (await once(gateway.port, Ask(chat()))).status >= 400
        assert len(upstreams[0].received) == 2


@KEYS
@pytest.mark.parametrize("others", [1, 2])
async def test_keys_that_rest_are_asked_where_no_other_target_can_be(
    keys: list[str], others: int
) -> None:
    limited = limiting(2 * len(keys), "5")
    unfit = {"kind": "anthropic"}  # which has nothing like `logit_bias`
    behaviours = [limited, *[like_openai] * others]
    async with serving(keys, *behaviours, second=unfit) as (gateway, upstreams):
        body = chat(logit_bias={"1": 5})
        for _ in range(2):
            outcome = await once(gateway.port, Ask(body))
            assert (outcome.status, outcome.headers.get("retry-after")) == (429, "5")
        outcome = await once(gateway.port, Ask(body))
        assert outcome.status == 200
        assert [len(one.received) for one in upstreams] == [2 * len(keys) + 1, *[0] * others]
