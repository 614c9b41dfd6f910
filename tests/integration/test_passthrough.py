"""A provider's own API behind the gateway: what arrives on either side, who may, what it costs.

Bytes in, bytes out: a raw client, and a provider of which a test sees every byte.
"""

import asyncio
import contextlib
import gzip
import hashlib
import json
import ssl
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme

from tests.integration.conftest import PATIENT, unused_port
from tests.support.config import KEY, PRICED_MODEL, config, digest
from tests.support.gateway import Gateway, running, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Behaviour, Exchange, Received, completion, delta, usage
from tests.support.wire import Reply, Wire, ask, chunked, connected, head_of

OWN = "sk-upstream-secret"
DATED = {"Anthropic-Version": "2024-01-01", "user-agent": "me"}
HASTY = {"connect": 1, "first_byte": 0.5, "idle": 0.5, "total": 1.5}
MOST_JSON, MOST_UPLOAD = 256 * 1024, 2 * 1024 * 1024
REQUEST_SECONDS = 1.5
HAIKU = "anthropic.claude-3-haiku-20240307-v1:0"
NARROW, FLASH, METERED, TOKENS, SINGLE, BUDGET, HOUSE, LIMITED = (
    f"sk-{name}-key"
    for name in ("narrow", "flash", "metered", "tokens", "single", "budget", "house", "limited")
)
PATTERNED, TWICE, THRICE, METERED_MODEL = (
    f"sk-{name}-key" for name in ("patterned", "twice", "thrice", "metered-model")
)
KEYS: list[dict[str, Any]] = [
    {"name": "k", "tenant": "acme", "sha256": digest(KEY)},
    {
        "name": "narrow",
        "sha256": digest(NARROW),
        "models": [PRICED_MODEL, "house", "gemini/*-flash", "azure/mini", f"aws/{HAIKU}", "taken"],
    },
    {"name": "flash", "sha256": digest(FLASH), "models": ["gemini/*"]},
    {"name": "metered", "sha256": digest(METERED), "rpm": 2},
    {"name": "tokens", "tenant": "counted", "sha256": digest(TOKENS), "tpm": 2000},
    {"name": "limited", "sha256": digest(LIMITED), "rpm": 1},
    {"name": "single", "sha256": digest(SINGLE), "concurrency": 1},
    {"name": "budget", "sha256": digest(BUDGET), "budget": {"usd": 1, "per": "day"}},
    {
        "name": "house",
        "sha256": digest(HOUSE),
        "per_model": {PRICED_MODEL: {"rpm": 1}, "openai/*": {"rpm": 2}},
    },
    *(
        {
            "name": name,
            "sha256": digest(f"sk-{name}-key"),
            "per_model": {PRICED_MODEL: {"rpm": 1}, "gpt-4o": {"rpm": 1}},
        }
        for name in ("patterned", "twice", "thrice")
    ),
    {
        "name": "metered-model",
        "sha256": digest(METERED_MODEL),
        "per_model": {PRICED_MODEL: {"budget": {"usd": 1, "per": "day"}}},
    },
]
JSON = "Content-Type: application/json"
CHAT = "openai/v1/chat/completions"


# -- the gateway, and both its sides ---------------------------------------------------------------


async def agrees(exchange: Exchange) -> None:
    """Answer anything."""
    await exchange.reply({"ok": True}, headers={"X-Theirs": "yes"})


@dataclass
class Passing:
    """A gateway and the provider behind it. `local` is a Unix socket on which nobody listens."""

    gateway: Gateway
    provider: UpstreamThread
    local: str
    last: str = "0"  # of Redis's entries, before a test
    trace: str = ""
    told: set[str] = field(default_factory=set)  # the requests that were answered by now
    earlier: set[str] = field(default_factory=set)  # of those, before a test: Redis may be late

    async def ask(
        self,
        method: str,
        path: str,
        *lines: str,
        body: bytes = b"",
        key: str | None = KEY,
    ) -> Reply:
        """Send one request on a connection of its own."""
        length = [f"Content-Length: {len(body)}"] if body else []
        head = self.head(*lines, *length, path=path, method=method, key=key)
        async with connected(self.gateway.port) as wire:
            await wire.send(head + body)
            reply = await wire.reply(method=method)
        self.told.add(reply.headers.get("x-request-id", ""))
        return reply

    async def post(self, path: str, content: Any, *lines: str, key: str | None = KEY) -> Reply:
        """Post JSON; bytes go as they are."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return await self.ask("POST", path, JSON, *lines, body=body, key=key)

    @property
    def received(self) -> list[Received]:
        """What the provider has had."""
        return self.provider.received

    def head(self, *lines: str, path: str, **options: Any) -> bytes:
        """A request's head, traced as this test's."""
        return head_of(f"traceparent: {self.trace}", *lines, path=f"/providers/{path}", **options)

    async def records(self, count: int) -> list[dict[str, Any]]:
        """What Redis has of the requests since the test began, once there are so many."""
        async with asyncio.timeout(10):
            while True:
                with contextlib.closing(self.gateway.store) as store:
                    entries = [
                        (key, entry)
                        for key, entry in store.xrange("sluice:requests", min=f"({self.last}")
                        if entry["id"] not in self.earlier
                    ]
                if len(entries) >= count:
                    break
                await asyncio.sleep(0.01)
        assert len(entries) == count
        found = [{k: int(v) if v.isdigit() else v for k, v in one.items()} for _, one in entries]
        assert {one["operation"] for one in found} == {"passthrough"}
        return found

    async def record(self) -> dict[str, Any]:
        """What Redis has of the one request of this test."""
        (only,) = await self.records(1)
        return only

    async def logged(self) -> dict[str, Any]:
        """The record of the one request of this test, with all that it has."""
        async with asyncio.timeout(10):
            while not (found := [r for r in self.gateway.records() if r["trace"] == self.trace]):
                await asyncio.sleep(0.05)
        (only,) = found
        return only


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Passing]:
    """The gateway; tests take `passing` instead."""
    directory = tmp_path_factory.mktemp("passing")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with ExitStack() as stack:
        provider = stack.enter_context(UpstreamThread())
        secure = stack.enter_context(UpstreamThread(behaviour=agrees, tls=context))
        host = provider.url.removesuffix("/v1")
        local = str(directory / "local.sock")
        rows: dict[str, dict[str, Any]] = {
            "openai": {"kind": "openai", "base_url": provider.url},
            "claude": {"kind": "anthropic", "base_url": provider.url},
            "gemini": {"kind": "gemini", "base_url": f"{host}/v1beta"},
            "azure": {"kind": "azure", "base_url": host},
            "aws": {"kind": "bedrock", "base_url": host, "region": "us-east-1"},
            "one": {"base_url": f"{host}/openai/deployments/v1"},  # which is a model's name
            "named": {"base_url": provider.url.replace("127.0.0.1", "localhost")},
            "closed": {"base_url": provider.url, "passthrough": False},
            "dead": {"base_url": f"http://127.0.0.1:{unused_port()}/v1"},
            "hasty": {"base_url": provider.url, "timeouts": HASTY},
            "idle": {"base_url": provider.url, "timeouts": {**PATIENT, "idle": 0.4}},
            "brisk": {"base_url": provider.url, "timeouts": {**PATIENT, "first_byte": 0.5}},
            "local": {"base_url": f"unix://{local}"},
            "secure": {
                "base_url": secure.url.replace("127.0.0.1", "localhost"),
                "ca_file": str(directory / "ca.pem"),
            },
            "far": {"base_url": "http://far.test/v1", "proxy": host.replace("//", "//me:pw@")},
            "ours": {"base_url": provider.url, "headers": {"X-Team": "ours", "X-Auth": OWN}},
            "dated": {"kind": "anthropic", "base_url": provider.url, "headers": DATED},
        }
        for row in rows.values():
            row |= {"kind": row.get("kind", "openai-compatible"), "api_key": OWN}
            row.setdefault("timeouts", PATIENT)
        models = {
            "house": {"targets": [{"provider": "openai", "model": PRICED_MODEL}]},
            "taken": {"targets": [{"provider": "named", "model": "llama"}]},
        }
        server = {
            "max_request_size": MOST_JSON,
            "max_upload_size": MOST_UPLOAD,
            "request_timeout": REQUEST_SECONDS,
        }
        text = config(auth={"keys": KEYS}, providers=rows, models=models, server=server)
        gateway = stack.enter_context(untroubled(text))
        yield Passing(gateway, provider, local)
        log = gateway.log_file.read_text() + gateway.errors
        assert not [key for key in (KEY, NARROW, BUDGET, OWN) if key in log]


@pytest.fixture
def passing(shared: Passing) -> Passing:
    """The gateway, with a provider that agrees to anything."""
    shared.gateway.settled()
    shared.provider.reset(agrees)
    shared.earlier |= shared.told
    with contextlib.closing(shared.gateway.store) as store:
        shared.last = next((key for key, _ in store.xrevrange("sluice:requests", count=1)), "0")
    shared.trace = f"00-{uuid.uuid4().hex}-{'1' * 16}-01"
    return shared


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(passing: Passing, talk: Talk) -> AsyncIterator[list[str]]:
    """A provider at the Unix socket; tells how its connections ended."""
    ended: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
            ended.append("whole")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            ended.append(type(error).__name__)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, passing.local)
    try:
        yield ended
    finally:
        server.close()
        await server.wait_closed()
        Path(passing.local).unlink(missing_ok=True)


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """A request's head."""
    return await reader.readuntil(b"\r\n\r\n")


CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"


async def raw_head(passing: Passing, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    """The head that a request with these header lines has at the provider."""
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await read_head(reader))
        await reader.readexactly(len(body))
        writer.write(CLOSING)
        await writer.drain()

    async with listening(passing, talk):
        reply = await passing.ask(method, "local/v1/x", *lines, body=body)
        assert reply.status == 200, reply
    return heads[0]


def names(head: bytes) -> list[bytes]:
    """The names of a head's fields, in lower case."""
    return [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line]


async def chunked_body(exchange: Exchange) -> bytes:
    """Read a chunked request's body."""
    assert exchange.reader is not None
    assert exchange.request.headers.get("transfer-encoding") == "chunked"
    body = b""
    while size := int(await exchange.reader.readuntil(b"\r\n"), 16):
        body += (await exchange.reader.readexactly(size + 2))[:-2]
    await exchange.reader.readexactly(2)
    return body


# -- what arrives at the provider ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "POST"])
async def test_every_method_goes_through(passing: Passing, method: str) -> None:
    async def tells(exchange: Exchange) -> None:
        content = b"" if method == "HEAD" else b'{"ok": true}'
        head = b"HTTP/1.1 200 Fine\r\nContent-Length: 12\r\nX-Theirs: yes\r\n\r\n"
        await exchange.send(head + content)

    passing.provider.reset(tells)
    body = b"" if method in ("GET", "HEAD", "OPTIONS", "DELETE") else b"some bytes"
    reply = await passing.ask(method, "openai/v1/files", body=body)
    (received,) = passing.received
    assert (received.method, received.path) == (method, "/v1/files")
    assert received.body == body
    assert reply.status == 200
    assert reply.body == (b"" if method == "HEAD" else b'{"ok": true}')
    assert reply.headers["content-length"] == "12"
    assert reply.headers["x-theirs"] == "yes"
    assert reply.headers["x-sluice-provider"] == "openai"
    record = await passing.record()
    assert reply.headers["x-request-id"] == record["id"]
    assert (record["outcome"], record["status"], record["provider"]) == ("ok", 200, "openai")


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "LINK"])
async def test_no_other_method_does(passing: Passing, method: str) -> None:
    """TRACE would show the client the provider's key."""
    reply = await passing.ask(method, "openai/v1/files")
    assert reply.status in (400, 404, 405)
    assert reply.error["type"] == "invalid_request_error"
    assert passing.received == []


PATHS = [
    ("openai/v1/files", "/v1/files"),
    ("openai/files", "/v1/files"),
    ("openai/", "/v1/"),
    ("openai/v1/v1/x", "/v1/v1/x"),
    ("openai/v1beta/x", "/v1beta/x"),
    ("openai/v1", "/v1"),
    ("openai/v1?x=1", "/v1?x=1"),
    ("openai/upload/v2/x?y=z", "/upload/v2/x?y=z"),
    ("openai/upload/x", "/v1/upload/x"),
    ("openai/x/v2/y", "/v1/x/v2/y"),
    ("openai/vector_stores", "/v1/vector_stores"),
    ("openai/v2%2Fx", "/v1/v2%2Fx"),
    ("openai/v2;a=b/x", "/v1/v2;a=b/x"),
    ("openai/%76%32/x", "/v1/%76%32/x"),
    ("gemini/v1/models/g:countTokens", "/v1/models/g:countTokens"),
    ("gemini/v1alpha/models/g:countTokens", "/v1alpha/models/g:countTokens"),
    ("gemini/upload/v1beta/files", "/upload/v1beta/files"),
    (
        "gemini/download/v1beta/files/f:download?alt=media",
        "/download/v1beta/files/f:download?alt=media",
    ),
    ("azure/v1/x", "/v1/x"),
    ("azure/upload/v1/x", "/upload/v1/x"),
    ("one/v1/chat/completions", "/openai/deployments/v1/chat/completions"),
    ("one/v2/chat/completions", "/openai/deployments/v1/v2/chat/completions"),
    ("one/upload/v2/x", "/openai/deployments/v1/upload/v2/x"),
    (
        "openai/files?purpose=a%20b&x=%2F&&y=+&z=%C3%A9&=",
        "/v1/files?purpose=a%20b&x=%2F&&y=+&z=%C3%A9&=",
    ),
    ("openai/files?after=%7Babc%7D&q=a/../b//c?d", "/v1/files?after=%7Babc%7D&q=a/../b//c?d"),
    ("openai/files/a%2Fb%20c%25/content", "/v1/files/a%2Fb%20c%25/content"),
    ("openai/files/%E4%BD%A0%e4%bd%a0", "/v1/files/%E4%BD%A0%e4%bd%a0"),
    ("openai/files/a+b~c!$&'()*,=:@d", "/v1/files/a+b~c!$&'()*,=:@d"),
    ("openai/files/a;v=1/b", "/v1/files/a;v=1/b"),
    ("openai/files/%41%7e%2D", "/v1/files/%41%7e%2D"),
    ("openai/files//x///", "/v1/files//x///"),
    ("openai/files/...", "/v1/files/..."),
    ("openai/files/a..b/.c/d.", "/v1/files/a..b/.c/d."),
    ("openai//evil.test/x", "/v1//evil.test/x"),
    ("openai/http://evil.test/x", "/v1/http://evil.test/x"),
    ("openai/@evil.test/x", "/v1/@evil.test/x"),
    ("openai/files#../../x", "/v1/files"),
    ("%6Fpenai/files", "/v1/files"),
    ("gemini/v1beta/models/g:countTokens?key=", "/v1beta/models/g:countTokens?key="),
    (
        f"aws/model/{HAIKU.replace(':', '%3A')}/converse",
        f"/model/{HAIKU.replace(':', '%3A')}/converse",
    ),
]


@pytest.mark.parametrize(("asked", "arrives"), PATHS)
async def test_a_path_arrives_as_it_was_written(passing: Passing, asked: str, arrives: str) -> None:
    assert (await passing.ask("GET", asked)).status == 200
    assert [one.path for one in passing.received] == [arrives]


TARGETS = [
    ("http://evil.test/providers/openai/files/1", "/v1/files/1"),
    ("http://evil.test:99/providers/openai/files?x=/providers/y/z", "/v1/files?x=/providers/y/z"),
    ("http://providers/providers/openai/files", "/v1/files"),
    ("http://x@evil.test/providers/openai//providers/a/b", "/v1//providers/a/b"),
    ("/%70roviders/openai/files", "/v1/files"),
    ("/providers/openai/providers/openai/files", "/v1/providers/openai/files"),
]


@pytest.mark.parametrize(("target", "arrives"), TARGETS)
async def test_a_target_in_another_form(passing: Passing, target: str, arrives: str) -> None:
    """The absolute form (RFC 9112 section 3.2.2), and encoding where none is needed."""
    reply = await ask(passing.gateway.port, head_of(path=target, method="GET"))
    assert reply.status == 200
    (received,) = passing.received
    assert received.path == arrives
    assert received.headers["host"] == f"127.0.0.1:{passing.provider.upstream.port}"


UPWARDS = [
    *("..", "../", "../x", "a/../../x", "a/..", "./x", "a/./x", "."),
    *("%2e%2e/x", "%2E%2e/x", ".%2e/x", "%2e./x", "a/%2E%2E", "%2e/x"),
    *("%252e%252e/x", "%25252e%25252e/x", "..%2fx", "a%2f..%2f..%2fx", "..%252fx", "a%2F.."),
    *("..%5cx", "a%5c..%5c..%5cx", "..;/x", "..;a=b/x", "..%3b/x", "a/..%3Bx/y", "v1/../../x"),
    *("..%5c", "%2e%2e%5c%2e%2e%5cx", "..%00/x", "a%00b", "a%0d%0aX-Evil:%201", "%7f", "%250a"),
]


@pytest.mark.parametrize("path", UPWARDS)
async def test_a_path_never_leads_upwards(passing: Passing, path: str) -> None:
    """As any server behind may read it: decoded, with backslashes, with parameters."""
    for method in ("GET", "POST"):
        reply = await passing.ask(method, f"openai/{path}")
        assert reply.status == 404, path
        assert reply.error["code"] == "not_found"
    assert passing.received == []


@pytest.mark.parametrize(
    "path", [b"..\\x", b"a\\..\\..\\x", b".\xff./x", b"\xff/x", b"\xc3\xa9", b"a\x7f", b"a b"]
)
async def test_what_no_path_may_hold_is_refused(passing: Passing, path: bytes) -> None:
    """RFC 3986: a byte that is dropped on the way would make another path of it."""
    head = b"GET /providers/openai/" + path + b" HTTP/1.1\r\nHost: a\r\n"
    reply = await ask(passing.gateway.port, head + f"Authorization: Bearer {KEY}\r\n\r\n".encode())
    assert reply.status in (400, 404)
    assert reply.error
    assert passing.received == []


async def test_a_body_arrives_byte_for_byte(passing: Passing) -> None:
    text = b' {"b" :1,\n"a": "\\u00e9\xc3\xa9", "n": 1.0e5, "n":2 }\n'
    await passing.ask(
        "POST", "openai/x", "Content-Type: application/json; charset=utf-8", body=text
    )
    await passing.ask("PUT", "openai/x", "Content-Type: image/png", body=bytes(range(256)) * 300)
    await passing.ask("POST", "openai/x", body=b"of no type")
    json_one, png, plain = passing.received
    assert json_one.body == text
    assert json_one.headers["content-type"] == "application/json; charset=utf-8"
    assert png.body == bytes(range(256)) * 300
    assert png.headers["content-type"] == "image/png"
    assert plain.body == b"of no type"
    assert "content-type" not in plain.headers


async def test_a_length_that_is_known_is_told(passing: Passing) -> None:
    """Some providers answer a chunked upload with 411."""
    await passing.ask("POST", "openai/files", "Content-Type: multipart/form-data", body=b"x" * 9999)
    await passing.ask("POST", "openai/files/1/cancel", "Content-Length: 0")
    upload, empty = passing.received
    assert upload.headers["content-length"] == "9999"
    assert "transfer-encoding" not in upload.headers
    assert empty.headers["content-length"] == "0"


async def test_a_chunked_body_arrives_chunked_or_whole(passing: Passing) -> None:
    bodies: list[bytes] = []

    async def reads(exchange: Exchange) -> None:
        if "content-length" in exchange.request.headers:
            bodies.append(exchange.request.body)
        else:
            bodies.append(await chunked_body(exchange))
        await exchange.reply({"ok": True})

    passing.provider.reset(reads)
    for kind in ("audio/wav", "application/json"):
        head = passing.head(f"Content-Type: {kind}", "Transfer-Encoding: chunked", path="openai/x")
        assert (await ask(passing.gateway.port, head + chunked(b"[1,", b" 2]"))).status == 200
    assert bodies == [b"[1, 2]", b"[1, 2]"]


@pytest.mark.parametrize("kind", ["application/json", "audio/wav"])
async def test_a_compressed_body_is_what_it_says_it_is(passing: Passing, kind: str) -> None:
    """aiohttp unpacks what it is sent; then the head must not say otherwise."""
    content = json.dumps({"model": PRICED_MODEL, "text": "x" * 1000}).encode()
    lines = (f"Content-Type: {kind}", "Content-Encoding: gzip")
    bodies = []

    async def reads(exchange: Exchange) -> None:
        chunks = "transfer-encoding" in exchange.request.headers
        body = await chunked_body(exchange) if chunks else exchange.request.body
        packed = exchange.request.headers.get("content-encoding") == "gzip"
        bodies.append(gzip.decompress(body) if packed else body)
        await exchange.reply({"ok": True})

    passing.provider.reset(reads)
    reply = await passing.ask("POST", "openai/x", *lines, body=gzip.compress(content))
    assert reply.status == 200
    assert bodies == [content]


# -- headers ---------------------------------------------------------------------------------------

SECRETS = [
    (f"Authorization: Bearer {KEY}",),
    (f"x-api-key: {KEY}",),
    (f"api-key: {KEY}",),
    (f"x-goog-api-key: {KEY}",),
    (f"Authorization: Bearer {KEY}", f"X-API-Key: {KEY}", f"API-KEY: {KEY}", f"Cookie: k={KEY}"),
    (f"Authorization: Bearer {KEY}", f"Proxy-Authorization: Basic {KEY}", f"x-goog-api-key: {KEY}"),
    (f"Authorization: Bearer {KEY}", f"Connection: close, x-mine, {KEY}", f"X-Mine: {KEY}"),
]
GIVEN = {
    "openai": ("authorization", f"Bearer {OWN}"),
    "claude": ("x-api-key", OWN),
    "gemini": ("x-goog-api-key", OWN),
    "azure": ("api-key", OWN),
    "aws": ("authorization", f"Bearer {OWN}"),
}


@pytest.mark.parametrize("lines", SECRETS)
@pytest.mark.parametrize("provider", GIVEN)
async def test_each_side_has_its_own_key(
    passing: Passing, provider: str, lines: tuple[str, ...]
) -> None:
    reply = await passing.ask("GET", f"{provider}/files", *lines, key=None)
    assert reply.status == 200
    (received,) = passing.received
    shown = json.dumps(received.headers)
    assert KEY not in shown
    name, value = GIVEN[provider]
    assert received.headers[name] == value
    assert shown.count(OWN) == 1
    assert OWN not in json.dumps(reply.headers) + reply.body.decode()


@pytest.mark.parametrize("reason", [OWN.encode(), b"\xff\xfe", b"a\x0bb", b"", b"Fine"])
async def test_a_status_is_said_in_the_words_of_http(passing: Passing, reason: bytes) -> None:
    """A provider's own may quote a key, or hold what no head may."""

    async def says(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 %b\r\nContent-Length: 2\r\n\r\n{}" % reason)

    passing.provider.reset(says)
    async with connected(passing.gateway.port) as wire:
        await wire.send(passing.head(path="openai/files", method="GET"))
        assert await wire.reader.readline() == b"HTTP/1.1 200 OK\r\n"


async def test_what_concerns_one_connection_stays_there(passing: Passing) -> None:
    """RFC 9110 section 7.6.1."""
    lines = (
        *("Connection: keep-alive, X-One, x-two", "X-One: 1", "X-Two: 2", "X-Three: 3"),
        *("Keep-Alive: timeout=5", "TE: trailers", "Trailer: X-T", "Proxy-Connection: close"),
        *("Upgrade: h2c", "Expect: 100-continue", "Accept-Encoding: gzip, br", "Host: evil.test"),
    )
    head = await raw_head(passing, *[line for line in lines if "Host" not in line])
    assert b"x-three" in names(head)
    assert b"accept-encoding: identity" in head.lower()
    hidden = {b"x-one", b"x-two", b"keep-alive", b"te", b"trailer", b"upgrade", b"expect"}
    assert not hidden.intersection(names(head))
    assert b"proxy-connection" not in names(head)
    assert names(head).count(b"host") == 1
    assert b"sluice.test" not in head


async def test_what_would_change_a_request_behind_our_back_is_left_out(passing: Passing) -> None:
    """What is authorised is the method and the path of the request line."""
    lines = ["X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: PUT"]
    lines += ["X-Original-URL: /v1/expensive", "X-Rewrite-URL: /v1/expensive", "X-Real-IP: 1.2.3.4"]
    lines += ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-Prefix: /x", "Forwarded: for=1.2.3.4"]
    lines += ["x-sluice-timeout: 5"]
    head = (await raw_head(passing, *lines)).lower()
    for line in lines:
        assert line.partition(":")[0].lower().encode() not in names(head), line


async def test_other_headers_arrive_in_order_each_as_often(passing: Passing) -> None:
    lines = ("OpenAI-Beta: a", "Accept: b/c", "OpenAI-Beta: d", "X-Empty:", "Idempotency-Key: e")
    head = await raw_head(passing, *lines, "User-Agent: mine/1")
    shown = [line for line in head.split(b"\r\n") if line.startswith((b"OpenAI-Beta", b"Accept:"))]
    assert shown == [b"OpenAI-Beta: a", b"Accept: b/c", b"OpenAI-Beta: d"]
    assert b"\r\nIdempotency-Key: e\r\n" in head
    assert b"\r\nUser-Agent: mine/1\r\n" in head
    assert b"x-empty" in names(head)


async def test_nothing_is_added_that_a_client_did_not_say(passing: Passing) -> None:
    head = await raw_head(passing, method="POST", body=b"abc")
    assert sorted(names(head)) == [
        *(b"accept-encoding", b"authorization", b"content-length", b"host", b"traceparent")
    ]


async def test_a_header_with_bytes_beyond_ascii_is_no_failure_of_ours(passing: Passing) -> None:
    head = await raw_head(passing, "X-Name: caf\xe9", "X-Other: 1")
    assert b"\r\nX-Other: 1\r\n" in head


async def test_the_operators_headers_come_before_the_clients(passing: Passing) -> None:
    lines = ("X-Team: theirs", "x-auth: guessed", "anthropic-version: 2099-01-01")
    await passing.ask("GET", "ours/files", *lines)
    await passing.ask("GET", "claude/files", *lines)
    await passing.ask("GET", "claude/files")
    await passing.ask("GET", "dated/files", *lines)
    ours, claude, default, dated = passing.received
    assert (ours.headers["x-team"], ours.headers["x-auth"]) == ("ours", OWN)
    assert claude.headers["anthropic-version"] == "2099-01-01"
    assert default.headers["anthropic-version"] == "2023-06-01"
    assert (dated.headers["anthropic-version"], dated.headers["user-agent"]) == ("2024-01-01", "me")


INJECTED = [
    b"X-A: b\rX-Evil: 1",
    b"X-A: b\nX-Evil: 1",
    b"X-A: b\x00X-Evil: 1",
    b"X-A : b",
    b" X-A: b",
    b"X-A: b\r\n X-Evil: 1",
    b"X\x01A: b",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: xchunked",
    b"Content-Length: +5",
    b"Content-Length: 0x5",
]


@pytest.mark.parametrize("line", INJECTED)
async def test_no_header_line_makes_another(passing: Passing, line: bytes) -> None:
    start = f"POST /providers/openai/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
    async with connected(passing.gateway.port) as wire:
        await wire.send(start.encode() + line + b"\r\n\r\nhello")
        wire.half_close()
        for reply in await wire.replies(3):
            assert reply.status in (200, 400)
    for received in passing.received:
        assert "x-evil" not in received.headers
        assert received.path == "/v1/x"
    assert len(passing.received) <= 1


async def test_their_headers_reach_the_client_but_what_is_theirs_alone(passing: Passing) -> None:
    async def tells(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 200 Really Fine\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n"
            b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
            b'Set-Cookie: session=1; Path=/\r\nServer: nginx/1.2.3\r\nAlt-Svc: h3=":443"\r\n'
            b'Strict-Transport-Security: max-age=1\r\nLink: <a>; rel=x\r\nETag: "e"\r\n'
            b"openai-processing-ms: 12\r\nX-Name: caf\xe9\r\nX-Request-ID: theirs\r\n\r\nok"
        )

    passing.provider.reset(tells)
    reply = await passing.ask("GET", "openai/files/1/content")
    assert reply.body == b"ok"
    found = reply.headers
    assert {found["content-type"], found["etag"], found["link"]} == {
        "text/plain",
        '"e"',
        "<a>; rel=x",
    }
    assert found["openai-processing-ms"] == "12"
    assert found["server"] == "sluice"
    assert found["x-request-id"] == (await passing.record())["id"]
    hidden = {"x-hop", "keep-alive", "set-cookie", "alt-svc", "strict-transport-security"}
    assert not hidden.intersection(found)


async def test_one_clients_cookies_are_not_anothers(passing: Passing) -> None:
    async def gives(exchange: Exchange) -> None:
        await exchange.reply({"ok": True}, headers={"Set-Cookie": "session=mine; Path=/"})

    passing.provider.reset(gives)
    for _ in range(2):
        await passing.ask("GET", "named/files")
    assert ["cookie" in one.headers for one in passing.received] == [False, False]


# -- who may ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nobody", "closed", "OPENAI", "open%2Fai", "openai%20", "%FF", "*"]
)
async def test_a_provider_that_is_not_passed_through(passing: Passing, name: str) -> None:
    for path in (f"{name}/v1/models", f"{name}/", f"{name}"):
        reply = await passing.ask("GET", path)
        assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert passing.received == []


@pytest.mark.parametrize("lines", [(), ("Authorization: Basic abc",), ("Authorization: Bearer",)])
async def test_without_a_key(passing: Passing, lines: tuple[str, ...]) -> None:
    reply = await passing.ask("GET", "openai/v1/models", *lines, key=None)
    assert (reply.status, reply.error["code"]) == (401, "missing_api_key")
    assert passing.received == []


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("more", [(), ("Expect: 100-continue",)])
async def test_a_strangers_body_is_not_read(
    passing: Passing, kind: str, more: tuple[str, ...]
) -> None:
    lines = (f"Content-Type: {kind}", "Content-Length: 200000", *more)
    for name, status in (("openai", 401), ("nobody", 401)):
        head = passing.head(*lines, path=f"{name}/x", key="sk-wrong")
        reply = await ask(passing.gateway.port, head, seconds=1)
        assert (reply.status, reply.error["code"]) == (status, "invalid_api_key")
    assert passing.received == []


async def test_a_body_is_not_read_that_goes_nowhere(passing: Passing) -> None:
    for path, status in (("nobody/x", 404), ("openai/../x", 404)):
        head = passing.head(JSON, "Content-Length: 200000", path=f"{path}")
        assert (await ask(passing.gateway.port, head, seconds=1)).status == status


async def test_a_client_that_waits_to_be_asked_for_its_body(passing: Passing) -> None:
    for kind in ("application/json", "audio/wav"):
        lines = (f"Content-Type: {kind}", "Content-Length: 5", "Expect: 100-continue")
        async with connected(passing.gateway.port) as wire:
            await wire.send(passing.head(*lines, path="openai/x"))
            assert (await wire.reply(3)).status == 100
            await wire.send(b"[1,2]")
            assert (await wire.reply()).status == 200
    assert [one.body for one in passing.received] == [b"[1,2]", b"[1,2]"]


GENERATE = "gemini/v1beta/models/gemini-2.0-flash:generateContent"
AZURE = "azure/openai/deployments/{}/chat/completions?api-version=2024-10-21"
CONTENT = {
    "model": PRICED_MODEL,
    "messages": [
        {"role": "user", "content": [{"type": "tool_use", "input": {"model": "Model T"}}]},
        {"role": "assistant", "content": '"model": "gpt-4o"'},
    ],
    "tools": [{"function": {"parameters": {"properties": {"model": {"type": "string"}}}}}],
    "metadata": {"model": "of the customer"},
}
NAMED = [
    (CHAT, {"model": PRICED_MODEL}),
    ("openai/chat/completions?x=1", {"model": PRICED_MODEL}),
    (CHAT, CONTENT),
    (CHAT, {"model": PRICED_MODEL, "fallbacks": [PRICED_MODEL], "models": [PRICED_MODEL]}),
    (GENERATE, {"contents": [{"parts": [{"text": "model"}]}]}),
    (GENERATE, {"model": "models/gemini-2.0-flash", "contents": []}),
    (GENERATE.replace(":", "%3A"), {"contents": []}),
    (GENERATE.replace("v1beta", "v1"), {"contents": []}),
    (GENERATE.replace("v1beta", "upload/v1beta"), {"contents": []}),
    ("gemini/v1beta/models/gemini-2.0-flash:embed", {"requests": [{"model": "models/x-flash"}]}),
    (AZURE.format("mini"), {"messages": []}),
    (AZURE.format("mini"), {"model": "mini", "messages": []}),
    (AZURE.format("m%69ni"), {"messages": []}),
    (f"aws/model/{HAIKU}/converse", {"messages": []}),
    (f"aws/model/{HAIKU.replace(':', '%3a')}/converse", {"messages": []}),
]


@pytest.mark.parametrize(("path", "content"), NAMED)
async def test_a_restricted_key_may_use_what_it_names(
    passing: Passing, path: str, content: Any
) -> None:
    reply = await passing.post(path, content, key=NARROW)
    assert reply.status == 200, reply
    assert len(passing.received) == 1


KINDS = [
    "application/json; charset=utf-8",
    "Application/JSON",
    "text/json",
    "application/vnd.api+json",
    "application/json;charset=utf-16",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framing", ["sized", "chunked", "gzip"])
async def test_json_by_any_name_is_read(passing: Passing, kind: str, framing: str) -> None:
    for model, status in ((PRICED_MODEL, 200), ("gpt-4o", 403)):
        body = json.dumps({"model": model}).encode()
        lines = [f"Content-Type: {kind}"]
        if framing == "chunked":
            lines, body = [*lines, "Transfer-Encoding: chunked"], chunked(body[:5], body[5:])
        else:
            body = gzip.compress(body) if framing == "gzip" else body
            lines += [f"Content-Length: {len(body)}"]
            lines += ["Content-Encoding: gzip"] if framing == "gzip" else []
        head = passing.head(*lines, path=f"{CHAT}", key=NARROW)
        assert (await ask(passing.gateway.port, head + body)).status == status
    assert len(passing.received) == 1


async def test_a_restricted_key_may_ask_about_its_models(passing: Passing) -> None:
    for method in ("GET", "OPTIONS"):
        reply = await passing.ask(method, f"openai/v1/models/{PRICED_MODEL}", key=NARROW)
        assert reply.status == 200
    upload = await passing.ask(
        *("POST", "azure/openai/deployments/mini/audio/transcriptions"),
        "Content-Type: multipart/form-data; boundary=x",
        body=b"--x--",
        key=NARROW,
    )
    assert upload.status == 200
    assert (await passing.ask("GET", "gemini/v1beta/files", key=FLASH)).status == 200
    assert (await passing.ask("GET", "openai/v1/files", key=FLASH)).status == 403


MINI = f'"model": "{PRICED_MODEL}"'
OTHER = '"model": "gpt-4o"'
BODIES: list[Any] = [
    {},
    [],
    None,
    "model",
    {"messages": []},
    {"model": "gpt-4o"},
    {"model": "openai/gpt-4o"},
    {"model": f"{PRICED_MODEL} "},
    {"model": f"{PRICED_MODEL}\x00"},
    {"model": ""},
    {"model": None},
    {"model": 7},
    {"model": [PRICED_MODEL]},
    {"model": {"id": PRICED_MODEL}},
    {"model": "house"},
    {"model": "taken"},
    {"Model": PRICED_MODEL},
    {"session": {"model": PRICED_MODEL}},
    {"model": PRICED_MODEL, "session": {"model": "gpt-realtime"}},
    {"model": PRICED_MODEL, "requests": [{"params": {"model": "gpt-4o"}}]},
    {"model": PRICED_MODEL, "tools": [{"type": "image_generation", "model": "gpt-image-1"}]},
    {"model": PRICED_MODEL, "models": [PRICED_MODEL, "gpt-4o"]},
    {"model": PRICED_MODEL, "fallbacks": ["gpt-4o"]},
    {"model": PRICED_MODEL, "fallbacks": [{"model": "gpt-4o"}]},
    {"model": PRICED_MODEL, "modelId": "gpt-4o"},
    {"model": PRICED_MODEL, "Model": "gpt-4o"},
    {"MODEL": "gpt-4o", "model": PRICED_MODEL},
    {"model": PRICED_MODEL, "max_tokens": "many", "models": ["gpt-4o"]},
    f"{{{MINI}, {OTHER}}}".encode(),
    f"{{{OTHER}, {MINI}}}".encode(),
    f"{{{MINI}, {OTHER}, {MINI}}}".encode(),
    f'{{{MINI}, "mod\\u0065l": "gpt-4o"}}'.encode(),
    f'{{"mod\\u0065l": "gpt-4o", {MINI}}}'.encode(),
    f'{{{MINI}, "a": {{{MINI}, {OTHER}}}}}'.encode(),
    f"{{{MINI}}} {{{OTHER}}}".encode(),
    f"{{{MINI},}}".encode(),
    f"{{{MINI}".encode(),
    f"{{{OTHER}}}".encode("utf-16"),
    f"\ufeff{{{OTHER}}}".encode(),
    f"{{{MINI}, {OTHER}}}".encode("utf-32"),
    b"\xff{" + MINI.encode() + b"}",
    b"[" * 100_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    f'{{{MINI}, "a": '.encode() + b"[" * 50_000 + b"]" * 50_000 + b"}",
]


@pytest.mark.parametrize("content", BODIES, ids=lambda one: str(one)[:60])
async def test_no_body_gets_a_restricted_key_another_model(passing: Passing, content: Any) -> None:
    reply = await passing.post(CHAT, content, key=NARROW)
    assert (reply.status, reply.error["code"]) == (403, "model_not_allowed"), reply
    assert passing.received == []
    record = await passing.record()
    assert (record["outcome"], record["status"], record["key"]) == ("refused", 403, "narrow")


PLACES: list[tuple[str, Any]] = [
    ("openai/v1/batches", {"input_file_id": "file-1"}),
    (f"openai/v1/batches?model={PRICED_MODEL}", {"input_file_id": "file-1"}),
    (f"{CHAT}?model=gpt-4o", {"model": PRICED_MODEL}),
    (f"{CHAT}?a=1&mod%65l=gpt-4o", {"model": PRICED_MODEL}),
    (f"openai/v1/x?/models/{PRICED_MODEL}", {}),
    (f"openai/v1/x%3F/models/{PRICED_MODEL}", {}),
    (f"openai/v1/x%23/models/{PRICED_MODEL}", {}),
    (GENERATE, {"model": "models/gemini-2.0-pro"}),
    (GENERATE, {"requests": [{"model": "models/gemini-2.0-pro"}]}),
    (GENERATE, b'{"model": "models/gemini-2.0-pro", "model": "models/gemini-2.0-flash"}'),
    ("gemini/v1beta/models/gemini-2.0-pro:generateContent", {"model": "gemini-2.0-flash"}),
    ("gemini/v1beta/tunedModels/x-pro:generateContent", {"model": "gemini-2.0-flash"}),
    ("gemini/v1beta/dynamic/x-pro:generateContent", {"model": "gemini-2.0-flash"}),
    ("gemini/v1beta/models/x-flash:70b", {}),
    ("gemini/v1/models/gemini-2.0-pro:generateContent", {"model": "gemini-2.0-flash"}),
    ("gemini/upload/v1beta/models/gemini-2.0-pro:generateContent", {"model": "gemini-2.0-flash"}),
    ("gemini/download/v1/models/gemini-2.0-pro:generateContent", {"model": "gemini-2.0-flash"}),
    ("gemini/v1/v1beta/models/gemini-2.0-pro:generateContent", {"model": "gemini-2.0-flash"}),
    ("gemini/v1/models", {"model": "gemini-2.0-pro"}),
    ("gemini/upload/v1beta/files", {}),
    ("openai/v2/models/gpt-4o", {"model": PRICED_MODEL}),
    ("openai/upload/v1/chat/completions", {"model": "gpt-4o"}),
    ("azure/v1/deployments/large/x", {"model": "mini"}),
    ("one/v2/deployments/large/x", {"model": "mini"}),
    ("gemini/v1beta/models", {}),
    ("gemini/v1beta/models/", {}),
    (AZURE.format("large"), {"model": "mini"}),
    (AZURE.format("mini"), {"model": "large"}),
    (AZURE.format("MINI"), {}),
    (AZURE.format("large").replace("deployments", "Deployments"), {"model": "mini"}),
    (AZURE.format("large").replace("deployments", "%64eployments"), {"model": "mini"}),
    (AZURE.format("large").replace("deployments", "%2564eployments"), {"model": "mini"}),
    (AZURE.format("large").replace("deployments", "deployments;x=1"), {"model": "mini"}),
    (AZURE.format("large").replace("deployments/", "deployments//"), {"model": "mini"}),
    (AZURE.format("large").replace("deployments/", "deployments%2F"), {"model": "mini"}),
    (AZURE.format("large").replace("deployments/", "deployments%5C"), {"model": "mini"}),
    (AZURE.format("mini/deployments/large"), {}),
    (AZURE.format("large/models/mini"), {"model": "mini"}),
    (AZURE.format("mini%2Flarge"), {}),
    ("azure/openai/engines/large/completions", {"model": "mini"}),
    (f"aws/model/{HAIKU.removesuffix(':0')}/converse", {}),
    (f"aws/model/{HAIKU}:200k/converse", {}),
    (f"aws/model/{HAIKU}/converse", {"modelId": "anthropic.claude-opus"}),
]


@pytest.mark.parametrize(("path", "content"), PLACES)
async def test_no_path_gets_a_restricted_key_another_model(
    passing: Passing, path: str, content: Any
) -> None:
    reply = await passing.post(path, content, key=NARROW)
    assert (reply.status, reply.error["code"]) == (403, "model_not_allowed"), reply
    assert passing.received == []


AT_ONCE = [
    *("openai/chat/completions", "openai/v1/completions", "openai/v1/fim/completions"),
    *("openai/v1/responses", "openai/v1/responses/input_tokens", "openai/v1/messages"),
    *("openai/v1/messages/count_tokens", "openai/v1/embeddings", "openai/v1/images/generations"),
    *("openai/v1/audio/speech", "openai/v2/rerank", "openai/api/chat", "openai/api/generate"),
    *("openai/openai/v1/chat/completions", "openai/v1beta/openai/chat/completions"),
    *("openai/v1/chat/completions/", "openai/invocations", "openai/inference/v1/completions"),
]


@pytest.mark.parametrize("path", AT_ONCE)
async def test_what_acts_on_its_models_name_may_be_asked(passing: Passing, path: str) -> None:
    reply = await passing.post(path, {"model": PRICED_MODEL}, key=NARROW)
    assert reply.status == 200, reply


ELSEWHERE = [
    *(("GET", "openai/v1/files"), ("HEAD", "openai/v1/files"), ("OPTIONS", "openai/v1/files")),
    *(("GET", "openai/v1/files/file-1/content"), ("GET", CHAT), ("GET", "openai/v1/responses")),
    *(("DELETE", "openai/v1/files/file-1"), ("PUT", CHAT), ("PATCH", CHAT), ("DELETE", CHAT)),
    *(("DELETE", f"openai/v1/models/{PRICED_MODEL}"), ("PUT", GENERATE), ("PATCH", GENERATE)),
    *(("POST", f"openai/v1/{one}") for one in ("files", "batches", "assistants", "threads")),
    *(("POST", f"openai/v1/{one}") for one in ("fine_tuning/jobs", "vector_stores", "uploads")),
    *(("POST", f"openai/v1/{one}") for one in ("threads/t1/messages", "messages/batches")),
    *(("POST", f"openai/v1/{one}") for one in ("responses/r1/cancel", "chat/completions/c1")),
    *(("POST", f"openai/{one}") for one in ("v1/Chat/Completions", "x/chat/completions", "v1", "")),
    *(("POST", f"openai/api/{one}") for one in ("pull", "delete", "create", "show")),
]


@pytest.mark.parametrize(("method", "path"), ELSEWHERE)
async def test_no_name_in_a_body_opens_the_rest_of_a_provider(
    passing: Passing, method: str, path: str
) -> None:
    body = f"{{{MINI}}}".encode()
    reply = await passing.ask(method, path, JSON, body=body, key=NARROW)
    assert reply.status == 403
    assert passing.received == []
    body = b'{"model": "gemini-2.0-flash"}'
    path = path.replace("openai", "gemini", 1)
    await passing.ask(method, path, JSON, body=body, key=FLASH)
    assert [one.method for one in passing.received] == [method]


ODD = [
    "x" * 300,
    "\u6a21\u578b",
    "\ud800",
    "a\x00b",
    "a\r\nX-Evil: 1",
    " ",
    "\U0001f600",
    "a?b#c",
    "../x",
]


@pytest.mark.parametrize("name", ODD, ids=ascii)
async def test_a_name_that_no_model_has_is_no_failure_of_ours(passing: Passing, name: str) -> None:
    paths = ["openai/chat/completions", "gemini/v1beta/x", "azure/openai/x", "aws/x"]
    for key in (KEY, NARROW, BUDGET):
        for path in paths:
            reply = await passing.post(path, {"model": name}, key=key)
            assert reply.status in (200, 400, 403, 404), (path, key)
            assert reply.status != 200 or key == KEY
    path = f"openai/v1/models/{quote(name, '', errors='replace')}"
    for key in (KEY, NARROW, BUDGET):
        assert (await passing.ask("GET", path, key=key)).status in (200, 400, 403, 404)
    assert all("x-evil" not in one.headers for one in passing.received)


UNREAD = [
    ("text/plain", f"{{{MINI}}}".encode()),
    ("application/x-www-form-urlencoded", f"{{{MINI}}}".encode()),
    ("application/octet-stream", f"{{{MINI}}}".encode()),
    ("multipart/form-data; boundary=application/json", f"{{{MINI}}}".encode()),
    ("application/jsonl", f"{{{MINI}}}".encode()),
]


@pytest.mark.parametrize(("kind", "body"), UNREAD)
async def test_a_body_that_is_not_read_names_nothing(
    passing: Passing, kind: str, body: bytes
) -> None:
    reply = await passing.ask("POST", CHAT, f"Content-Type: {kind}", body=body, key=NARROW)
    assert (reply.status, reply.error["code"]) == (403, "model_not_allowed")
    lines = (f"Content-Type: {kind}", JSON)
    other = f"{{{OTHER}}}".encode()
    for both in (lines, lines[::-1]):
        reply = await passing.ask("POST", CHAT, *both, body=other, key=NARROW)
        assert reply.status in (400, 403)
    assert passing.received == []


async def test_a_model_is_told_from_the_answers_of_a_path_that_says_otherwise(
    passing: Passing,
) -> None:
    """The path is what a provider acts on, so its price holds."""

    async def counts(exchange: Exchange) -> None:
        await exchange.reply(completion("one", usage(1_000_000, 0)))

    passing.provider.reset(counts)
    reply = await passing.post(AZURE.format("gpt-4o"), {"model": "gpt-4o-mini", "messages": []})
    assert reply.status == 200
    record = await passing.logged()
    assert (record["model"], record["served_model"]) == ("azure/gpt-4o", "gpt-4o")
    assert record["cost_microusd"] == 2_500_000


# -- limits ----------------------------------------------------------------------------------------


async def test_requests_a_minute(passing: Passing) -> None:
    statuses = [await passing.ask("GET", "openai/files", key=METERED) for _ in range(3)]
    assert [one.status for one in statuses] == [200, 200, 429]
    assert statuses[0].headers["x-ratelimit-limit-requests"] == "2"
    refused = statuses[-1]
    assert refused.error["code"] == "rate_limit_exceeded"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert len(passing.received) == 2
    assert sorted(one["outcome"] for one in await passing.records(3)) == ["ok", "ok", "refused"]


async def test_tokens_a_minute(passing: Passing) -> None:
    async def counts(exchange: Exchange) -> None:
        await exchange.reply(completion("one", usage(900, 600)))

    passing.provider.reset(counts)
    for content, status in (
        ({"model": PRICED_MODEL, "max_tokens": 5000}, 429),
        ({"model": PRICED_MODEL, "max_completion_tokens": 5000}, 429),
        ({"model": PRICED_MODEL, "max_output_tokens": 5000}, 429),
        ({"model": PRICED_MODEL, "max_tokens": 500, "n": 5}, 429),
        ({"model": PRICED_MODEL, "max_tokens": 10, "input": "x" * 9000}, 429),
        ({"model": PRICED_MODEL, "max_tokens": 10}, 200),
        ({"model": PRICED_MODEL, "max_tokens": 600}, 429),  # 500 are left
        ({"model": PRICED_MODEL, "max_tokens": 10}, 200),
        ({"model": PRICED_MODEL, "max_tokens": 10}, 429),  # a debt
    ):
        reply = await passing.post(CHAT, content, key=TOKENS)
        assert reply.status == status, content
    passing.gateway.settled()
    assert passing.gateway.usage("counted")["prompt_tokens"] == 1800


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (GENERATE, {"generationConfig": {"maxOutputTokens": 5000}}),
        (GENERATE, {"generationConfig": {"maxOutputTokens": 500, "candidateCount": 5}}),
        (GENERATE, {"contents": "x" * 9000}),
        (f"aws/model/{HAIKU}/converse", {"inferenceConfig": {"maxTokens": 5000}}),
    ],
)
async def test_what_a_path_names_is_reserved_for(passing: Passing, path: str, content: Any) -> None:
    reply = await passing.post(path, content, key=TOKENS)
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert passing.received == []


@pytest.mark.parametrize("most", [-1, -(10**9), 10**12, 10**30, 1.5, 1e300, True, "9", [9], None])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n"])
async def test_a_maximum_that_makes_no_sense_gives_nothing(
    passing: Passing, name: str, most: Any
) -> None:
    """Least of all tokens: the provider will say what it thinks of it."""

    async def waits(exchange: Exchange) -> None:
        await exchange.reply(await_standing(passing))

    passing.provider.reset(waits)
    reply = await passing.post(CHAT, {"model": PRICED_MODEL, name: most}, key=BUDGET)
    assert reply.status in (200, 429)
    if reply.status == 200:
        assert all(amount >= 0 for amount in reply.json["held"]), reply.json
    assert (await passing.record())["model"] in ("openai/gpt-4o-mini", "other")


def await_standing(passing: Passing) -> dict[str, list[int]]:
    """What is spent of budgets while a request is under way."""
    with contextlib.closing(passing.gateway.store) as store:
        keys = list(store.scan_iter("sluice:limit:*budget*"))
        return {"held": [int(v) for key in keys for v in store.hgetall(key).values()]}


async def test_requests_at_once(passing: Passing) -> None:
    gate = asyncio.Event()

    async def holds(exchange: Exchange) -> None:
        while not gate.is_set():
            await asyncio.sleep(0.01)
        await exchange.reply({"ok": True})

    passing.provider.reset(holds)
    first = asyncio.create_task(passing.ask("GET", "openai/files", key=SINGLE))
    while not passing.received:
        await asyncio.sleep(0.01)
    second = await passing.ask("GET", "openai/files", key=SINGLE)
    assert (second.status, second.error["code"]) == (429, "rate_limit_exceeded")
    gate.set()
    assert (await first).status == 200
    async with connected(passing.gateway.port) as one, connected(passing.gateway.port) as other:
        for number in range(20):  # what a client has seen to its end is given back
            wire = (one, other)[number % 2]
            await wire.send(passing.head(path="openai/files", method="GET", key=SINGLE))
            assert (await wire.reply()).status == 200, number


@pytest.mark.parametrize("how", ["sized", "chunked", "close", "empty", "fails"])
async def test_what_is_over_is_given_back_before_the_client_knows(
    passing: Passing, how: str
) -> None:
    heads = {
        "sized": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone",
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndone\r\n0\r\n\r\n",
        "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndone",
        "empty": b"HTTP/1.1 204 No Content\r\n\r\n",
        "fails": b"",
    }

    async def answers(exchange: Exchange) -> None:
        exchange.keep_alive = how not in ("close", "fails")
        await exchange.send(heads[how])

    passing.provider.reset(answers)
    method = "HEAD" if how == "empty" else "GET"
    for _ in range(10):
        reply = await passing.ask(method, "openai/files", key=SINGLE)
        assert reply.status == {"empty": 204, "fails": 502}.get(how, 200)


async def test_a_refusal_says_which_request_it_was_and_where_the_limits_stand(
    passing: Passing,
) -> None:
    replies = [await passing.ask("GET", "openai/files", key=LIMITED) for _ in range(2)]
    assert [reply.status for reply in replies] == [200, 429]
    for reply in replies:
        assert reply.headers["x-ratelimit-limit-requests"] == "1"
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(replies[1].headers["retry-after-ms"]) <= 60_000
    records = await passing.records(2)
    assert [r["id"] for r in records] == [reply.headers["x-request-id"] for reply in replies]


async def test_limits_of_a_model_hold_by_both_its_names(passing: Passing) -> None:
    models = (PRICED_MODEL, PRICED_MODEL, "gpt-4o", "gpt-4o")
    statuses = [(await passing.post(CHAT, {"model": x}, key=HOUSE)).status for x in models]
    assert statuses == [200, 429, 200, 429]


UNREADABLE = [
    f'{{{MINI}, "messages": "\\udc80"}}'.encode(),
    f'{{{MINI}, "temperature": NaN}}'.encode(),
    f'{{{MINI}, "n": 1e999}}'.encode(),
    f"\ufeff{{{MINI}}}".encode(),
    f'{{{MINI}, "messages": "'.encode() + b'\xff"}',
    f"{{{MINI}}}".encode("utf-16"),
    f"{{{MINI},}}".encode(),
    f"{{{MINI}".encode(),
    f'{{{MINI}, "a": '.encode() + b"[" * 50_000 + b"]" * 50_000 + b"}",
]


@pytest.mark.parametrize("body", UNREADABLE, ids=lambda one: ascii(one)[:40])
async def test_json_that_nobody_can_read_is_not_passed_on(passing: Passing, body: bytes) -> None:
    """Its provider may read it all the same, and act on the model that it names."""
    for key in (KEY, PATTERNED):
        reply = await passing.post(CHAT, body, key=key)
        assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    assert passing.received == []
    assert (await passing.ask("GET", "openai/files", JSON, body=body)).status == 200


async def test_what_names_no_model_counts_against_the_limits_of_every_one(
    passing: Passing,
) -> None:
    for _ in range(2):  # reading is not limited by models
        assert (await passing.ask("GET", "openai/files", key=PATTERNED)).status == 200
    plain = "Content-Type: text/plain"
    body = f"{{{MINI}}}".encode()
    assert (await passing.ask("POST", CHAT, plain, body=body, key=PATTERNED)).status == 200
    for model in ("gpt-4o", PRICED_MODEL):
        assert (await passing.post(CHAT, {"model": model}, key=PATTERNED)).status == 429
    for kind, content in ((plain, body), (JSON, b"[]"), (JSON, b"{}"), (JSON, b'{"model": 7}')):
        reply = await passing.ask("POST", CHAT, kind, body=content, key=PATTERNED)
        assert reply.status == 429, content
    assert (await passing.ask("DELETE", "openai/files/1", key=PATTERNED)).status == 429
    assert (await passing.post(CHAT, {"model": "o3"}, key=PATTERNED)).status == 200


@pytest.mark.parametrize("first", [True, False])
async def test_a_model_that_is_named_twice_counts_by_both_names(
    passing: Passing, first: bool
) -> None:
    """Which of them counts, not all servers agree."""
    names = [MINI, '"model": "o3"']
    body = ", ".join(names if first else names[::-1])
    key = TWICE if first else THRICE
    statuses = [
        (await passing.post(CHAT, f"{{{body}}}".encode(), key=key)).status for _ in range(2)
    ]
    assert statuses == [200, 429]


async def test_a_budget_of_any_model_covers_what_names_none(passing: Passing) -> None:
    body = f"{{{MINI}}}".encode()
    assert (await passing.post(CHAT, body, key=METERED_MODEL)).status == 200
    reply = await passing.ask(
        "POST", CHAT, "Content-Type: text/plain", body=body, key=METERED_MODEL
    )
    assert (reply.status, reply.error["code"]) == (403, "price_unknown")
    assert "Content-Type: application/json" in reply.error["message"]
    assert (await passing.post(CHAT, {"model": "no-such-model"}, key=METERED_MODEL)).status == 200


async def test_a_budget_covers_only_what_has_a_price(passing: Passing) -> None:
    for method in ("GET", "OPTIONS"):  # what generates nothing costs nothing
        reply = await passing.ask(method, "openai/v1/files", key=BUDGET)
        assert reply.status == 200
    for method, path, body in (
        ("DELETE", "openai/v1/files/1", b""),
        ("POST", "openai/v1/files", b"{}"),
        ("POST", CHAT, b'{"model": "no-such-model"}'),
        ("POST", "named/v1/chat/completions", b'{"model": "gpt-4o-mini"}'),
    ):
        reply = await passing.ask(method, path, JSON, body=body, key=BUDGET)
        assert (reply.status, reply.error["code"]) == (403, "price_unknown"), path
    assert [one.method for one in passing.received] == ["GET", "OPTIONS"]
    assert (await passing.post(CHAT, {"model": PRICED_MODEL}, key=BUDGET)).status == 200
    dear = {"model": PRICED_MODEL, "max_tokens": 10_000_000}
    reply = await passing.post(CHAT, dear, key=BUDGET)
    assert (reply.status, reply.error["code"]) == (429, "budget_exceeded")


# -- what it comes to ------------------------------------------------------------------------------


def sse(*contents: Any) -> bytes:
    """An event stream."""
    return b"".join(f"data: {json.dumps(one)}\n\n".encode() for one in contents)


def named(*contents: dict[str, Any]) -> bytes:
    """An event stream whose events have names."""
    return b"".join(
        f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in contents
    )


CHUNKS = sse(delta("one"), {**delta(None), "choices": [], "usage": usage(7, 5, cached=3)})
RESPONSE = {
    "object": "response",
    "usage": {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
    },
}
IMAGES = {
    "data": [{"b64_json": "A" * 100_000}],
    "usage": {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12},
}
MESSAGE = {"input_tokens": 4, "cache_read_input_tokens": 3, "output_tokens": 5}
EVENTS = named(
    {"type": "message_start", "message": {"usage": {**MESSAGE, "output_tokens": 1}}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "usage"}},
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
)
GOOGLE = {
    "candidates": [],
    "usageMetadata": {
        "promptTokenCount": 7,
        "cachedContentTokenCount": 3,
        "candidatesTokenCount": 3,
        "thoughtsTokenCount": 2,
    },
}
CONVERSE = {"usage": {"inputTokens": 4, "cacheReadInputTokens": 3, "outputTokens": 5}}
ASKED = {"model": PRICED_MODEL}
COUNTED: list[tuple[str, Any, bytes]] = [
    (CHAT, ASKED, json.dumps(completion("one", usage(7, 5, cached=3))).encode()),
    (CHAT, {**ASKED, "stream": True}, CHUNKS),
    (CHAT, {**ASKED, "stream": 1, "max_tokens": "9"}, CHUNKS),
    ("openai/v1/responses", ASKED, json.dumps(RESPONSE).encode()),
    ("openai/v1/responses", ASKED, named({"type": "response.completed", "response": RESPONSE})),
    ("openai/v1/images/generations", {"model": "gpt-image-1"}, json.dumps(IMAGES).encode()),
    (
        "claude/v1/messages",
        {"model": "claude-3-5-haiku-latest"},
        json.dumps({"usage": MESSAGE}).encode(),
    ),
    ("claude/v1/messages", {"model": "claude-3-5-haiku-latest"}, EVENTS),
    (GENERATE, {"contents": []}, json.dumps(GOOGLE).encode()),
    (
        GENERATE.replace("generate", "streamGenerate") + "?alt=sse",
        {},
        sse(GOOGLE).replace(b"\n", b"\r\n"),
    ),
    (GENERATE.replace("generate", "streamGenerate"), {}, json.dumps([GOOGLE], indent=1).encode()),
    (f"aws/model/{HAIKU}/converse", {"messages": []}, json.dumps(CONVERSE).encode()),
]


def sends(body: bytes, pieces: int, chunks: bool) -> Behaviour:
    """Answer with a body, in pieces of a size."""

    async def behave(exchange: Exchange) -> None:
        if chunks:
            await exchange.start_stream()
        else:
            await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), pieces):
            part = body[at : at + pieces]
            await (exchange.chunk(part) if chunks else exchange.send(part))
            await asyncio.sleep(0)
        if chunks:
            await exchange.end_stream()

    return behave


@pytest.mark.parametrize("chunks", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize(("path", "content", "body"), COUNTED)
async def test_usage_is_counted_once_at_its_price(
    passing: Passing, path: str, content: Any, body: bytes, chunks: bool
) -> None:
    before = passing.gateway.usage("acme")
    passing.provider.reset(sends(body, max(7, len(body) // 50), chunks))
    reply = await passing.post(path, content)
    assert (reply.status, reply.body) == (200, body)
    record = await passing.record()
    after = passing.gateway.usage("acme")
    found = {name: after[name] - before.get(name, 0) for name in after}
    assert found["requests"] == 1
    assert (found["prompt_tokens"], found["completion_tokens"]) == (7, 5)
    assert found["cached_tokens"] == record["cached_tokens"]
    assert (record["outcome"], record["usage_source"]) == ("ok", "provider")
    assert found["cost_microusd"] == record["cost_microusd"]
    assert record["cost_microusd"] > 0
    provider = path.partition("/")[0]
    assert record["model"].startswith(f"{provider}/")
    part = passing.gateway.usage("acme", part=f"model:{record['model']}")
    assert part["prompt_tokens"] >= 7


async def test_a_cost_is_exact(passing: Passing) -> None:
    passing.provider.reset(
        sends(json.dumps(completion("yes", usage(1100, 400, 200))).encode(), 999, False)
    )
    await passing.post(CHAT, ASKED)
    # gpt-4o-mini: 900 at 0.15, 200 at 0.075, 400 at 0.60 dollars a million
    assert (await passing.record())["cost_microusd"] == 135 + 15 + 240


async def test_a_stream_arrives_event_by_event(passing: Passing) -> None:
    seen = asyncio.Event()

    async def steps(exchange: Exchange) -> None:
        await exchange.start_stream()
        for word in ("one", "two", "three"):
            await exchange.event(delta(word))
            while not seen.is_set():
                await asyncio.sleep(0.005)
            seen.clear()
        await exchange.end_stream()

    passing.provider.reset(steps)
    body = json.dumps(ASKED).encode()
    head = passing.head(JSON, f"Content-Length: {len(body)}", path=CHAT)
    async with connected(passing.gateway.port) as wire:
        await wire.send(head + body)
        for word in (b'"one"', b'"two"', b'"three"'):
            await asyncio.wait_for(wire.reader.readuntil(word), 5)
            seen.set()
        await asyncio.wait_for(wire.reader.readuntil(b"0\r\n\r\n"), 5)


async def test_what_is_only_told_again_is_not_counted_again(passing: Passing) -> None:
    """A response that is fetched or polled tells its usage each time."""
    passing.provider.reset(sends(json.dumps(RESPONSE).encode(), 1000, False))
    before = passing.gateway.usage("acme")
    await passing.post("openai/v1/responses", ASKED)
    for _ in range(3):
        await passing.ask("GET", "openai/v1/responses/resp_1")
    await passing.ask("DELETE", "openai/v1/responses/resp_1")
    await passing.records(5)
    after = passing.gateway.usage("acme")
    assert after["prompt_tokens"] - before.get("prompt_tokens", 0) == 7
    assert after["requests"] - before.get("requests", 0) == 5


async def test_an_error_costs_nothing(passing: Passing) -> None:
    async def fails(exchange: Exchange) -> None:
        await exchange.reply({"error": {"message": "no"}, "usage": usage(7, 5)}, status=400)

    passing.provider.reset(fails)
    assert (await passing.post(CHAT, ASKED)).status == 400
    record = await passing.record()
    assert (record["outcome"], record["error"]) == ("ok", "upstream_400")
    assert (record["prompt_tokens"], record["cost_microusd"]) == (0, 0)


@pytest.mark.parametrize("figure", [-5, 10**15, 10**30, "x", 1.5, {}, True])
async def test_figures_that_cannot_be_do_not_stop_a_settlement(
    passing: Passing, figure: Any
) -> None:
    used = {"prompt_tokens": figure, "completion_tokens": 1}
    passing.provider.reset(sends(json.dumps({"usage": used}).encode(), 1000, False))
    assert (
        await passing.post("ours/chat/completions", {"model": "free"}, key=SINGLE)
    ).status == 200
    assert (await passing.record())["outcome"] == "ok"
    passing.gateway.settled()


# -- when it goes wrong ----------------------------------------------------------------------------


async def test_nobody_listens(passing: Passing) -> None:
    for path in ("dead/v1/files", "local/v1/files"):
        reply = await passing.ask("GET", path)
        assert (reply.status, reply.error["code"]) == (502, "upstream_failed")
    assert {one["outcome"] for one in await passing.records(2)} == {"error"}


HUGE = b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n"
NO_HEADS = {
    "reset": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "no http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "huge": HUGE,
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a name with a blank": b"HTTP/1.1 200 OK\r\nX Y: 1\r\nContent-Length: 0\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("head", NO_HEADS.values(), ids=NO_HEADS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_answer_that_could_be_passed_on(
    passing: Passing, head: bytes, method: str
) -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.send(head)
        await asyncio.sleep(0.02)
        exchange.abort()

    passing.provider.reset(breaks)
    reply = await passing.ask(method, "openai/files", body=b"abc" if method == "POST" else b"")
    assert (reply.status, reply.error["code"]) == (502, "upstream_failed")
    record = await passing.record()
    assert (record["outcome"], record["status"]) == ("error", 502)


SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n"
BROKEN = {
    "sized": SIZED,
    "in a chunk": CHUNKED + b"x" * 500,
    "between chunks": CHUNKED + b"x" * 1000 + b"\r\n",
    "before any": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
}


@pytest.mark.parametrize("start", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("how", ["reset", "closed", "silent"])
async def test_an_answer_that_breaks_off_is_seen_to(
    passing: Passing, start: bytes, how: str
) -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.send(start)
        exchange.keep_alive = False
        await asyncio.sleep(0.02)
        if how == "silent":
            await exchange.gone()
        elif how == "reset":
            exchange.abort()

    passing.provider.reset(breaks)
    provider = "idle" if how == "silent" else "openai"
    async with connected(passing.gateway.port) as wire:
        await wire.send(passing.head(path=f"{provider}/x", method="GET"))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await wire.reply(5)
    record = await passing.logged()
    assert (record["outcome"], record["error"]) == ("error", "stream_interrupted")
    failure = "idle_timeout" if how == "silent" else "reset"
    assert [(one["failure"], one["status"]) for one in record["tries"]] == [(failure, 200)]


async def test_a_body_that_loses_its_framing_is_seen_to(passing: Passing) -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.send(BROKEN["between chunks"])
        await asyncio.sleep(0.1)
        await exchange.send(b"not a size\r\n0\r\n\r\n")
        await exchange.gone()

    passing.provider.reset(breaks)
    async with connected(passing.gateway.port) as wire:
        await wire.send(passing.head(path="idle/x", method="GET"))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await wire.reply(5)
    assert (await passing.record())["error"] == "stream_interrupted"


async def test_an_old_client_sees_it_too(passing: Passing) -> None:
    """HTTP/1.0 ends a body by closing, so only a reset tells that it is not all."""

    async def breaks(exchange: Exchange) -> None:
        await exchange.send(CHUNKED + b"x" * 500)
        await asyncio.sleep(0.05)
        exchange.abort()

    passing.provider.reset(breaks)
    async with connected(passing.gateway.port) as wire:
        await wire.send(passing.head(path="openai/x", method="GET", version="1.0"))
        with pytest.raises(ConnectionError):
            await wire.reader.read()


@pytest.mark.parametrize("path", ["hasty/x", "brisk/x"])
async def test_a_provider_that_hangs(passing: Passing, path: str) -> None:
    async def hangs(exchange: Exchange) -> None:
        await exchange.gone()

    passing.provider.reset(hangs)
    started = time.monotonic()
    reply = await passing.ask("POST", path, body=b"abc")
    assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")
    assert time.monotonic() - started < PATIENT["idle"]
    record = await passing.logged()
    assert (record["outcome"], record["status"]) == ("error", 504)
    (tried,) = record["tries"]
    assert (tried["failure"], tried["first_byte_us"]) == ("first_byte_timeout", 0)
    assert 0 < tried["duration_us"] <= record["duration_us"]


@pytest.mark.parametrize(("status", "failure"), [(200, ""), (404, "status"), (503, "status")])
async def test_the_attempt_is_in_the_record(passing: Passing, status: int, failure: str) -> None:
    async def answers(exchange: Exchange) -> None:
        await exchange.reply({}, status)

    passing.provider.reset(answers)
    assert (await passing.ask("POST", "openai/x", body=b"{}")).status == status
    record = await passing.logged()
    (tried,) = record["tries"]
    assert (tried["provider"], tried["status"], tried["failure"]) == ("openai", status, failure)
    assert record["attempts"] == 1


async def test_an_attempt_whose_client_left_is_in_the_record(passing: Passing) -> None:
    async def hangs(exchange: Exchange) -> None:
        await exchange.gone()

    passing.provider.reset(hangs)
    async with connected(passing.gateway.port) as wire:
        await wire.send(passing.head(path="openai/x", method="GET"))
        async with asyncio.timeout(5):
            while not passing.received:
                await asyncio.sleep(0.01)
    record = await passing.logged()
    assert (record["outcome"], record["attempts"]) == ("disconnected", 1)
    assert [one["failure"] for one in record["tries"]] == ["cancelled"]


async def test_an_answer_may_be_slower_than_its_first_byte_may(passing: Passing) -> None:
    async def dawdles(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
        await asyncio.sleep(0.9)
        await exchange.send(b"2")

    passing.provider.reset(dawdles)
    reply = await passing.ask("GET", "brisk/x")
    assert (reply.status, reply.body) == (200, b"12")


ANSWERS = [
    (400, b'{"error": {"message": "no"}}', "application/json"),
    (401, b'{"error": {"message": "Incorrect API key"}}', "application/json"),
    (404, b"<html>not here</html>", "text/html"),
    (418, b"\x00\xff\xfe", "application/x-tea"),
    (429, b'{"error": "slow down"}', "application/json"),
    (500, b"", "text/plain"),
    (503, b"x" * 200_000, "text/plain"),
    (599, b"odd", "text/plain"),
]


@pytest.mark.parametrize(("status", "body", "kind"), ANSWERS)
async def test_an_error_of_theirs_is_the_clients(
    passing: Passing, status: int, body: bytes, kind: str
) -> None:
    async def fails(exchange: Exchange) -> None:
        head = {"Content-Type": kind, "Retry-After": "7", "x-should-retry": "true"}
        await exchange.reply(body, status, head)

    passing.provider.reset(fails)
    reply = await passing.post(CHAT, ASKED)
    assert (reply.status, reply.body) == (status, body)
    assert reply.headers["content-type"] == kind
    assert reply.headers["retry-after"] == "7"
    record = await passing.record()
    assert (record["status"], record["error"]) == (status, f"upstream_{status}")
    assert record["outcome"] == ("error" if status >= 500 else "ok")


@pytest.mark.parametrize(
    "packed",
    # A gzip header holds the time: it must not be in the test's name, which is the same everywhere.
    [
        pytest.param(gzip.compress(b"hello " * 100), id="gzip"),
        pytest.param(zlib.compress(b"hello " * 100), id="zlib"),
    ],
)
async def test_a_body_that_is_packed_though_nobody_asked(passing: Passing, packed: bytes) -> None:
    coding = "gzip" if packed.startswith(b"\x1f") else "deflate"

    async def packs(exchange: Exchange) -> None:
        await exchange.reply(packed, headers={"Content-Encoding": coding})

    passing.provider.reset(packs)
    reply = await passing.ask("GET", "openai/files/1/content", "Accept-Encoding: gzip")
    assert reply.headers.get("content-encoding") == coding
    assert reply.body == packed


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_the_clients_to_follow(passing: Passing, status: int) -> None:
    async def redirects(exchange: Exchange) -> None:
        place = f"http://127.0.0.1:{passing.provider.upstream.port}/elsewhere"
        await exchange.reply(b"", status, {"Location": place})

    passing.provider.reset(redirects)
    reply = await passing.ask("GET", "openai/files/1/content")
    assert reply.status == status
    assert reply.headers["location"].endswith("/elsewhere")
    assert len(passing.received) == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body(passing: Passing, status: int) -> None:
    async def empty(exchange: Exchange) -> None:
        await exchange.send(f"HTTP/1.1 {status} X\r\nETag: a\r\n\r\n".encode())

    passing.provider.reset(empty)
    async with connected(passing.gateway.port) as wire:
        for _ in range(2):  # the connection stays in step
            await wire.send(passing.head(path="openai/x", method="DELETE"))
            reply = await wire.reply(method="HEAD")
            assert (reply.status, reply.headers["etag"]) == (status, "a")
            assert "transfer-encoding" not in reply.headers


async def test_news_and_trailers_do_no_harm(passing: Passing) -> None:
    async def tells(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
            b"2\r\nok\r\n0\r\nX-T: 1\r\nX-Evil: 2\r\n\r\n"
        )

    passing.provider.reset(tells)
    async with connected(passing.gateway.port) as wire:
        for _ in range(2):
            await wire.send(passing.head(path="openai/x", method="GET"))
            reply = await wire.reply()
            assert (reply.status, reply.body) == (200, b"ok")
            assert not {"trailer", "x-t", "x-evil"}.intersection(reply.headers)


async def test_an_answer_before_the_upload_is_over(passing: Passing) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        with contextlib.suppress(ConnectionError):
            await reader.read()

    async with listening(passing, talk):
        head = passing.head("Content-Length: 1000000", path="local/x")
        async with connected(passing.gateway.port) as wire:
            await wire.send(head + b"x" * 100_000)
            reply = await wire.reply()
    assert (reply.status, reply.body) == (413, b"no")
    assert (await passing.record())["error"] == "upstream_413"


# -- clients that leave, and clients that are slow -------------------------------------------------


@pytest.mark.parametrize("kind", ["application/json", "audio/wav"])
async def test_a_client_that_leaves_while_it_uploads(passing: Passing, kind: str) -> None:
    began = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        began.set()
        await reader.readexactly(100_000)

    async with listening(passing, talk) as ended:
        lines = (f"Content-Type: {kind}", "Content-Length: 100000")
        async with connected(passing.gateway.port) as wire:
            await wire.send(passing.head(*lines, path="local/x") + b"x" * 50_000)
            if kind == "audio/wav":
                await asyncio.wait_for(began.wait(), 5)
            else:
                await asyncio.sleep(0.2)
        record = await passing.record()
        assert (record["outcome"], record["status"]) == ("disconnected", 499)
        passing.gateway.settled()
        if kind == "audio/wav":
            await soon(lambda: ended)
            assert ended != ["whole"]
        else:
            assert not began.is_set()


async def soon(true: Callable[[], object], seconds: float = 3.0) -> None:
    """Wait for something in the test's own loop."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("when", ["before the head", "in the body", "behind it"])
async def test_a_client_that_leaves_while_it_downloads(passing: Passing, when: str) -> None:
    began = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        began.set()
        if when != "before the head":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while when == "behind it":
            writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n" if when == "in the body" else b"")
        await writer.drain()
        await reader.readexactly(1)

    async with listening(passing, talk) as ended:
        async with connected(passing.gateway.port) as wire:
            await wire.send(passing.head(path="local/x", method="GET"))
            await asyncio.wait_for(began.wait(), 5)
            if when != "before the head":
                await wire.reader.readexactly(300)
        await soon(lambda: ended)
        assert ended != ["whole"]
    record = await passing.record()
    assert (record["outcome"], record["status"]) == ("disconnected", 499)
    passing.gateway.settled()


async def test_usage_that_was_seen_counts_though_the_client_left(passing: Passing) -> None:
    start = {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 70, "output_tokens": 9}},
    }

    async def stays(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(start)
        await exchange.gone()

    passing.provider.reset(stays)
    body = json.dumps({"model": "claude-3-5-haiku-latest", "stream": True}).encode()
    lines = (JSON, f"Content-Length: {len(body)}")
    async with connected(passing.gateway.port) as wire:
        await wire.send(passing.head(*lines, path="claude/v1/messages") + body)
        await wire.reader.readuntil(b"message_start")
    record = await passing.record()
    assert (record["outcome"], record["usage_source"]) == ("disconnected", "provider")
    assert (record["prompt_tokens"], record["completion_tokens"]) == (70, 9)
    assert record["cost_microusd"] > 0


WORDS = "one two three four five six seven eight nine ten"
BEGUN = {"type": "message_start", "message": {"usage": {"input_tokens": 70, "output_tokens": 1}}}
SAID = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": WORDS}}


@pytest.mark.parametrize("left", [False, True])
async def test_text_counts_where_no_usage_is_told(passing: Passing, left: bool) -> None:
    """OpenAI tells a stream's usage on request only, and nobody before the end."""

    async def writes(exchange: Exchange) -> None:
        await exchange.start_stream()
        if exchange.request.path.endswith("/messages"):
            await exchange.event(BEGUN)
            await exchange.event(SAID)
        else:
            await exchange.event(delta(WORDS))
        await (exchange.gone() if left else exchange.end_stream())

    passing.provider.reset(writes)
    for path, model in ((CHAT, PRICED_MODEL), ("claude/v1/messages", "claude-haiku-4-5")):
        body = json.dumps({"model": model, "stream": True, "x": "y" * 400}).encode()
        lines = (JSON, f"Content-Length: {len(body)}")
        async with connected(passing.gateway.port) as wire:
            await wire.send(passing.head(*lines, path=path) + body)
            await wire.reader.readuntil(b"nine ten" if left else b"0\r\n\r\n")
    chat, message = await passing.records(2)
    assert (chat["completion_tokens"], message["completion_tokens"]) == (10, 10)
    assert (chat["prompt_tokens"] > 100, message["prompt_tokens"]) == (True, 70)
    assert chat["usage_source"] == ("partial" if left else "estimated")
    assert {one["outcome"] for one in (chat, message)} == {"disconnected" if left else "ok"}
    assert chat["cost_microusd"] > 0


async def test_a_client_that_reads_slowly_holds_its_provider_back(passing: Passing) -> None:
    written = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while written < 100_000_000:
            writer.write(b"x" * 100_000)
            await writer.drain()
            written += 100_000

    async with listening(passing, talk), connected(passing.gateway.port) as wire:
        await wire.send(passing.head(path="local/x", method="GET"))
        await wire.reader.readexactly(1000)
        for _ in range(20):
            before = written
            await asyncio.sleep(0.05)
            if written == before > 0:
                break
        assert written < 20_000_000


async def test_a_body_that_does_not_come(passing: Passing) -> None:
    async def stall(kind: str) -> None:
        head = passing.head(f"Content-Type: {kind}", "Content-Length: 9", path="openai/x")
        started = time.monotonic()
        reply = await ask(passing.gateway.port, head + b"1234")
        assert (reply.status, reply.error["code"]) == (408, "request_timeout"), kind
        assert REQUEST_SECONDS - 0.1 <= time.monotonic() - started < REQUEST_SECONDS + 10

    await asyncio.gather(stall("application/json"), stall("audio/wav"))
    assert {one["status"] for one in await passing.records(2)} == {408}


async def test_a_body_that_drips_is_bounded(passing: Passing) -> None:
    async def drip(kind: str, statuses: tuple[int, ...]) -> None:
        async with connected(passing.gateway.port) as wire:
            lines = (f"Content-Type: {kind}", "Content-Length: 100000")
            await wire.send(passing.head(*lines, path="hasty/x"))
            dripping = asyncio.create_task(drop_by_drop(wire))
            reply = await wire.reply(5)
            dripping.cancel()
            assert reply.status in statuses, kind

    await asyncio.gather(drip("application/json", (408,)), drip("audio/wav", (408, 504)))


async def drop_by_drop(wire: Wire) -> None:
    """Send for ever."""
    while True:
        await wire.send(b"x")
        await asyncio.sleep(0.1)


# -- sizes -----------------------------------------------------------------------------------------


async def test_a_body_may_be_as_large_as_that(passing: Passing) -> None:
    upload = b"x" * MOST_UPLOAD
    assert (await passing.ask("POST", "openai/files", body=upload)).status == 200
    large = json.dumps({"model": "m", "x": ""}).encode()
    large = large[:-2] + b"x" * (MOST_JSON - len(large)) + large[-2:]
    assert (await passing.post("openai/x", large)).status == 200
    assert [len(one.body) for one in passing.received] == [MOST_UPLOAD, MOST_JSON]
    got = hashlib.sha256(passing.received[0].body).digest()
    assert got == hashlib.sha256(upload).digest()


@pytest.mark.parametrize("kind", ["application/json", "audio/wav"])
async def test_a_body_that_is_too_large(passing: Passing, kind: str) -> None:
    most = MOST_JSON if kind == "application/json" else MOST_UPLOAD
    lines = (f"Content-Type: {kind}", f"Content-Length: {most + 1}")
    head = passing.head(*lines, path="openai/x")
    reply = await ask(passing.gateway.port, head, seconds=1)
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert passing.received == []
    head = passing.head(*lines, "Expect: 100-continue", path="openai/x")
    assert (await ask(passing.gateway.port, head, seconds=1)).status == 413
    assert {record["status"] for record in await passing.records(2)} == {413}


@pytest.mark.parametrize("kind", ["application/json", "audio/wav"])
@pytest.mark.parametrize("coding", ["", "gzip"])
async def test_a_body_that_turns_out_too_large(passing: Passing, kind: str, coding: str) -> None:
    async def reads(exchange: Exchange) -> None:
        await chunked_body(exchange)
        await exchange.reply({"ok": True})

    passing.provider.reset(reads)
    most = MOST_JSON if kind == "application/json" else MOST_UPLOAD
    lines = [f"Content-Type: {kind}", "Transfer-Encoding: chunked"]
    body = b"x" * (most + 1)
    if coding:
        lines, body = [*lines, f"Content-Encoding: {coding}"], gzip.compress(body)
    head = passing.head(*lines, path="openai/x")
    parts = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
    reply = await ask(passing.gateway.port, head + chunked(*parts))
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    record = await passing.record()
    assert (record["status"], record["error"]) == (413, "request_too_large")


# -- connections -----------------------------------------------------------------------------------


async def test_a_hundred_at_once(passing: Passing) -> None:
    together, gate = 0, asyncio.Event()

    async def gathers(exchange: Exchange) -> None:
        nonlocal together
        together += 1
        while together < 100:
            await asyncio.sleep(0.01)
        await exchange.reply(exchange.request.body, headers={"X-Path": exchange.request.path})

    passing.provider.reset(gathers)
    gate.set()
    replies = await asyncio.gather(
        *(passing.post(f"openai/x/{n}", {"number": n, "x": "y" * 1000 * n}) for n in range(100))
    )
    for number, reply in enumerate(replies):
        assert (reply.status, reply.json["number"]) == (200, number)
        assert reply.headers["x-path"] == f"/v1/x/{number}"
    assert {one["outcome"] for one in await passing.records(100)} == {"ok"}
    passing.gateway.settled()


async def test_requests_one_after_the_other_on_one_connection(passing: Passing) -> None:
    requests = b"".join(
        passing.head("Content-Length: 1", path=f"openai/x/{n}") + b"%d" % n for n in range(9)
    )
    async with connected(passing.gateway.port) as wire:
        await wire.send(requests)
        assert [(await wire.reply()).status for _ in range(9)] == [200] * 9
    assert [(one.path, one.body) for one in passing.received] == [
        (f"/v1/x/{n}", b"%d" % n) for n in range(9)
    ]


async def test_a_unix_socket_a_private_authority_and_a_proxy(passing: Passing) -> None:
    head = await raw_head(passing)
    assert head.startswith(b"GET /v1/x HTTP/1.1\r\n")
    secure = await passing.ask("GET", "secure/v1/files")
    assert (secure.status, secure.json) == (200, {"ok": True})
    proxied = await passing.ask("GET", "far/v1/files?x=%2F")
    assert proxied.status == 200
    (received,) = passing.received
    assert received.path == "http://far.test/v1/files?x=%2F"
    assert received.headers["host"] == "far.test"
    assert received.headers["proxy-authorization"].startswith("Basic ")


def draining(passing: Passing, grace: float) -> Any:
    """A gateway of its own, to be stopped."""
    server = {"drain": {"grace": grace}}
    return running(config(passing.provider.url, server=server, pricing={"unknown": "refuse"}))


async def begun(wire: Wire, version: str = "1.1") -> None:
    """Ask for a stream and read its first words."""
    body = json.dumps(ASKED).encode()
    lines = (JSON, f"Content-Length: {len(body)}")
    head = head_of(*lines, path="/providers/p0/chat/completions", version=version)
    await wire.send(head + body)
    await wire.reader.readuntil(b"one")


async def test_a_worker_that_stops_finishes_a_download(passing: Passing) -> None:
    gate = asyncio.Event()

    async def steps(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("one"))
        while not gate.is_set():
            await asyncio.sleep(0.01)
        await exchange.event({**delta(None), "choices": [], "usage": usage(7, 5)})
        await exchange.end_stream()

    passing.provider.reset(steps)
    with draining(passing, grace=20) as gateway:
        refused = await ask(gateway.port, head_of(path="/providers/p0/files", method="DELETE"))
        assert (refused.status, refused.error["code"]) == (403, "price_unknown")
        async with connected(gateway.port) as wire:
            await begun(wire)
            gateway.process.terminate()
            await asyncio.sleep(0.3)
            gate.set()
            rest = await asyncio.wait_for(wire.reader.read(), 10)
        assert rest.endswith(b"0\r\n\r\n")
        assert await asyncio.to_thread(gateway.process.wait, 10) == 0
        (_, record) = gateway.records(2)
        assert (record["outcome"], record["usage"]["prompt_tokens"]) == ("ok", 7)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_worker_that_may_wait_no_longer_settles(passing: Passing, version: str) -> None:
    """And breaks off: in HTTP/1.0 a close would be the end of the answer."""

    async def stays(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("one"))
        await exchange.gone()

    passing.provider.reset(stays)
    with draining(passing, grace=0.3) as gateway:
        async with connected(gateway.port) as wire:
            await begun(wire, version)
            gateway.process.terminate()
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(wire.reader.read(), 10)
        assert await asyncio.to_thread(gateway.process.wait, 10) == 0
        (record,) = gateway.records(1)
        assert (record["outcome"], record["status"]) == ("error", 503)
        assert (record["usage"]["completion_tokens"], record["usage_source"]) == (1, "partial")
        assert "exception" not in gateway.log_file.read_text()


async def test_a_worker_that_may_wait_no_longer_says_so_where_nothing_was_answered(
    passing: Passing,
) -> None:
    async def hangs(exchange: Exchange) -> None:
        await exchange.gone()

    passing.provider.reset(hangs)
    with draining(passing, grace=0.3) as gateway:
        async with connected(gateway.port) as wire:
            body = json.dumps(ASKED).encode()
            lines = (JSON, f"Content-Length: {len(body)}")
            await wire.send(head_of(*lines, path="/providers/p0/chat/completions") + body)
            while not passing.received:
                await asyncio.sleep(0.01)
            gateway.process.terminate()
            told = await wire.reply()
        assert (told.status, told.error["code"]) == (503, "overloaded")
        assert await asyncio.to_thread(gateway.process.wait, 10) == 0
        (record,) = gateway.records(1)
        assert (record["outcome"], record["status"]) == ("error", 503)
        assert record["usage"]["prompt_tokens"] > 0
