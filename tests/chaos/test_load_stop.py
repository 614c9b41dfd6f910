"""SIGTERM with many streams open and requests that keep coming: none refused before the end."""

import asyncio
import http.client
import signal
import time

import pytest
import uvloop

from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.lean import Lean, Script, is_whole
from tests.support.load import Ask, Outcome, once
from tests.support.soak import OpenLoop, in_parallel, open_loop, quantile, seconds_of, sized

STREAMS = 200
SCRIPT = Script(events=20, gap=0.25, latency=0.05)  # a stream is some five seconds long
LAME_SECONDS, GRACE_SECONDS = sized(2, 5), 20
RATE = 100
# Of the lame duck's end: what is sent so late may find the door shut.
BRINK_SECONDS = 0.25


def stream(number: int) -> Ask:
    return Ask(chat(seed=number, stream=True))


def whole(outcome: Outcome) -> bool:
    return is_whole(outcome, SCRIPT)


def ready_status(port: int) -> int:
    """What a connection of its own is told; 0 where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


async def readiness(gateway: Gateway, until: float) -> list[tuple[float, int]]:
    """Ask all the time whether the gateway is ready."""
    found = []
    while time.monotonic() < until:
        found.append((time.monotonic(), await asyncio.to_thread(ready_status, gateway.port)))
        await asyncio.sleep(0.002)
    return found


@pytest.mark.parametrize("workers", [2])
def test_two_hundred_streams_finish_and_nobody_is_refused_while_it_is_a_lame_duck(
    workers: int,
) -> None:
    uvloop.run(a_lame_duck(workers))


async def a_lame_duck(workers: int) -> None:
    server = {"drain": {"lame_duck": LAME_SECONDS, "grace": GRACE_SECONDS}}
    async with Lean(SCRIPT) as lean:
        with running(config(lean.url, server=server), workers=workers) as gateway:
            streams = [asyncio.create_task(once(gateway.port, stream(n))) for n in range(STREAMS)]
            async with asyncio.timeout(30):
                while lean.asked < STREAMS:
                    await asyncio.sleep(0.01)
            kept = OpenLoop(gateway.port, lambda n: Ask(chat(seed=n)))
            fresh = list[Outcome]()
            gateway.signal(signal.SIGTERM)
            told = asyncio.get_running_loop().time()
            end = told + LAME_SECONDS

            async def on_fresh_connections() -> None:
                async def one(number: int) -> None:
                    fresh.append(await once(gateway.port, Ask(chat(seed=number))))

                async with asyncio.TaskGroup() as group:
                    number = 0
                    while asyncio.get_running_loop().time() < end:
                        group.create_task(one(number))
                        number += 1
                        await asyncio.sleep(1 / RATE)

            signalled = time.monotonic()
            polled, _, _ = await asyncio.gather(
                readiness(gateway, signalled + LAME_SECONDS - BRINK_SECONDS),
                on_fresh_connections(),
                kept.run(RATE, lambda _: asyncio.get_running_loop().time() < end),
            )
            outcomes = await asyncio.gather(*streams)
            await asyncio.to_thread(gateway.process.wait, GRACE_SECONDS + 10)
            await kept.aclose()

    ready = [at - signalled for at, status in polled if status == 200]
    latest = max(ready, default=0.0)
    print(f"ready for {latest * 1000:.0f} ms more; {len(polled)} looks; {len(outcomes)} streams")
    assert {status for _, status in polled} <= {200, 503}
    assert [o.failure for o in outcomes if not whole(o)] == []
    assert [status for at, status in polled if at - signalled > latest] != []
    for name, asked in (("fresh", fresh), ("kept", kept.outcomes)):
        early = [one for one in asked if one.started < end - BRINK_SECONDS]
        late = [one.failure for one in asked if one.started >= end - BRINK_SECONDS]
        lost = [failure for failure in late if failure]
        print(
            f"{name}: {len(early)} requests, p99 {quantile(seconds_of(early), 0.99) * 1000:.0f} "
            f"ms; in the last {BRINK_SECONDS} s {len(lost)} of {len(late)} lost {lost[:1]}"
        )
        assert len(early) > RATE * LAME_SECONDS // 4
        assert [(o.status, o.failure) for o in early if (o.status, o.failure) != (200, "")] == []
    assert gateway.process.returncode == 0


def test_streams_that_begin_while_others_end_are_served_until_the_door_is_shut() -> None:
    uvloop.run(streams_come_and_go())


async def streams_come_and_go() -> None:
    """Without a lame duck: what was accepted is answered, what came later is refused outright."""
    async with Lean(SCRIPT) as lean:
        with running(config(lean.url), workers=2) as gateway:
            outcomes = list[Outcome]()

            async def one(number: int) -> None:
                outcomes.append(await once(gateway.port, stream(number)))

            async with open_loop(gateway.port, RATE, lambda n: Ask(chat(seed=n))) as plain:
                load = asyncio.create_task(in_parallel(STREAMS * 2, STREAMS, one))
                async with asyncio.timeout(30):
                    while lean.streams < STREAMS:
                        await asyncio.sleep(0.01)
                gateway.signal(signal.SIGTERM)
                await load
            await asyncio.to_thread(gateway.process.wait, 40)
    begun = [one for one in outcomes if one.status == 200]
    refused = [one for one in outcomes if one.status != 200]
    broken = [one.failure for one in refused if "ConnectionRefused" not in one.failure]
    print(f"{len(begun)} streams, {len(refused)} refused, {len(broken)} otherwise {broken[:2]}")
    assert len(begun) >= STREAMS
    assert all(map(whole, begun))
    cut = [one for one in plain.outcomes if one.status == 200 and one.failure]
    assert cut == []
    assert gateway.process.returncode == 0
