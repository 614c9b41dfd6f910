"""A provider with several keys does what one with a single key does: goes on, is asked again."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, once
from tests.support.upstream import Behaviour, Exchange, Upstream, delta

KEYS = pytest.mark.parametrize("keys", [["k1"], ["k1", "k2"]], ids=["one key", "two keys"])


@contextlib.asynccontextmanager
async def serving(
    keys: Iterable[str], *behaviours: Behaviour, **sections: Any
) -> AsyncIterator[tuple[Gateway, list[Upstream]]]:
    """A gateway whose first provider has these keys."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(behaviour=one)) for one in behaviours]
        text = json.loads(config(*[one.url for one in upstreams]))
        del text["providers"]["p0"]["api_key"]
        text["providers"]["p0"]["api_keys"] = list(keys)
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
