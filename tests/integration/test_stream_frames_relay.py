"""Streams whose chunks are passed on as they came, over real sockets: the same content whatever the
provider's writes are, an error event where its framing breaks, and every text counted."""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.policy.tokens import count_tokens
from gateway.providers.openai_stream import END
from tests.integration.conftest import wait
from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.readings import LAST, cut, dechunked, framed, sse
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Behaviour, Exchange, delta
from tests.support.wire import connected, post

SEEDS = range(160)
AT_ONCE = 8
IDLE_SECONDS = 1.0
WORDS = [
    " one",
    " two",
    " f\xfcnf",
    ' "six"',
    "\n",
    "",
    " data: [DONE]",
    " \U0001f600",
    " word" * 60,
]
EIGHT = [sse(delta(text)) for text in ["", *(f" word {n}" for n in range(8))]]
SAID = "".join(f" word {n}" for n in range(8))


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """The gateway that all tests share."""
    times = {"connect": 5, "first_byte": 20, "idle": IDLE_SECONDS, "total": 60}
    with running(config(provider.url, server={"timeouts": times})) as gateway:
        yield gateway
        gateway.settled()
        assert '"level":"error"' not in gateway.log_file.read_text()


def record(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """The one record of a request."""
    wait(lambda: any(r["id"] == request_id for r in gateway.records()))
    (found,) = [r for r in gateway.records() if r["id"] == request_id]
    return found


async def streamed(
    gateway: Gateway, version: str = "1.1", wait_seconds: float = 0.0, **fields: Any
) -> tuple[str, bytes]:
    """Ask for a stream, perhaps read it late; return the request's id and the raw reply."""
    raw, end = bytearray(), b"\r\n" + LAST
    async with connected(gateway.port) as wire, asyncio.timeout(60):
        await wire.send(post(chat(stream=True, **fields), version=version))
        await asyncio.sleep(wait_seconds)
        while not raw.endswith(end) and (data := await wire.reader.read(65536)):
            raw += data
    return id_of(raw), bytes(raw)


def id_of(raw: bytes | bytearray) -> str:
    assert raw.startswith(b"HTTP/1.1 200 "), raw
    return raw.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()


def counted(found: dict[str, Any]) -> tuple[str, int]:
    return found["usage_source"], found["usage"]["completion_tokens"]


# -- whole streams ---------------------------------------------------------------------------------


def made_of(seed: int) -> tuple[list[bytes], str, list[bytes]]:
    """A stream without usage: its events, its text, and the provider's writes."""
    chance = random.Random(seed)
    texts = chance.choices(WORDS, k=chance.randrange(40))
    events = [sse(delta(text)) for text in ["", *texts]] + [sse(delta(None, "stop"))]
    chunks, held = list[bytes](), b""
    for event in [*events, END]:
        held += event
        if chance.random() < 0.8:
            at = chance.randrange(1, len(held)) if chance.random() < 0.2 else len(held)
            chunks.append(framed(held[:at], chance.choice(["%x"] * 8 + ["%X", "0%x", "%x;a=b"])))
            held = held[at:]
    chunks += [framed(held)] if held else []
    data = b"".join(chunks) + LAST
    if seed % 3 == 0:
        return events, "".join(texts), [*chunks, LAST]
    if seed % 3 == 1:
        return events, "".join(texts), cut(data, *chance.choices(range(len(data)), k=30))
    near = [data.index(chunk) + chance.randrange(-3, 6) for chunk in chunks]
    return events, "".join(texts), cut(data, *(max(0, at) for at in near))


async def as_made(exchange: Exchange) -> None:
    """The behaviour: write the stream of the request's seed, with pauses here and there."""
    seed = exchange.request.json["seed"]
    chance = random.Random(-seed)
    await exchange.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for piece in made_of(seed)[2]:
        await exchange.send(piece)
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.002]))


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_stream_arrives_whole_however_it_is_written(
    served: Gateway, provider: UpstreamThread, version: str
) -> None:
    provider.reset(as_made)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> tuple[str, str]:
        async with gate:
            request_id, raw = await streamed(served, version, seed=seed)
        events, text, _ = made_of(seed)
        head, _, content = raw.partition(b"\r\n\r\n")
        assert (b"Transfer-Encoding: chunked" in head) == (version == "1.1")
        content = dechunked(raw) if version == "1.1" else content
        assert content == b"".join(events) + END, f"seed {seed}"
        return request_id, text

    for request_id, text in await asyncio.gather(*map(one, SEEDS)):
        found = record(served, request_id)
        assert counted(found) == ("estimated", count_tokens(text))
        assert found["outcome"] == "ok"


async def test_a_long_stream_that_its_client_is_slow_to_read(
    served: Gateway, provider: UpstreamThread
) -> None:
    word = " word" * 200
    events = [sse(delta(""))] + [sse(delta(word))] * 3000 + [sse(delta(None, "stop"))]

    async def long(exchange: Exchange) -> None:
        await exchange.start_stream()
        for event in [*events, END]:
            await exchange.chunk(event)
        await exchange.end_stream()

    provider.reset(long)
    request_id, raw = await streamed(served, wait_seconds=IDLE_SECONDS * 1.5)
    assert dechunked(raw) == b"".join(events) + END
    # A text past 64 Ki characters, as it gathers in a pause, is counted in proportion.
    source, tokens = counted(record(served, request_id))
    assert source == "estimated"
    assert tokens == pytest.approx(count_tokens(word) * 3000, rel=0.001)


async def test_chunks_that_repeat_keep_a_stream_alive(
    served: Gateway, provider: UpstreamThread
) -> None:
    async def slow(exchange: Exchange) -> None:
        await exchange.start_stream()
        for event in [*EIGHT, sse(delta(None, "stop")), END]:
            await exchange.chunk(event)
            await asyncio.sleep(IDLE_SECONDS / 3)
        await exchange.end_stream()

    provider.reset(slow)
    _, raw = await streamed(served)
    assert dechunked(raw).endswith(END)


# -- streams that break ----------------------------------------------------------------------------


def breaks(tail: bytes, then: str) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        for event in EIGHT:
            await exchange.chunk(event)
            await asyncio.sleep(0.005)
        await exchange.send(tail)
        await asyncio.sleep(0.05)
        if then == "waits":
            await exchange.gone()
        elif then == "resets":
            exchange.abort()
        exchange.keep_alive = False

    return behave


@pytest.mark.parametrize(
    ("tail", "then"),
    [
        *((b"", then) for then in ("waits", "resets", "closes")),
        *((b"5\r", then) for then in ("waits", "resets", "closes")),
        *((framed(EIGHT[1])[:-3], then) for then in ("waits", "resets", "closes")),
        (b"no size\r\n" + framed(EIGHT[1]), "waits"),
        (b"\r\n" + framed(EIGHT[1]), "waits"),
        (EIGHT[1], "waits"),
        (framed(EIGHT[1])[:-2] + framed(EIGHT[1]), "waits"),
        (b"-1\r\n" + framed(EIGHT[1]) + LAST, "waits"),
        (LAST, "waits"),
    ],
)
async def test_a_stream_that_breaks_behind_good_chunks_ends_in_an_error(
    served: Gateway, provider: UpstreamThread, tail: bytes, then: str
) -> None:
    provider.reset(breaks(tail, then))
    request_id, raw = await streamed(served)
    content = dechunked(raw)
    assert content.startswith(b"".join(EIGHT))
    assert content.count(b"[DONE]") == 0
    *_, last = content.removesuffix(b"\n\n").split(b"\n\n")
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] in ("stream_interrupted", "deadline_exceeded")
    found = record(served, request_id)
    assert found["outcome"] == "error"
    more = content.count(b" word 0") - 1  # the broken chunk's own content may have arrived
    assert counted(found) == ("partial", count_tokens(SAID + " word 0" * more))


@pytest.mark.parametrize("tail", [b"no size\r\n", b"\r\n", EIGHT[1], b"-1\r\n"])
async def test_good_chunks_pass_that_come_together_with_what_breaks(
    served: Gateway, provider: UpstreamThread, tail: bytes
) -> None:
    async def breaks_at_once(exchange: Exchange) -> None:
        await exchange.start_stream()
        for event in EIGHT[:3]:
            await exchange.chunk(event)
        await asyncio.sleep(0.3)
        await exchange.send(b"".join(map(framed, EIGHT[3:])) + tail)
        await exchange.gone()

    provider.reset(breaks_at_once)
    request_id, raw = await streamed(served)
    content = dechunked(raw)
    assert content.startswith(b"".join(EIGHT))
    assert b'"stream_interrupted"' in content.removeprefix(b"".join(EIGHT))
    assert counted(record(served, request_id)) == ("partial", count_tokens(SAID))


async def test_a_client_that_leaves_is_charged_for_what_it_was_sent(
    served: Gateway, provider: UpstreamThread
) -> None:
    provider.reset(breaks(b"", "waits"))
    async with connected(served.port) as wire:
        await wire.send(post(chat(stream=True)))
        head = await wire.reader.readuntil(b"\r\n\r\n")
        await wire.reader.readuntil(b" word 7")
    found = record(served, id_of(head))
    assert (found["outcome"], found["status"]) == ("disconnected", 499)
    assert counted(found) == ("partial", count_tokens(SAID))
