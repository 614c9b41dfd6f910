"""A real store for tests of one layer: the embedded server's binary and settings, run directly."""

import asyncio
import itertools
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import redis

from gateway.policy.access import Principal
from gateway.policy.limits import TOKENS, Limit, grants
from gateway.store.admission import Admission
from gateway.store.lease import COUNTED, Holding, Return, Settlement, Verdict
from gateway.store.link import Link
from gateway.store.location import Location
from gateway.store.requests import FIELDS
from workers.store_server import find_server, server_settings

START_SECONDS = 30.0
KEPT_FOR_EVER = {"sluice:tenants", "sluice:requests"}
COUNTERS = (
    "requests",
    "errors",
    "cache_hits",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "cost_microusd",
    "saved_microusd",
)

_numbers = itertools.count()


class StoreServer:
    """The server's process; `kill` and `start` again keep what it had answered for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.socket = str(directory / "s.sock")
        self.redis: Any = redis.Redis(unix_socket_path=self.socket, decode_responses=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        text = server_settings(self.socket, self._directory, 64)
        self._process = subprocess.Popen(
            [find_server(), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.close()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, "the store does not answer"
            assert self._process.poll() is None, "the store ended"
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Let it stand still, connections and all, until `go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def usage(self, tenant: str, part: str = "", period_length: int = 10) -> dict[str, int]:
        """A part's counters, summed over all days (10 characters) or months (7)."""
        total: dict[str, int] = {}
        for key in self.redis.scan_iter(f"sluice:usage:{{{tenant}}}:*"):
            period, _, rest = key.removeprefix(f"sluice:usage:{{{tenant}}}:").partition(":")
            if len(period) == period_length and rest == part:
                for name, value in self.redis.hgetall(key).items():
                    total[name] = total.get(name, 0) + int(value)
        return total

    def rewind(self, bucket: Limit, seconds: float) -> None:
        """Let time pass for a bucket: move its last update back."""
        assert self.redis.exists(bucket.name), "a bucket that is full and forgotten has no past"
        self.redis.hincrby(bucket.name, "updated", -round(seconds * 1_000_000))

    def without_lifetime(self) -> set[str]:
        """The keys that would stay for ever, but for the two that may."""
        return {key for key in self.redis.scan_iter() if self.redis.ttl(key) < 0} - KEPT_FOR_EVER

    def _answers(self) -> bool:
        # Not through redis-py: its own patience would hide how long the server takes.
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(self.socket)
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith(b"+PONG")
            except OSError:
                return False


@contextmanager
def store_server(directory: Path) -> Iterator[StoreServer]:
    """Run a server for the length of a block."""
    server = StoreServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.redis.close()
        server.kill()


@asynccontextmanager
async def connected(
    server: StoreServer, timeout: float = 10.0
) -> AsyncIterator[tuple[Admission, Link]]:
    """One worker's client and admission."""
    client = Link(Location(unix_path=server.socket), timeout, "test")
    admission = Admission(client, 30)
    await client.start()
    try:
        yield admission, client
    finally:
        await client.aclose()


def new_tenant() -> str:
    """A tenant that no other test uses."""
    return f"t{next(_numbers)}"


async def ask(admission: Admission, who: Principal, lease: str, held: Holding) -> Verdict:
    """Ask for a lease under all of the principal's limits."""
    granted = grants(who.limits, held.prompt + held.output, 0, time.time())
    return await admission.admit(who.tenant, lease, held, granted)


def bucket(tenant: str, unit: str, capacity: int, per_minute: int, scope: str = "key") -> Limit:
    """A bucket under the name that the gateway would give it."""
    last = "tpm" if unit == TOKENS else "rpm"
    place = "tenant" if scope == "tenant" else "key:k"
    return Limit(f"sluice:limit:{{{tenant}}}:{place}:{last}", unit, capacity, per_minute, scope)


def principal(tenant: str, *limits: Limit) -> Principal:
    """The holder of key `k`."""
    return Principal("k", tenant, ("*",), limits)


def holding(tokens: int = 10) -> Holding:
    """What a request for so many tokens holds."""
    return Holding("k", "m", "p", "gpt", "chat", tokens, 0, 1)


def settlement(
    lease: str,
    who: Principal,
    surplus: int = 0,
    counts: Iterable[int] = (1, 0, 0, 7, 3, 5, 2, 4, 0),
    parts: tuple[str, ...] = ("", "model:m"),
) -> Settlement:
    """A lease's end, giving `surplus` back to each token bucket."""
    returns = tuple(
        Return(one.key(0), one.spec(0), max(surplus, 0), max(-surplus, 0))
        for one in who.limits
        if one.unit == TOKENS
    )
    entry = (lease, who.tenant, *["-"] * (len(FIELDS) - 2))
    return Settlement(lease, who.tenant, returns, parts, tuple(counts), entry)


async def settle_all(admission: Admission, settlements: Iterable[Settlement]) -> list[bool]:
    """Settle in one turn and wait until each is applied; tell which of them counted."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[int]] = []
    for one in settlements:
        future: asyncio.Future[int] = loop.create_future()
        futures.append(future)
        admission.settle(one, future.set_result)
    return [found == COUNTED for found in await asyncio.gather(*futures)]
