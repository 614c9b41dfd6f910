"""Bodies whose framing is damaged after they began: refused at once, whoever reads them."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.upstream import Exchange, Upstream, like_openai
from tests.support.wire import CHAT_PATH, Reply, chunked, connected, head_of

CHUNKED = "Transfer-Encoding: chunked"
GOOD = json.dumps(chat()).encode()
BEGUN = chunked(GOOD, end=False)
PATIENCE = {"request_timeout": 60}
DAMAGED = {
    "a size": b"zz\r\n",
    "a chunk longer than it says": b"5\r\nhellooo\r\n",
    "a trailer without a colon": b"0\r\nabc\r\n\r\n",
    "a trailer that is too long": b"0\r\nX: " + b"y" * 60_000,
    "a length behind it": b"0\r\nContent-Length: 9\r\n\r\n",
}


@pytest.fixture
async def served(upstream: Upstream) -> AsyncIterator[Gateway]:
    with running(config(upstream.url, server=PATIENCE)) as gateway:
        yield gateway
        assert '"level":"error"' not in gateway.log_file.read_text()


def malformed(reply: Reply) -> bool:
    return (reply.status, reply.error["code"]) == (400, "invalid_http")


async def test_what_is_held_is_refused(served: Gateway, upstream: Upstream) -> None:
    for damage in DAMAGED.values():
        for path in (CHAT_PATH, "/providers/p0/v1/chat/completions"):
            async with connected(served.port) as wire:
                await wire.send(head_of(CHUNKED, "Content-Type: application/json", path=path))
                for part in (BEGUN, damage):
                    await asyncio.sleep(0.1)
                    await wire.send(part)
                reply = await wire.reply()
                assert malformed(reply), reply
                assert await wire.is_closed(5)
    assert upstream.received == []


async def test_what_is_passed_on_as_it_comes_is_cut(upstream: Upstream) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            heard.put_nowait(data)
        heard.put_nowait(b"")
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as provider:
        port = provider.sockets[0].getsockname()[1]
        with running(config(f"http://127.0.0.1:{port}/v1", server=PATIENCE)) as gateway:
            async with connected(gateway.port) as wire:
                await wire.send(head_of(CHUNKED, path="/providers/p0/v1/files") + BEGUN)
                async with asyncio.timeout(10):
                    seen = b""
                    while GOOD not in seen:
                        seen += await heard.get()
                    await wire.send(DAMAGED["a size"])
                    reply = await wire.reply()
                    assert malformed(reply), reply
                    while data := await heard.get():
                        seen += data
                assert not seen.endswith(b"0\r\n\r\n")
                assert await wire.is_closed(5)


async def test_what_waits_behind_another_request_is_refused_after_it(
    served: Gateway, upstream: Upstream
) -> None:
    go_on = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await go_on.wait()
        await like_openai(exchange)

    upstream.behaviour = held
    async with connected(served.port) as wire:
        head = head_of(CHUNKED)
        await wire.send(head + chunked(GOOD) + head + BEGUN)
        async with asyncio.timeout(10):
            while not upstream.received:
                await asyncio.sleep(0.01)
        await wire.send(DAMAGED["a size"])
        await asyncio.sleep(0.1)
        go_on.set()
        assert (await wire.reply()).status == 200
        reply = await wire.reply()
        assert malformed(reply), reply
        assert await wire.is_closed(5)
    assert len(upstream.received) == 1
