"""What load tests share: their sizes, a load that does not wait for answers, and what is measured.

With SLUICE_SOAK=1 the promised sizes run; without it smaller ones that show the same.
"""

import asyncio
import contextlib
import os
import resource
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import psutil

from tests.support.gateway import Gateway
from tests.support.load import Ask, Client, Outcome

PROMISED = os.environ.get("SLUICE_SOAK") == "1"
KIB, MIB = 2**10, 2**20


def sized(small: int, promised: int) -> int:
    """The size to run."""
    return promised if PROMISED else small


def raise_file_limit() -> None:
    """Allow this process as many sockets as it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def gauge(gateway: Gateway, name: str) -> float:
    """A metric without labels, summed over the workers."""
    for line in gateway.get("/metrics")[1].decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split(" ")[1])
    return 0.0


def workers_rss(gateway: Gateway) -> int:
    """The memory of all workers together, in bytes; what they share counts in each."""
    return sum(psutil.Process(pid).memory_info().rss for pid in gateway.worker_pids)


def workers_files(gateway: Gateway) -> int:
    """How many file descriptors all workers have open."""
    return sum(psutil.Process(pid).num_fds() for pid in gateway.worker_pids)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them is; 0 of none."""
    ordered = sorted(values) or [0.0]
    return ordered[round((len(ordered) - 1) * share)]


def seconds_of(outcomes: Sequence[Outcome]) -> list[float]:
    """How long each took."""
    return [one.ended - one.started for one in outcomes]


async def came(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait, without holding up the loop, until something is true; assert that it came."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(true):
        assert time.monotonic() < deadline, "never came true"
        await asyncio.sleep(0.05)


HELD_UP_SECONDS = 0.1


class OpenLoop:
    """Sends requests at a rate, whatever becomes of them, on connections that are kept.

    The connection that has been idle for longest is taken first. `outcomes` grows as answers come.
    """

    def __init__(self, port: int, make: Callable[[int], Ask]) -> None:
        self._port, self._make = port, make
        self._idle = deque[Client]()
        self._clients = list[Client]()
        self._tasks = set[asyncio.Task[None]]()
        self.outcomes = list[Outcome]()
        self.sent = 0

    async def run(self, per_second: float, goes_on: Callable[[float], bool]) -> None:
        """Send until `goes_on`, given the seconds so far, says no; then wait for the answers.

        What was not sent because this process got no CPU is not made up for: that were a flood.
        """
        loop = asyncio.get_running_loop()
        started, counted = loop.time(), 0
        most = max(1, int(HELD_UP_SECONDS * per_second))
        while goes_on(loop.time() - started):
            due = int((loop.time() - started) * per_second) - counted
            counted += due
            for _ in range(min(due, most)):
                task = loop.create_task(self._ask(self._make(self.sent)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self.sent += 1
            await asyncio.sleep(1 / per_second)
        await asyncio.gather(*self._tasks)

    async def _ask(self, ask: Ask) -> None:
        if self._idle:
            client = self._idle.popleft()
        else:
            client = Client(self._port)
            self._clients.append(client)
        self.outcomes.append(await client.ask(ask))
        self._idle.append(client)

    async def aclose(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.aclose()


def for_seconds(seconds: float) -> Callable[[float], bool]:
    """Go on for so long."""
    return lambda passed: passed < seconds


@contextlib.asynccontextmanager
async def open_loop(
    port: int, per_second: float, make: Callable[[int], Ask]
) -> AsyncIterator[OpenLoop]:
    """Send at a rate for the length of a block, then wait for the answers."""
    load, stopped = OpenLoop(port, make), asyncio.Event()
    task = asyncio.create_task(load.run(per_second, lambda _: not stopped.is_set()))
    try:
        yield load
    finally:
        stopped.set()
        await task
        await load.aclose()


async def in_parallel(count: int, at_once: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Do numbered pieces of work, so many at once."""
    numbers = iter(range(count))

    async def take() -> None:
        for number in numbers:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(take())
