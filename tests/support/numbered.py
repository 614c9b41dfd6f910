"""Requests with a number, answered with it: so tests see which answer belongs to which request."""

import asyncio
import threading
from typing import Any

from tests.support.config import chat
from tests.support.upstream import Exchange, completion, usage
from tests.support.wire import Reply, post

POLL_SECONDS = 0.005


def number(seed: int, *lines: str, **fields: Any) -> bytes:
    """A plain request that is answered with this number."""
    return post(chat(seed=seed, **fields), *lines)


async def by_number(exchange: Exchange) -> None:
    """The behaviour: answer with the request's number."""
    await exchange.reply(completion(str(exchange.request.json["seed"]), usage(1, 1)))


def said(replies: list[Reply]) -> list[Any]:
    """Of each reply its number, or what kind of object it is, or its error's code."""
    return [_said(reply) for reply in replies]


def _said(reply: Reply) -> Any:
    if reply.status != 200:
        return reply.error["code"]
    if "choices" in reply.json:
        return reply.json["choices"][0]["message"]["content"]
    return reply.json.get("object", reply.json.get("status"))


class Gate:
    """A behaviour: requests are answered with their numbers, but only once the gate is open."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self.asked = self.left = 0

    async def __call__(self, exchange: Exchange) -> None:
        assert exchange.reader is not None
        self.asked += 1
        while not self._opened.is_set():
            if exchange.reader.at_eof() or exchange.reader.exception() is not None:
                self.left += 1  # the gateway has closed
                exchange.keep_alive = False
                return
            await asyncio.sleep(POLL_SECONDS)
        await by_number(exchange)

    def open(self) -> None:
        """Answer, from any thread."""
        self._opened.set()

    async def until_asked(self, times: int = 1, seconds: float = 10.0) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(seconds):
            while self.asked < times:
                await asyncio.sleep(POLL_SECONDS)

    async def until_left(self, times: int = 1, seconds: float = 10.0) -> None:
        """Wait until so many have been given up on."""
        async with asyncio.timeout(seconds):
            while self.left < times:
                await asyncio.sleep(POLL_SECONDS)
