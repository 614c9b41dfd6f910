"""A race whose request is cancelled: what its attempts came to is the request's all the same."""

import asyncio
from typing import Any, cast

import pytest

from gateway.core.operations import Operation
from gateway.core.record import CANCELLED, AttemptRecord
from gateway.pipeline.call import Call
from gateway.pipeline.elsewhere import Elsewhere
from gateway.pipeline.hedge import Race
from gateway.policy.retry import Budget


class Attempts:
    """Asks forever. `running`: how many are under way."""

    def __init__(self) -> None:
        self.running = 0

    async def ask(self, call: Call, route: Any) -> Any:
        """Be at work until it is cancelled."""
        self.running += 1
        call.attempts, call.written = call.attempts + 1, True
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            call.tries.append(AttemptRecord(route, "m", 0, CANCELLED, 0, 0, 0))
            raise
        finally:
            self.running -= 1


@pytest.mark.parametrize("cancels", [1, 2, 3])
async def test_however_often_it_is_cancelled_every_attempt_is_recorded(cancels: int) -> None:
    attempts, call = Attempts(), Call("id", Operation.CHAT, b"", None, Elsewhere(), 0.0)
    race = Race(call, Budget(1), attempts.ask, cast(Any, ("p0", "p1", "p1")), 0)
    task = asyncio.create_task(race.run())
    while attempts.running < 2:
        await asyncio.sleep(0)
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait((task,))
    assert task.cancelled()
    assert attempts.running == 0
    assert [tried.provider for tried in call.tries] == ["p0", "p1"]
    assert (call.attempts, call.written) == (2, True)
