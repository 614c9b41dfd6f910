"""What one worker's /metrics shows of the others, which finish no request meanwhile."""

import asyncio
import re

from tests.chaos.test_workers_stop import STREAMS, Gate, open_streams
from tests.support.config import config
from tests.support.gateway import running
from tests.support.upstream import Upstream
from tests.support.wire import Wire, connected, head_of

LEASE = {"lease": 6}  # what is upheld is upheld every second


async def in_flight(wire: Wire) -> float:
    await wire.send(head_of(path="/metrics", method="GET"))
    text = (await wire.reply()).body.decode()
    found = re.search(r"^sluice_requests_in_flight (\S+)", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


async def test_gauges_are_those_of_all_workers(upstream: Upstream) -> None:
    gate = upstream.behaviour = Gate()
    with running(config(upstream.url, limits=LEASE), workers=3) as gateway:
        async with connected(gateway.port) as wire, asyncio.timeout(30):
            tasks = await open_streams(gateway, gate)
            while await in_flight(wire) != STREAMS:
                await asyncio.sleep(0.1)
            gate.open.set()
            await asyncio.gather(*tasks)
            while await in_flight(wire) != 0:
                await asyncio.sleep(0.1)
