"""A fast mock of an OpenAI upstream: ready-made answers over a raw protocol.

Streams are chunked, one event a write, paced by loop timers. It checks no key, validates nothing.
Started as `python -m tests.bench.upstream --port 0`, it prints its port and serves until ended.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import httptools
import uvloop

from .traffic import CHAT_PATH, DONE_EVENT

_STREAM = re.compile(rb'"stream"\s*:\s*true')
_INCLUDE_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
_LAST_CHUNK = b"0\r\n\r\n"
_ID = "chatcmpl-Bq7hT2mZkX9sWc4vR1yLdE8nUoP3"
_CREATED_S = 1_763_700_000
_MODEL = "gpt-4o-mini-2024-07-18"
_USAGE = {"prompt_tokens": 41, "completion_tokens": 100, "total_tokens": 141}
_SENTENCE = (
    "Flat land slows the water, so small bends are eaten outward faster than they are cut through."
)


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _answer(value: object, status: str = "200 OK") -> bytes:
    body = _encode(value)
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "x-request-id: req_8d1f0c52\r\nopenai-processing-ms: 1\r\n\r\n"
    )
    return head.encode() + body


def _completion(kind: str, choice: dict[str, object]) -> bytes:
    return _answer(
        {
            "id": _ID,
            "object": kind,
            "created": _CREATED_S,
            "model": _MODEL,
            "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": "stop"}],
            "usage": _USAGE,
        }
    )


_UNARY = {
    CHAT_PATH: _completion(
        "chat.completion", {"message": {"role": "assistant", "content": _SENTENCE}}
    ),
    "/v1/completions": _completion("text_completion", {"text": _SENTENCE}),
    "/v1/embeddings": _answer(
        {
            "object": "list",
            "model": "text-embedding-3-small",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.0125, -0.5, 0.25] * 8}],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        }
    ),
    "/v1/models": _answer(
        {"object": "list", "data": [{"id": _MODEL, "object": "model", "owned_by": "openai"}]}
    ),
}
_NOT_FOUND = _answer({"error": {"message": "no such route", "code": None}}, "404 Not Found")
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\ncache-control: no-cache\r\nx-request-id: req_8d1f0c52\r\n\r\n"
)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _deltas(chunks: int) -> Iterator[dict[str, object]]:
    words = _SENTENCE.split()
    yield {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    for position in range(chunks - 2):
        content = " " + words[position % len(words)]
        yield {"delta": {"content": content}, "finish_reason": None}
    yield {"delta": {}, "finish_reason": "stop"}


def stream_events(chunks: int, *, include_usage: bool) -> tuple[bytes, ...]:
    """The framed events of one stream of at least two chunks: role, words, finish, [usage], [DONE].

    With include_usage every chunk carries `"usage":null`, as OpenAI sends it.
    """
    common: dict[str, object] = {
        "id": _ID,
        "object": "chat.completion.chunk",
        "created": _CREATED_S,
        "model": _MODEL,
        "system_fingerprint": "fp_44f3b9a1c7",
    }
    no_usage: dict[str, object] = {"usage": None} if include_usage else {}
    values = [
        {**common, "choices": [{"index": 0, **delta}], **no_usage} for delta in _deltas(chunks)
    ]
    if include_usage:
        values.append({**common, "choices": [], "usage": _USAGE})
    events = [b"data: %s\n\n" % _encode(value) for value in values]
    return tuple(_framed(event) for event in (*events, DONE_EVENT))


@dataclass(frozen=True)
class Script:
    """What every stream says and how fast; gap_s is the pause between two chunks."""

    plain: tuple[bytes, ...]
    with_usage: tuple[bytes, ...]
    gap_s: float


class Conversation(asyncio.Protocol):
    """One client connection, one request at a time."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._path = ""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports implement asyncio.Transport without inheriting from it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def on_url(self, url: bytes) -> None:
        self._path = url.decode()
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if _STREAM.search(self._body) is None:
            self._transport.write(_UNARY.get(self._path, _NOT_FOUND))
            return
        with_usage = _INCLUDE_USAGE.search(self._body) is not None
        events = self._script.with_usage if with_usage else self._script.plain
        self._transport.write(_STREAM_HEAD)
        self._send_next(iter(events))

    def _send_next(self, events: Iterator[bytes]) -> None:
        # A stream is 25 kB: little enough for the transport's buffer when the reader is slow.
        event = next(events, None)
        if event is None:
            self._timer = None
            self._transport.write(_LAST_CHUNK)
            return
        self._transport.write(event)
        self._timer = self._loop.call_later(self._script.gap_s, self._send_next, events)


async def _serve(host: str, port: int, script: Script) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Conversation(script), host, port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="a fast mock of an OpenAI upstream")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--gap-ms", type=float, default=1.0, help="loop timers tick in whole ms")
    parser.add_argument("--chunks", type=int, default=100)
    options = parser.parse_args()
    script = Script(
        plain=stream_events(options.chunks, include_usage=False),
        with_usage=stream_events(options.chunks, include_usage=True),
        gap_s=options.gap_ms / 1000,
    )
    uvloop.run(_serve(options.host, options.port, script))


if __name__ == "__main__":
    main()
