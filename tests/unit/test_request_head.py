"""Heads of requests: plain ones are read as aiohttp reads them, all others are left to it."""

import asyncio
from collections.abc import Iterator
from random import Random

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.operations import PATHS, Operation
from gateway.http.hot import secret_of
from gateway.http.request_head import MAX_HEAD_BYTES, MAX_HEADERS, RequestHead, request_head
from tests.support.config import chat
from tests.support.wire import CHAT_PATH, post

LENGTH = "Content-Length: 5"
HOST = "Host: sluice.test"
KEY = "Authorization: Bearer sk-1"
START = f"POST {CHAT_PATH} HTTP/1.1"


def head(*lines: str, start: str = START) -> bytes:
    return "\r\n".join([start, *lines, "", ""]).encode("latin-1")


PLAIN = head(HOST, KEY, LENGTH)
SDK = [
    *("Accept-Encoding: gzip, deflate", "Connection: keep-alive", "Accept: application/json"),
    *("Content-Type: application/json", "User-Agent: OpenAI/Python 2.8.0", "X-Stainless-Lang: py"),
    *("X-Stainless-Raw-Response: ", "x-stainless-read-timeout: 600", "Idempotency-Key: retry-1"),
]
OPENAI_PYTHON = head(HOST, *SDK, KEY, LENGTH)
OPENAI_NODE = head(
    *(line.lower() for line in SDK), KEY.replace("A", "a"), "host:a", "content-length:5"
)


def with_headers(count: int) -> bytes:
    return head(HOST, LENGTH, *(f"x-{i}: y" for i in range(count - 2)))


def of_size(size: int) -> bytes:
    return head(HOST, LENGTH, "x: " + "y" * (size - len(head(HOST, LENGTH, "x: "))))


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [PLAIN, OPENAI_PYTHON, OPENAI_NODE], ids=["bare", "py", "node"])
def test_a_head_as_sdks_send_it_is_read(data: bytes) -> None:
    read = request_head(data)
    assert read is not None
    assert (read.operation, read.secret, read.length) == (Operation.CHAT, "sk-1", 5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("query", ["", "?", "?api-version=2024-10-21", "?a?b/c=%zz", "?x=//["])
def test_a_query_changes_nothing(path: str, query: str) -> None:
    read = request_head(head(HOST, LENGTH, start=f"POST {path}{query} HTTP/1.1"))
    assert read is not None
    assert read.operation is PATHS[path]


@pytest.mark.parametrize(
    ("lines", "secret"),
    [
        ([], None),
        (["Authorization: Bearer sk-1"], "sk-1"),
        (["AUTHORIZATION: bEARER   sk-1  "], "sk-1"),
        (["x-api-key: sk-1"], "sk-1"),
        (["api-key:\tsk-1"], "sk-1"),
        (["Authorization: Basic eA==", "api-key: sk-1"], "sk-1"),
        (["Authorization: Bearer sk-1", "x-api-key: sk-2", "api-key: sk-3"], "sk-1"),
        (["api-key: sk-3", "x-api-key: sk-2"], "sk-2"),
        (["x-api-key:", "api-key: sk-3"], "sk-3"),
        (["Authorization: Bearer "], ""),
        (["Authorization: Basic eA=="], None),
        (["x-api-key: \xc3\xb6"], "ö"),
        (["x-api-key: \xff"], "\udcff"),
    ],
)
def test_a_key_is_found_in_each_of_its_places(lines: list[str], secret: str | None) -> None:
    read = request_head(head(HOST, *lines, LENGTH))
    assert read is not None
    assert (read.secret or None) == (secret or None)


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
def test_the_whitespace_behind_a_key_is_no_part_of_it(name: str) -> None:
    # RFC 9110 section 5.5: a field value does not include trailing whitespace.
    read = request_head(head(HOST, f"{name}: sk-1 \t", LENGTH))
    assert read is not None
    assert read.secret == "sk-1"


@pytest.mark.parametrize(
    ("line", "length"),
    [("Content-Length: 0", 0), ("CONTENT-LENGTH:  007", 7), (f"content-length: {10**15}", 10**15)],
)
def test_the_length_is_what_is_declared(line: str, length: int) -> None:
    read = request_head(head(HOST, line))
    assert read is not None
    assert read.length == length


def test_a_length_with_thousands_of_zeros_is_no_accident() -> None:
    read = request_head(head(HOST, "Content-Length: " + "0" * 5000 + "5"))
    assert read is None or read.length == 5


def test_the_bounds_of_a_head_are_included() -> None:
    assert request_head(with_headers(MAX_HEADERS)) is not None
    assert len(of_size(MAX_HEAD_BYTES)) == MAX_HEAD_BYTES
    assert request_head(of_size(MAX_HEAD_BYTES)) is not None


def test_what_tests_send_is_a_plain_request() -> None:
    data = post(chat())
    at = data.index(b"\r\n\r\n") + 4
    read = request_head(data[:at])
    assert read is not None
    assert read.length == len(data) - at


# -- what is aiohttp's -----------------------------------------------------------------------------

UNUSUAL = {
    "GET": PLAIN.replace(b"POST", b"GET"),
    "HTTP/1.0": PLAIN.replace(b"1.1", b"1.0"),
    "HTTP/2.0": PLAIN.replace(b"1.1", b"2.0"),
    "no version": PLAIN.replace(b" HTTP/1.1", b""),
    "chunked": head(HOST, "Transfer-Encoding: chunked"),
    "chunked and sized": head(HOST, "Transfer-Encoding: chunked", LENGTH),
    "an empty transfer encoding": head(HOST, "transfer-encoding:", LENGTH),
    "gzip": head(HOST, LENGTH, "Content-Encoding: gzip"),
    "expect": head(HOST, LENGTH, "Expect: 100-continue"),
    "upgrade": head(HOST, LENGTH, "Connection: Upgrade", "Upgrade: websocket"),
    "upgrade without connection": head(HOST, LENGTH, "Upgrade: h2c"),
    "websocket": head(HOST, LENGTH, "Sec-WebSocket-Key: eA=="),
    "no length": head(HOST, KEY),
    "two lengths": head(HOST, LENGTH, "content-length: 6"),
    "a list of lengths": head(HOST, "Content-Length: 5, 5"),
    "plus": head(HOST, "Content-Length: +5"),
    "hexadecimal": head(HOST, "Content-Length: 0x5"),
    "other digits": head(HOST, "Content-Length: \xb2"),
    "a length past 64 bits": head(HOST, "Content-Length: " + "9" * 21),
    "space before the colon": head(HOST, "Content-Length : 5"),
    "a folded length": head(HOST, "Content-Length:", " 5"),
    "two hosts": head(HOST, HOST, LENGTH),
    "two keys": head(HOST, KEY, "authorization: Bearer sk-2", LENGTH),
    "two of anything": head(HOST, LENGTH, "x: 1", "X: 1"),
    "close": head(HOST, LENGTH, "Connection: close"),
    "Close, in a list": head(HOST, LENGTH, "connection: keep-alive, Close"),
    "no host": head(LENGTH),
    "unknown path": PLAIN.replace(b"/chat/", b"/chats/"),
    "percent-encoded": PLAIN.replace(b"/chat", b"%2Fchat"),
    "a fragment": PLAIN.replace(b"completions", b"completions#?"),
    "absolute form": PLAIN.replace(b"/v1", b"http://sluice.test/v1", 1),
    "another authority": PLAIN.replace(b"/v1", b"//sluice.test/v1", 1),
    "LF": PLAIN.replace(b"\r\n", b"\n")[:-2] + b"\r\n\r\n",
    "LF behind the request line": PLAIN.replace(b"1.1\r\n", b"1.1\n"),
    "LF behind a header": head(HOST + "\n" + KEY, LENGTH),
    "LF before the empty line": head(HOST, LENGTH)[:-4] + b"\n\r\n\r\n",
    "an end of LFs inside": head(HOST, LENGTH + "\n\nGET / HTTP/1.1"),
    "CR alone": head(HOST + "\rX: y", LENGTH),
    "obs-fold": head(HOST, "x: a", " b", LENGTH),
    "a fold of a tab": head(HOST, "x: a", "\tb", LENGTH),
    "a space before the first header": head(" " + HOST, LENGTH),
    "NUL": head(HOST, "x: a\0b", LENGTH),
    "a control character": head(HOST, "x: a\x07b", LENGTH),
    "a name that is no token": head(HOST, "x\xe9: b", LENGTH),
    "too many headers": with_headers(MAX_HEADERS + 1),
    "too long": of_size(MAX_HEAD_BYTES + 1),
    "not to its end": PLAIN[:-2],
    "garbage": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "nothing": b"",
    "empty lines": b"\r\n\r\n",
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_is_left_alone(data: bytes) -> None:
    assert request_head(data) is None
    assert request_head(data) is None  # the second time it is remembered


# -- any head --------------------------------------------------------------------------------------

FIELDS = [
    *("Host", "Content-Length", "content-length", "Authorization", "x-api-key", "API-KEY", "X-Y"),
    *("Connection", "Transfer-Encoding", "Expect", "Upgrade", "TE", "Trailer", "Keep-Alive"),
]
VALUES = [
    *("5", "007", "+5", "5,5", "a", "", "Bearer k", "bearer  k ", "Basic k", "Bearer\tk", "k k\t"),
    *("keep-alive", "Keep-Alive", "close", "chunked", "identity", "\xc3\xb6", "\xff", "\0", "a:b"),
]
TEXTS = st.text(st.characters(max_codepoint=255), max_size=5)
COLONS = st.sampled_from([":", ": ", ":\t", " : "])
LINES = st.lists(
    st.tuples(st.sampled_from(FIELDS), COLONS, st.sampled_from(VALUES) | TEXTS), max_size=4
)
STARTS = st.sampled_from([START, START, START.replace("POST ", "POST  "), START + " "]) | st.builds(
    "{} {}{} HTTP/1.{}".format,
    st.sampled_from(["POST", "GET"]),
    st.sampled_from([*PATHS, "/v1/chat", "http://a/v1/embeddings"]),
    st.sampled_from(["", "?", "?a=b", "#a", ";a"]),
    st.integers(0, 2),
)
ENDS = st.sampled_from(["\r\n"] * 9 + ["\n", "\r", "\r\n "])
Lines = list[tuple[str, str, str]]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """What aiohttp's parser wants to have; it never runs."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


def read_by_aiohttp(loop: asyncio.AbstractEventLoop, data: bytes) -> RawRequestMessage:
    """The one message that aiohttp finds; what follows it may be no part of it."""
    parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16, max_headers=MAX_HEADERS)
    messages, upgraded, rest = parser.feed_data(data)
    assert (len(messages), upgraded, rest) == (1, False, b"")
    message, payload = messages[0]
    assert payload.is_eof()
    assert isinstance(message, RawRequestMessage)
    return message


def declared(lines: Lines, *names: str) -> list[str]:
    return [value.strip(" \t") for name, _, value in lines if name.lower() in names]


@settings(max_examples=1000, deadline=None)
@given(start=STARTS, lines=LINES, plain=st.booleans(), end=ENDS, order=st.randoms())
def test_any_head_that_is_read_is_read_as_aiohttp_would(
    loop: asyncio.AbstractEventLoop,
    start: str,
    lines: Lines,
    plain: bool,
    end: str,
    order: Random,
) -> None:
    if plain:
        lines = [("Host", ": ", "a"), ("Content-Length", ": ", "5"), *lines]
        order.shuffle(lines)
    shown = [start, *("".join(line) for line in lines)]
    data = (end.join(shown) + "\r\n\r\n").encode("latin-1")
    read: RequestHead | None = request_head(data)
    if read is None:
        return
    assert [str(read.length)] == [v.lstrip("0") or "0" for v in declared(lines, "content-length")]
    assert declared(lines, "transfer-encoding", "expect", "upgrade") == []
    message = read_by_aiohttp(loop, data + b"x" * read.length)
    assert (message.should_close, message.upgrade, message.chunked) == (False, False, False)
    assert PATHS[message.path.partition("?")[0]] is read.operation
    assert secret_of(message.headers) == read.secret
