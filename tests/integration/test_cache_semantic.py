"""Questions in other words, by embeddings of a model that is served."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.integration.conftest import wait
from tests.integration.test_cache import cached, key, state, text_of
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, completion, usage

pytest.importorskip("numpy")


class Provider:
    """Echoes questions, and tells a text's vector by its first word."""

    def __init__(self, **vectors: list[float]) -> None:
        self.vectors, self.embedded, self.answered = vectors, 0, 0
        self.before: Callable[[], Awaitable[object]] | None = None  # an embedding

    async def __call__(self, exchange: Exchange) -> None:
        asked = exchange.request.json
        if not exchange.request.path.endswith("/embeddings"):
            self.answered += 1
            await exchange.reply(completion(asked["messages"][-1]["content"], usage(7, 5)))
            return
        self.embedded += 1
        if self.before is not None:
            await self.before()
        vector = self.vectors.get(asked["input"].split()[0], [1.0, 0.0])
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        spent = {"prompt_tokens": 7, "total_tokens": 7}
        await exchange.reply({"object": "list", "data": data, "model": "e", "usage": spent})


def asked(text: str, who: str = "one", **fields: Any) -> Ask:
    messages = [{"role": "user", "content": text}]
    body = {"model": "m", "temperature": 0, "messages": messages, **fields}
    return Ask(body, key=f"sk-test-{who}")


def semantic(url: str, *keys: dict[str, Any], **sections: Any) -> str:
    cache = {"semantic": {"model": "p0/embedder", "threshold": 0.9}, **sections.pop("cache", {})}
    return cached(url, cache=cache, auth={"keys": list(keys) or [key("one")]}, **sections)


async def test_a_vector_of_another_length_is_compared_with_its_like_alone() -> None:
    provider = Provider(three=[1.0, 0.0, 0.0])
    async with Upstream(behaviour=provider) as upstream:
        with running(semantic(upstream.url), workers=1) as gateway:
            for text in ("two", "three"):
                first = await asyncio.gather(
                    *(once(gateway.port, asked(f"{text} first", user=str(n))) for n in range(4))
                )
                assert {text_of(one) for one in first} == {f"{text} first"}
                assert text_of(await once(gateway.port, asked(f"{text} again"))) == f"{text} first"
            assert "internal_error" not in gateway.log_file.read_text()


async def test_those_who_ask_the_same_at_once_share_an_embedding() -> None:
    provider, going = Provider(), asyncio.Event()
    provider.before = going.wait
    async with Upstream(behaviour=provider) as upstream:
        with running(semantic(upstream.url), workers=1) as gateway:
            asks = [asked("same", user=str(n)) for n in range(50)]
            waiting = asyncio.gather(*(once(gateway.port, ask) for ask in asks))
            async with asyncio.timeout(10):
                while not provider.embedded:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            going.set()
            assert {text_of(one) for one in await waiting} == {"same"}
    assert (provider.embedded, provider.answered) == (1, 1)


async def test_an_embedding_that_does_not_come_costs_nobody_the_answer() -> None:
    provider, never = Provider(), asyncio.Event()
    provider.before = never.wait
    async with Upstream(behaviour=provider) as upstream:
        with running(semantic(upstream.url), workers=1) as gateway:
            hasty = asked("hasty")
            hasty.headers["x-sluice-timeout"] = "1"
            assert text_of(await once(gateway.port, hasty)) == "hasty"
            wait(lambda: "no questions are compared" in gateway.log_file.read_text())
            for n in range(5):  # the model is left alone
                assert text_of(await once(gateway.port, asked(f"later {n}"))) == f"later {n}"
            assert (provider.embedded, provider.answered) == (1, 6)
            never.set()


async def test_who_is_refused_has_nothing_embedded() -> None:
    provider = Provider()
    keys = key("one", rpm=1), key("two", budget={"usd": 0.000001, "per": "day"})
    async with Upstream(behaviour=provider) as upstream:
        with running(semantic(upstream.url, *keys), workers=1) as gateway:
            found = [await once(gateway.port, asked(f"word{n}", "one")) for n in range(6)]
            assert [o.status for o in found] == [200] + [429] * 5
            assert provider.embedded == 1
            found = [await once(gateway.port, asked(f"word{n}", "two")) for n in range(6)]
            assert [(o.status, state(o)) for o in found[:1]] == [(200, "hit")]
            assert {o.json["error"]["code"] for o in found[1:]} == {"budget_exceeded"}
            assert provider.embedded == 1


async def test_a_text_that_the_model_refuses_says_nothing_of_others() -> None:
    provider = Provider()

    async def behaviour(exchange: Exchange) -> None:
        asked_for = exchange.request.json
        if str(asked_for.get("input", "")).startswith("odd"):
            await exchange.reply({"error": {"message": "no"}}, status=400)
        else:
            await provider(exchange)

    async with Upstream(behaviour=behaviour) as upstream:
        with running(semantic(upstream.url), workers=1) as gateway:
            assert text_of(await once(gateway.port, asked("odd"))) == "odd"
            assert text_of(await once(gateway.port, asked("first"))) == "first"
            assert text_of(await once(gateway.port, asked("second"))) == "first"


async def test_what_is_got_anew_is_found_by_its_meaning() -> None:
    provider = Provider()
    async with Upstream(behaviour=provider) as upstream:
        with running(semantic(upstream.url), workers=1) as gateway:
            anew, like = asked("two first"), asked("two again")
            anew.headers["cache-control"] = "no-cache"
            like.headers["cache-control"] = "only-if-cached"
            assert state(await once(gateway.port, anew)) == "miss"
            async with asyncio.timeout(10):  # it is learned once its client has the answer
                while (found := await once(gateway.port, like)).status != 200:
                    await asyncio.sleep(0.02)
            assert (text_of(found), state(found)) == ("two first", "hit")
            assert (provider.embedded, provider.answered) == (2, 1)
