"""The admin API as an operator uses it: over connections of its own, which reach every worker."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.config import chat
from tests.support.gateway import Gateway
from tests.support.wire import Reply, ask, head_of, post

ADMIN_KEY = "admin-4f1d9c0b7e62a835"
# So many fresh connections miss one of two workers once in eight million times.
EVERY_WORKER = 24


async def admin(
    gateway: Gateway,
    method: str,
    path: str,
    body: Any = None,
    key: str | None = ADMIN_KEY,
) -> Reply:
    """Send one request under /admin; bytes as a body go as they are."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
    data = content.encode() if isinstance(content, str) else content
    lines = [f"Content-Length: {len(data)}"] if data or method != "GET" else []
    head = head_of(*lines, path="/admin" + path, key=key, method=method)
    return await ask(gateway.port, head + data)


async def make(gateway: Gateway, **settings: Any) -> tuple[str, str]:
    """Make a key of tenant acme; return its id and its secret."""
    body = {"name": "made", "tenant": "acme", **settings}
    reply = await admin(gateway, "POST", "/keys", body)
    assert reply.status == 201, reply
    return reply.json["id"], reply.json["key"]


async def use(gateway: Gateway, secret: str, model: str = "m") -> Reply:
    """Chat with a key on a connection of its own."""
    return await ask(gateway.port, post(chat(model), key=secret))


async def everywhere(gateway: Gateway, secret: str) -> set[int]:
    """What every worker answers a key."""
    asks = (use(gateway, secret) for _ in range(EVERY_WORKER))
    return {reply.status for reply in await asyncio.gather(*asks)}


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Wait until something is true; assert that it came."""
    deadline = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < deadline, "never came true"
        await asyncio.sleep(0.05)


async def until_all(gateway: Gateway, secret: str, status: int) -> None:
    """Wait until every worker answers a key with this status."""

    async def agreed() -> bool:
        return await everywhere(gateway, secret) == {status}

    await until(agreed)
