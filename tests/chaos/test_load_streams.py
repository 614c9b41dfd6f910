"""Thousands of streams open at the same time: all of them whole, and each for little memory."""

import asyncio
import contextlib
import time

import pytest
import uvloop

from tests.support.config import KEY, PRICED_MODEL, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.lean import LeanProcess, Script, is_whole, lean_process
from tests.support.load import Ask, Client, Outcome, flood
from tests.support.soak import (
    KIB,
    PROMISED,
    came,
    gauge,
    in_parallel,
    raise_file_limit,
    sized,
    workers_rss,
)

STREAMS = sized(1000, 10_000)
AT_ONCE = 100  # beginning at the same time
MOST_KB_EACH = 25_000
SCRIPT = Script(events=4, gap=5.0 if PROMISED else 1.0, held=True)
# A key with limits of every kind, as in operation.
LIMITED = [
    {
        "name": "k",
        "tenant": "acme",
        "sha256": digest(KEY),
        "rpm": 10**7,
        "tpm": 10**10,
        "concurrency": 10**5,
    }
]


def configured(url: str) -> str:
    provider = {
        "kind": "openai",
        "api_key": "sk-upstream",
        "base_url": url,
        "max_connections": STREAMS,
    }
    target = {"provider": "p0", "model": PRICED_MODEL}
    return config(
        providers={"p0": provider},
        models={"m": {"targets": [target]}},
        auth={"keys": LIMITED},
        server={"overload": {"requests": STREAMS, "lag": 10}},
    )


@pytest.mark.timeout(600 if PROMISED else 120)
def test_thousands_of_open_streams_are_whole_and_cheap() -> None:
    raise_file_limit()
    uvloop.run(open_streams())


async def open_streams() -> None:
    with lean_process(SCRIPT) as lean, running(configured(lean.url), workers=2) as gateway:
        warm = [Ask(chat(seed=n)) for n in range(1000)]
        assert {one.status for one in await flood(gateway.port, warm, 100)} == {200}
        await asyncio.sleep(1)
        before = workers_rss(gateway)
        clients = [Client(gateway.port) for _ in range(STREAMS)]
        try:
            await measured(gateway, lean, clients, before)
        finally:
            for client in clients:
                client.cut()


async def measured(gateway: Gateway, lean: LeanProcess, clients: list[Client], before: int) -> None:
    failures = list[str]()

    async def begin(number: int) -> None:
        client = clients[number]
        try:
            await client.send(Ask(chat(seed=number, stream=True)))
            await client.read_head()
            await client.read_chunk()
        except (OSError, EOFError) as error:
            failures.append(f"{type(error).__name__}: {error}")

    started = time.monotonic()
    await in_parallel(STREAMS, AT_ONCE, begin)
    spent = time.monotonic() - started
    assert failures == []
    assert {client.status for client in clients} == {200}
    await came(lambda: gauge(gateway, "sluice_requests_in_flight") == STREAMS)
    await asyncio.sleep(SCRIPT.gap)  # an event each
    each = (workers_rss(gateway) - before) / STREAMS
    print(
        f"{STREAMS} open after {spent:.1f} s; {each / 1000:.1f} kB of memory each; "
        f"{lean.state()['open']} connections to the provider"
    )
    lean.release()
    outcomes = list[Outcome]()

    async def finish(number: int) -> None:
        client, failure = clients[number], ""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            async with asyncio.timeout(120):
                await client.read_body()
        ask = Ask(chat(seed=number, stream=True))
        outcomes.append(Outcome(ask, client.status, client.headers, client.arrived, failure))

    await asyncio.gather(*map(finish, range(STREAMS)))
    assert [one.ask.body["seed"] for one in outcomes if not is_whole(one, SCRIPT)] == []
    await came(lambda: gauge(gateway, "sluice_requests_in_flight") == 0)
    await asyncio.to_thread(gateway.settled)
    assert gateway.usage("acme")["requests"] == STREAMS + 1000
    left = (workers_rss(gateway) - before) / KIB / KIB
    print(f"all whole; {left:+.1f} MiB when they have ended")
    assert each <= MOST_KB_EACH
