"""Whatever bytes a client sends: the documented status in OpenAI's error shape, a known fate of the
connection, bounded memory and time, and a gateway that serves the next request.

One gateway for all tests. Its bodies must arrive within a second (`server.request_timeout`).
"""

import asyncio
import contextlib
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from aiohttp import web

from tests.support.config import KEY, PRICED_MODEL, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.inside import serving
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, completion, usage
from tests.support.wire import CHAT_PATH, Reply, ask, chunked, connected, head_of, post

MEBIBYTE = 1024 * 1024
BODY_SECONDS = 1.0
LINGER_SECONDS = 10.0  # how long a refused client may go on sending, so that it reads the reply
MOST_GROWTH_MB = 40  # one body of 10 MiB, its parts and its copy; a bomb would be 200 and more
NARROW_KEY = "sk-narrow-key-1"
CHUNKED = "Transfer-Encoding: chunked"
JSON = "Content-Type: application/json"
Fields = dict[str, Any]


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """The gateway that all tests share."""
    narrow = {"name": "narrow", "tenant": "acme", "sha256": digest(NARROW_KEY)}
    keys = [
        {"name": "k", "tenant": "acme", "sha256": digest(KEY)},
        {**narrow, "models": [PRICED_MODEL]},
    ]
    server = {"request_timeout": BODY_SECONDS}
    with running(config(provider.url, auth={"keys": keys}, server=server)) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def unharmed(served: Gateway, provider: UpstreamThread) -> Iterator[None]:
    """After each test: the same worker serves, it has not grown, and no lease is open."""
    provider.reset()
    (worker,) = served.worker_pids
    before = psutil.Process(worker).memory_info().rss
    yield
    provider.reset()
    growth = (psutil.Process(worker).memory_info().rss - before) / MEBIBYTE
    assert growth < MOST_GROWTH_MB, f"the worker grew by {growth:.0f} MiB"
    assert served.worker_pids == [worker]
    assert served.get("/health/ready")[0] == 200
    served.settled()
    reply = asyncio.run(ask(served.port, post(chat())))
    assert reply.status == 200


async def refused(
    gateway: Gateway, data: bytes, status: int, code: str, param: str | None = None
) -> None:
    """The request is refused so, and the connection serves a good request behind it."""
    async with connected(gateway.port) as wire:
        await wire.send(data)
        check(await wire.reply(), status, code, param)
        await wire.send(post(chat()))
        assert (await wire.reply()).status == 200


async def refused_and_closed(
    gateway: Gateway, data: bytes, status: int, code: str, seconds: float = LINGER_SECONDS + 5
) -> None:
    """The request is refused so, and what follows it on the connection is not served."""
    async with connected(gateway.port) as wire:
        await wire.send(data)
        reply = await wire.reply()
        check(reply, status, code)
        # HTTP/1.0 closes without saying so.
        assert reply.version == "HTTP/1.0" or reply.headers["connection"] == "close"
        await wire.send(post(chat()))
        assert await wire.is_closed(seconds)


def check(reply: Reply, status: int, code: str, param: str | None = None) -> None:
    """The reply is this error, in OpenAI's shape."""
    error = reply.error
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    seen = (reply.status, error["code"], error["type"], error["param"])
    assert seen == (status, code, kind, param), reply


# -- bodies that are not what they should be -------------------------------------------------------

FILLED: dict[str, Fields] = {
    CHAT_PATH: chat(),
    "/v1/completions": {"model": "m", "prompt": "hello"},
    "/v1/embeddings": {"model": "m", "input": "hello"},
}
GOOD = json.dumps(chat()).encode()

Spoil = Callable[[bytes], bytes]
SPOILT: dict[str, Spoil] = {
    "empty": lambda _: b"",
    "a brace": lambda _: b"{",
    "a word": lambda _: b"nonsense",
    "a NUL": lambda _: b"\x00",
    "a form": lambda _: b"model=m&messages=hello",
    "cut": lambda good: good[:-1],
    "a brace too many": lambda good: good + b"}",
    "twice": lambda good: good + good,
    "single quotes": lambda good: good.replace(b'"m"', b"'m'"),
    "NaN": lambda good: good[:-1] + b', "x": NaN}',
    "a leading zero": lambda good: good[:-1] + b', "x": 01}',
    "a trailing comma": lambda good: good[:-1] + b",}",
    "a raw line end in a string": lambda good: good[:-1] + b', "x": "\n"}',
    "a byte order mark": lambda good: b"\xef\xbb\xbf" + good,  # RFC 8259 section 8.1
    "UTF-16": lambda good: good.decode().encode("utf-16"),
    "a byte that is no UTF-8": lambda good: good.replace(b"hello", b"hel\xfflo"),
    "half of a character": lambda good: good.replace(b"hello", b"hel\xc3lo"),
    "an overlong slash": lambda good: good.replace(b"hello", b"hel\xc0\xaflo"),
    "half of a surrogate pair": lambda good: good.replace(b"hello", b"hel\xed\xa0\x80lo"),
    "bad UTF-8 in a name": lambda good: good.replace(b'"model"', b'"\xff": 1, "model"'),
}


@pytest.mark.parametrize("path", FILLED)
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
async def test_what_is_not_json(
    served: Gateway, provider: UpstreamThread, spoil: Spoil, path: str
) -> None:
    body = spoil(json.dumps(FILLED[path]).encode())
    await refused(served, post(body, path=path), 400, "invalid_json")
    assert len(provider.received) == 1  # the good request behind it


@pytest.mark.parametrize("body", [b"null", b"[]", b'"model"', b"1", b"true", b"[" + GOOD + b"]"])
async def test_what_is_json_but_no_object(served: Gateway, body: bytes) -> None:
    await refused(served, post(body), 400, "invalid_value")


TOO_LONG = "x" * 257
COMMON: list[tuple[str, list[Any]]] = [
    ("model", [None, 1, True, [], {}, ["m"], "", TOO_LONG]),
    ("stream", ["true", 1, 0.5, [], {}]),
    ("stream_options", ["include_usage", 1, True, []]),
    ("max_tokens", ["5", 1.5, -1, True, [], {}, 2**31 + 1, 1e300]),
    ("n", ["1", 0, -1, 129, 1.5, True, []]),
]
WRONG: dict[str, list[tuple[str, list[Any]]]] = {
    CHAT_PATH: [
        *COMMON,
        ("messages", [None, [], {}, "hello", 1, True]),
        ("max_completion_tokens", ["5", 1.5, -1, True, []]),
    ],
    "/v1/completions": [*COMMON, ("prompt", [None, 1, True, {}])],
    "/v1/embeddings": [COMMON[0], ("input", [None, 1, True, {}])],
}


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        pytest.param(path, field, value, id=f"{path[4:]}-{field}-{str(value)[:12]}")
        for path, fields in WRONG.items()
        for field, values in fields
        for value in values
    ],
)
async def test_a_field_of_the_wrong_type_is_named(
    served: Gateway, provider: UpstreamThread, path: str, field: str, value: object
) -> None:
    reply = await ask(served.port, post({**FILLED[path], field: value}, path=path))
    check(reply, 400, "invalid_value", field)
    assert f"'{field}'" in reply.error["message"]
    assert provider.received == []


@pytest.mark.parametrize("path", FILLED)
async def test_a_missing_field_is_named(served: Gateway, path: str) -> None:
    for missing in FILLED[path]:
        rest = {name: value for name, value in FILLED[path].items() if name != missing}
        await refused(served, post(rest, path=path), 400, "missing_required_parameter", missing)


async def test_a_field_inside_another_is_named(served: Gateway) -> None:
    body = chat(stream=True, stream_options={"include_usage": "yes"})
    await refused(served, post(body), 400, "invalid_value", "stream_options.include_usage")


async def test_null_is_as_good_as_absent_where_a_field_is_optional(
    served: Gateway, provider: UpstreamThread
) -> None:
    names = ("stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "tools")
    body = {**chat(), **dict.fromkeys(names)}
    assert (await ask(served.port, post(body))).status == 200
    assert provider.received[0].json == {**body, "model": PRICED_MODEL}


# -- who asks, and for what ------------------------------------------------------------------------


async def test_no_key_a_wrong_one_and_the_digest_of_a_good_one(served: Gateway) -> None:
    await refused(served, post(chat(), key=None), 401, "missing_api_key")
    await refused(served, post(chat(), key=""), 401, "missing_api_key")
    await refused(served, post(chat(), key="sk-wrong"), 401, "invalid_api_key")
    await refused(served, post(chat(), key=digest(KEY)), 401, "invalid_api_key")
    await refused(served, post(chat(), key="\xff\xfe\x80"), 401, "invalid_api_key")


async def test_who_asks_is_settled_before_what(served: Gateway) -> None:
    for body in (b"{", b"\xff", {"model": "nope"}, chat(max_tokens=-1)):
        await refused(served, post(body, key="sk-wrong"), 401, "invalid_api_key")


@pytest.mark.parametrize(
    "model", ["nope", "p0", "p0/", "/m", "nobody/m", "M", "m ", " m", "m\u0000"]
)
async def test_an_unknown_model(served: Gateway, model: str) -> None:
    await refused(served, post(chat(model)), 404, "model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "name",
    ["x\r\nx-evil: 1", "x\nx-evil: 1", "x\r\n\r\nHTTP/1.1 200 OK\r\n", "x\u0000", "x\u2028ü"],
)
async def test_a_models_name_adds_nothing_to_the_replys_head(
    served: Gateway, name: str, stream: bool
) -> None:
    # `provider/anything` is passed on, and the reply names the model in a header.
    async with connected(served.port) as wire:
        await wire.send(post(chat(f"p0/{name}", stream=stream)))
        reply = await wire.reply()
        known = r"content-\w+|date|connection|transfer-encoding|cache-control|x-accel-buffering"
        ours = r"x-request-id|x-sluice-(provider|model|attempts|cost-usd)"
        assert [h for h in reply.headers if not re.fullmatch(f"{known}|{ours}", h)] == []
        assert re.fullmatch(r"[\x20-\xff]*", reply.headers.get("x-sluice-model", "")), reply
        await wire.send(post(chat()))
        assert (await wire.reply()).json["object"] == "chat.completion"


# -- what is authorised is what is forwarded -------------------------------------------------------


@pytest.mark.parametrize("key", [b'"model"', b'"\\u006dodel"', b'"mod\\u0065l"'])
async def test_a_model_named_twice(served: Gateway, provider: UpstreamThread, key: bytes) -> None:
    good, other = json.dumps(PRICED_MODEL).encode(), b'"gpt-4o"'
    rest = b'"messages": [{"role": "user", "content": "hello"}]'
    for first, second in ((good, other), (other, good)):
        for keys in ((b'"model"', key), (key, b'"model"')):
            provider.reset()
            body = b"{%b: %b, %b: %b, %b}" % (keys[0], first, keys[1], second, rest)
            reply = await ask(served.port, post(body, key=NARROW_KEY))
            forwarded = [request.body for request in provider.received]
            if reply.status == 403:
                assert reply.error["code"] == "model_not_allowed"
                assert forwarded == []
            else:
                assert reply.status == 200
                assert [json.loads(b, object_pairs_hook=list) for b in forwarded] == [
                    [
                        ("model", PRICED_MODEL),
                        ("messages", [[("role", "user"), ("content", "hello")]]),
                    ]
                ]


async def test_stream_given_twice(served: Gateway, provider: UpstreamThread) -> None:
    head = GOOD[:-1]
    for twice, streams in (
        (b', "stream": true, "stream": false}', False),
        (b', "stream": false, "stream": true}', True),
        (b', "stream": false, "str\\u0065am": true}', True),
    ):
        provider.reset()
        reply = await ask(served.port, post(head + twice))
        (sent,) = provider.received
        fields = json.loads(sent.body, object_pairs_hook=list)
        assert [value for name, value in fields if name == "stream"] == [streams]
        assert reply.headers["content-type"].startswith("text/event-stream") == streams


async def test_a_maximum_given_twice_is_the_one_reserved_for(
    served: Gateway, provider: UpstreamThread
) -> None:
    twice = b', "max_tokens": 1, "max_tok\\u0065ns": 9}'
    assert (await ask(served.port, post(GOOD[:-1] + twice))).status == 200
    fields = json.loads(provider.received[0].body, object_pairs_hook=list)
    assert [value for name, value in fields if name == "max_tokens"] == [9]


# -- deep, and packed ------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("place", [b'"x": ', b'"messages": ', b'"stream_options": '])
async def test_nesting_without_end(served: Gateway, opening: bytes, place: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    for depth in (2_000, 100_000):
        deep = opening * depth + b"1" + closing * depth
        reply = await ask(served.port, post(b'{"model": "m", %b%b}' % (place, deep)))
        assert reply.status == 400
        assert reply.error["code"] in ("invalid_json", "invalid_value")  # too deep, or no list


async def test_nesting_as_real_schemas_have_it_passes(
    served: Gateway, provider: UpstreamThread
) -> None:
    schema: Any = 1
    for _ in range(200):
        schema = {"anyOf": [schema]}
    assert (await ask(served.port, post(chat(tools=[schema])))).status == 200
    assert provider.received[0].json["tools"] == [schema]


async def test_a_depth_that_is_accepted_is_forwarded(
    served: Gateway, provider: UpstreamThread
) -> None:
    # Around the limit every layer must agree: 400 or the answer, never a failure in between.
    for depth in range(900, 1050, 5):
        nested = b"[" * depth + b"]" * depth
        fields = b', "stream": true, "stream_options": {"x": %b}}' % nested
        status = (await ask(served.port, post(GOOD[:-1] + fields))).status
        assert status in (200, 400), depth


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)],
)
async def test_a_packed_body_is_unpacked(
    served: Gateway, provider: UpstreamThread, coding: str, pack: Any
) -> None:
    packed = pack(GOOD)
    reply = await ask(served.port, post(packed, f"Content-Encoding: {coding}"))
    assert reply.status == 200
    assert provider.received[0].json == chat(PRICED_MODEL)
    assert "content-encoding" not in provider.received[0].headers


async def test_a_bomb_is_refused_in_bounded_memory(served: Gateway) -> None:
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = packer.compress(b" " * MEBIBYTE) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = b"\x1f\x8b\x08" + bytes(6) + b"\xff" + block * 500  # half a gigabyte
    assert len(bomb) < MEBIBYTE
    whole = post(bomb, "Content-Encoding: gzip")
    await refused_and_closed(served, whole, 413, "request_too_large")
    parts = head_of(CHUNKED, "Content-Encoding: gzip") + chunked(bomb[:1000], bomb[1000:])
    await refused_and_closed(served, parts, 413, "request_too_large")


async def test_a_body_that_does_not_unpack(served: Gateway, provider: UpstreamThread) -> None:
    for body in (b"hello", gzip.compress(GOOD)[:30], b"\x1f\x8b\x08"):
        reply = await ask(served.port, post(body, "Content-Encoding: gzip"))
        assert (reply.status, reply.error["type"]) == (400, "invalid_request_error"), body
    assert provider.received == []


async def test_a_strangers_body_is_not_unpacked(served: Gateway) -> None:
    """One that does not unpack would show that it was."""
    coding = "Content-Encoding: gzip"
    for body in (b"hello", b"\x1f\x8b\x08", gzip.compress(b"x")[:-1] + b"x"):
        for path, key, status in (
            (CHAT_PATH, "sk-nobody", 401),
            (CHAT_PATH, None, 401),
            ("/providers/p0/v1/files", "sk-nobody", 401),
            ("/v1/models", None, 405),
            ("/nothing/here", None, 404),
        ):
            reply = await ask(served.port, post(body, coding, path=path, key=key))
            assert reply.status == status, (body, path)


async def test_a_body_that_nobody_reads_is_not_unpacked() -> None:
    """So what a route is given is still packed."""
    packed, given = gzip.compress(GOOD), []

    async def take(request: web.Request) -> web.Response:
        given.append(await request.content.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    async with serving(app) as (_, address):
        data = post(packed, "Content-Encoding: gzip", path="/")
        assert (await ask(address[1], data)).status == 200
    assert given == [packed]


async def test_a_coding_nobody_knows(served: Gateway, provider: UpstreamThread) -> None:
    reply = await ask(served.port, post(GOOD, "Content-Encoding: rot13"))
    assert reply.status in (200, 400, 415)  # RFC 9110 section 15.5.16
    assert reply.status != 200 or provider.received[0].json == chat(PRICED_MODEL)
    assert reply.status == 200 or provider.received == []


# -- too large, too long ---------------------------------------------------------------------------

LARGE = b" " * (11 * MEBIBYTE)


async def test_a_body_of_11_megabytes(served: Gateway, provider: UpstreamThread) -> None:
    await refused_and_closed(served, post(LARGE), 413, "request_too_large")
    parts = [LARGE[i : i + 65536] for i in range(0, len(LARGE), 65536)]
    whole = head_of(CHUNKED) + chunked(*parts)
    await refused_and_closed(served, whole, 413, "request_too_large")
    assert provider.received == []


async def test_a_body_just_small_enough_passes(served: Gateway, provider: UpstreamThread) -> None:
    size = 10 * MEBIBYTE
    body = GOOD[:-1] + b" " * (size - len(GOOD)) + b"}"
    assert len(body) == size
    assert (await ask(served.port, post(body))).status == 200
    assert provider.received[0].json == chat(PRICED_MODEL)
    reply = await ask(served.port, post(body + b" "))
    check(reply, 413, "request_too_large")


@pytest.mark.parametrize("length", ["9" * 18, "9" * 20, "9" * 400, "-1", "+5", "5.0", "0x5", "5 5"])
async def test_a_length_that_is_none(
    served: Gateway, provider: UpstreamThread, length: str
) -> None:
    async with connected(served.port) as wire:
        await wire.send(head_of(f"Content-Length: {length}") + GOOD)
        reply = await wire.reply()
        assert reply.status in (400, 413), reply
        assert reply.error["code"] in ("invalid_http", "request_too_large")
    assert provider.received == []


async def test_a_body_announced_too_large_is_refused_unread(served: Gateway) -> None:
    async with connected(served.port) as wire:
        await wire.send(post(b"", length=11 * MEBIBYTE))
        check(await wire.reply(seconds=BODY_SECONDS / 2), 413, "request_too_large")


async def drip(gateway: Gateway, head: bytes, piece: bytes) -> tuple[float, float]:
    """Send a piece of body every 50 ms; return when the refusal came and when the end."""
    loop = asyncio.get_running_loop()
    async with connected(gateway.port) as wire:
        started = loop.time()
        await wire.send(head)

        async def go_on() -> None:
            while True:
                await wire.send(piece)
                await asyncio.sleep(0.05)

        dripping = loop.create_task(go_on())
        try:
            reply = await wire.reply()
            check(reply, 408, "request_timeout")
            assert reply.headers["connection"] == "close"
            refused_at = loop.time() - started
            assert await wire.is_closed(LINGER_SECONDS + 5)
            return refused_at, loop.time() - started
        finally:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)


async def test_a_body_that_never_ends(served: Gateway, provider: UpstreamThread) -> None:
    packed = head_of("Content-Encoding: gzip", CHUNKED)
    times = await asyncio.gather(
        drip(served, post(b'{"model"', length=100_000), b" "),
        drip(served, post(b'{"model"', length=100_000), b""),  # says nothing more
        drip(served, head_of(CHUNKED) + b"5\r\nhello\r\n", b"1\r\n \r\n"),
        drip(served, head_of(CHUNKED), b""),
        drip(served, head_of(CHUNKED) + b"5;", b"x"),  # an extension of a chunk that never ends
        drip(served, packed + chunked(gzip.compress(b"a")[:9], end=False), b""),
    )
    for refused_at, closed_at in times:
        assert BODY_SECONDS * 0.9 < refused_at < BODY_SECONDS + 2
        assert closed_at < LINGER_SECONDS + 3
    assert provider.received == []


HALF_HEADS = {
    "stops in the first line": (b"POST /v1/chat/comp", b""),
    "stops in the head": (head_of()[:-2], b""),
    "a first line that drips": (b"POST /v1/chat/completions?", b"q"),
    "a header that drips": (head_of()[:-2] + b"x: ", b"y"),
    "a second request that drips": (post(chat()), b"P"),
}


async def stays_open(gateway: Gateway, start: bytes, piece: bytes, seconds: float) -> bool:
    """Tell whether a client that goes on with a piece every 50 ms still holds its connection."""
    async with connected(gateway.port) as wire:
        await wire.send(start)
        until = asyncio.get_running_loop().time() + seconds
        reading = asyncio.ensure_future(wire.replies(2 * seconds))
        while not reading.done() and asyncio.get_running_loop().time() < until:
            await wire.send(piece)
            await asyncio.sleep(0.05)
        open_still = not reading.done()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return open_still


async def test_a_head_that_never_ends(served: Gateway) -> None:
    # Nobody holds a connection for nothing: a head has the same time as a body.
    kept = await asyncio.gather(
        *(stays_open(served, *half, BODY_SECONDS + 3) for half in HALF_HEADS.values())
    )
    assert [name for name, held in zip(HALF_HEADS, kept, strict=True) if held] == []


# -- heads -----------------------------------------------------------------------------------------

MANY = [f"x-{i}: y" for i in range(101)]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(head_of(*MANY), id="101 headers"),
        pytest.param(head_of(*MANY * 100), id="10,100 headers"),
        pytest.param(head_of("x: " + "y" * 9_000), id="a value of 9 KB"),
        pytest.param(head_of("x: " + "y" * MEBIBYTE), id="a value of 1 MiB"),
        pytest.param(head_of("x" * 9_000 + ": y"), id="a name of 9 KB"),
        pytest.param(head_of(path=CHAT_PATH + "?" + "q" * 9_000), id="a line of 9 KB"),
        pytest.param(head_of(path="/" + "q" * MEBIBYTE), id="a line of 1 MiB"),
        pytest.param(head_of(key="k" * 20_000), id="a key of 20 KB"),
    ],
)
async def test_a_head_that_is_too_large(served: Gateway, head: bytes) -> None:
    await refused_and_closed(served, head, 431, "headers_too_large")


async def test_a_head_as_sdks_and_proxies_send_it_passes(served: Gateway) -> None:
    lines = [f"x-{i}: y" for i in range(60)]
    assert (await ask(served.port, post(chat(), *lines, "cookie: " + "c" * 6000))).status == 200


@pytest.mark.parametrize(
    "start", [head_of()[:-2], head_of()[:-2] + b"x: ", b"POST /", b"GET /health?", b""]
)
@pytest.mark.parametrize("filler", [b"a", b"x: y\r\n"], ids=["letters", "headers"])
async def test_a_head_without_end_is_cut_off(served: Gateway, start: bytes, filler: bytes) -> None:
    blob, sent = filler * (65536 // len(filler)), 0
    async with connected(served.port) as wire:
        await wire.send(start)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                while sent < 200 * MEBIBYTE:
                    wire.writer.write(blob)
                    await wire.writer.drain()
                    sent += len(blob)
    assert sent < 20 * MEBIBYTE, "it goes on reading"


async def test_a_head_that_is_no_http(served: Gateway, provider: UpstreamThread) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32) + b"\r\n\r\n",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n\r\n",
        head_of("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n",
        head_of("Content-Length: 5", "Content-Length: 6") + b"hello!",
        head_of("Transfer-Encoding: x") + GOOD,
        head_of("no colon here") + GOOD,
        head_of(" folded: x") + GOOD,
        head_of("x: a\x00b") + GOOD,
        head_of(CHUNKED) + b"zz\r\n" + GOOD,
        head_of(CHUNKED) + b"-1\r\n" + GOOD,
        head_of(CHUNKED) + b"ffffffffffffffffff\r\n" + GOOD,
        head_of(CHUNKED) + b"5\r\nhelloXX0\r\n\r\n",
    ):
        await refused_and_closed(served, data, 400, "invalid_http")
    assert provider.received == []


# -- methods and paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions", "/v1/embeddings"])
async def test_a_wrong_method(served: Gateway, path: str) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
        reply = await ask(served.port, head_of(path=path, method=method))
        check(reply, 405, "method_not_allowed")
        assert reply.headers["allow"] == "POST"
        await refused(served, head_of(path=path, method=method), 405, "method_not_allowed")
    reply = await ask(served.port, head_of(path="/v1/models", method="POST"))
    check(reply, 405, "method_not_allowed")
    assert "GET" in reply.headers["allow"]


async def test_head_has_the_status_and_no_body(served: Gateway) -> None:
    async with connected(served.port) as wire:
        for path, status in ((CHAT_PATH, 405), ("/health/live", 200), ("/nope", 404)):
            await wire.send(head_of(path=path, method="HEAD"))
            assert (await wire.reply(method="HEAD")).status == status
        await wire.send(post(chat()))
        assert (await wire.reply()).status == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/v1", "/v1/", "/v2/chat/completions", "/V1/CHAT/COMPLETIONS", "/chat/completions"),
        *(CHAT_PATH + "/", "/" + CHAT_PATH, CHAT_PATH + ";x", "/v1/../v1/chat/completions/x"),
        *(
            "/v1/chat%2Fcompletions",
            CHAT_PATH + "%20",
            "/%00",
            "/%ff",
            "/%zz",
        ),
    ],
)
async def test_an_unknown_path(served: Gateway, provider: UpstreamThread, path: str) -> None:
    await refused(served, post(chat(), path=path), 404, "not_found")
    assert len(provider.received) == 1  # the good request behind it


@pytest.mark.parametrize(
    "query",
    ["?", "?api-version=2024-10-21", "?model=gpt-4o&stream=true", "?%00=%ff&a=%zz", "?a?b/c"],
)
async def test_a_query_changes_nothing(
    served: Gateway, provider: UpstreamThread, query: str
) -> None:
    assert (await ask(served.port, post(chat(), path=CHAT_PATH + query))).status == 200
    assert provider.received[0].path == CHAT_PATH
    assert provider.received[0].json == chat(PRICED_MODEL)


@pytest.mark.parametrize("connection", ["keep-alive", "close"], ids=["direct", "aiohttp"])
@pytest.mark.parametrize("path", [CHAT_PATH, "/providers/p0/v1/chat/completions"])
async def test_a_trace_that_is_no_text_is_left_out(
    served: Gateway, path: str, connection: str
) -> None:
    """Also a stranger's: its record, and those beside it, are written."""
    lines = ("Content-Type: application/json", "traceparent: \xff\xfe", f"Connection: {connection}")
    asked = [
        await ask(served.port, post(chat(PRICED_MODEL), *lines, path=path, key=key))
        for key in ("sk-stranger", KEY)
    ]
    asked.append(await ask(served.port, post(chat())))
    ids = {one.headers["x-request-id"] for one in asked}
    found: dict[str, str] = {}
    async with asyncio.timeout(10):
        while found.keys() != ids:
            await asyncio.sleep(0.05)
            found = {
                one["id"]: one.get("trace", "") for one in served.records() if one["id"] in ids
            }
    assert set(found.values()) == {""}


async def test_an_absolute_target_is_accepted(served: Gateway) -> None:
    # RFC 9112 section 3.2.2: a server MUST accept the absolute form.
    target = f"http://127.0.0.1:{served.port}"
    assert (await ask(served.port, head_of(path=target + "/v1/models", method="GET"))).status == 200
    assert (await ask(served.port, post(chat(), path=target + CHAT_PATH))).status == 200


# -- HTTP/1.0 --------------------------------------------------------------------------------------


async def test_an_http_1_0_client_gets_its_answer_and_the_close(served: Gateway) -> None:
    async with connected(served.port) as wire:
        await wire.send(post(chat(), version="1.0"))
        reply = await wire.reply()
        assert reply.json["choices"][0]["message"]["content"] == "one two three four five"
        assert await wire.is_closed(2)


async def test_an_http_1_0_client_gets_its_stream_unchunked(served: Gateway) -> None:
    reply = await ask(served.port, post(chat(stream=True), version="1.0"))
    assert "transfer-encoding" not in reply.headers
    assert reply.headers["connection"] == "close"
    events = reply.body.decode().split("\n\n")
    assert [event[:6] for event in events[:-1]] == ["data: "] * 7
    assert events[-2:] == ["data: [DONE]", ""]


async def test_an_http_1_0_client_is_told_whether_the_connection_stays(served: Gateway) -> None:
    # Such a client reads on to the close unless it is told (RFC 9112 section C.2.2).
    async with connected(served.port) as wire:
        await wire.send(post(chat(), "Connection: keep-alive", version="1.0"))
        told = (await wire.reply()).headers.get("connection", "")
        stays = not await wire.is_closed(1)
    assert stays == (told.lower() == "keep-alive")


# -- several requests on one connection ------------------------------------------------------------


async def slow_then_fast(exchange: Exchange) -> None:
    """Answer with the request's `seed`, the later the lower it is."""
    asked = exchange.request.json
    await asyncio.sleep(max(0.0, 0.3 - asked["seed"] / 10))
    await exchange.reply(completion(str(asked["seed"]), usage(1, 1)))


def said(replies: list[Reply]) -> list[Any]:
    """Of each reply its text, or its error's code."""
    return [
        reply.json["choices"][0]["message"]["content"]
        if reply.status == 200
        else reply.error["code"]
        for reply in replies
    ]


async def test_pipelined_requests_are_answered_in_order(
    served: Gateway, provider: UpstreamThread
) -> None:
    provider.reset(slow_then_fast)
    async with connected(served.port) as wire:
        await wire.send(b"".join(post(chat(seed=seed)) for seed in range(8)))
        assert said([await wire.reply() for _ in range(8)]) == list("01234567")


async def test_a_bad_request_between_good_ones(served: Gateway, provider: UpstreamThread) -> None:
    provider.reset(slow_then_fast)
    async with connected(served.port) as wire:
        await wire.send(
            post(chat(seed=0))
            + post(b"{")
            + post(chat(seed=1))
            + post(chat(), key="sk-wrong")
            + post(chat("nope"))
            + post(chat(seed=2))
        )
        told = said([await wire.reply() for _ in range(6)])
    assert told == ["0", "invalid_json", "1", "invalid_api_key", "model_not_found", "2"]
    assert [request.json["seed"] for request in provider.received] == [0, 1, 2]


async def test_plain_hot_and_streamed_requests_mixed(served: Gateway) -> None:
    async with connected(served.port) as wire:
        await wire.send(
            head_of(path="/v1/models", method="GET")
            + post(chat(stream=True))
            + post(chat())
            + head_of(path="/nope", method="GET")
            + head_of(CHUNKED)
            + chunked(GOOD[:9], GOOD[9:])
        )
        replies = [await wire.reply() for _ in range(5)]
    assert [reply.status for reply in replies] == [200, 200, 200, 404, 200]
    assert replies[1].body.endswith(b"data: [DONE]\n\n")
    objects = [reply.json.get("object") for i, reply in enumerate(replies) if i != 1]
    assert objects == ["list", "chat.completion", None, "chat.completion"]


async def test_garbage_ends_the_connection_behind_what_was_good(
    served: Gateway, provider: UpstreamThread
) -> None:
    provider.reset(slow_then_fast)
    async with connected(served.port) as wire:
        await wire.send(post(chat(seed=0)))
        await asyncio.sleep(0.1)  # a segment of its own
        await wire.send(b"!!!\r\n\r\n" + post(chat(seed=1)))
        assert said(await wire.replies()) == ["0", "invalid_http"]
    assert [request.json["seed"] for request in provider.received] == [0]


async def test_garbage_in_the_same_segment_as_a_good_request(
    served: Gateway, provider: UpstreamThread
) -> None:
    # The parser may give up the whole segment: then nothing of it is served, and one reply says so.
    provider.reset(slow_then_fast)
    async with connected(served.port) as wire:
        await wire.send(post(chat(seed=0)) + b"!!!\r\n\r\n" + post(chat(seed=1)))
        told = said(await wire.replies())
    forwarded = [str(request.json["seed"]) for request in provider.received]
    assert forwarded in ([], ["0"])
    assert told == [*forwarded, "invalid_http"]


async def test_a_refused_body_ends_what_was_pipelined_behind_it(
    served: Gateway, provider: UpstreamThread
) -> None:
    async with connected(served.port) as wire:
        await wire.send(post(b"hello", "Content-Encoding: gzip") + post(chat()))
        assert said(await wire.replies()) == ["invalid_http"]
    assert provider.received == []


async def test_a_request_byte_by_byte(served: Gateway, provider: UpstreamThread) -> None:
    async with connected(served.port) as wire:
        for byte in head_of(CHUNKED) + chunked(GOOD[:20], GOOD[20:]):
            await wire.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await wire.reply()).status == 200
    assert provider.received[0].json == chat(PRICED_MODEL)


async def test_pipelining_without_end_is_held_back(
    served: Gateway, provider: UpstreamThread
) -> None:
    gate: list[bool] = []

    async def waits(exchange: Exchange) -> None:
        while not gate:
            await asyncio.sleep(0.02)
        await exchange.reply(completion("at last", usage(1, 1)))

    provider.reset(waits)
    for filler in (post(chat()), head_of(path="/health/live", method="GET")):
        gate.clear()
        async with connected(served.port) as wire:
            await wire.send(post(chat()))
            blob, sent = filler * 500, 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while sent < 200 * MEBIBYTE:
                        wire.writer.write(blob)
                        await wire.writer.drain()
                        sent += len(blob)
            gate.append(True)
            assert (await wire.reply()).status == 200
        assert sent < 50 * MEBIBYTE, "it goes on reading"


# -- Expect ----------------------------------------------------------------------------------------


async def test_a_client_that_waits_is_told_to_continue(
    served: Gateway, provider: UpstreamThread
) -> None:
    for framing, body in (
        (f"Content-Length: {len(GOOD)}", GOOD),
        (CHUNKED, chunked(GOOD)),
    ):
        provider.reset()
        async with connected(served.port) as wire:
            await wire.send(head_of("Expect: 100-continue", framing))
            assert (await wire.reply()).status == 100
            assert provider.received == []
            await wire.send(body)
            assert (await wire.reply()).status == 200
            await wire.send(post(chat(), "Expect: 100-continue"))  # one that does not wait
            replies = [await wire.reply()]
            if replies[0].status == 100:
                replies.append(await wire.reply())
            assert replies[-1].status == 200


async def test_a_client_that_waits_with_too_much_is_refused_at_once(served: Gateway) -> None:
    async with connected(served.port) as wire:
        await wire.send(head_of("Expect: 100-continue", f"Content-Length: {11 * MEBIBYTE}"))
        check(await wire.reply(seconds=BODY_SECONDS / 2), 413, "request_too_large")


async def test_a_client_that_is_told_to_continue_and_does_not(served: Gateway) -> None:
    async with connected(served.port) as wire:
        await wire.send(head_of("Expect: 100-continue", "Content-Length: 5"))
        assert (await wire.reply()).status == 100
        check(await wire.reply(), 408, "request_timeout")


PASSED_ON = "/providers/p0/v1/chat/completions"


@pytest.mark.parametrize("path", ["/health/live", "/v1/models", "/nothing/here", PASSED_ON])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_nobody_can_expect_here_is_refused(
    served: Gateway, path: str, method: str
) -> None:
    lines = ("Expect: the-inquisition", "Content-Length: 5")
    reply = await ask(served.port, head_of(*lines, path=path, method=method) + b"hello")
    check(reply, 417, "expectation_failed")


@pytest.mark.parametrize("body", [b"", GOOD])
async def test_nor_can_it_be_expected_of_a_model(
    served: Gateway, provider: UpstreamThread, body: bytes
) -> None:
    head = head_of("Expect: the-inquisition", f"Content-Length: {len(GOOD)}")
    await refused_and_closed(served, head + body, 417, "expectation_failed")
    assert provider.received == []


@pytest.mark.parametrize("path", [CHAT_PATH, PASSED_ON])
async def test_nobody_is_told_to_continue_who_does_not_know_of_it(
    served: Gateway, path: str
) -> None:
    lines = ("Expect: 100-continue", f"Content-Length: {len(GOOD)}", JSON)
    async with connected(served.port) as wire:
        await wire.send(head_of(*lines, path=path, version="1.0"))
        await asyncio.sleep(BODY_SECONDS / 4)
        await wire.send(GOOD)
        assert (await wire.reply()).status == 200


# -- every answer has an id ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(post(chat()), id="200"),
        pytest.param(post(b"{"), id="400"),
        pytest.param(b"!!!\r\n\r\n", id="400 http"),
        pytest.param(post(chat(), key=None), id="401"),
        pytest.param(post(chat("nope")), id="404"),
        pytest.param(head_of(path="/nope", method="GET"), id="404 path"),
        pytest.param(head_of(method="GET"), id="405"),
        pytest.param(post(b"", length=11 * MEBIBYTE), id="413"),
        pytest.param(head_of(*MANY), id="431"),
    ],
)
async def test_every_answer_has_an_id(served: Gateway, data: bytes) -> None:
    reply = await ask(served.port, data)
    assert re.fullmatch(r"req_[0-9a-f]{24}", reply.headers.get("x-request-id", "")), reply


async def test_no_answer_names_the_software_it_comes_from(served: Gateway) -> None:
    for data in (post(chat()), head_of(path="/v1/models", method="GET"), b"!!!\r\n\r\n"):
        told = (await ask(served.port, data)).headers.get("server", "")
        assert not re.search(r"\d", told), told
