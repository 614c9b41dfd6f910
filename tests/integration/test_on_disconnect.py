"""What becomes of a stream whose client leaves: cut off, or read to its end for the usage."""

import asyncio
import json
from typing import Any

import pytest

from tests.support.config import KEY, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, delta, usage

WORDS = 40


def leaving(url: str, policy: str) -> str:
    text = json.loads(config(url, limits={"global": {"concurrency": 9}}))
    text["providers"]["p0"]["on_disconnect"] = policy
    return json.dumps(text)


async def words(exchange: Exchange) -> None:
    await exchange.start_stream()
    for _ in range(WORDS):
        await exchange.event(delta(" word"))
        await asyncio.sleep(0.02)
    await exchange.event(delta(None, "stop"))
    await exchange.event({**delta(None), "choices": [], "usage": usage(7, WORDS)})
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def leave_direct(port: int) -> None:
    assert (await once(port, Ask(chat(stream=True), leave_after=2))).failure == "left"


async def leave_chunked(port: int) -> None:
    """The same with a chunked request, which takes the other way through the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(chat(stream=True)).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Authorization: Bearer %b\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (KEY.encode(), len(body), body)
    )
    await reader.readuntil(b" word")
    writer.transport.abort()


def only_record(gateway: Gateway) -> dict[str, Any]:
    gateway.settled()
    (record,) = gateway.records(1)
    return record


@pytest.mark.parametrize("leave", [leave_direct, leave_chunked])
async def test_a_drained_provider_says_itself_what_was_used(upstream: Upstream, leave: Any) -> None:
    upstream.behaviour = words
    with running(leaving(upstream.url, "drain")) as gateway:
        await leave(gateway.port)
        record = await asyncio.to_thread(only_record, gateway)
        with gateway.store as store:
            in_use = store.hget("sluice:limit:gateway:concurrency", "in_use")
    assert (record["outcome"], record["status"]) == ("disconnected", 499)
    assert record["usage_source"] == "provider"
    assert record["usage"]["completion_tokens"] == WORDS
    assert in_use == "0"


@pytest.mark.parametrize("leave", [leave_direct, leave_chunked])
async def test_a_cancelled_provider_is_cut_off_at_once(upstream: Upstream, leave: Any) -> None:
    upstream.behaviour = words
    with running(leaving(upstream.url, "cancel")) as gateway:
        await leave(gateway.port)
        record = await asyncio.to_thread(only_record, gateway)
        assert upstream.open_connections == 0
    assert record["outcome"] == "disconnected"
    assert record["usage_source"] == "partial"
    assert 0 < record["usage"]["completion_tokens"] < WORDS


async def test_a_gateway_that_stops_waits_for_what_it_drains(upstream: Upstream) -> None:
    upstream.behaviour = words
    with running(leaving(upstream.url, "drain")) as gateway:
        await leave_direct(gateway.port)
        assert await asyncio.to_thread(gateway.stop) == 0
        (record,) = gateway.records(1)
    assert record["usage"]["completion_tokens"] == WORDS
