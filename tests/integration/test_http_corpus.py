"""Public corpora of odd HTTP requests, JSON texts and strings, all sent to one gateway.

They lie beside the project (`FIXTURES`; override: SLUICE_FIXTURES) and are skipped where absent.
"""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.config import PRICED_MODEL, bearer, chat, config
from tests.support.gateway import ROOT, Gateway, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, completion, delta, usage
from tests.support.wire import CHAT_PATH, Reply, Wire, ask, connected, post

FIXTURES = Path(os.environ.get("SLUICE_FIXTURES") or ROOT.parent / "shared" / "fixtures")
HTTP, JSON_TEXTS = FIXTURES / "http-requests", FIXTURES / "json-parsing" / "test_parsing"
NAUGHTY = FIXTURES / "naughty-strings" / "blns.json"
LATE_SECONDS = 10.0
QUIET_SECONDS = 0.1  # on loopback a reply is there long before; an unfinished request gets none

here = pytest.mark.skipif(not NAUGHTY.is_file(), reason=f"no naughty strings in {FIXTURES}")


def cases(folder: Path, pattern: str) -> list[Any]:
    """The files of a corpus as a test's parameters; one skipped parameter where it is absent."""
    found = [pytest.param(path, id=path.name) for path in sorted(folder.glob(pattern))]
    absent = pytest.mark.skip(reason=f"no {pattern} in {folder}")
    return found or [pytest.param(folder, marks=absent)]


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """The gateway that takes all of it; at the end it has the worker it began with."""
    with untroubled(config(provider.url)) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def fresh(provider: UpstreamThread) -> None:
    """The upstream behaves, and has received nothing."""
    provider.reset()


async def still_serves(gateway: Gateway) -> None:
    """A good request on a connection of its own is answered."""
    assert (await ask(gateway.port, post(chat()))).status == 200


# -- HTTP requests ---------------------------------------------------------------------------------

ESCAPES = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0"}


def request_of(path: Path) -> bytes:
    """The request's bytes: physical line ends dropped, escapes decoded."""
    text = path.read_bytes().replace(b"\n", b"")

    def decoded(escape: re.Match[bytes]) -> bytes:
        return ESCAPES.get(escape[1]) or bytes.fromhex(escape[1][1:].decode())

    return re.sub(rb"\\(x[0-9A-Fa-f]{2}|[rnt0])", decoded, text)


async def told(wire: Wire, count: int = 0) -> list[Reply]:
    """The replies up to a close, or up to a silence; so many at least are waited for."""
    replies: list[Reply] = []
    with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        while True:
            seconds = 0.02 if replies else QUIET_SECONDS
            seconds = LATE_SECONDS if len(replies) < count else seconds
            replies.append(await wire.reply(seconds, "HEAD"))
            if length := int(replies[-1].headers.get("content-length", "0")):
                await wire.reader.readexactly(length)
    return replies


@pytest.mark.parametrize("path", cases(HTTP / "invalid", "*.http"))
async def test_an_invalid_request_is_refused(
    served: Gateway, provider: UpstreamThread, path: Path
) -> None:
    async with connected(served.port) as wire:
        await wire.send(request_of(path))
        replies = await told(wire)
        wire.half_close()
        replies += await told(wire)
        assert await wire.is_closed(2)
    assert all(400 <= reply.status < 500 for reply in replies), replies
    assert provider.received == []
    await still_serves(served)


# What is invalid in these is not the request line, nor a stricter server's own policy: the message
# is not valid HTTP/1.1, or its length is ambiguous. Behind it nothing can be told apart.
BROKEN = (
    *("005", "007", "014", "015", "020", "021", "022", "023", "024", "042", "013"),
    *("chunked_01", "chunked_02", "chunked_03", "chunked_04", "chunked_05", "chunked_06"),
    *("chunked_08", "chunked_10", "chunked_11", "chunked_12", "chunked_13", "chunked_14"),
    *("invalid_field_value_01", "nonascii_03", "nonascii_04", "obs_fold_01", "prefix_03"),
    *("prefix_04", "rfc9110_field_value_ctl_bel_01", "rfc9110_field_value_ctl_del_01"),
    *("rfc9112_chunked_missing_final_crlf_01", "rfc9112_chunked_size_minus_sign_01"),
    *("rfc9112_chunked_size_plus_sign_01", "rfc9112_smuggle_cl_list_form_01"),
    "rfc9112_smuggle_cl_te_chunked_01",
)


UNBROKEN = (
    *("010", "011", "012", "rfc9110_body_framing_http10_cl_01"),
    *("rfc9112_chunked_ext_quoted_01", "rfc9112_chunked_size_leading_zeros_01"),
    *("rfc9112_chunked_size_uppercase_hex_01", "rfc9110_field_value_htab_trim_01"),
)


async def before_a_good_request(gateway: Gateway, path: Path, count: int = 0) -> list[int]:
    """Send a corpus message to a hot route, a good request behind it; return the statuses told.

    So many at least are waited for.
    """
    if not path.is_file():
        pytest.skip(f"no {path}")
    line, _, rest = request_of(path).partition(b"\r\n")
    version = line.rpartition(b" ")[2]
    key = bearer()["Authorization"].encode()
    head = b"POST %b %b\r\nAuthorization: %b\r\n" % (CHAT_PATH.encode(), version, key)
    head += b"" if b"\nhost:" in b"\n" + rest.lower() else b"Host: a\r\n"
    head += b"Connection: keep-alive\r\n" if version == b"HTTP/1.0" else b""
    async with connected(gateway.port) as wire:
        await wire.send(head + rest)
        await asyncio.sleep(0.02)  # a segment of its own
        await wire.send(post(chat()))
        return [reply.status for reply in await told(wire, count)]


@pytest.mark.parametrize("name", BROKEN)
async def test_behind_a_broken_message_nothing_is_served(
    served: Gateway, provider: UpstreamThread, name: str
) -> None:
    statuses = await before_a_good_request(served, HTTP / "invalid" / f"{name}.http")
    assert statuses in ([], [400], [431])
    assert provider.received == []


@pytest.mark.parametrize("name", UNBROKEN)
async def test_behind_an_odd_but_valid_message_the_next_is_served(
    served: Gateway, provider: UpstreamThread, name: str
) -> None:
    # Their bodies are no requests for a chat, so they are refused themselves.
    statuses = await before_a_good_request(served, HTTP / "valid" / f"{name}.http", 2)
    assert statuses == [400, 200]
    assert len(provider.received) == 1


@pytest.mark.parametrize(
    "path", [case for case in cases(HTTP / "valid", "*.http") if "pp_" not in str(case.id)]
)
async def test_a_valid_request_breaks_nothing(
    served: Gateway, provider: UpstreamThread, path: Path
) -> None:
    async with connected(served.port) as wire:
        await wire.send(request_of(path))
        replies = await told(wire)
    # None of them asks for anything the gateway has.
    assert replies
    assert all(400 <= reply.status < 500 for reply in replies), replies
    assert provider.received == []
    await still_serves(served)


# -- JSON texts ------------------------------------------------------------------------------------


def with_value(text: bytes) -> bytes:
    """A chat request in which a JSON text stands as the value of a field nobody knows."""
    return json.dumps(chat()).encode()[:-1] + b', "x": ' + text + b"}"


async def sent_and_received(
    gateway: Gateway, provider: UpstreamThread, text: bytes
) -> tuple[Reply, list[bytes]]:
    """The reply to a request with this value, and the bodies that were forwarded."""
    reply = await ask(gateway.port, post(with_value(text)))
    return reply, [request.body for request in provider.received]


@pytest.mark.parametrize("path", cases(JSON_TEXTS, "n_*.json"))
async def test_what_is_not_json_is_refused(
    served: Gateway, provider: UpstreamThread, path: Path
) -> None:
    reply, forwarded = await sent_and_received(served, provider, path.read_bytes())
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    assert forwarded == []
    whole = await ask(served.port, post(path.read_bytes()))
    # The type of the whole is told first, where it shows before the error does.
    assert whole.status == 400
    assert whole.error["code"] in ("invalid_json", "invalid_value", "missing_required_parameter")


@pytest.mark.parametrize("path", cases(JSON_TEXTS, "y_*.json"))
async def test_json_is_accepted_and_forwarded_as_written(
    served: Gateway, provider: UpstreamThread, path: Path
) -> None:
    text = path.read_bytes()
    reply, forwarded = await sent_and_received(served, provider, text)
    assert reply.status == 200
    (body,) = forwarded
    assert body.endswith(b',"x":' + text.strip() + b"}")
    assert json.loads(body) == {**chat(PRICED_MODEL), "x": json.loads(text)}
    whole = await ask(served.port, post(text))
    assert (whole.status, whole.error["code"]) in (
        (400, "invalid_value"),
        (400, "missing_required_parameter"),
    )


@pytest.mark.parametrize("path", cases(JSON_TEXTS, "i_*.json"))
async def test_what_parsers_differ_over_is_refused_or_forwarded_as_written(
    served: Gateway, provider: UpstreamThread, path: Path
) -> None:
    text = path.read_bytes()
    reply, forwarded = await sent_and_received(served, provider, text)
    if reply.status == 200:
        assert [body.endswith(b',"x":' + text.strip() + b"}") for body in forwarded] == [True]
    else:
        assert (reply.status, reply.error["code"]) == (400, "invalid_json")
        assert forwarded == []
    assert (await ask(served.port, post(text))).status == 400


# -- naughty strings -------------------------------------------------------------------------------


def naughty() -> list[str]:
    """The strings."""
    strings: list[str] = json.loads(NAUGHTY.read_text(encoding="utf-8"))
    assert len(strings) > 400
    return strings


async def echoes(exchange: Exchange) -> None:
    """Answer with what the user said: whole, or as a stream in pieces of three characters."""
    asked = exchange.request.json
    said = asked["messages"][0]["content"]
    if not asked.get("stream"):
        body = json.dumps(completion(said, usage(1, 1)), ensure_ascii=False).encode()
        await exchange.reply(body)
        return
    await exchange.start_stream()
    for start in range(0, len(said), 3):
        event = json.dumps(delta(said[start : start + 3]), ensure_ascii=False)
        await exchange.event(event)
    await exchange.event(delta(None, "stop"))
    await exchange.event("[DONE]")
    await exchange.end_stream()


def said_in(reply: Reply) -> str:
    """The text of a reply, whole or streamed."""
    if reply.headers["content-type"] == "application/json":
        return str(reply.json["choices"][0]["message"]["content"])
    *events, end, rest = reply.body.split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@contextlib.asynccontextmanager
async def one_connection(gateway: Gateway) -> AsyncIterator[Wire]:
    """A connection that all strings go over: if one upsets it, those behind it show it."""
    async with connected(gateway.port) as wire:
        yield wire
        await wire.send(post(chat()))
        assert (await wire.reply()).status == 200


@here
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("escaped", [False, True], ids=["as it is", "escaped"])
async def test_a_string_comes_back_as_it_went(
    served: Gateway, provider: UpstreamThread, stream: bool, escaped: bool
) -> None:
    provider.reset(echoes)
    changed = []
    async with one_connection(served) as wire:
        for string in naughty():
            message = {"role": "user", "content": string}
            body = json.dumps(
                {"model": "m", "messages": [message], "stream": stream}, ensure_ascii=escaped
            )
            await wire.send(post(body.encode()))
            reply = await wire.reply()
            written = json.dumps(message, ensure_ascii=escaped).encode()
            if said_in(reply) != string or written not in provider.received[-1].body:
                changed.append(string)
    assert changed == []


@here
async def test_a_string_as_a_models_name_is_refused_by_that_name(
    served: Gateway, provider: UpstreamThread
) -> None:
    surprising = []
    async with one_connection(served) as wire:
        for string in naughty():
            await wire.send(post(chat(string)))
            reply = await wire.reply()
            if 1 <= len(string) <= 256 and reply.status == 404:
                good = reply.error["message"] == f"The model '{string}' does not exist here."
            else:
                good = reply.status == 400 and reply.error["param"] == "model"
            if not good:
                surprising.append((string, reply.status, reply.body))
    assert surprising == []


@here
async def test_a_string_as_a_providers_model_breaks_no_header(
    served: Gateway, provider: UpstreamThread
) -> None:
    async with one_connection(served) as wire:
        for string in naughty():
            await wire.send(post(chat("p0/" + string[:250])))
            reply = await wire.reply()
            assert reply.status in (200, 400, 404), string
            assert reply.headers["x-request-id"].startswith("req_")


@here
async def test_a_string_as_a_key_is_refused(served: Gateway, provider: UpstreamThread) -> None:
    async with one_connection(served) as wire:
        for string in naughty():
            key = string.encode().decode("latin-1")
            if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", key):
                continue  # not HTTP
            await wire.send(post(chat(), key=key))
            assert (await wire.reply()).status == 401, string
    assert len(provider.received) == 1  # the good request at the end
