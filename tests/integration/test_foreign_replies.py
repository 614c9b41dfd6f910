"""A target that answers in another API's words, with status 200: a failure, not an empty answer."""

import asyncio
import json
from typing import Any

import pytest

from tests.support.config import config
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, completion, usage

FIGURES = {"input_tokens": 7, "output_tokens": 5}
SPOKEN = {"type": "output_text", "text": "hello", "annotations": []}
REPLIES: dict[str, dict[str, Any]] = {
    "chat": completion("hello", usage(7, 5)),
    "messages": {"id": "m", "content": [{"type": "text", "text": "hello"}], "usage": FIGURES},
    "responses": {
        "id": "r",
        "status": "completed",
        "output": [{"type": "message", "content": [SPOKEN]}],
        "usage": FIGURES | {"total_tokens": 12},
    },
    "count": {"input_tokens": 7},
    "embeddings": {"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}},
}
KINDS: dict[str, dict[str, Any]] = {
    "chat": {"kind": "openai-compatible"},
    "messages": {"kind": "anthropic"},
    "responses": {"kind": "openai", "api": "responses"},
}
SAID = [{"role": "user", "content": "hello"}]
ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": SAID}),
    "messages": ("/v1/messages", {"messages": SAID, "max_tokens": 50}),
    "responses": ("/v1/responses", {"input": "hello"}),
}


@pytest.mark.parametrize("usage_told", [True, False], ids=["usage", "no usage"])
async def test_an_answer_of_another_api_is_a_failure(usage_told: bool, upstream: Upstream) -> None:
    reply: dict[str, Any] = {}

    async def answer(exchange: Exchange) -> None:
        await exchange.reply(reply)

    upstream.behaviour = answer
    text = json.loads(config(upstream.url))
    text["providers"] = {
        name: {**row, "api_key": "sk", "base_url": upstream.url} for name, row in KINDS.items()
    }
    text["models"] = {name: {"targets": [{"provider": name, "model": "m"}]} for name in KINDS}
    asked = 0
    with running(json.dumps(text)) as gateway:
        for target in KINDS:
            for came, whole in REPLIES.items():
                reply = {k: v for k, v in whole.items() if usage_told or k != "usage"}
                for path, body in ASKS.values():
                    outcome = await once(gateway.port, Ask({"model": target, **body}, path=path))
                    asked += 1
                    own = came == target
                    assert (outcome.status == 200) is own, (target, came, path, outcome.body)
        records = await asyncio.to_thread(gateway.records, asked)
        assert sum(record["outcome"] == "ok" for record in records) == len(KINDS) * len(ASKS)
