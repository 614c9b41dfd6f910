"""Embeddings of many texts: megabytes of numbers, translated beside the loop."""

import asyncio
import base64
import json
import random
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.config import config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, once
from tests.support.upstream import Exchange, Upstream

TEXTS, DIMENSIONS, TOKENS = 300, 3072, 1234
PATH = "/v1/embeddings"
chance = random.Random(1)
VECTORS = [[chance.uniform(-1, 1) for _ in range(DIMENSIONS)] for _ in range(TEXTS)]
REPLY = json.dumps(  # as Google writes it: a line for each number
    {
        "embeddings": [{"values": vector} for vector in VECTORS],
        "usageMetadata": {"promptTokenCount": TOKENS},
    },
    indent=1,
).encode()


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """One whose only provider has embeddings otherwise."""

    async def embeds(exchange: Exchange) -> None:
        await exchange.reply(REPLY)

    async with Upstream(behaviour=embeds) as upstream:
        text = json.loads(config(upstream.url))
        text["providers"]["p0"]["kind"] = "gemini"
        text["models"]["m"]["targets"][0]["model"] = "gemini-embedding-001"
        with running(json.dumps(text)) as found:
            yield found


def asks(**fields: str) -> Ask:
    return Ask({"model": "m", "input": ["text"] * TEXTS, **fields}, path=PATH)


def left_late(gateway: Gateway) -> list[dict[str, Any]]:
    """The records of who left when the reply was there."""
    found = gateway.records()
    return [
        one
        for one in found
        if one["outcome"] == "disconnected" and one["usage_source"] == "provider"
    ]


async def test_every_vector_arrives(gateway: Gateway) -> None:
    plain, packed = [
        (await once(gateway.port, asks(encoding_format=how))).json for how in ("float", "base64")
    ]
    assert [one["embedding"] for one in plain["data"]] == VECTORS
    for number, (one, vector) in enumerate(zip(packed["data"], VECTORS, strict=True)):
        assert one["index"] == number
        found = struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(one["embedding"]))
        assert found == struct.unpack(f"<{DIMENSIONS}f", struct.pack(f"<{DIMENSIONS}f", *vector))
    assert plain["usage"] == packed["usage"] == {"prompt_tokens": TOKENS, "total_tokens": TOKENS}


async def test_who_leaves_while_they_are_read_pays_what_the_provider_says(gateway: Gateway) -> None:
    began = time.monotonic()
    assert (await once(gateway.port, asks())).status == 200
    lasts = time.monotonic() - began
    for turn in range(200):  # until one has left at such a moment
        async with Client(gateway.port) as client:
            await client.send(asks())
            await asyncio.sleep(lasts * (turn % 20 + 1) / 20)
            client.cut()
        if left_late(gateway):
            break
    (found, *_) = left_late(gateway)
    assert found["usage"]["prompt_tokens"] == TOKENS
