"""Tells other workers which targets are left alone, and learns it from them. Decided locally."""

import asyncio
import contextlib
from time import monotonic

from gateway.core.errors import StoreError
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.served import Route
from gateway.store.admission import Admission
from gateway.store.targets import TargetBoard

WATCH_SECONDS = 1.0
OLD_SECONDS = 10.0  # after which a latency says little
LEAST_SECONDS = 0.5  # what is over sooner is not worth telling


class Health:
    """The worker's part: `ejected` is called where a target is, `watch` runs until cancelled."""

    def __init__(self, catalogue: Catalogue, board: TargetBoard, admission: Admission) -> None:
        self._board, self._admission = board, admission
        # Where a model has one target there is nothing to decide.
        self._states = catalogue.shared_states()
        self._by_latency = catalogue.shared_states("latency")
        self._heard: set[str] = set()  # since the last look; not to be told as if measured here

    def ejected(self, route: Route) -> None:
        """Tell that a target is left alone."""
        name = f"{route.target.provider}/{route.target.model}"
        seconds = route.state.breaker.open_until - monotonic()
        if name in self._states and seconds > LEAST_SECONDS:
            self._board.tell(name, self._admission.now() + seconds)

    async def watch(self) -> None:
        """Leave alone what others do, and know how long it takes them where this one does not."""
        while self._states:
            began = monotonic()
            await asyncio.sleep(WATCH_SECONDS)
            with contextlib.suppress(StoreError):
                await self._learn()
                if self._by_latency:
                    await self._compare(began)

    async def _compare(self, began: float) -> None:
        """Tell what was measured since `began`, and hear of targets that were not asked from here.

        What is told is what the target itself showed, so it goes round but does not grow old.
        """
        now = self._admission.now()
        mine = {
            name: seconds
            for name, state in self._by_latency.items()
            if name not in self._heard and (seconds := state.measured(began)) is not None
        }
        if mine:
            self._board.tell_latencies(mine, now)
        self._heard.clear()
        unknown = [
            n for n, s in self._by_latency.items() if s.measured(began - OLD_SECONDS) is None
        ]
        if unknown:
            told = await self._board.latencies(now, OLD_SECONDS)
            for name in unknown:
                if name in told:
                    self._by_latency[name].heard(told[name], monotonic())
                    self._heard.add(name)

    async def _learn(self) -> None:
        now = self._admission.now()
        for name, until in (await self._board.read(now)).items():
            state = self._states.get(name)
            if state is not None and state.breaker.closed(monotonic()):
                state.breaker.eject(monotonic(), until - now)
