"""The store that gateways share, and what can be done to it: an embedded one, or a cluster."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import redis

from tests.support.cluster import MASTERS, Nodes
from tests.support.gateway import Gateway

PAUSE_MS = 600
DOWN_SECONDS = 0.5
# Around the time that a worker waits for an answer (100 ms).
HESITATES_MS = 60, 90, 130, 200


class Embedded:
    """The first gateway's own store: what ends is started again by its supervisor."""

    def __init__(self) -> None:
        self._owner: Gateway | None = None
        self._trouble = asyncio.Lock()

    def url(self, gateways: list[Gateway]) -> str | None:
        """What to configure for the next gateway; none where it has the store."""
        return f"unix://{gateways[0].state / 'redis.sock'}" if gateways else None

    def belongs_to(self, gateway: Gateway) -> None:
        """Know the gateway that has it."""
        self._owner = gateway

    def client(self) -> Any:
        """A client whose replies are text; to be closed."""
        assert self._owner is not None
        return self._owner.store

    async def kill(self, dice: random.Random) -> None:
        """End it at once, as a crash would."""
        assert self._owner is not None
        with contextlib.suppress(ProcessLookupError):  # it is being restarted
            os.kill(self._owner.store_pid, signal.SIGKILL)

    async def pause(self, dice: random.Random) -> None:
        """Let it answer nobody for a while."""
        await asyncio.to_thread(_pause, self.client())

    async def flush_scripts(self, dice: random.Random) -> None:
        """Let it forget its functions."""
        await asyncio.to_thread(_flush_scripts, self.client())

    async def trouble(self, what: str, dice: random.Random) -> None:
        """Do one of `TROUBLES` to it, and no other at the same time."""
        async with self._trouble:
            await asyncio.to_thread(TROUBLES[what], self.client(), dice)


class Clustered:
    """Three masters, of which any may end, or stand still, by itself."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._trouble = asyncio.Lock()

    def url(self, gateways: list[Gateway]) -> str:
        """What to configure for any gateway."""
        return self._nodes.url

    def belongs_to(self, gateway: Gateway) -> None:
        """It is nobody's."""

    def client(self) -> Any:
        """A client of all of it, whose replies are text; to be closed."""
        return redis.RedisCluster("127.0.0.1", self._nodes.ports[0], decode_responses=True)

    async def kill(self, dice: random.Random) -> None:
        """End a master at once, and start it again with all that it had."""
        number = dice.randrange(MASTERS)
        self._nodes.kill(number)
        await asyncio.sleep(DOWN_SECONDS)
        self._nodes.start(number)

    async def pause(self, dice: random.Random) -> None:
        """Let a master answer nobody for a while."""
        await asyncio.to_thread(_pause, self._any(dice))

    async def flush_scripts(self, dice: random.Random) -> None:
        """Let a master forget its functions."""
        await asyncio.to_thread(_flush_scripts, self._any(dice))

    async def trouble(self, what: str, dice: random.Random) -> None:
        """Do one of `TROUBLES` to a master, and no other at the same time."""
        async with self._trouble:
            await asyncio.to_thread(TROUBLES[what], self._any(dice), dice)

    def _any(self, dice: random.Random) -> Any:
        return self._nodes.at(self._nodes.ports[dice.randrange(MASTERS)])


def _pause(client: Any) -> None:
    with contextlib.suppress(redis.RedisError), contextlib.closing(client):
        client.client_pause(PAUSE_MS)


def _flush_scripts(client: Any) -> None:
    with contextlib.suppress(redis.RedisError), contextlib.closing(client):
        client.script_flush()


def _fill(client: Any, dice: random.Random) -> None:
    """Let it have no memory for anything new."""
    _set_for_a_while(client, "maxmemory", "1mb")


def _close(client: Any, dice: random.Random) -> None:
    """Let it refuse all that is written, as it has too few replicas."""
    _set_for_a_while(client, "min-replicas-to-write", "1")


def _set_for_a_while(client: Any, setting: str, value: str) -> None:
    with contextlib.suppress(redis.RedisError), contextlib.closing(client):
        before = client.config_get(setting)[setting]
        try:
            client.config_set(setting, value)
            time.sleep(PAUSE_MS / 1000)
        finally:
            client.config_set(setting, before)


def _hesitate(client: Any, dice: random.Random) -> None:
    """Let it be late again and again."""
    with contextlib.suppress(redis.RedisError), contextlib.closing(client):
        for _ in range(8):
            pause = dice.choice(HESITATES_MS)
            client.client_pause(pause)
            time.sleep((pause + dice.choice((5, 20, 100))) / 1000)


TROUBLES: dict[str, Callable[[Any, random.Random], None]] = {
    "fill store": _fill,
    "close store": _close,
    "store hesitates": _hesitate,
}
