"""What a target's tokens a minute count of prompts that it was sent, and has not answered."""

import json
from typing import Any

import pytest

from tests.integration.test_attempt_records import LONG, leave
from tests.support.config import config
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream
from tests.support.wire import post

TIMES = 6
MOST = 3  # of `LONG`, which has some 4,000 tokens


def limited(first: Upstream, second: Upstream, **sections: Any) -> str:
    text = json.loads(config(first.url, second.url, **sections))
    text["models"]["m"]["targets"][0]["tpm"] = 10_000
    text["providers"]["p0"]["timeouts"] = {"first_byte": 0.2}
    return json.dumps(text)


async def hangs(exchange: Exchange) -> None:
    await exchange.gone()


async def refuses(exchange: Exchange) -> None:
    await exchange.reply({"error": {"message": "no"}}, 500)


async def test_what_was_not_answered_in_time_counts() -> None:
    async with Upstream(behaviour=hangs) as first, Upstream() as second:
        with running(limited(first, second)) as gateway:
            for _ in range(TIMES):
                assert (await once(gateway.port, Ask(LONG))).status == 200
            assert 0 < len(first.received) <= MOST


async def test_what_a_client_left_counts() -> None:
    async with Upstream(behaviour=hangs) as first, Upstream(behaviour=hangs) as second:
        text = json.loads(limited(first, second))
        del text["providers"]["p0"]["timeouts"]
        with running(json.dumps(text)) as gateway:
            for _ in range(TIMES):
                await leave(gateway.port, post(LONG), 0.2)
            assert 0 < len(first.received) <= MOST


async def test_what_another_answered_sooner_counts() -> None:
    async with Upstream(behaviour=hangs) as first, Upstream() as second:
        text = json.loads(limited(first, second, retries={"attempts": 0, "budget": 1}))
        text["models"]["m"]["hedge"] = {"after": 0.05}
        with running(json.dumps(text)) as gateway:
            for _ in range(TIMES):
                assert (await once(gateway.port, Ask(LONG))).status == 200
            assert 0 < len(first.received) <= MOST


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_refused_does_not_count(*, stream: bool) -> None:
    async with Upstream(behaviour=refuses) as first, Upstream() as second:
        with running(limited(first, second)) as gateway:
            for _ in range(TIMES):
                assert (await once(gateway.port, Ask({**LONG, "stream": stream}))).status == 200
            assert len(first.received) == TIMES
