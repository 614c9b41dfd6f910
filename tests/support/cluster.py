"""A real Redis Cluster for tests: three masters, with or without replicas."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from gateway.store.cluster import SLOTS
from tests.bench.processes import free_port
from workers.store_server import find_server

START_SECONDS = 30.0
MASTERS = 3


class Nodes:
    """Three masters and their replicas, if any, in that order, each a server of its own."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack, replicas: bool) -> None:
        self.ports = [free_port() for _ in range(MASTERS * (1 + replicas))]
        self._buses = {port: free_port() for port in self.ports}
        self._directory, self._stack = directory, stack
        self._processes = [self._start(port) for port in self.ports]
        self.until(lambda: all(self.at(port).ping() for port in self.ports))
        for number, port in enumerate(self.ports[:MASTERS]):
            first, after = number * SLOTS // MASTERS, (number + 1) * SLOTS // MASTERS
            self._tell(port, "ADDSLOTSRANGE", first, after - 1)
        for port in self.ports[1:]:
            self._tell(port, "MEET", "127.0.0.1", self.ports[0], self._buses[self.ports[0]])
        self.until(lambda: all(self._knows_all(port) for port in self.ports))
        for replica, master in zip(self.ports[MASTERS:], self.ports, strict=False):
            self._tell(replica, "REPLICATE", self._tell(master, "MYID").decode())
        self.until(lambda: all(b"cluster_state:ok" in self._tell(p, "INFO") for p in self.ports))
        self.until(lambda: all(self._linked(port) for port in self.ports[MASTERS:]))

    @property
    def url(self) -> str:
        """What to configure."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports[:2])

    def at(self, port: int) -> Any:
        """A client of one server."""
        return redis.Redis(port=port, socket_timeout=2)

    def of(self, tenant: str, among: list[int]) -> Any:
        """A client of the server that has a tenant's keys now."""
        for port in among:
            with contextlib.suppress(redis.RedisError):
                self.at(port).exists(f"x{{{tenant}}}")
                return redis.Redis(port=port, decode_responses=True)
        raise AssertionError(f"nobody has {tenant}")

    def kill(self, number: int) -> None:
        """End a server at once, as a crash would."""
        self._processes[number].kill()
        self._processes[number].wait()

    def start(self, number: int) -> None:
        """Start one that was killed again, with what it had."""
        self._processes[number] = self._start(self.ports[number])

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(redis.RedisError):
                if true():
                    return
            assert time.monotonic() < deadline, "the cluster does not come up"
            time.sleep(0.1)

    def _tell(self, port: int, *words: Any) -> Any:
        connection = self.at(port).connection_pool.get_connection()
        connection.send_command("CLUSTER", *words)
        return connection.read_response()

    def _knows_all(self, port: int) -> bool:
        return f"cluster_known_nodes:{len(self.ports)}".encode() in self._tell(port, "INFO")

    def _linked(self, port: int) -> bool:
        return bool(self.at(port).info().get("master_link_status") == "up")

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        folder = self._directory / str(port)
        folder.mkdir(exist_ok=True)
        file = folder / "node.conf"
        file.write_text(
            f"bind 127.0.0.1\nport {port}\ncluster-port {self._buses[port]}\ndir {folder}\n"
            "cluster-enabled yes\ncluster-node-timeout 1500\nsave ''\n"
            "appendonly yes\nappendfsync no\ncluster-require-full-coverage no\n"
        )
        process = subprocess.Popen([find_server(), str(file)], stdout=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process


@contextlib.contextmanager
def cluster(directory: Path, *, replicas: bool = True) -> Iterator[Nodes]:
    """Run one for the length of a block."""
    with contextlib.ExitStack() as stack:
        yield Nodes(directory, stack, replicas)
