"""A scriptable provider: a real HTTP server in the test's own event loop.

A test gives it a behaviour, a coroutine over the raw connection, so that any fault can be shown;
the default answers as OpenAI does. What was received is kept.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

MODEL = "gpt-4o-mini"


@dataclass
class Received:
    """One request as the provider saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


Behaviour = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request and the connection to answer it on."""

    request: Received
    writer: asyncio.StreamWriter
    keep_alive: bool = True
    reader: asyncio.StreamReader | None = None

    async def send(self, data: bytes) -> None:
        """Write raw bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(
        self, body: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """Write a whole reply."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"Content-Type": "application/json", **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        start = f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n{lines}\r\n"
        await self.send(start.encode() + content)

    async def start_stream(self) -> None:
        """Write the head of an event stream."""
        await self.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        """Write one chunk."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, content: Any) -> None:
        """Write one event in a chunk of its own."""
        text = content if isinstance(content, str) else json.dumps(content)
        await self.chunk(f"data: {text}\n\n".encode())

    async def end_stream(self) -> None:
        """Write the last chunk."""
        await self.send(b"0\r\n\r\n")

    async def gone(self) -> None:
        """Wait until the other side closes the connection."""
        assert self.reader is not None
        with contextlib.suppress(ConnectionError):
            await self.reader.read(1)

    def abort(self) -> None:
        """Cut the connection (RST)."""
        transport = self.writer.transport
        assert isinstance(transport, asyncio.WriteTransport)
        transport.abort()
        self.keep_alive = False


def usage(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    """A usage object as OpenAI's API has it."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def completion(text: str, used: dict[str, Any] | None) -> dict[str, Any]:
    """A whole chat completion."""
    reply: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
    }
    return reply if used is None else {**reply, "usage": used}


def delta(text: str | None, finish: str | None = None) -> dict[str, Any]:
    """One chunk of a chat stream."""
    part = {} if text is None else {"content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "delta": part, "finish_reason": finish}],
    }


def response(text: str) -> dict[str, Any]:
    """A whole reply of the Responses API: 7 prompt tokens, 3 of them cached; 5 written."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": "msg_1", "role": "assistant", "content": content}
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": MODEL,
        "output": [message],
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 3},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 12,
        },
    }


async def like_openai(exchange: Exchange) -> None:
    """Answer every operation properly: 7 prompt tokens, 3 of them cached; 5 words."""
    if exchange.request.method == "GET":
        listed = [{"id": MODEL, "object": "model"}, {"id": "house-model", "object": "model"}]
        await exchange.reply({"object": "list", "data": listed})
        return
    asked = exchange.request.json
    used = usage(7, 5, cached=3, reasoning=2)
    path = exchange.request.path.partition("?")[0]
    if path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}]
        spent = {"prompt_tokens": 7, "total_tokens": 7}
        await exchange.reply({"object": "list", "data": data, "model": MODEL, "usage": spent})
    elif not asked.get("stream"):
        words = "one two three four five"
        own = path.endswith("/responses")
        await exchange.reply(response(words) if own else completion(words, used))
    else:
        await exchange.start_stream()
        for word in ("one", " two", " three", " four", " five"):
            await exchange.event(delta(word))
        await exchange.event(delta(None, "stop"))
        if (asked.get("stream_options") or {}).get("include_usage"):
            await exchange.event({**delta(None), "choices": [], "usage": used})
        await exchange.event("[DONE]")
        await exchange.end_stream()


@dataclass
class Upstream:
    """The server. Use as an async context manager."""

    behaviour: Behaviour = like_openai
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    port: int = 0
    tls: ssl.SSLContext | None = None
    unix_path: str | None = None
    most_open: int = 0

    @property
    def url(self) -> str:
        """The base URL to configure."""
        if self.unix_path is not None:
            return f"unix://{self.unix_path}"
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        if self.unix_path is not None:
            self._server = await asyncio.start_unix_server(self._serve, self.unix_path)
        else:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", 0, backlog=1024, ssl=self.tls
            )
            self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open_connections += 1
        self.most_open = max(self.most_open, self.open_connections)
        try:
            while (request := await _read(reader)) is not None:
                self.received.append(request)
                exchange = Exchange(request, writer, reader=reader)
                await self.behaviour(exchange)
                if not exchange.keep_alive:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Received | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)
