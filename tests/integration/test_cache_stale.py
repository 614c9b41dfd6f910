"""Old answers that stand in where all targets fail: for whom, and for how long."""

import asyncio

import pytest

from tests.integration.test_cache import TEXT, cached, exact, sluice, state, text_of
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, like_openai

OLD = {"ttl": 1, "stale": 600}
OLD_SECONDS = 1.3  # an answer is past its time then


class Failing:
    """Answers each question once; whoever asks again is failed once that is told to go on."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.asked, self.going = asyncio.Event(), asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        text = exchange.request.json["messages"][0]["content"]
        if text not in self.seen:
            self.seen.add(text)
            await like_openai(exchange)
            return
        self.asked.set()
        await self.going.wait()
        await exchange.reply({"error": {"message": "down"}}, 500)


async def test_what_was_purged_stands_in_for_nothing() -> None:
    failing = Failing()
    async with Upstream(behaviour=failing) as upstream:
        with running(cached(upstream.url, cache=OLD), workers=1) as gateway:
            assert text_of(await once(gateway.port, Ask(exact()))) == TEXT
            fresh = Ask(exact("fresh"), headers={"x-sluice-cache-ttl": "60"})
            assert [state(await once(gateway.port, fresh)) for _ in range(2)] == ["miss", "hit"]
            await asyncio.sleep(OLD_SECONDS)
            old = asyncio.ensure_future(once(gateway.port, Ask(exact())))
            async with asyncio.timeout(10):
                await failing.asked.wait()
                await asyncio.to_thread(sluice, gateway, "purge", "--all")
                failing.seen.clear()
                while state(await once(gateway.port, fresh)) == "hit":  # as the worker knows of it
                    await asyncio.sleep(0.05)
            failing.going.set()
            assert (await old).status == 502


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", [True, False])
async def test_each_says_for_itself_whether_an_old_answer_will_do(
    first: bool, stream: bool
) -> None:
    """Also of those who share a call; `first`: the one who asked first takes none."""
    failing = Failing()
    async with Upstream(behaviour=failing) as upstream:
        with running(cached(upstream.url, cache=OLD), workers=1) as gateway:
            assert text_of(await once(gateway.port, Ask(exact()))) == TEXT
            await asyncio.sleep(OLD_SECONDS)
            body = exact(stream=stream)
            asks = [Ask(body, headers={"Cache-Control": "stale-if-error=0"}), Ask(body)]
            one = asyncio.ensure_future(once(gateway.port, asks[0 if first else 1]))
            async with asyncio.timeout(10):
                await failing.asked.wait()
            two = asyncio.ensure_future(once(gateway.port, asks[1 if first else 0]))
            await asyncio.sleep(0.3)  # it waits as well
            failing.going.set()
            found = [await one, await two]
            refused, given = found if first else reversed(found)
            assert (refused.status, refused.json["error"]["code"]) == (502, "upstream_failed")
            assert (text_of(given), state(given)) == (TEXT, "stale")
            assert len(upstream.received) == 2
            gateway.settled()
            assert gateway.usage("acme")["errors"] == 1
