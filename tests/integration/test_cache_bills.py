"""What those who share a call pay for it, and what they have reserved before they are given it."""

import asyncio
import contextlib
import json
from typing import Any

import pytest

from tests.integration.test_cache import cached, exact, key
from tests.support.config import PRICED_MODEL
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, completion, delta, usage

DEAR_MICROUSD = 300_000  # 100 tokens in, 200 out, at a thousand dollars a million
TOO_LONG = {"message": "This model's maximum context length is 10 tokens"}


def with_fallback(one: str, two: str, price: int, **sections: Any) -> str:
    """The model `m`, too small for any prompt, and `dear`, which answers in its place."""
    text = json.loads(cached(one, two, **sections))
    targets = [{"provider": f"p{i}", "model": PRICED_MODEL} for i in range(2)]
    text["models"] = {
        "m": {
            "targets": targets[:1],
            "price": {"input": price, "output": price},
            "fallbacks": {"context_window": ["dear"]},
        },
        "dear": {"targets": targets[1:], "price": {"input": 1000, "output": 1000}},
    }
    return json.dumps(text)


async def answers(exchange: Exchange) -> None:
    """Say 200 words, in a stream or as a whole.

    Not in one burst: that would be paid for by who asked first, before another is let in.
    """
    if not exchange.request.json.get("stream"):
        await asyncio.sleep(0.3)
        await exchange.reply(completion("word " * 200, usage(100, 200)))
        return
    await exchange.start_stream()
    await exchange.event(delta("word " * 200))
    await asyncio.sleep(0.3)
    await exchange.event(delta(None, "stop"))
    await exchange.event({**delta(None), "choices": [], "usage": usage(100, 200)})
    await exchange.event("[DONE]")
    await exchange.end_stream()


@pytest.mark.parametrize(
    ("bill", "stream", "ping", "price"),
    [
        ("each", False, 15, 1),
        ("each", True, 15, 0),
        ("each", True, 0.2, 1),
        ("split", False, 15, 1),
        ("split", True, 0.2, 0),
    ],
)
async def test_who_shares_a_dearer_models_answer_has_the_money_for_it(
    bill: str, stream: bool, ping: float, price: int
) -> None:
    asked = asyncio.Event()

    async def refuses(exchange: Exchange) -> None:
        asked.set()
        await asyncio.sleep(0.8)  # the other one comes to share it
        error = {**TOO_LONG, "code": "context_length_exceeded", "type": "invalid_request_error"}
        await exchange.reply({"error": error}, 400)

    funds = {"poor": 0.01, "able": 5}
    keys = [key(n, tenant=n, budget={"usd": usd, "per": "total"}) for n, usd in funds.items()]
    sections = {
        "cache": {"bill": bill, "share": "all"},
        "auth": {"keys": [key("rich"), *keys]},
        "server": {"stream_ping": ping},
    }
    async with Upstream(behaviour=refuses) as one, Upstream(behaviour=answers) as two:
        text = with_fallback(one.url, two.url, price, **sections)
        with running(text, workers=1) as gateway:
            for number, who in enumerate(funds):
                asked.clear()
                body = exact(who, max_tokens=500, stream=stream)
                first = asyncio.ensure_future(once(gateway.port, Ask(body, key="sk-test-rich")))
                async with asyncio.timeout(10):
                    await asked.wait()
                other = await once(gateway.port, Ask(body, key=f"sk-test-{who}"))
                assert b"word" in (await first).body
                assert len(two.received) == number + 1
                gateway.settled()
                budget = gateway.store.hgetall(
                    f"sluice:limit:{{{who}}}:key:{who}:budget:total:total"
                )
                records = gateway.records(2 * number + 2)[2 * number :]
                costs = {r["key"]: r["cost_microusd"] for r in records}
                part = 0 if who == "poor" else DEAR_MICROUSD // (1 if bill == "each" else 2)
                assert (int(budget["spent"]), int(budget["reserved"])) == (part, 0)
                rest = DEAR_MICROUSD - (part if bill == "split" else 0)
                assert costs == {"rich": rest, who: part}
                assert (b"budget_exceeded" in other.body) == (who == "poor")
                assert (b"word" in other.body) == (who == "able")


@pytest.mark.parametrize("kind", ["openai", "openai-compatible"])  # Responses as it is, and not
async def test_nobody_is_told_of_anothers_budget(kind: str) -> None:
    going = asyncio.Event()

    async def streams(exchange: Exchange) -> None:
        await going.wait()
        await exchange.start_stream()
        native = exchange.request.path.endswith("/responses")
        with contextlib.suppress(ConnectionError):
            for number in range(400):
                said = {"type": "response.output_text.delta", "delta": "word " * 20}
                place = {"sequence_number": number, "output_index": 0, "content_index": 0}
                await exchange.event({**said, **place} if native else delta("word " * 20))
                await asyncio.sleep(0.002)

    said = {"messages": [{"role": "user", "content": "x"}]}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": said,
        "/v1/messages": {**said, "max_tokens": 30_000},
        "/v1/responses": {"input": "x", "store": False},
    }
    poor = [key(f"poor{n}", budget={"usd": 0.001234, "per": "total"}) for n in range(len(bodies))]
    sections: dict[str, Any] = {
        "cache": {"share": "all", "requests": "all", "coalesce": "all"},
        "auth": {"keys": [*poor, key("other", tenant="globex")]},
    }
    async with Upstream(behaviour=streams) as upstream:
        text = json.loads(cached(upstream.url, **sections))
        text["providers"]["p0"] |= {"kind": kind, "prices": "openai"}
        with running(json.dumps(text), workers=1) as gateway:
            for number, (path, fields) in enumerate(bodies.items()):
                going.clear()
                body = {"model": "m", "stream": True, **fields}
                payer = Ask(body, path=path, key=f"sk-test-poor{number}")
                first = asyncio.ensure_future(once(gateway.port, payer))
                async with asyncio.timeout(10):
                    while len(upstream.received) <= number:
                        await asyncio.sleep(0.01)
                other = Ask(body, path=path, key="sk-test-other")
                second = asyncio.ensure_future(once(gateway.port, other))
                await asyncio.sleep(0.3)  # it waits as well
                going.set()
                paying, sharing = (await first).body, (await second).body
                assert paying.count(b"0.001234") >= 1
                assert b"word" in sharing
                assert b"budget" not in sharing
                assert b"The call that this answer came from has ended." in sharing
            records = {r["key"]: r for r in gateway.records(2 * len(bodies))}
            assert records["other"]["error"] == "stream_interrupted"
            assert records["poor0"]["error"] == "budget_exceeded"
