"""A lean provider for load: thousands of chat requests at once, each answered with its number.

A request's number is its `seed`. It runs in the test's own loop (`Lean`), or in a process of
its own (`lean_process`), which `POST /release` and `GET /state` command.
"""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import uvloop

from tests.support.gateway import ROOT
from tests.support.load import Outcome
from tests.support.soak import raise_file_limit
from tests.support.upstream import completion, delta, usage

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_SEED = re.compile(rb'"seed" *: *(\d+)')
_STREAM = re.compile(rb'"stream" *: *true')
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Script:
    """How it answers: seconds before anything; a stream's events of text and the pause after each.

    `held`: a stream does not end before the release. `size`: bytes of text in an event.
    """

    latency: float = 0.0
    events: int = 5
    gap: float = 0.0
    held: bool = False
    size: int = 8


def _chunk(content: Any) -> bytes:
    text = content if isinstance(content, str) else json.dumps(content)
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def words(number: int, script: Script) -> Iterator[str]:
    """The texts of a stream's events: together they say the request's number."""
    for place in range(script.events):
        yield f"{number}.{place} ".ljust(script.size, "x")


def is_whole(outcome: Outcome, script: Script) -> bool:
    """Whether a stream said all that it was to say to this very request, once, and ended."""
    if (outcome.status, outcome.failure, outcome.events[-1:]) != (200, "", ["[DONE]"]):
        return False
    choices = [one for event in outcome.events[:-1] for one in json.loads(event)["choices"]]
    said = [one["delta"].get("content", "") for one in choices]
    return "".join(said) == "".join(words(outcome.ask.body["seed"], script))


class _Conversation(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, lean: "Lean") -> None:
        self._lean, self._loop = lean, asyncio.get_running_loop()
        self._data, self._number = b"", -1
        self._paused: Iterator[str] | None = None
        self._full = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports implement asyncio.Transport without inheriting from it.
        self._transport = cast(asyncio.Transport, transport)
        self._lean.transports.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lean.transports.discard(self._transport)
        self._lean.lost[self._number] = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        texts, self._paused = self._paused, None
        if texts is not None:
            self._next(texts)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or len(body) < int(length[1] if length else 0):
            return
        self._data = b""
        if head.startswith((b"POST /release", b"GET /state")):
            self._control(release=head.startswith(b"POST"))
            return
        self._lean.asked += 1
        seed = _SEED.search(body)
        self._number = int(seed[1]) if seed else 0
        streams = _STREAM.search(body) is not None
        self._lean.streams += streams
        answer = self._stream if streams else self._reply
        if self._lean.script.latency:
            self._timer = self._loop.call_later(self._lean.script.latency, answer)
        else:
            answer()

    def _control(self, release: bool) -> None:
        if release:
            self._lean.release()
        state = {"asked": self._lean.asked, "open": len(self._lean.transports) - 1}
        self._send_whole(state)

    def _send_whole(self, value: object) -> None:
        body = json.dumps(value).encode()
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def _reply(self) -> None:
        self._send_whole(completion(str(self._number), usage(7, 5)))

    def _stream(self) -> None:
        self._transport.write(_STREAM_HEAD)
        self._next(words(self._number, self._lean.script))

    def _next(self, texts: Iterator[str]) -> None:
        script = self._lean.script
        while not self._full:
            text = next(texts, None)
            if text is None:
                self._end(texts)
                return
            self._transport.write(_chunk(delta(text)))
            if script.gap:
                self._timer = self._loop.call_later(script.gap, self._next, texts)
                return
        self._paused = texts

    def _end(self, texts: Iterator[str]) -> None:
        script = self._lean.script
        if script.held and not self._lean.released:
            self._timer = self._loop.call_later(0.1, self._next, texts)
            return
        used = {**delta(None), "choices": [], "usage": usage(7, script.events)}
        ends = (delta(None, "stop"), used, "[DONE]")
        self._transport.write(b"".join([_chunk(one) for one in ends]) + b"0\r\n\r\n")


class Lean:
    """The provider. `lost`: when the connection of each request was closed, if it was.

    `streams`: how many of what it was `asked` were asked for as one.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.transports = set[asyncio.Transport]()
        self.lost = dict[int, float]()
        self.asked = self.streams = self.port = 0
        self.released = False

    @property
    def url(self) -> str:
        """The base URL to configure."""
        return f"http://127.0.0.1:{self.port}/v1"

    def release(self) -> None:
        """Let held streams end."""
        self.released = True

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Conversation(self), "127.0.0.1", 0, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for transport in tuple(self.transports):
            transport.abort()
        await self._server.wait_closed()


class LeanProcess:
    """The provider in a process of its own, seen from the test."""

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def url(self) -> str:
        """The base URL to configure."""
        return f"http://127.0.0.1:{self._port}/v1"

    def state(self) -> dict[str, int]:
        """How many requests it was `asked`, and how many connections are `open`."""
        return self._command("GET", "/state")

    def release(self) -> None:
        """Let held streams end."""
        self._command("POST", "/release")

    def _command(self, method: str, path: str) -> dict[str, int]:
        url = f"http://127.0.0.1:{self._port}{path}"
        request = urllib.request.Request(url, b"" if method == "POST" else None, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            state: dict[str, int] = json.load(reply)
            return state


@contextlib.contextmanager
def lean_process(script: Script) -> Iterator[LeanProcess]:
    """Run it in a process of its own for the length of a block."""
    command = [sys.executable, "-m", "tests.support.lean", json.dumps(asdict(script))]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield LeanProcess(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait(STOP_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


async def _serve(script: Script) -> None:
    async with Lean(script) as lean:
        print(lean.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    raise_file_limit()
    uvloop.run(_serve(Script(**json.loads(sys.argv[1]))))
