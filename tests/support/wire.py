"""A client that sends exactly the bytes a test gives and reads replies one by one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tests.support.config import KEY

CHAT_PATH = "/v1/chat/completions"
WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Reply:
    """One reply; header names are lower-case, a chunked body is joined."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, in OpenAI's shape and nothing else."""
        assert self.headers["content-type"].startswith("application/json"), self
        assert set(self.json) == {"error"}, self
        error = self.json["error"]
        assert isinstance(error, dict)
        assert set(error) == {"message", "type", "param", "code"}, self
        assert isinstance(error["message"], str)
        assert error["message"]
        return error


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Write bytes; that the other side closed meanwhile shows in what is read."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    def half_close(self) -> None:
        """Send FIN: nothing more will be said."""
        self.writer.write_eof()

    async def reply(self, seconds: float = WAIT_SECONDS, method: str = "POST") -> Reply:
        """Read the next reply. Raises IncompleteReadError where the connection ends first."""
        async with asyncio.timeout(seconds):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head[:-4].decode("latin-1").split("\r\n")
            version, status, _ = first.split(" ", 2)
            headers: dict[str, str] = {}
            for line in lines:
                name, colon, value = line.partition(":")
                assert colon, f"not a header: {line!r}"
                assert name.lower() not in headers, f"twice: {name}"
                headers[name.lower()] = value.strip()
            if int(status) < 200 or method == "HEAD":
                return Reply(version, int(status), headers, b"")
            return Reply(version, int(status), headers, await self._body(headers))

    async def replies(self, seconds: float = WAIT_SECONDS) -> list[Reply]:
        """Read replies until the other side closes; a reset counts as a close."""
        found = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                found.append(await self.reply(seconds))
        return found

    async def is_closed(self, seconds: float = WAIT_SECONDS) -> bool:
        """Wait for the other side's close; False if it stays open. Data fails the test."""
        try:
            async with asyncio.timeout(seconds):
                more = await self.reader.read(1)
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        assert more == b"", f"more was said: {more!r}"
        return True

    async def aclose(self) -> None:
        """Close at once, with whatever was not sent."""
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return await self.reader.read()
        body = b""
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
            if size == 0:
                return body


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Wire]:
    """A connection to the gateway for the length of a block."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield wire
    finally:
        await wire.aclose()


def post(
    body: Any,
    *lines: str,
    path: str = CHAT_PATH,
    version: str = "1.1",
    key: str | None = KEY,
    length: int | None = None,
) -> bytes:
    """A request's bytes: `lines` are further header lines; bytes as a body go as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(content) if length is None else length
    head = head_of(*lines, f"Content-Length: {size}", path=path, version=version, key=key)
    return head + content


def head_of(
    *lines: str,
    path: str = CHAT_PATH,
    version: str = "1.1",
    key: str | None = KEY,
    method: str = "POST",
) -> bytes:
    """A request's head, to its empty line."""
    shown = [f"{method} {path} HTTP/{version}", "Host: sluice.test"]
    shown += [f"Authorization: Bearer {key}"] if key is not None else []
    return "\r\n".join([*shown, *lines, "", ""]).encode("latin-1")


def chunked(*parts: bytes, end: bool = True) -> bytes:
    """Chunked framing of the parts."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return framed + b"0\r\n\r\n" if end else framed


async def ask(port: int, data: bytes, seconds: float = WAIT_SECONDS) -> Reply:
    """Send one request on a connection of its own; return the first reply."""
    async with connected(port) as wire:
        await wire.send(data)
        return await wire.reply(seconds)
