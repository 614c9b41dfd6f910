"""Finished requests posted to a receiver that refuses, hangs, is away, and comes back."""

import asyncio
import base64
import hashlib
import hmac
import json
import shutil
from collections.abc import Callable
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


async def test_a_receiver_that_refuses_now_and_then_gets_to_the_end(tmp_path: Path) -> None:
    """What it has taken of a file is not posted again."""
    spool = Spool(tmp_path, "w", 10**7)
    lines = b"".join([b'{"id":"%d"}\n' % n for n in range(10 * MAX_BATCH_LINES)])
    spool.write(lines)
    await asyncio.sleep(0.1)
    spool.leave()
    poster = WebhookPoster(Webhook(url="http://127.0.0.1:9/hook"), spool)
    posted: list[str] = []

    async def post(session: Any, post_id: str, body: bytes) -> int | None:
        posted.append(post_id)
        return None if len(posted) % 4 else 503  # every fourth is refused

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


def left_behind(directory: Path, name: str, *lines: bytes) -> None:
    """A file that a worker has left."""
    (directory / f"{name}-w-1.spool").write_bytes(b"".join(lines))


def record_of(number: int, size: int) -> bytes:
    return b'{"id":"%d","is":"%s"}\n' % (number, b"x" * size)


async def test_what_is_too_large_together_is_posted_in_parts(tmp_path: Path) -> None:
    """What is too large by itself is dropped, and counted: it can never be taken."""
    lines = [record_of(n, 40_000 if n % 5 else 10) for n in range(40)]
    lines[17] = record_of(17, 120_000)
    left_behind(tmp_path, "1", *lines)
    poster = WebhookPoster(Webhook(url="http://127.0.0.1:9/hook"), Spool(tmp_path, "w", 10**7))
    taken = dict[str, bytes]()

    async def post(session: Any, post_id: str, body: bytes) -> int | None:
        if len(body) > 100_000:
            return 413
        assert post_id not in taken
        taken[post_id] = body
        return None

    poster._post = post  # type: ignore[method-assign]
    async with aiohttp.ClientSession() as session:
        assert await poster._post_all(session)
    await poster.aclose()
    assert b"".join(taken.values()) == b"".join(lines[:17] + lines[18:])
    assert poster.dropped == 1
    assert not list(tmp_path.iterdir())


async def test_a_post_that_is_refused_keeps_no_other_file_waiting(tmp_path: Path) -> None:
    left_behind(tmp_path, "1", record_of(1, 5))
    left_behind(tmp_path, "2", record_of(2, 5))
    left_behind(tmp_path, "3", record_of(3, 5))
    poster = WebhookPoster(Webhook(url="http://127.0.0.1:9/hook"), Spool(tmp_path, "w", 10**7))
    taken, bad = list[bytes](), 422

    async def post(session: Any, post_id: str, body: bytes) -> int | None:
        if body == record_of(1, 5):
            return bad
        taken.append(body)
        return None

    poster._post = post  # type: ignore[method-assign]
    async with aiohttp.ClientSession() as session:
        assert not await poster._post_all(session)
        assert taken == [record_of(2, 5), record_of(3, 5)]
        left_behind(tmp_path, "4", record_of(4, 5))
        bad = 503  # who is away is not asked for the others
        assert not await poster._post_all(session)
    await poster.aclose()
    assert len(taken) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-w-1.spool", "4-w-1.spool"]


async def test_a_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "webhook", "w", 10**7)
    poster = WebhookPoster(Webhook(url="http://127.0.0.1:9/hook"), spool)
    posts = Posts(poster)
    spool.write(record_of(1, 5))
    await until(lambda: spool.written > 0)
    shutil.rmtree(tmp_path / "webhook")
    assert await spool.left() == []
    spool.write(record_of(2, 5))
    spool.leave()
    async with aiohttp.ClientSession() as session:
        assert await poster._post_all(session)
    await poster.aclose()
    assert posts.taken == [record_of(2, 5)]


async def test_posting_goes_on_after_what_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.observe.webhook.PAUSE_SECONDS", 0.01)
    poster = WebhookPoster(Webhook(url="http://127.0.0.1:9/hook"), Spool(tmp_path, "w", 10**7))
    posted: list[bytes] = []

    async def post(session: Any, post_id: str, body: bytes) -> int | None:
        posted.append(body)
        if len(posted) == 1:
            raise ValueError("nobody thought of this")
        return None

    poster._post = post  # type: ignore[method-assign]
    poster.start()
    poster.write(b'{"id":"1"}\n')
    async with asyncio.timeout(20):
        while len(posted) < 2:
            await asyncio.sleep(0.01)
    await poster.aclose()
    assert posted == [b'{"id":"1"}\n'] * 2


class Posts:
    """A poster's own, without a receiver: kept where they are taken."""

    def __init__(self, poster: WebhookPoster) -> None:
        self.taken, self.refused = list[bytes](), 0
        self.away = False
        self.look: Callable[[], None] = lambda: None
        poster._post = self._post  # type: ignore[method-assign]

    async def _post(self, session: Any, post_id: str, body: bytes) -> int | None:
        self.look()
        if self.away:
            self.refused += 1
        else:
            self.taken.append(body)
        return 0 if self.away else None


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not done():
            await asyncio.sleep(0.001)


async def test_one_file_is_taken_at_a_time(tmp_path: Path) -> None:
    """However many an outage has left: each is a descriptor, and what others could post."""
    spool, other = Spool(tmp_path, "w", 10**7), Spool(tmp_path, "other", 10**7)
    poster = WebhookPoster(Webhook(url="http://127.0.0.1:9/hook"), spool)
    for n in range(5):
        spool.write(b'{"id":"%d"}\n' % n)
        spool.leave()
        await spool.left()
    posts, free = Posts(poster), list[int]()

    def look() -> None:
        files = [other._take(path.stem) for path in tmp_path.iterdir()]
        free.append(sum(file is not None for file in files))
        for file in files:
            if file is not None:
                file.close()

    posts.look = look
    async with aiohttp.ClientSession() as session:
        assert await poster._post_all(session)
    assert posts.taken == [b'{"id":"%d"}\n' % n for n in range(5)]
    assert free == [4, 3, 2, 1, 0]
    await poster.aclose()
    await other.aclose()


async def test_what_comes_while_the_receiver_is_away_waits_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.observe.webhook.PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("gateway.observe.webhook.LAST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr("gateway.spool.LEAST_LARGE_BYTES", 1000)
    poster = WebhookPoster(Webhook(url="http://127.0.0.1:9/hook"), Spool(tmp_path, "w", 10**5))
    posts, lines = Posts(poster), list[bytes]()
    posts.away = True
    poster.start()

    async def outage(rounds: int, size: int) -> None:
        for _ in range(rounds):
            lines.append(b'{"id":"%d%s"}\n' % (len(lines), b" " * size))
            poster.write(lines[-1])
            tries = posts.refused
            await until(lambda tries=tries: posts.refused >= tries + 2)  # type: ignore[misc]

    await outage(20, 1)
    assert len(list(tmp_path.iterdir())) == 2
    await outage(6, 500)
    assert 3 < len(list(tmp_path.iterdir())) < 7
    posts.away = False
    await until(lambda: not list(tmp_path.iterdir()))
    await poster.aclose()
    assert b"".join(posts.taken) == b"".join(lines)
