"""A fallback that a budget does not cover is not asked, with Redis or without."""

import asyncio
import contextlib
import json
import os
import signal
from typing import Any

from tests.support.config import chat, config
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, completion, usage


async def test_a_fallback_above_the_budget_is_not_asked(upstream: Upstream) -> None:
    async def serves(exchange: Exchange) -> None:
        await asyncio.sleep(0.1)
        if exchange.request.json["model"] == "gpt-4o-mini":
            error = {"message": "too long", "code": "context_length_exceeded"}
            await exchange.reply({"error": error}, status=400)
        else:
            await exchange.reply(completion("fine", usage(0, 1000)))

    upstream.behaviour = serves
    wanted: dict[str, Any] = json.loads(config(upstream.url))
    wanted["auth"]["keys"][0]["budget"] = {"usd": 10, "per": "total"}
    free, dear = {"input": 0, "output": 1}, {"input": 0, "output": 4000}  # 4 dollars a request
    wanted["models"]["m"] |= {"price": free, "fallbacks": {"context_window": ["big"]}}
    target = {"provider": "p0", "model": "gpt-4o"}
    wanted["models"]["big"] = {"targets": [target], "price": dear}
    ask = Ask(chat(max_tokens=1000))
    with running(json.dumps(wanted), workers=1) as gateway:
        assert (await once(gateway.port, ask)).status == 200
        os.kill(gateway.store_pid, signal.SIGSTOP)
        try:
            outcomes = await asyncio.gather(*[once(gateway.port, ask) for _ in range(10)])
        finally:
            os.kill(gateway.store_pid, signal.SIGCONT)
        assert sorted([one.status for one in outcomes]) == [200] + 9 * [400]
        await asyncio.sleep(1)
        await asyncio.to_thread(gateway.settled)
        with contextlib.closing(gateway.store) as store:
            (key,) = store.scan_iter("sluice:limit:{acme}:key:k:budget:total*")
            state = store.hgetall(key)
        assert (state["spent"], state["reserved"]) == ("8000000", "0")
