"""Answers that are kept: who has them, what the client's headers say, what is counted."""

import asyncio
from typing import Any

import pytest

from tests.support.config import KEY, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Outcome, flood, once
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
