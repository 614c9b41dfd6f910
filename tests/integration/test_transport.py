"""The upstream connection: how replies are framed, bounded, and kept apart from each other."""

import asyncio
import gzip
import json
import threading
import zlib

import pytest

from tests.integration.conftest import Wired
from tests.support.config import chat
from tests.support.load import Ask, Outcome, flood, once
from tests.support.upstream import Exchange, completion, like_openai, usage

TEXT = "café, one two three"
BODY = json.dumps(completion(TEXT, usage(7, 5))).encode()
JSON = b"Content-Type: application/json\r\n"
SIZED = b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (JSON, len(BODY), BODY)
ONE, TWO = Ask(chat("one")), Ask(chat("m"))


def chunked(body: bytes, size: int, trailer: bytes = b"", extension: bytes = b"") -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in parts)
    head = b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % JSON
    return head + chunks + b"0\r\n" + trailer + b"\r\n"


def says(data: bytes, *, pieces: int = 0, close: bool = False) -> "Raw":
    return Raw(data, pieces, close)


class Raw:
    """A behaviour: these bytes, whole or in pieces of a size, then perhaps a close."""

    def __init__(self, data: bytes, pieces: int, close: bool) -> None:
        self.data, self.pieces, self.close = data, pieces, close

    async def __call__(self, exchange: Exchange) -> None:
        size = self.pieces or len(self.data)
        for i in range(0, len(self.data), size):
            await exchange.send(self.data[i : i + size])
            if self.pieces:
                await asyncio.sleep(0.0005)
        exchange.keep_alive = not self.close


def assert_answered(outcome: Outcome) -> None:
    assert (outcome.status, outcome.failure) == (200, ""), outcome
    assert outcome.json["choices"][0]["message"]["content"] == TEXT


CLOSED = b"HTTP/1.1 200 OK\r\n%bConnection: close\r\n\r\n" % JSON + BODY
FRAMINGS = {
    "length": says(SIZED),
    "length, byte by byte": says(SIZED, pieces=1),
    "length, then close": says(SIZED, close=True),
    "chunks": says(chunked(BODY, 50)),
    "chunks of one byte": says(chunked(BODY, 1)),
    "chunks, byte by byte": says(chunked(BODY, 7), pieces=1),
    "chunks, extensions, trailer": says(chunked(BODY, 33, b"X-Sum: 1\r\n", b";a=b")),
    "close": says(CLOSED, close=True),
    "close, byte by byte": says(CLOSED, pieces=1, close=True),
    "HTTP/1.0": says(b"HTTP/1.0 200 OK\r\n%b\r\n" % JSON + BODY, close=True),
    "100 first": says(b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED),
    "103 first, byte by byte": says(
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 0\r\n\r\n" + SIZED, pieces=1
    ),
    "many 1xx": says(b"HTTP/1.1 102 Processing\r\n\r\n" * 10 + SIZED),
    "1xx, then chunks": says(b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(BODY, 20)),
}


@pytest.mark.parametrize("name", FRAMINGS)
async def test_framing(wired: Wired, name: str) -> None:
    wired.behave(FRAMINGS[name])
    for _ in range(3):
        assert_answered(await once(wired.port, ONE))
    assert wired.asked() == (3, 0)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_reply_is_understood(wired: Wired, encoding: str) -> None:
    packed = gzip.compress(BODY) if encoding == "gzip" else zlib.compress(BODY)

    async def compress(exchange: Exchange) -> None:
        await exchange.reply(packed, headers={"Content-Encoding": encoding})

    wired.behave(compress)
    outcome = await once(wired.port, ONE)
    assert_answered(outcome)
    assert wired.first.received[0].headers["accept-encoding"] == "identity"
    assert wired.record(outcome.headers["x-request-id"])["usage"]["completion_tokens"] == 5


CUT = {
    "length, close": says(SIZED[:-5], close=True),
    "chunks, close": says(chunked(BODY, 50)[:-9], close=True),
    "chunks, no last chunk": says(chunked(BODY, 50)[:-5], close=True),
    "head, close": says(b"HTTP/1.1 200 OK\r\nContent-Le", close=True),
    "nothing, close": says(b"", close=True),
    "one byte, close": says(b"H", close=True),
    "1xx, close": says(b"HTTP/1.1 100 Continue\r\n\r\n", close=True),
    "not HTTP": says(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "two lengths": says(SIZED.replace(JSON, JSON + b"Content-Length: 5\r\n")),
    "101": says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "endless 1xx": says(b"HTTP/1.1 102 Processing\r\n\r\n" * 100 + SIZED),
    "huge header": says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n" + SIZED),
    "endless header": says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000),
    "too many headers": says(
        b"HTTP/1.1 200 OK\r\n"
        + b"".join(b"X-%d: 1\r\n" % i for i in range(1000))
        + SIZED.partition(b"\r\n")[2]
    ),
    "bad gzip": says(SIZED.replace(JSON, JSON + b"Content-Encoding: gzip\r\n")),
}


@pytest.mark.parametrize("name", CUT)
async def test_a_damaged_reply_is_an_error_and_the_next_target_answers(
    wired: Wired, name: str
) -> None:
    wired.behave(CUT[name])
    outcome = await once(wired.port, ONE)
    assert (outcome.status, outcome.failure) == (502, ""), outcome
    assert outcome.json["error"]["code"] == "upstream_failed"
    assert outcome.json["error"]["type"] == "server_error"
    first, second = wired.asked()
    # On a connection that was open from before, an end without a byte may be that one's own.
    assert first in ((1, 2) if name == "nothing, close" else (1,))
    assert second == 0
    outcome = await once(wired.port, TWO)
    assert outcome.status == 200
    assert outcome.headers["x-sluice-attempts"] == "2"
    assert outcome.headers["x-sluice-provider"] == "p1"
    assert wired.asked()[1] == 1


EXTRA = {
    "garbage": b"garbage",
    "a whole reply": SIZED.replace(b"one", b"BAD"),
    "half a reply": SIZED[:60],
    "a reply without its body": SIZED[: SIZED.index(b"\r\n\r\n") + 4],
}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("name", EXTRA)
async def test_bytes_after_a_reply_never_reach_the_next_request(
    wired: Wired, name: str, late: bool
) -> None:
    sent = threading.Event()

    async def too_much(exchange: Exchange) -> None:
        try:
            if late:
                await exchange.send(SIZED)
                await asyncio.sleep(0.05)
                await exchange.send(EXTRA[name])
            else:
                await exchange.send(SIZED + EXTRA[name])
        finally:
            sent.set()

    wired.behave(too_much)
    assert_answered(await once(wired.port, ONE))
    assert await asyncio.to_thread(sent.wait, 10)
    await asyncio.sleep(0.1)
    wired.behave(says(SIZED))
    for _ in range(3):
        assert_answered(await once(wired.port, ONE))


@pytest.mark.parametrize("pause", [0, 0.002, 0.01])
async def test_a_connection_closed_right_after_its_reply_fails_nobody(
    wired: Wired, pause: float
) -> None:
    async def closer(exchange: Exchange) -> None:
        await exchange.reply(completion(TEXT, usage(7, 5)))  # says nothing of a close
        await asyncio.sleep(pause)
        exchange.keep_alive = False

    wired.behave(closer)
    asks = [Ask(chat("one", user=f"n{i}")) for i in range(200)]
    outcomes = await flood(wired.port, asks, 1 if pause == 0 else 4)
    assert [(o.status, o.failure) for o in outcomes] == [(200, "")] * 200
    seen = [r.json["user"] for r in wired.first.received]
    assert sorted(seen) == sorted(a.body["user"] for a in asks), "processed twice, or never"


@pytest.mark.parametrize("sent", [b"H", b"HTTP/1.1 200 OK\r\n", SIZED[:-1]])
async def test_never_again_once_a_byte_of_the_reply_came(wired: Wired, sent: bytes) -> None:
    assert_warm = await once(wired.port, ONE)  # the connection is a reused one
    assert assert_warm.status == 200
    wired.behave(says(sent, close=True))
    outcome = await once(wired.port, ONE)
    assert outcome.status == 502
    assert wired.asked() == (1, 0)


async def test_never_again_when_the_provider_died_at_work(wired: Wired) -> None:
    await once(wired.port, Ask(chat("patient")))

    async def work_and_die(exchange: Exchange) -> None:
        await asyncio.sleep(1.5)
        exchange.abort()

    wired.behave(work_and_die)
    outcome = await once(wired.port, Ask(chat("patient")))
    assert outcome.status == 502
    assert wired.asked() == (1, 0)


async def test_connections_are_kept_and_bounded(wired: Wired) -> None:
    first = wired.first.upstream
    first.most_open = first.open_connections

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await like_openai(exchange)

    wired.behave(slow)
    before, made = first.open_connections, first.connections
    outcomes = await flood(wired.port, [Ask(chat("narrow"))] * 30, 30)
    assert [(o.status, o.failure) for o in outcomes] == [(200, "")] * 30
    assert first.connections - made == 2, "not bounded, or not kept"
    assert first.most_open - before <= 2
