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
TOO_LARGE = 413
_OF_ONE_POST = frozenset((400, 422))  # refuse what was posted, and not whoever posts
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
        self._taken: dict[str, int] = {}  # file -> how many bytes of it have been taken
        self._too_large = 0

    @property
    def dropped(self) -> int:
        """Return how many records the spool could not take, or the receiver never will."""
        return self._spool.lost + self._too_large

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
        """Post all files, but for those with something that is not taken; tell whether all were."""
        names = await self._spool.left()
        self._taken = {name: size for name in names if (size := self._taken.get(name))}
        whole = True
        for name in names:
            file = await self._spool.take(name)
            if file is None:
                continue
            with contextlib.closing(file):
                status = await self._post_file(session, file)
                if status is None:
                    file.remove()
                    continue
            whole = False
            if status not in _OF_ONE_POST:
                break
        return whole

    async def _post_file(self, session: aiohttp.ClientSession, file: Left) -> int | None:
        """Post what has not been taken of a file; return None, or what the receiver answered."""
        at, taken = 0, self._taken.get(file.name, 0)
        while lines := await self._spool.read(file):
            if at >= taken:
                status = await self._post_lines(session, file.name, at, lines)
                if status is not None:
                    return status
            at += sum(map(len, lines))
            self._taken[file.name] = max(at, taken)
        return None

    async def _post_lines(
        self, session: aiohttp.ClientSession, name: str, at: int, lines: list[bytes]
    ) -> int | None:
        """Post lines of a file, from byte `at` on: in halves where they are too large together."""
        # A line that a crash has cut short would make the whole post unreadable.
        body = b"".join([line for line in lines if line.endswith(b"}\n")])
        status = await self._post(session, f"{name}-{at}", body) if body else None
        if status != TOO_LARGE:
            return status
        if len(lines) == 1:
            self._too_large += 1
            logger.error("the webhook takes no record of %d bytes: it is dropped", len(body))
            return None
        half = len(lines) // 2
        for start, some in ((0, lines[:half]), (half, lines[half:])):
            begin = at + sum(map(len, lines[:start]))
            status = await self._post_lines(session, name, begin, some)
            if status is not None:
                return status
        return None

    async def _post(self, session: aiohttp.ClientSession, post_id: str, body: bytes) -> int | None:
        """Return None where it is taken, else the status of the answer; 0 where none came."""
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
            return 0
        if 200 <= status < 300:
            return None
        if status != TOO_LARGE:
            logger.warning("the webhook answered %d: what it did not take waits", status)
        return status


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
