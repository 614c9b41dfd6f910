"""What passed through is settled before the client has the last of it, however it is framed."""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import pytest
from aiohttp import ClientResponse, web

from gateway.http import passthrough
from gateway.http.passthrough import _relay
from gateway.pipeline.passthrough import Passage


class Sides:
    """An answer on its way: what happened, in order."""

    def __init__(self, parts: Iterable[bytes], length: int | None) -> None:
        self.parts, self.content_length = list(parts), length
        self.happened: list[Any] = []
        self.status, self.content, self.secrets = 200, self, ("sk-secret",)
        self.careful = self.framed = False

    async def readany(self) -> bytes:
        return self.parts.pop(0) if self.parts else b""

    async def write(self, data: bytes) -> None:
        self.happened.append(data)

    async def write_eof(self) -> None:
        self.happened.append("eof")

    def see(self, data: bytes) -> None:
        """Take what was seen."""

    async def pay_on(self) -> None:
        """Need no more."""

    def end(self, status: int, outcome: str, error: str = "", failure: str = "") -> None:
        if "end" not in self.happened:
            self.happened.append("end")

    async def settled(self) -> None:
        if "settled" not in self.happened:
            self.happened.append("settled")


async def relayed(parts: Iterable[bytes], length: int | None) -> list[Any]:
    sides = Sides(parts, length)
    reply = cast(ClientResponse, sides)
    await _relay(reply, cast(web.StreamResponse, sides), cast(Passage, sides), 5)
    return sides.happened


async def test_the_last_byte_waits_where_the_length_is_known() -> None:
    assert await relayed([b"abc", b"def"], 6) == [b"abc", "end", "settled", b"def", "eof"]


async def test_the_end_waits_where_the_length_is_not_known() -> None:
    assert await relayed([b"abc", b"def"], None) == [b"abc", b"def", "end", "settled", "eof"]


@pytest.mark.parametrize("length", [5, None])
async def test_what_was_held_back_comes_before_the_end(length: int | None) -> None:
    happened = await relayed([b"ab", b"sk-"], length)
    assert b"".join([one for one in happened if isinstance(one, bytes)]) == b"absk-"
    assert happened[-1] == "eof"
    if length is None:
        assert happened == [b"ab", b"sk-", "end", "settled", "eof"]
    else:
        assert happened == [b"ab", "end", "settled", b"sk-", "eof"]


async def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stalled(Sides):
        async def write(self, data: bytes) -> None:
            await asyncio.sleep(3600)

    monkeypatch.setattr(passthrough, "STALLED_SECONDS", 0.01)
    sides = Stalled([b"abc", b"def"], 6)
    reply, answer = cast(ClientResponse, sides), cast(web.StreamResponse, sides)
    with pytest.raises(ConnectionResetError):
        await _relay(reply, answer, cast(Passage, sides), 5)
    assert sides.happened == []


async def test_an_empty_answer_is_settled_before_its_end() -> None:
    assert await relayed([], 0) == ["end", "settled", "eof"]
