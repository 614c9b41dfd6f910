"""Posts finished requests to a URL, at least once each: from a spool, so that none waits in memory.

A post is JSON lines, a request each, and carries the headers of the Standard Webhooks
specification: a receiver verifies the signature, and knows by the id what it has seen before.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import random
import time

import aiohttp

from gateway import __version__
from gateway.config.schema import Webhook
from gateway.spool import Left, Spool

logger = logging.getLogger("sluice.webhook")

PAUSE_SECONDS = 1.0  # what comes meanwhile is posted together
LAST_BACKOFF_SECONDS = 60.0
TIMEOUT = aiohttp.ClientTimeout(total=15)
SECRET_PREFIX = "whsec_"  # noqa: S105  the specification's prefix, not a secret


class WebhookPoster:
    """The worker's part of the spool and the task that posts what anybody has left there."""

    def __init__(self, webhook: Webhook, spool: Spool) -> None:
        self._spool = spool
        self._url = webhook.url
        self._key = signing_key(webhook.secret) if webhook.secret else None
        self._headers = {
            "Content-Type": "application/x-ndjson",
            "User-Agent": f"sluice/{__version__}",
            **webhook.headers,
        }
        self._task: asyncio.Task[None] | None = None
        self._written = False
        self._taken: dict[str, int] = {}  # file -> how many posts of it have been taken

    @property
    def dropped(self) -> int:
        """Return how many records the spool could not take."""
        return self._spool.lost

    def start(self) -> None:
        """Begin to post."""
        self._task = asyncio.create_task(self._run(), name="webhook")

    def write(self, lines: bytes) -> None:
        """Take finished requests."""
        self._spool.write(lines)
        self._written = True

    async def aclose(self) -> None:
        """Stop; what is not posted stays in the spool for the next worker. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._spool.aclose()

    async def _run(self) -> None:
        backoff, taken = PAUSE_SECONDS, True
        async with aiohttp.ClientSession(timeout=TIMEOUT, headers=self._headers) as session:
            while True:
                await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311  no secret
                self._leave(taken)
                try:
                    taken = await self._post_all(session)
                except Exception:  # the spool's disk, or what nobody foresaw: later it may do
                    logger.exception("what waits for the webhook cannot be posted")
                    taken = False
                backoff = PAUSE_SECONDS if taken else min(backoff * 2, LAST_BACKOFF_SECONDS)

    def _leave(self, taken: bool) -> None:
        """Let what is written be posted: while the receiver is away, a large file at a time."""
        if self._written and taken:
            self._written = False
            self._spool.leave()
        elif self._written:
            self._spool.leave_large()

    async def _post_all(self, session: aiohttp.ClientSession) -> bool:
        names = await self._spool.left()
        self._taken = {name: parts for name in names if (parts := self._taken.get(name))}
        for name in names:
            file = await self._spool.take(name)
            if file is None:
                continue
            with contextlib.closing(file):
                if not await self._post_file(session, file):
                    return False
                file.remove()
        return True

    async def _post_file(self, session: aiohttp.ClientSession, file: Left) -> bool:
        part, taken = 0, self._taken.get(file.name, 0)
        while lines := await self._spool.read(file):
            # A line that a crash has cut short would make the whole post unreadable.
            body = b"".join([line for line in lines if line.endswith(b"}\n")])
            post_id = f"{file.name}-{part}"
            if part >= taken and body and not await self._post(session, post_id, body):
                return False
            part += 1
            self._taken[file.name] = max(part, taken)
        return True

    async def _post(self, session: aiohttp.ClientSession, post_id: str, body: bytes) -> bool:
        moment = str(int(time.time()))
        headers = {"webhook-id": post_id, "webhook-timestamp": moment}
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, post_id, moment, body)
        try:
            async with session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.warning("the webhook cannot be reached: %s", type(error).__name__)
            return False
        if not 200 <= status < 300:
            logger.warning("the webhook answered %d: what it did not take waits", status)
            return False
        return True


def signing_key(secret: str) -> bytes:
    """Return a secret's bytes: base64 after `whsec_`. Raises ValueError."""
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"expected {SECRET_PREFIX} and base64")
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    if not 24 <= len(key) <= 64:  # what the specification says
        raise ValueError("expected 24 to 64 bytes")
    return key


def signature(key: bytes, post_id: str, moment: str, body: bytes) -> str:
    """Sign as Standard Webhooks does: version 1, HMAC-SHA256 over id, timestamp and body."""
    digest = hmac.digest(key, f"{post_id}.{moment}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()
