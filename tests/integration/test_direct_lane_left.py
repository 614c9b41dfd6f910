"""Requests of the direct lane whose client leaves, or whose gateway ends, before their answer."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.config import config
from tests.support.gateway import Gateway, running, untroubled
from tests.support.numbered import Gate, by_number, number, said
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Upstream
from tests.support.wire import Wire, connected


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """The gateway that clients leave."""
    with untroubled(config(provider.url)) as gateway:
        yield gateway


@pytest_asyncio.fixture(params=["first", "second"])
async def wire(
    request: pytest.FixtureRequest, served: Gateway, provider: UpstreamThread
) -> AsyncIterator[Wire]:
    """A new connection, and one that has served a plain request."""
    provider.reset(by_number)
    async with connected(served.port) as wire:
        if request.param == "second":
            await wire.send(number(0))
            assert said([await wire.reply()]) == ["0"]
            provider.reset(by_number)
        yield wire


def left(gateway: Gateway) -> list[dict[str, Any]]:
    """The records of clients that left."""
    return [record for record in gateway.records() if record["outcome"] == "disconnected"]


async def leaves(served: Gateway, provider: UpstreamThread, wire: Wire, then: bytes = b"") -> None:
    """A client asks, sends something more, and leaves; it is noticed on both sides."""
    before, gate = len(left(served)), Gate()
    provider.reset(gate)
    try:
        await wire.send(number(1))
        await gate.until_asked()
        await wire.send(then)
        await asyncio.sleep(0.05)
        await wire.aclose()
        await gate.until_left(seconds=3)
    finally:
        gate.open()
    async with asyncio.timeout(10):
        while len(left(served)) == before:
            await asyncio.sleep(0.02)
    (record,) = left(served)[before:]
    assert (record["status"], record["usage_source"]) == (499, "partial")


async def test_a_client_that_leaves_ends_its_request(
    wire: Wire, served: Gateway, provider: UpstreamThread
) -> None:
    await leaves(served, provider, wire)


@pytest.mark.parametrize("part", [number(1)[:40], number(1)[:-9]], ids=["head", "body"])
async def test_a_client_that_leaves_in_a_request_has_asked_nothing(
    wire: Wire, served: Gateway, provider: UpstreamThread, part: bytes
) -> None:
    before = len(left(served))
    await wire.send(part)
    await asyncio.sleep(0.05)
    await wire.aclose()
    async with connected(served.port) as other:
        await other.send(number(2))
        assert said([await other.reply()]) == ["2"]
    served.settled()
    assert len(left(served)) == before
    assert len(provider.received) == 1


@pytest.mark.parametrize("then", [b"\r\n", number(2)[:30], number(2)], ids=["LF", "part", "whole"])
async def test_a_client_that_leaves_behind_a_further_request_ends_its_request(
    wire: Wire, served: Gateway, provider: UpstreamThread, then: bytes
) -> None:
    await leaves(served, provider, wire, then)


# -- the end of the gateway ------------------------------------------------------------------------


async def test_what_is_in_flight_is_answered_and_what_is_idle_is_closed(upstream: Upstream) -> None:
    gate = Gate()
    with running(config(upstream.url)) as gateway:
        async with (
            connected(gateway.port) as busy,
            connected(gateway.port) as sending,
            connected(gateway.port) as idle,
            connected(gateway.port) as silent,
        ):
            upstream.behaviour = by_number
            await idle.send(number(0))
            assert said([await idle.reply()]) == ["0"]
            upstream.behaviour = gate
            await busy.send(number(1))
            await sending.send(number(2)[:-9])
            await gate.until_asked()
            gateway.signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            gate.open()
            assert said([await busy.reply()]) == ["1"]
            await sending.send(number(2)[-9:])
            reply = await sending.reply()
            assert (said([reply]), reply.headers["connection"]) == (["2"], "close")
            for wire in (busy, sending, idle, silent):
                assert await wire.is_closed()
            assert await asyncio.to_thread(gateway.process.wait, 15) == 0
        assert [record["outcome"] for record in gateway.records(3)] == ["ok"] * 3


async def test_the_last_answer_says_that_it_is_the_last(upstream: Upstream) -> None:
    # RFC 9112 section 9.6: a client that is not told may send its next request into the close.
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url)) as gateway:
        async with connected(gateway.port) as wire:
            await wire.send(number(1))
            await gate.until_asked()
            gateway.signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            gate.open()
            assert (await wire.reply()).headers.get("connection") == "close"


async def test_what_is_sent_behind_the_last_request_is_answered_or_closed(
    upstream: Upstream,
) -> None:
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url)) as gateway:
        async with connected(gateway.port) as wire:
            await wire.send(number(1))
            await gate.until_asked()
            await wire.send(number(2))
            gateway.signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            gate.open()
            answers = said(await wire.replies())
        assert answers in (["1"], ["1", "2"])
        assert [str(request.json["seed"]) for request in upstream.received] == answers
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0


async def test_what_outlasts_the_grace_is_refused(upstream: Upstream) -> None:
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url, server={"drain": {"grace": 0.5}})) as gateway:
        async with connected(gateway.port) as wire:
            await wire.send(number(1))
            await gate.until_asked()
            gateway.signal(signal.SIGTERM)
            assert said([await wire.reply()]) == ["overloaded"]
            assert await wire.is_closed()
            await gate.until_left()
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0
        assert [record["status"] for record in gateway.records(1)] == [503]
