"""Calls that several requests share: by which of them what becomes of it is decided."""

import asyncio
import json

import pytest

from tests.integration.test_cache import TEXT, cached, exact, key, text_of
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, completion, usage


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
