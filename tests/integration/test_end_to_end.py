"""The main job: a request in, the provider's answer out, the usage in Redis."""

import json
from typing import Any

import aiohttp

from tests.support.config import bearer, chat, config
from tests.support.gateway import running
from tests.support.upstream import Upstream


async def ask(url: str, body: Any, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + path, json=body, headers=bearer()) as response,
    ):
        return response.status, await response.read()


async def test_a_chat_is_answered_and_counted(upstream: Upstream) -> None:
    with running(config(upstream.url)) as gateway:
        status, body = await ask(gateway.url, chat(temperature=0.5, unheard_of={"a": [1, 2]}))
        gateway.settled()
        used = gateway.usage("acme")
        (record,) = gateway.records(1)
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"] == "one two three four five"
    sent = upstream.received[0]
    assert sent.json == chat("gpt-4o-mini", temperature=0.5, unheard_of={"a": [1, 2]})
    assert sent.headers["authorization"] == "Bearer sk-upstream-0"
    # 4 fresh at $0.15, 3 cached at $0.075, 5 out at $0.60 a million: 3.825 millionths, rounded.
    assert used == {
        "requests": 1,
        "prompt_tokens": 7,
        "cached_tokens": 3,
        "completion_tokens": 5,
        "reasoning_tokens": 2,
        "cost_microusd": 4,
    }
    assert record["usage_source"] == "provider"
    assert record["outcome"] == "ok"


async def test_a_stream_is_relayed_and_its_usage_kept_from_the_client(upstream: Upstream) -> None:
    with running(config(upstream.url)) as gateway:
        status, body = await ask(gateway.url, chat(stream=True))
        gateway.settled()
        used = gateway.usage("acme", part="model:m")
    assert status == 200
    events = body.decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert not any("prompt_tokens" in event for event in events)
    assert upstream.received[0].json["stream_options"] == {"include_usage": True}
    assert (used["prompt_tokens"], used["completion_tokens"]) == (7, 5)
