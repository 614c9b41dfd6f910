"""A master that dies, with a replica and sentinels: the gateway follows, and no request fails."""

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from tests.bench.processes import free_port
from tests.support.config import KEY, chat, config, digest
from tests.support.gateway import running
from tests.support.load import Ask, steady
from tests.support.upstream import Exchange, Upstream, completion, usage
from workers.store_server import find_server

START_SECONDS = 20.0
FAILOVER_SECONDS = 30.0
SETTLE_SECONDS = 15.0
WORKERS = 2


class Group:
    """A master, its replica and three sentinels, each a server of its own."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self.ports = [free_port(), free_port()]
        self.servers = [
            self._start(f"r{port}", f"port {port}\nappendonly yes\nsave ''\n")
            for port in self.ports
        ]
        self._until(lambda: all(self.redis(port).ping() for port in self.ports))
        self.redis(self.ports[1]).replicaof("127.0.0.1", self.ports[0])
        self._until(lambda: self.redis(self.ports[1]).info()["master_link_status"] == "up")
        self.sentinels = [free_port() for _ in range(3)]
        for port in self.sentinels:
            watch = (
                f"port {port}\nsentinel monitor main 127.0.0.1 {self.ports[0]} 2\n"
                "sentinel down-after-milliseconds main 700\nsentinel failover-timeout main 5000\n"
            )
            self._start(f"s{port}", watch, "--sentinel")
        self._until(lambda: all(self._knows_others(port) for port in self.sentinels))

    @property
    def url(self) -> str:
        """What to configure."""
        places = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://{places}/main"

    def redis(self, port: int) -> Any:
        """A client of one server."""
        return redis.Redis(port=port, decode_responses=True, socket_timeout=2)

    def kill_master(self) -> None:
        """End it at once, as a crash would."""
        self.servers[0].kill()
        self.servers[0].wait()

    def has_gateway(self, port: int) -> bool:
        """Tell whether every worker's own connection leads to a server."""
        names = [one["name"] for one in self.redis(port).client_list()]
        return [str(name).startswith("sluice") for name in names].count(True) >= WORKERS

    def is_master(self, port: int) -> bool:
        """Tell whether a server has been promoted."""
        return str(self.redis(port).role()[0]) == "master"

    def _knows_others(self, port: int) -> bool:
        state = self.redis(port).sentinel_master("main")
        return (state["num-other-sentinels"], state["num-slaves"]) == (2, 1)

    def _start(self, name: str, text: str, *options: str) -> subprocess.Popen[bytes]:
        file = self._directory / f"{name}.conf"
        folder = self._directory / name
        folder.mkdir()
        file.write_text(f"bind 127.0.0.1\ndir {folder}\n{text}")
        command = [find_server(), str(file), *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def _until(self, true: Any) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(redis.RedisError, KeyError):
                if true():
                    return
            assert time.monotonic() < deadline, "the servers do not come up"
            time.sleep(0.1)


@contextlib.contextmanager
def group(directory: Path) -> Iterator[Group]:
    with contextlib.ExitStack() as stack:
        yield Group(directory, stack)


async def slow(exchange: Exchange) -> None:
    await asyncio.sleep(0.03)
    await exchange.reply(completion("one two three four five", usage(7, 5)))


def limited(upstream: Upstream, servers: Group) -> str:
    text = json.loads(config(upstream.url))
    limits = {"rpm": 600_000, "concurrency": 99}
    text["auth"]["keys"] = [{"name": "k", "tenant": "acme", "sha256": digest(KEY), **limits}]
    text["redis"] = {"url": servers.url, "timeout": 1}
    text["limits"] = {"lease": 3}
    return json.dumps(text)


async def books(servers: Group, port: int) -> tuple[int, str]:
    """What a server has of requests, once no lease is open, and of slots in use."""
    store = servers.redis(port)
    deadline = time.monotonic() + SETTLE_SECONDS
    while store.zcard("sluice:leases:{acme}"):
        assert time.monotonic() < deadline, "leases stay open"
        await asyncio.sleep(0.1)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    used = int(store.hget(f"sluice:usage:{{acme}}:{day}", "requests"))
    in_use = str(store.hget("sluice:limit:{acme}:key:k:concurrency", "in_use"))
    store.close()
    return used, in_use


async def test_a_failover_costs_no_request(upstream: Upstream, tmp_path: Path) -> None:
    upstream.behaviour = slow
    with (
        group(tmp_path) as servers,
        running(limited(upstream, servers), workers=WORKERS) as gateway,
    ):
        async with steady(gateway.port, lambda: Ask(chat()), 10, 0.03) as outcomes:
            await asyncio.sleep(1)
            await asyncio.to_thread(servers.kill_master)
            killed_at = len(outcomes)
            deadline = time.monotonic() + FAILOVER_SECONDS
            while not await asyncio.to_thread(servers.is_master, servers.ports[1]):
                assert time.monotonic() < deadline, "the sentinels promote nobody"
                await asyncio.sleep(0.1)
            await asyncio.sleep(3)
        assert {(o.status, o.failure) for o in outcomes} == {(200, "")}
        used, in_use = await books(servers, servers.ports[1])
    assert len(outcomes) > killed_at + 50
    # What the old master had answered for and not yet passed on is lost with it: a moment's worth.
    assert len(outcomes) - 20 <= used <= len(outcomes)
    assert in_use == "0"


async def test_a_master_that_still_takes_writes_is_left_when_another_one_is_named(
    upstream: Upstream, tmp_path: Path
) -> None:
    upstream.behaviour = slow
    with (
        group(tmp_path) as servers,
        running(limited(upstream, servers), workers=WORKERS) as gateway,
    ):
        old, new = servers.ports
        async with steady(gateway.port, lambda: Ask(chat()), 10, 0.03) as outcomes:
            await asyncio.sleep(1)
            servers.redis(servers.sentinels[0]).execute_command("SENTINEL FAILOVER main")
            deadline = time.monotonic() + FAILOVER_SECONDS
            while not await asyncio.to_thread(servers.has_gateway, new):
                assert time.monotonic() < deadline, "no worker goes over"
                await asyncio.sleep(0.05)
            # Sentinels make it a replica seconds later, and cut nobody before.
            assert await asyncio.to_thread(servers.is_master, old)
            gone_over = len(outcomes)
            await asyncio.sleep(2)
        assert {(o.status, o.failure) for o in outcomes} == {(200, "")}
        used, in_use = await books(servers, new)
    assert len(outcomes) > gone_over + 50
    assert used >= len(outcomes) - gone_over
    assert in_use == "0"
