"""Reload after reload while requests come at a rate and streams are open: nobody notices."""

import asyncio
from collections import Counter

import pytest
import uvloop

from tests.chaos.test_workers_reload import reload, served_count
from tests.support.config import chat, config
from tests.support.gateway import running
from tests.support.lean import Lean, Script, is_whole
from tests.support.load import Ask, Outcome, once
from tests.support.soak import PROMISED, came, open_loop, quantile, seconds_of, sized

RELOADS = sized(5, 50)
BETWEEN_SECONDS = 0.3
RATE, STREAMS = 200, 20
SCRIPT = Script(events=20, gap=0.1, latency=0.002)


@pytest.mark.timeout(900 if PROMISED else 120)
def test_reloads_at_two_hundred_requests_a_second_fail_none() -> None:
    uvloop.run(reloads())


async def reloads() -> None:
    streamed, stopped = list[Outcome](), asyncio.Event()

    async def stream_on(port: int, lane: int) -> None:
        number = lane * 100_000
        while not stopped.is_set():
            number += 1
            streamed.append(await once(port, Ask(chat(seed=number, stream=True))))

    async with Lean(SCRIPT) as lean:
        with running(config(lean.url), workers=2) as gateway:
            first, loop = set(gateway.worker_pids), asyncio.get_running_loop()
            took = list[float]()
            async with asyncio.TaskGroup() as group:
                for lane in range(STREAMS):
                    group.create_task(stream_on(gateway.port, lane))
                async with open_loop(gateway.port, RATE, lambda n: Ask(chat(seed=n))) as load:
                    await asyncio.sleep(0.5)
                    for _ in range(RELOADS):
                        before = loop.time()
                        await reload(gateway, 60)
                        took.append(loop.time() - before)
                        await asyncio.sleep(BETWEEN_SECONDS)
                stopped.set()
            outcomes = [*load.outcomes, *streamed]
            failed = [(o.status, o.failure) for o in outcomes if (o.status, o.failure) != (200, "")]
            print(
                f"{RELOADS} reloads, {quantile(took, 0.5):.2f} s each; {len(load.outcomes)} "
                f"requests (p99 {quantile(seconds_of(load.outcomes), 0.99) * 1000:.0f} ms), "
                f"{len(streamed)} streams; failed: {Counter(failed)}"
            )
            assert failed == []
            assert all(is_whole(one, SCRIPT) for one in streamed)
            said = [(o.json["choices"][0]["message"]["content"], o.ask) for o in load.outcomes]
            assert [1 for text, ask in said if text != str(ask.body["seed"])] == []
            assert served_count(gateway) == RELOADS + 1
            await came(lambda: not first & set(gateway.worker_pids))  # idle connections linger
            gateway.settled()
            assert gateway.usage("acme")["requests"] == len(outcomes) == lean.asked
