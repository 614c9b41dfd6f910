"""All providers at once, which do as a script says and remember what they did.

A request is known by a word in its prompt, which every word of its answer begins with: what came to
whom, and what was told of it, can be asked for afterwards.
"""

import asyncio
import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from tests.chaos.oracle_answers import DIALECTS, Figures, dialect_of
from tests.support.upstream import Exchange

NAME = re.compile(rb"Q[0-9a-f]{8}Z")
TICK_SECONDS = 0.005
COPIES = "copies"  # the provider that gets copies of requests


@dataclass(frozen=True)
class Step:
    """What becomes of one attempt: `do` is answer, refuse (with `status`), hang up or cut."""

    do: str = "answer"
    words: int = 5
    figures: Figures | None = None
    status: int = 500
    cut_at: int = 0  # after so many words
    delay: float = 0.0
    gap: float = 0.0


@dataclass
class Attempt:
    """What became of one attempt. Monotonic seconds."""

    name: str
    provider: str
    step: Step
    began: float
    ended: float = 0.0
    words: int = 0  # sent
    told: Figures | None = None
    whole: bool = False
    left: bool = False  # by the gateway

    @property
    def text(self) -> str:
        """What was generated and sent."""
        return "".join(words_of(self.name, self.words))


class Left(Exception):  # nothing went wrong
    """The gateway has closed the connection."""


def words_of(name: str, count: int) -> list[str]:
    """The words of an answer."""
    return [f"{name}w{number} " for number in range(count)]


def words_in(name: str, data: bytes) -> list[int]:
    """Which words of an answer there are in what a client has had, in order."""
    return [int(number) for number in re.findall(rb"%bw(\d+) " % name.encode(), data)]


@dataclass
class Providers:
    """A behaviour for `tests.support.upstream.Upstream`; providers are told by the path's start."""

    scripts: dict[str, list[Step]] = field(default_factory=dict)
    attempts: dict[str, list[Attempt]] = field(default_factory=lambda: defaultdict(list))
    copies: dict[str, list[Attempt]] = field(default_factory=lambda: defaultdict(list))
    unknown: list[str] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = exchange.request
        found = NAME.search(request.body)
        if found is None:
            self.unknown.append(request.path)
            await exchange.reply({"error": {"message": "who is this?"}}, 400)
            return
        name = found[0].decode()
        provider, script = request.path.split("/")[1], self.scripts[name]
        copied = provider == COPIES
        mine = (self.copies if copied else self.attempts)[name]
        step = script[-1 if copied else min(len(mine), len(script) - 1)]
        attempt = Attempt(name, provider, step, time.monotonic())
        mine.append(attempt)
        try:
            await self._wait(exchange, step.delay)
            await self._act(exchange, attempt)
        except (Left, ConnectionError):
            attempt.left = True
            exchange.keep_alive = False
        finally:
            attempt.ended = time.monotonic()

    @property
    def busy(self) -> bool:
        """Tell whether any attempt goes on."""
        everyone = chain.from_iterable((*self.attempts.values(), *self.copies.values()))
        return any(not one.ended for one in everyone)

    async def _wait(self, exchange: Exchange, seconds: float) -> None:
        """Let time pass, unless the gateway leaves."""
        assert exchange.reader is not None
        until = time.monotonic() + seconds
        while True:
            if exchange.reader.at_eof() or exchange.writer.is_closing():
                raise Left
            left = until - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(left, TICK_SECONDS))

    async def _act(self, exchange: Exchange, attempt: Attempt) -> None:
        step, path = attempt.step, exchange.request.path
        if step.do == "hang up":
            exchange.abort()
        elif step.do == "refuse":
            error = {"message": "not now", "type": "x", "code": None}
            await exchange.reply({"error": error}, step.status)
        elif exchange.request.json.get("stream") or "stream" in path:
            await self._stream(exchange, attempt, dialect_of(path))
        else:
            await self._whole(exchange, attempt, dialect_of(path))

    async def _whole(self, exchange: Exchange, attempt: Attempt, dialect: str) -> None:
        step = attempt.step
        told = step.figures.told_by(dialect) if step.figures else None
        words = words_of(attempt.name, step.words)
        body = json.dumps(DIALECTS[dialect].whole("".join(words), told)).encode()
        if step.do == "cut":
            head = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            await exchange.send(head % len(body) + body[: len(body) // 2])
            await self._break_off(exchange)
            return
        attempt.words = 0 if dialect == "embeddings" else len(words)
        attempt.told, attempt.whole = told, True
        await exchange.reply(body)

    async def _stream(self, exchange: Exchange, attempt: Attempt, dialect: str) -> None:
        step, written = attempt.step, DIALECTS[dialect]
        told = step.figures.told_by(dialect) if step.figures else None
        if dialect == "chat" and not _wants_usage(exchange.request.json):
            told = None
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
            % written.content_type.encode()
        )
        for piece in written.stream(words_of(attempt.name, step.words), told):
            if piece.word:
                if step.do == "cut" and attempt.words == step.cut_at:
                    await self._break_off(exchange)
                    return
                await self._wait(exchange, step.gap)
                attempt.words += 1
            if piece.figures:
                attempt.told = told
            await exchange.chunk(piece.data)
        attempt.whole = True
        await exchange.end_stream()

    async def _break_off(self, exchange: Exchange) -> None:
        await asyncio.sleep(2 * TICK_SECONDS)  # what was sent is read first
        exchange.abort()


def _wants_usage(asked: dict[str, Any]) -> bool:
    return bool((asked.get("stream_options") or {}).get("include_usage"))
