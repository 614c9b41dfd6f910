"""Very many requests of all kinds: the memory of the workers does not grow with them."""

import asyncio
from collections import Counter
from itertools import count
from typing import Any

import pytest
import uvloop

from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.lean import LeanProcess, Script, lean_process
from tests.support.load import LEFT, Ask, Client
from tests.support.soak import MIB, PROMISED, came, gauge, sized, workers_files, workers_rss

REQUESTS = sized(5000, 100_000)
WARM_UP = sized(2000, 20_000)
CONNECTIONS = 32
MOST_GROWTH = 0.10 if PROMISED else 0.25
MESSAGES: dict[str, Any] = {
    "model": "m",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "hello"}],
}


def kind(number: int) -> Ask:
    """Plain, streamed, translated, left, refused in turn, with prompts of all lengths."""
    text = {"messages": [{"role": "user", "content": "word " * (number % 97)}]}
    match number % 10:
        case 0 | 1:
            return Ask({**chat(seed=number, stream=True), **text})
        case 2:
            return Ask({**MESSAGES, "stream": True}, path="/v1/messages")
        case 3:
            return Ask(MESSAGES, path="/v1/messages")
        case 4:
            return Ask(chat(seed=number, stream=True), leave_after=1 + number % 3)
        case 5 if number % 20 == 5:
            return Ask(chat(model=f"nobody-{number}"))
        case _:
            return Ask({**chat(seed=number), **text})


def expected(ask: Ask) -> tuple[int, str]:
    if ask.leave_after is not None:
        return 200, LEFT
    return (404, "") if ask.body["model"] != "m" else (200, "")


async def spend(port: int, requests: int) -> Counter[tuple[int, str]]:
    """Send so many requests; return what became of those that went otherwise than expected."""
    numbers, wrong = iter(range(requests)), Counter[tuple[int, str]]()

    async def work() -> None:
        async with Client(port) as client:
            for number in numbers:
                ask = kind(number)
                outcome = await client.ask(ask)
                if (outcome.status, outcome.failure) != expected(ask):
                    wrong[outcome.status, outcome.failure] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(work())
    return wrong


@pytest.mark.timeout(1200 if PROMISED else 120)
def test_memory_stays_flat_over_very_many_requests() -> None:
    uvloop.run(soak())


async def soak() -> None:
    with lean_process(Script(events=5)) as lean, running(config(lean.url), workers=2) as gateway:
        await flat(gateway, lean)


async def flat(gateway: Gateway, lean: LeanProcess) -> None:
    pids, seen = gateway.worker_pids, list[float]()
    assert await spend(gateway.port, WARM_UP) == {}
    files = workers_files(gateway)
    for _ in count():
        seen.append(workers_rss(gateway) / MIB)
        if len(seen) > 5:
            break
        assert await spend(gateway.port, REQUESTS // 5) == {}
    shown = ", ".join(f"{one:.1f}" for one in seen)
    print(f"memory of both workers after each fifth of {REQUESTS} requests: {shown} MiB")
    print(f"files {files}, then {workers_files(gateway)}; {lean.state()}")
    assert gateway.worker_pids == pids
    assert seen[-1] <= seen[0] * (1 + MOST_GROWTH)
    await came(lambda: gauge(gateway, "sluice_requests_in_flight") == 0)
    await came(lambda: gauge(gateway, "sluice_open_leases") == 0)
    await asyncio.to_thread(gateway.settled)
