"""A provider's own API behind `/providers/NAME/`: passed on as it is, admitted and counted."""

import asyncio
import hashlib
import io
import json
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.support.config import KEY, bearer, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.upstream import Exchange, Upstream, completion, delta, usage

NARROW = "sk-narrow-0123456789"
POOR = "sk-poor-0123456789"
RATED = "sk-rated-0123456789"
KEYS = [
    {"name": "k", "tenant": "acme", "sha256": digest(KEY)},
    {"name": "n", "tenant": "narrow", "sha256": digest(NARROW), "models": ["gpt-4o-mini"]},
    {"name": "r", "tenant": "rated", "sha256": digest(RATED), "rpm": 2},
    {
        "name": "p",
        "tenant": "poor",
        "sha256": digest(POOR),
        "budget": {"per": "day", "usd": 0.000001},
    },
]


def served(upstream: Upstream, **sections: Any) -> str:
    return config(upstream.url, auth={"keys": KEYS}, **sections)


async def ask(gateway: Gateway, path: str, key: str = KEY, **options: Any) -> tuple[int, Any, Any]:
    """Send a request; return status, headers and body."""
    method = options.pop("method", "POST")
    headers = {**bearer(key), **options.pop("headers", {})}
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method,
            URL(f"{gateway.url}/providers/{path}", encoded=True),
            headers=headers,
            **options,
        ) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


async def dechunked(exchange: Exchange) -> bytes:
    """Read a chunked body."""
    assert exchange.reader is not None
    body = b""
    while size := int(await exchange.reader.readline(), 16):
        body += (await exchange.reader.readexactly(size + 2))[:-2]
    await exchange.reader.readline()
    return body


async def test_an_answer_passes_as_it_is_and_is_counted(upstream: Upstream) -> None:
    odd = {**completion("yes", usage(11, 4, cached=2)), "only_here": [1, {"a": None}]}

    async def behave(exchange: Exchange) -> None:
        await exchange.reply(odd, headers={"x-request-id": "req-1", "set-cookie": "a=b"})

    upstream.behaviour = behave
    with running(served(upstream)) as gateway:
        asked = {**chat("gpt-4o-mini"), "not_known_here": True}
        status, headers, body = await ask(gateway, "p0/v1/chat/completions?beta=1%2F2", json=asked)
        assert (status, json.loads(body)) == (200, odd)
        assert headers["x-request-id"].startswith("req")
        assert headers["x-sluice-provider"] == "p0"
        assert "set-cookie" not in headers
        (received,) = upstream.received
        assert received.path == "/v1/chat/completions?beta=1%2F2"
        assert received.json == asked
        gateway.settled()
        counted = gateway.usage("acme")
        assert (counted["requests"], counted["prompt_tokens"]) == (1, 11)
        assert (counted["completion_tokens"], counted["cached_tokens"]) == (4, 2)
        # gpt-4o-mini: 9 at 0.15, 2 at 0.075, 4 at 0.60 dollars a million.
        assert counted["cost_microusd"] == pytest.approx(9 * 0.15 + 2 * 0.075 + 4 * 0.6, abs=1)


async def test_the_client_s_credentials_stay_here(upstream: Upstream) -> None:
    with running(served(upstream)) as gateway:
        sent = {
            "cookie": "session=1",
            "x-api-key": KEY,
            "x-goog-api-key": KEY,
            "x-forwarded-for": "203.0.113.9",
            "connection": "keep-alive, x-private",
            "x-private": "mine",
            "openai-beta": "assistants=v2",
        }
        await ask(gateway, "p0/v1/models", method="GET", headers=sent)
        (received,) = upstream.received
        assert received.headers["authorization"] == "Bearer sk-upstream-0"
        assert received.headers["openai-beta"] == "assistants=v2"
        assert KEY not in str(received.headers)
        for name in ("cookie", "x-api-key", "x-goog-api-key", "x-forwarded-for", "x-private"):
            assert name not in received.headers


async def test_google_s_header_presents_a_key_too(upstream: Upstream) -> None:
    with running(served(upstream)) as gateway:
        headers = {"x-goog-api-key": KEY}
        url = f"{gateway.url}/providers/p0/v1/models"
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "chunked"])
async def test_an_upload_goes_through_byte_for_byte(upstream: Upstream, sized: bool) -> None:
    file = bytes(range(256)) * 12_000  # 3 MB
    got: list[bytes] = []

    async def behave(exchange: Exchange) -> None:
        chunked = exchange.request.headers.get("transfer-encoding") == "chunked"
        got.append(await dechunked(exchange) if chunked else exchange.request.body)
        await exchange.reply({"id": "file-1"})

    upstream.behaviour = behave

    async def parts() -> Any:
        for at in range(0, len(file), 100_000):
            yield file[at : at + 100_000]

    with running(served(upstream)) as gateway:
        form = {"content-type": "multipart/form-data; boundary=x"}
        data = io.BytesIO(file) if sized else parts()
        status, _, body = await ask(gateway, "p0/v1/files", data=data, headers=form)
        assert (status, json.loads(body)) == (200, {"id": "file-1"})
        assert [hashlib.sha256(one).digest() for one in got] == [hashlib.sha256(file).digest()]
        (received,) = upstream.received
        assert received.headers["content-type"] == form["content-type"]
        assert ("content-length" in received.headers) == sized


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "chunked"])
async def test_an_upload_that_is_too_large_is_refused(upstream: Upstream, sized: bool) -> None:
    async def parts() -> Any:
        for _ in range(20):
            yield b"x" * 100_000

    async def behave(exchange: Exchange) -> None:
        await dechunked(exchange)

    upstream.behaviour = behave
    with running(served(upstream, server={"max_upload_size": 1_000_000})) as gateway:
        kind = {"content-type": "application/octet-stream"}
        data = io.BytesIO(b"x" * 2_000_000) if sized else parts()
        status, _, body = await ask(gateway, "p0/v1/files", data=data, headers=kind)
        assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")


async def test_a_stream_arrives_event_by_event(upstream: Upstream) -> None:
    seen = asyncio.Event()

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("first"))
        await asyncio.wait_for(seen.wait(), 10)  # what is sent next waits for what was seen
        await exchange.event({**delta(None, "stop"), "usage": usage(6, 2)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    upstream.behaviour = behave
    with running(served(upstream)) as gateway:
        url = f"{gateway.url}/providers/p0/v1/chat/completions"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=chat("gpt-4o-mini", stream=True), headers=bearer()) as answer,
        ):
            assert b"first" in await answer.content.readline()
            seen.set()
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        gateway.settled()
        assert gateway.usage("acme")["completion_tokens"] == 2


async def test_an_answer_that_breaks_off_breaks_off_here(upstream: Upstream) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("half"))
        exchange.abort()

    upstream.behaviour = behave
    with running(served(upstream)) as gateway:
        with pytest.raises(aiohttp.ClientError):
            await ask(gateway, "p0/v1/chat/completions", json=chat("gpt-4o-mini", stream=True))
        (record,) = gateway.records(1)
        assert (record["outcome"], record["error"]) == ("error", "stream_interrupted")


async def test_a_client_that_leaves_ends_the_provider_s_work(upstream: Upstream) -> None:
    gone = asyncio.Event()

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("one"))
        await exchange.gone()
        gone.set()

    upstream.behaviour = behave
    with running(served(upstream)) as gateway:
        url = f"{gateway.url}/providers/p0/v1/chat/completions"
        async with aiohttp.ClientSession() as session:
            answer = await session.post(url, json=chat("gpt-4o-mini"), headers=bearer())
            await answer.content.readline()
            answer.close()
            await asyncio.wait_for(gone.wait(), 10)
        (record,) = gateway.records(1)
        assert record["outcome"] == "disconnected"


async def test_what_the_provider_refuses_is_shown_as_it_says(upstream: Upstream) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.reply({"error": {"message": "No such file"}}, 404)

    upstream.behaviour = behave
    with running(served(upstream)) as gateway:
        status, _, body = await ask(gateway, "p0/v1/files/none", method="GET")
        assert (status, json.loads(body)) == (404, {"error": {"message": "No such file"}})


async def test_who_may_not_gets_nowhere(upstream: Upstream) -> None:
    with running(served(upstream)) as gateway:
        asked = {"json": chat("gpt-4o-mini")}
        way = "p0/v1/chat/completions"
        assert (await ask(gateway, way, "sk-unknown", **asked))[0] == 401
        assert (await ask(gateway, "nobody/v1/models", method="GET"))[0] == 404
        for path in ("p0/../../x", "p0/%2e%2e/x", "p0/v1/%2E./x", "p0/v1/..%2f..%2fx"):
            raw = await raw_get(gateway, f"/providers/{path}")
            assert raw.startswith(b"HTTP/1.1 404 "), path
        assert not upstream.received

        assert (await ask(gateway, way, NARROW, **asked))[0] == 200
        assert (await ask(gateway, way, NARROW, json=chat("gpt-4o")))[0] == 403
        # What names no model is for keys that may use all.
        assert (await ask(gateway, "p0/v1/files", NARROW, method="GET"))[0] == 403
        assert len(upstream.received) == 1


async def raw_get(gateway: Gateway, path: str) -> bytes:
    """Send a path no client would send; return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close"
    writer.write(f"{head}\r\n\r\n".encode())
    data = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return data


async def test_limits_and_budgets_hold(upstream: Upstream) -> None:
    with running(served(upstream)) as gateway:
        asked = {"json": chat("gpt-4o-mini")}
        way = "p0/v1/chat/completions"
        statuses = [(await ask(gateway, way, RATED, **asked))[0] for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        status, _, body = await ask(gateway, way, POOR, **asked)
        assert (status, json.loads(body)["error"]["code"]) == (429, "budget_exceeded")
        assert len(upstream.received) == 2


async def test_a_provider_that_cannot_be_reached() -> None:
    async with Upstream() as left:
        pass
    with running(config(left.url)) as gateway:
        status, _, body = await ask(gateway, "p0/v1/models", method="GET")
        assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_failed")
        assert "sk-upstream" not in body.decode() + gateway.errors
