"""A budget in shadow refuses nobody: neither who asks for a model without a price, nor later."""

import contextlib
import json
from typing import Any

import pytest

from tests.support.config import PRICED_MODEL, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, like_openai

PER_REQUEST = {"input": 0, "output": 0, "per_request": 1}
UNPRICED = {"provider": "p0", "model": "nobody-knows"}
PRICED = {"provider": "p0", "model": PRICED_MODEL, "price": PER_REQUEST}


def watched(url: str, models: dict[str, Any], **sections: Any) -> str:
    """A key whose budget is in shadow, and models by their fields."""
    text = json.loads(config(url, models=models, **sections))
    text["auth"]["keys"][0]["budget"] = {"usd": 5, "per": "total", "shadow": True}
    return json.dumps(text)


def spent(gateway: Gateway) -> tuple[int, int]:
    """What Redis has of the budget: micro-dollars spent, and reserved."""
    with contextlib.closing(gateway.store) as store:
        found = store.hgetall("sluice:limit:{acme}:key:k:budget:total:total")
    return int(found["spent"]), int(found["reserved"])


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", {"stream": True}),
        ("/v1/messages", {"max_tokens": 5}),
        ("/providers/p0/chat/completions", {"model": "nobody-knows"}),
        ("/providers/p0/batches", {"input_file_id": "file-1"}),
    ],
)
async def test_a_budget_in_shadow_needs_no_price(
    upstream: Upstream, path: str, fields: dict[str, Any]
) -> None:
    with running(watched(upstream.url, {"m": {"targets": [UNPRICED]}})) as gateway:
        reply = await once(gateway.port, Ask(chat(**fields), path=path))
        (record,) = gateway.records(1)
    assert reply.status == 200
    assert (record["price"], record["cost_microusd"]) == ("unpriced", 0)


async def test_a_budget_in_shadow_counts_what_has_a_price(upstream: Upstream) -> None:
    models: dict[str, Any] = {
        "m": {"targets": [{**UNPRICED, "priority": 1}, {**PRICED, "priority": 2}]}
    }
    models["priced"] = {"targets": [PRICED]}
    with running(watched(upstream.url, models)) as gateway:
        for model in models:
            assert (await once(gateway.port, Ask(chat(model)))).status == 200
        gateway.settled()
        assert spent(gateway) == (1_000_000, 0)


async def test_a_model_without_a_price_is_fallen_back_to(upstream: Upstream) -> None:
    async def picky(exchange: Exchange) -> None:
        if PRICED_MODEL.encode() in exchange.request.body:
            error = {"message": "prompt is too long", "code": "context_length_exceeded"}
            await exchange.reply({"error": error}, status=400)
        else:
            await like_openai(exchange)

    upstream.behaviour = picky
    models = {
        "m": {"targets": [PRICED], "fallbacks": {"context_window": ["big"]}},
        "big": {"targets": [UNPRICED]},
    }
    with running(watched(upstream.url, models)) as gateway:
        reply = await once(gateway.port, Ask(chat()))
        gateway.settled()
        assert spent(gateway) == (0, 0)
    assert reply.status == 200


async def test_a_price_that_the_operator_asks_for_is_needed_all_the_same(
    upstream: Upstream,
) -> None:
    models = {"m": {"targets": [UNPRICED]}}
    with running(watched(upstream.url, models, pricing={"unknown": "refuse"})) as gateway:
        reply = await once(gateway.port, Ask(chat()))
    assert b"price_unknown" in reply.body
