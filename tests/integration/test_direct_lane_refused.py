"""Requests of the direct lane that are refused: too slow, too large, from strangers, or broken.

One gateway for most tests. Heads and bodies must arrive within a second (`server.request_timeout`).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.support.config import KEY, chat, config
from tests.support.gateway import Gateway, running, untroubled
from tests.support.numbered import Gate, by_number, number, said
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Upstream
from tests.support.wire import Wire, ask, connected, head_of, post

BODY_SECONDS = 1.0
CLOSE_SECONDS = 15.0  # a refused client may go on sending for 10 s, so that it reads the reply
MAX_BODY = 100_000


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """The gateway that most tests share; none of them may trouble it."""
    server = {"request_timeout": BODY_SECONDS, "max_request_size": MAX_BODY}
    with untroubled(config(provider.url, server=server)) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def fresh(provider: UpstreamThread) -> None:
    """The upstream answers at once, and has received nothing."""
    provider.reset(by_number)


@pytest_asyncio.fixture(params=["first", "second"])
async def wire(
    request: pytest.FixtureRequest, served: Gateway, provider: UpstreamThread
) -> AsyncIterator[Wire]:
    """A new connection, and one that has served a plain request."""
    async with connected(served.port) as wire:
        if request.param == "second":
            await wire.send(number(0))
            assert said([await wire.reply()]) == ["0"]
            provider.reset(by_number)
        yield wire


async def refused_and_closed(wire: Wire, code: str) -> None:
    """The one answer is this error, and nothing behind it is served."""
    reply = await wire.reply()
    assert (reply.error["code"], reply.headers["connection"]) == (code, "close")
    await wire.send(number(9))
    assert await wire.is_closed(CLOSE_SECONDS)


async def drip(wire: Wire, data: bytes) -> None:
    """Send a byte now and then, as long as anybody takes it."""
    for byte in data:
        await wire.send(bytes([byte]))
        await asyncio.sleep(BODY_SECONDS / 5)
        if wire.reader.at_eof() or wire.writer.is_closing():
            break


# -- too slow --------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 20, len(json.dumps(chat(seed=1)))])
async def test_a_body_that_stops_is_timed_out(
    wire: Wire, provider: UpstreamThread, missing: int
) -> None:
    await wire.send(number(1)[:-missing])
    await refused_and_closed(wire, "request_timeout")
    assert provider.received == []


async def test_a_body_that_drips_is_timed_out(wire: Wire) -> None:
    data = number(1)
    await wire.send(data[:-50])
    dripping = asyncio.create_task(drip(wire, data[-50:]))
    reply = await wire.reply()
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")
    await dripping
    assert await wire.is_closed(CLOSE_SECONDS)


@pytest.mark.parametrize("start", [number(1)[:60], b"P", b"POST "])
async def test_a_head_that_drips_is_closed(wire: Wire, start: bytes) -> None:
    await wire.send(start)
    await drip(wire, b"x" * 50)
    assert await wire.is_closed()


async def test_a_connection_that_waits_between_requests_stays(wire: Wire) -> None:
    await wire.send(number(1))
    assert said([await wire.reply()]) == ["1"]
    await asyncio.sleep(BODY_SECONDS * 2)
    await wire.send(number(2))
    assert said([await wire.reply()]) == ["2"]


async def test_a_request_may_take_longer_than_its_body(
    wire: Wire, provider: UpstreamThread
) -> None:
    gate = Gate()
    provider.reset(gate)
    await wire.send(number(1)[:-5])
    await asyncio.sleep(BODY_SECONDS / 5)
    await wire.send(number(1)[-5:])
    await asyncio.sleep(BODY_SECONDS * 2)
    gate.open()
    assert said([await wire.reply()]) == ["1"]


# -- too large, or from a stranger -----------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 1, 5000, MAX_BODY + 1])
async def test_a_body_that_is_too_large_is_refused(wire: Wire, sent: int) -> None:
    await wire.send(head_of(f"Content-Length: {MAX_BODY + 1}") + b"x" * sent)
    reply = await wire.reply(BODY_SECONDS / 2)
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert reply.headers["connection"] == "close"


async def test_the_largest_body_is_served(wire: Wire, provider: UpstreamThread) -> None:
    room = MAX_BODY - len(json.dumps(chat(seed=1, user="")))
    data = number(1, user="u" * room)
    assert f"Content-Length: {MAX_BODY}\r\n".encode() in data
    await wire.send(data)
    assert said([await wire.reply()]) == ["1"]
    assert provider.received[0].json["user"] == "u" * room


async def test_a_length_beyond_all_bounds_is_refused(wire: Wire) -> None:
    await wire.send(head_of(f"Content-Length: {2**63}"))
    assert (await wire.reply()).error["code"] == "request_too_large"


@pytest.mark.parametrize("lines", [(), ("x: 1", "X: 2")], ids=["direct", "parsed"])
async def test_a_length_of_thousands_of_digits_is_answered(
    upstream: Upstream, lines: tuple[str, ...]
) -> None:
    with running(config(upstream.url)) as gateway:
        data = head_of(*lines, "Content-Length: " + "0" * 5000 + "3") + b"abc"
        assert (await ask(gateway.port, data)).status == 400


@pytest.mark.parametrize("key", [None, "sk-wrong", "\xff"])
async def test_a_strangers_body_is_not_waited_for(wire: Wire, key: str | None) -> None:
    await wire.send(post(chat(seed=1), key=key)[:-5])
    reply = await wire.reply(BODY_SECONDS / 2)
    assert (reply.status, reply.headers["connection"]) == (401, "close")


async def test_a_strangers_whole_request_leaves_the_connection_as_it_was(wire: Wire) -> None:
    await wire.send(post(chat(seed=1), key="sk-wrong"))
    assert said([await wire.reply()]) == ["invalid_api_key"]
    await wire.send(number(2))
    assert said([await wire.reply()]) == ["2"]


async def test_the_whitespace_behind_a_key_is_no_part_of_it(wire: Wire) -> None:
    await wire.send(post(chat(seed=1), f"x-api-key: {KEY} ", key=None))
    assert said([await wire.reply()]) == ["1"]


# -- requests in requests --------------------------------------------------------------------------

INNER = number(7)
BODY = json.dumps(chat(seed=1)).encode()
LENGTH = f"Content-Length: {len(BODY)}"
SMUGGLED = {
    "sized and chunked": head_of("Transfer-Encoding: chunked", LENGTH) + b"0\r\n\r\n" + INNER,
    "chunked and sized": head_of(LENGTH, "Transfer-Encoding: chunked") + b"0\r\n\r\n" + INNER,
    "sized and hidden": head_of(LENGTH, "Transfer-Encoding : chunked") + b"0\r\n\r\n" + INNER,
    "sized and spoilt": head_of(LENGTH, "Transfer-Encoding: xchunked") + BODY + INNER,
    "folded": head_of(LENGTH, "Transfer-Encoding:", " chunked") + b"0\r\n\r\n" + INNER,
    "two lengths": head_of("Content-Length: 0", LENGTH) + BODY + INNER,
    "the same length twice": head_of(LENGTH, LENGTH.lower()) + BODY + INNER,
    "a list of lengths": head_of(f"{LENGTH}, {len(BODY)}") + BODY + INNER,
    "plus": head_of(f"Content-Length: +{len(BODY)}") + BODY + INNER,
    "minus": head_of("Content-Length: -1") + BODY + INNER,
    "hexadecimal": head_of(f"Content-Length: 0x{len(BODY):x}") + BODY + INNER,
    "space before the colon": head_of(LENGTH.replace(":", " :")) + BODY + INNER,
    "space before the name": head_of("x: y", " " + LENGTH) + BODY + INNER,
    "LF": head_of("x: y\n" + LENGTH) + BODY + INNER,
    "LF before a second length": head_of(LENGTH + "\nContent-Length: 0") + BODY + INNER,
    "an end of LFs": head_of(LENGTH + "\n\n" + "GET /health HTTP/1.1") + BODY + INNER,
    "CR": head_of("x: y\r" + LENGTH) + BODY + INNER,
    "NUL": head_of(LENGTH + "\0") + BODY + INNER,
    "past 64 bits": head_of(f"Content-Length: {2**64 + len(BODY)}") + BODY + INNER,
}


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("data", SMUGGLED.values(), ids=SMUGGLED)
async def test_nothing_is_smuggled(
    wire: Wire, provider: UpstreamThread, data: bytes, apart: bool
) -> None:
    at = data.index(b"\r\n\r\n") + 4 if apart else len(data)
    await wire.send(data[:at])
    await asyncio.sleep(0.01)
    await wire.send(data[at:])
    assert said(await wire.replies(CLOSE_SECONDS)) == ["invalid_http"]
    assert provider.received == []
