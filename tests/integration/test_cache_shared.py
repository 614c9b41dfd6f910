"""Calls that several requests share: by which of them what becomes of it is decided."""

import asyncio
import json

import pytest

from tests.integration.test_cache import TEXT, cached, exact, key, text_of
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Upstream


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
