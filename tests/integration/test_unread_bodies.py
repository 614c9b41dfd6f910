"""Requests whose body never came as it should: each is in the books as any that is refused."""

import asyncio
import gzip
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.admin import ADMIN_KEY, make
from tests.support.config import KEY, chat, config, digest
from tests.support.gateway import Gateway, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.wire import ask, chunked, connected, head_of, post

MAX_BODY = 10_000
LARGE = b"x" * (MAX_BODY + 1)
CHUNKED, GZIP = "Transfer-Encoding: chunked", "Content-Encoding: gzip"
REFUSED = {
    "too large, said": (head_of(f"Content-Length: {MAX_BODY + 1}"), "request_too_large"),
    "too large, all here": (post(LARGE), "request_too_large"),
    "too large, in chunks": (head_of(CHUNKED) + chunked(LARGE), "request_too_large"),
    "too large, unpacked": (post(gzip.compress(LARGE), GZIP), "request_too_large"),
    "too slow": (post(chat())[:-5], "request_timeout"),
    "too slow, in chunks": (head_of(CHUNKED) + chunked(b"{", end=False), "request_timeout"),
    "damaged gzip": (post(b"abcd", GZIP), "invalid_http"),
    "expects too much": (post(chat(), "Expect: magic"), "expectation_failed"),
    "no JSON": (post(b"abcd"), "invalid_json"),  # whose body is read
}
ROUTES = ("/v1/chat/completions", "/v1/messages")


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """The gateway that all tests share."""
    key = {"name": "k", "tenant": "acme", "sha256": digest(KEY), "labels": {"team": "red"}}
    server = {"request_timeout": 1, "max_request_size": MAX_BODY}
    auth = {"keys": [{**key, "rpm": 600}], "admin_key": ADMIN_KEY}
    with untroubled(config(provider.url, auth=auth, server=server)) as gateway:
        yield gateway


async def recorded(gateway: Gateway, number: str) -> dict[str, Any]:
    """The record of a request."""
    async with asyncio.timeout(10):
        while True:
            for record in gateway.records():
                if record["id"] == number:
                    return record
            await asyncio.sleep(0.05)


def counted(gateway: Gateway, name: str) -> dict[str, float]:
    """A counter's values by their labels."""
    shown = gateway.get("/metrics")[1].decode()
    return {one[1]: float(one[2]) for one in re.finditer(rf"{name}(\{{.*\}}) (\S+)", shown)}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", REFUSED)
async def test_a_body_that_is_refused_is_in_the_books(
    served: Gateway, name: str, path: str
) -> None:
    data, code = REFUSED[name]
    before = await asyncio.to_thread(counted, served, "sluice_errors_total")
    reply = await ask(served.port, data.replace(ROUTES[0].encode(), path.encode()))
    assert reply.headers["x-ratelimit-limit-requests"] == "600"
    number = reply.headers["x-request-id"]
    record = await recorded(served, number)
    assert (record["tenant"], record["key"], record["labels"]) == ("acme", "k", ["team=red"])
    assert (record["status"], record["error"]) == (reply.status, code)
    assert (record["outcome"], record["attempts"], record["model"]) == ("refused", 0, "other")
    assert record["duration_us"] > 900_000 or code != "request_timeout"
    with served.store as store:
        entries = [fields for _, fields in store.xrange("sluice:requests")]
    (entry,) = [one for one in entries if one["id"] == number]
    assert (entry["tenant"], entry["error"]) == ("acme", code)
    after = await asyncio.to_thread(counted, served, "sluice_errors_total")
    label = f'{{code="{code}"}}'
    assert after[label] == before.get(label, 0) + 1


async def test_one_whose_framing_is_damaged_on_the_way_too(served: Gateway) -> None:
    async with connected(served.port) as wire:
        await wire.send(head_of(CHUNKED, "Expect: 100-continue"))
        assert (await wire.reply()).status == 100
        await wire.send(b"x\r\n")
        reply = await wire.reply()
    record = await recorded(served, reply.headers["x-request-id"])
    assert (record["key"], record["status"], record["error"]) == ("k", 400, "invalid_http")


@pytest.mark.parametrize("name", ["too large, said", "too slow", "damaged gzip"])
async def test_a_virtual_keys_too(served: Gateway, name: str) -> None:
    key_id, secret = await make(served)
    data, code = REFUSED[name]
    reply = await ask(served.port, data.replace(KEY.encode(), secret.encode()))
    record = await recorded(served, reply.headers["x-request-id"])
    assert (record["tenant"], record["key"], record["error"]) == ("acme", key_id, code)


async def test_a_stranger_is_nobody_whatever_is_sent(served: Gateway) -> None:
    for data, status in ((post(LARGE, key="sk-wrong"), 413), (post(b"{}", key="sk-wrong"), 401)):
        reply = await ask(served.port, data)
        assert (reply.status, "x-ratelimit-limit-requests" in reply.headers) == (status, False)
        record = await recorded(served, reply.headers["x-request-id"])
        assert (record["status"], record["tenant"], record["key"]) == (status, "", "")
