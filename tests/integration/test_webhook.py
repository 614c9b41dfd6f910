"""Finished requests posted to a receiver that refuses, hangs, is away, and comes back."""

import asyncio
import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.config.schema import Webhook
from gateway.observe.webhook import WebhookPoster
from gateway.spool import MAX_BATCH_LINES, Spool
from tests.support.config import chat, config
from tests.support.gateway import running
from tests.support.load import Ask, flood
from tests.support.upstream import Upstream

KEY = b"k" * 32
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver:
    """Keeps what it accepts, by post; answers with `statuses` first, then 204."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.posts = list(statuses), dict[str, list[Any]]()
        self.refused = 0
        self.port = 0

    async def __aenter__(self) -> "Receiver":
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body, headers = await request.read(), request.headers
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
        assert headers["webhook-signature"] == f"v1,{digest}"
        assert headers["x-team"] == "books"
        if self.statuses:
            self.refused += 1
            return web.Response(status=self.statuses.pop(0))
        self.posts[headers["webhook-id"]] = [json.loads(line) for line in body.splitlines()]
        return web.Response(status=204)

    async def ids(self, count: int) -> list[str]:
        """Wait for so many records; return their ids."""
        async with asyncio.timeout(30):
            while True:
                found = [record["id"] for post in self.posts.values() for record in post]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.05)


def hooked(upstream: Upstream, port: int) -> str:
    hook = {
        "url": f"http://127.0.0.1:{port}/hook",
        "secret": SECRET,
        "headers": {"x-team": "books"},
    }
    return config(upstream.url, ledger={"webhook": hook})


async def test_every_record_is_posted_once_the_receiver_takes_it(upstream: Upstream) -> None:
    async with Receiver(500, 302, 429) as receiver:
        with running(hooked(upstream, receiver.port), workers=2) as gateway:
            await flood(gateway.port, [Ask(chat()) for _ in range(100)], connections=8)
            ids = await receiver.ids(100)
            printed = gateway.records(100)
            assert sorted(ids) == sorted(record["id"] for record in printed)
            assert receiver.refused == 3
            async with asyncio.timeout(5):  # the last answer is on its way
                while list((gateway.state / "webhook").iterdir()):
                    await asyncio.sleep(0.02)


async def test_records_outlive_the_gateway(upstream: Upstream) -> None:
    async with Receiver() as receiver:
        pass  # its port is known, and nobody is there
    with running(hooked(upstream, receiver.port)) as gateway:
        await flood(gateway.port, [Ask(chat()) for _ in range(20)], connections=4)
        assert await asyncio.to_thread(gateway.stop) == 0
        assert list((gateway.state / "webhook").iterdir())
        gateway.start()
        await flood(gateway.port, [Ask(chat()) for _ in range(5)], connections=1)
        async with receiver:
            ids = await receiver.ids(25)
        assert sorted(ids) == sorted(record["id"] for record in gateway.records(25))


@pytest.mark.parametrize(
    ("hook", "field"),
    [
        ({"url": "ftp://x/y"}, "url"),
        ({"url": "nowhere"}, "url"),
        ({"url": "http://x", "secret": "abc"}, "secret"),
        ({"url": "http://x", "secret": "whsec_AAAA"}, "secret"),
    ],
)
async def test_a_bad_webhook_is_refused_at_the_start(
    upstream: Upstream, hook: dict[str, str], field: str
) -> None:
    text = config(upstream.url, ledger={"webhook": hook})
    with pytest.raises(AssertionError, match=rf"ledger\.webhook\.{field}"), running(text):
        pass


async def test_a_spool_is_bounded_and_counts_what_it_loses(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w", most_bytes=1000)
    for _ in range(30):
        spool.write(b"x" * 99 + b"\n")
        spool.leave()
    left = await spool.left()
    lines = [line for file in left for line in file.read()]
    assert (len(lines), spool.lost) == (10, 20)
    assert await Spool(tmp_path, "other", 1000).left() == []  # locked: they are being read
    for file in left:
        file.remove()
    spool.write(b"again\n")
    await spool.aclose()
    await spool.aclose()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"again\n"]


async def test_a_receiver_that_refuses_now_and_then_gets_to_the_end(tmp_path: Path) -> None:
    """What it has taken of a file is not posted again."""
    spool = Spool(tmp_path, "w", 10**7)
    lines = b"".join([b'{"id":"%d"}\n' % n for n in range(10 * MAX_BATCH_LINES)])
    spool.write(lines)
    await asyncio.sleep(0.1)
    spool.leave()
    poster = WebhookPoster(Webhook(url="http://127.0.0.1:9/hook"), spool)
    posted: list[str] = []

    async def post(session: Any, post_id: str, body: bytes) -> bool:
        posted.append(post_id)
        return len(posted) % 4 != 0  # every fourth is refused

    poster._post = post  # type: ignore[method-assign]
    rounds = 0
    async with aiohttp.ClientSession() as session:
        while not await poster._post_all(session):
            rounds += 1
            assert rounds < 10
    await poster.aclose()
    assert len(set(posted)) == 10
    assert len(posted) == 10 + rounds
    assert not list(tmp_path.iterdir())


async def test_posting_goes_on_after_what_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.observe.webhook.PAUSE_SECONDS", 0.01)
    poster = WebhookPoster(Webhook(url="http://127.0.0.1:9/hook"), Spool(tmp_path, "w", 10**7))
    posted: list[bytes] = []

    async def post(session: Any, post_id: str, body: bytes) -> bool:
        posted.append(body)
        if len(posted) == 1:
            raise ValueError("nobody thought of this")
        return True

    poster._post = post  # type: ignore[method-assign]
    poster.start()
    poster.write(b'{"id":"1"}\n')
    async with asyncio.timeout(20):
        while len(posted) < 2:
            await asyncio.sleep(0.01)
    await poster.aclose()
    assert posted == [b'{"id":"1"}\n'] * 2
