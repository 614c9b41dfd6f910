"""Plain requests of the hot routes, past aiohttp's parser and back to it: whatever way the bytes of
a connection come, each request is answered once and in order. One gateway for all tests.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise

import pytest
import pytest_asyncio

from tests.support.config import PRICED_MODEL, chat, config
from tests.support.gateway import Gateway, untroubled
from tests.support.numbered import Gate, by_number, number, said
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, completion, usage
from tests.support.wire import Wire, chunked, connected, head_of, post

SEGMENT_SECONDS = 0.005  # on loopback what is sent by then is read
CHUNKED = "Transfer-Encoding: chunked"
MODELS = head_of(path="/v1/models", method="GET")
HEALTH = head_of(path="/health", method="GET")
LARGE = "x" * 12_000_000  # more than a client takes that does not read


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """The gateway that all tests share; none of them may trouble it."""
    with untroubled(config(provider.url)) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def fresh(provider: UpstreamThread) -> Iterator[None]:
    """The upstream answers at once, and has received nothing."""
    provider.reset(by_number)
    yield
    provider.reset()


@pytest_asyncio.fixture
async def wire(served: Gateway) -> AsyncIterator[Wire]:
    """A connection that has served a plain request."""
    async with connected(served.port) as wire:
        await wire.send(number(0))
        assert said([await wire.reply()]) == ["0"]
        yield wire


def closed_gate(provider: UpstreamThread) -> Gate:
    gate = Gate()
    provider.reset(gate)
    return gate


async def send_apart(wire: Wire, *parts: bytes) -> None:
    """Send parts in segments of their own."""
    for part in parts:
        await wire.send(part)
        await asyncio.sleep(SEGMENT_SECONDS)


# -- the bytes of one request ----------------------------------------------------------------------


async def test_a_request_cut_at_every_byte_of_its_head(wire: Wire) -> None:
    data = number(1)
    for cut in range(1, data.index(b"\r\n\r\n") + 6):
        await send_apart(wire, data[:cut], data[cut:])
        assert said([await wire.reply()]) == ["1"], cut


async def test_a_request_cut_in_its_body_and_in_many_parts(
    wire: Wire, provider: UpstreamThread
) -> None:
    data = number(1, user="x" * 90_000)
    start = data.index(b"\r\n\r\n") + 4
    for cuts in (
        *([start + at] for at in (1, 2, 50, 40_000, len(data) - start - 1)),
        [10, start - 1, start, start + 1, len(data) - 1],
        list(range(5, len(data), 10_007)),
    ):
        cuts = [0, *cuts, len(data)]
        await send_apart(wire, *(data[a:b] for a, b in pairwise(cuts)))
        assert said([await wire.reply()]) == ["1"], cuts
        assert provider.received[-1].json["user"] == "x" * 90_000


async def test_a_request_byte_by_byte(wire: Wire, provider: UpstreamThread) -> None:
    for byte in number(1):
        await wire.send(bytes([byte]))
        await asyncio.sleep(0)
    assert said([await wire.reply()]) == ["1"]
    assert provider.received[-1].json == chat(PRICED_MODEL, seed=1)


async def test_a_body_that_looks_like_a_request_is_one_body(
    wire: Wire, provider: UpstreamThread
) -> None:
    inner = (b"\r\n\r\n" + number(2)).decode()
    data = number(1, user=inner).replace(b"\\r\\n", b"    ")
    await send_apart(wire, data[:-60], data[-60:])
    assert said([await wire.reply()]) == ["1"]
    assert len(provider.received) == 2


# -- several requests on a connection --------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 50])
async def test_requests_in_one_segment_are_answered_in_order(wire: Wire, count: int) -> None:
    await wire.send(b"".join(number(seed) for seed in range(count)))
    assert said([await wire.reply() for _ in range(count)]) == [str(n) for n in range(count)]


@pytest.mark.parametrize("cut", [1, 30, 150, -30, -1])
async def test_one_request_and_a_part_of_the_next(wire: Wire, cut: int) -> None:
    await send_apart(wire, number(1) + number(2)[:cut], number(2)[cut:])
    assert said([await wire.reply() for _ in range(2)]) == ["1", "2"]
    await wire.send(number(3))
    assert said([await wire.reply()]) == ["3"]


@pytest.mark.parametrize("cut", [None, 1, 30, 150, -1])
async def test_what_is_sent_while_a_request_is_served_waits_for_its_answer(
    wire: Wire, provider: UpstreamThread, cut: int | None
) -> None:
    gate = closed_gate(provider)
    await send_apart(wire, number(1))
    await gate.until_asked()
    await send_apart(wire, number(2)[:cut], number(2)[cut:] if cut else b"", number(3))
    assert gate.asked == 1
    gate.open()
    assert said([await wire.reply() for _ in range(3)]) == ["1", "2", "3"]
    assert [request.json["seed"] for request in provider.received] == [1, 2, 3]


async def test_the_rest_of_a_request_that_comes_after_the_answer_before_it(
    wire: Wire, provider: UpstreamThread
) -> None:
    gate = closed_gate(provider)
    await send_apart(wire, number(1))
    await gate.until_asked()
    await send_apart(wire, number(2)[:40])
    gate.open()
    assert said([await wire.reply()]) == ["1"]
    await send_apart(wire, number(2)[40:])
    assert said([await wire.reply()]) == ["2"]


@pytest.mark.parametrize("more", [(), (3,)], ids=["one", "two"])
async def test_what_waits_behind_a_large_answer_after_a_stream_that_failed(
    wire: Wire, provider: UpstreamThread, more: tuple[int, ...]
) -> None:
    async def behave(exchange: Exchange) -> None:
        if exchange.request.json.get("stream"):
            await exchange.start_stream()
            await exchange.event({"error": {"message": "no", "code": "content_filter"}})
            await exchange.end_stream()
        elif exchange.request.json["seed"] == 1:
            await exchange.reply(completion(LARGE, usage(1, 1)))
        else:
            await by_number(exchange)

    provider.reset(behave)
    await wire.send(number(0, stream=True))
    assert (await wire.reply()).status != 200
    await wire.send(number(1))
    while len(provider.received) < 2:
        await asyncio.sleep(0.01)
    await wire.send(number(2))
    assert said([await wire.reply()]) == [LARGE]
    for seed in more:
        await send_apart(wire, number(seed))
    assert said([await wire.reply() for _ in (2, *more)]) == [str(seed) for seed in (2, *more)]


async def test_an_empty_line_behind_a_body_is_overlooked(
    wire: Wire, provider: UpstreamThread
) -> None:
    # RFC 9112 section 2.2: old clients send one behind a POST.
    gate = closed_gate(provider)
    await send_apart(wire, number(1))
    await gate.until_asked()
    await send_apart(wire, b"\r\n")
    gate.open()
    assert said([await wire.reply()]) == ["1"]
    await wire.send(number(2) + b"\r\n")
    assert said([await wire.reply()]) == ["2"]
    await wire.send(number(3))
    assert said([await wire.reply()]) == ["3"]


@pytest.mark.parametrize("together", [True, False])
async def test_plain_and_other_requests_in_turn(wire: Wire, together: bool) -> None:
    body = json.dumps(chat(seed=2)).encode()
    requests = [
        number(1),
        MODELS,
        number(2),
        HEALTH,
        head_of(CHUNKED) + chunked(body[:9], body[9:]),
        number(3),
        head_of(path="/nope", method="GET"),
        post(chat(seed=4), "Content-Encoding: identity"),
        post(b"{"),
        number(5),
    ]
    expected = ["1", "list", "2", "ok", "2", "3", "not_found", "4", "invalid_json", "5"]
    if together:
        await wire.send(b"".join(requests))
        assert said([await wire.reply() for _ in requests]) == expected
    else:
        for request, answer in zip(requests, expected, strict=True):
            await wire.send(request)
            assert said([await wire.reply()]) == [answer]


@pytest.mark.parametrize("second", [MODELS, HEALTH, head_of(CHUNKED), post(b"", length=9)])
async def test_a_plain_request_behind_the_head_of_another(wire: Wire, second: bytes) -> None:
    await send_apart(wire, second[:20], second[20:])
    if b"GET" in second:
        assert (await wire.reply()).status == 200
    else:
        await send_apart(wire, chunked(b"{") if b"chunked" in second else b"nonsense!")
        assert said([await wire.reply()]) == ["invalid_json"]
    await wire.send(number(1))
    assert said([await wire.reply()]) == ["1"]


async def test_a_client_that_waits_to_be_told_to_continue(
    wire: Wire, provider: UpstreamThread
) -> None:
    body = json.dumps(chat(seed=1)).encode()
    for framing, data in ((f"Content-Length: {len(body)}", body), (CHUNKED, chunked(body))):
        await wire.send(head_of("Expect: 100-continue", framing))
        assert (await wire.reply()).status == 100
        await wire.send(data)
        assert said([await wire.reply()]) == ["1"]
    await wire.send(number(2))
    assert said([await wire.reply()]) == ["2"]
