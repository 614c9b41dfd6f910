"""Hot path: reads a request's head, where the direct lane can serve it.

What is unusual in any way is left to aiohttp, and so is everything that is wrong: one place decides
about errors. A client repeats its heads, so the newest are remembered.
"""

from functools import lru_cache

import httptools
import msgspec

from gateway.core.hints import NAMES, NO_HINTS, Hints
from gateway.core.operations import ANTHROPIC, PATHS, Operation

MAX_HEAD_BYTES = 8190
MAX_HEADERS = 100
MAX_LENGTH_DIGITS = 18
MAX_TRACE_CHARS = 55  # W3C Trace Context, version 00
# What Anthropic's API reads from a request's head.
PASSED_ON = ("anthropic-version", "anthropic-beta")
MAX_PASSED_CHARS = 1024
MAX_REMEMBERED = 256  # of 8 KB at the most

# Fields that ask for something that aiohttp does.
_UNUSUAL = frozenset(
    (b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"sec-websocket-key")
)
_HINTS = frozenset([name.encode() for name in NAMES])


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """The head of a POST to a hot route with a sized body on a connection that stays open."""

    operation: Operation
    secret: str | None
    length: int
    trace: str = ""
    passed_on: tuple[tuple[str, str], ...] = ()
    hints: Hints = NO_HINTS


class _Reader:
    """Takes httptools' callbacks."""

    __slots__ = ("headers", "unusual", "url")

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.unusual = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.unusual = self.unusual or name in self.headers or len(self.headers) == MAX_HEADERS
        if not self.unusual:
            self.headers[name] = value


@lru_cache(maxsize=MAX_REMEMBERED)
def request_head(data: bytes) -> RequestHead | None:
    """Parse a head with its empty line; None for one that aiohttp should have."""
    if len(data) > MAX_HEAD_BYTES:
        return None
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    if parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
        return None
    headers = reader.headers
    operation = PATHS.get(reader.url.partition(b"?")[0].decode("latin-1"))
    length = headers.get(b"content-length", b"")
    connection = headers.get(b"connection", b"keep-alive").strip().lower()
    if (
        reader.unusual
        or operation is None
        or not length.isdigit()
        or len(length) > MAX_LENGTH_DIGITS
        or connection != b"keep-alive"
        or b"host" not in headers
        or not _UNUSUAL.isdisjoint(headers)
    ):
        return None
    trace = _header(headers.get(b"traceparent", b""), MAX_TRACE_CHARS)
    passed_on: tuple[tuple[str, str], ...] = ()
    if operation in ANTHROPIC:
        passed_on = tuple(
            [(n, _header(headers[n.encode()])) for n in PASSED_ON if n.encode() in headers]
        )
    hints = NO_HINTS
    if not _HINTS.isdisjoint(headers):
        hints = Hints(*[_header(headers.get(name.encode(), b"")) for name in NAMES])
    return RequestHead(operation, _secret(headers), int(length), trace, passed_on, hints)


def _header(value: bytes, most: int = MAX_PASSED_CHARS) -> str:
    return printable(value.decode("ascii", "replace"), most)


def printable(value: str, most: int = MAX_PASSED_CHARS) -> str:
    """Return a header's value as it may go along: printable ASCII, and not endless; or empty."""
    text = value[:most]
    return text if text.isascii() and text.isprintable() else ""


def _secret(headers: dict[bytes, bytes]) -> str | None:
    bearer = headers.get(b"authorization")
    if bearer is not None:
        scheme, _, secret = bearer.partition(b" ")
        if scheme.lower() == b"bearer":
            return _text(secret.strip())
    key = headers.get(b"x-api-key") or headers.get(b"api-key")
    return None if key is None else _text(key.strip())


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
