"""Tells other workers which targets are left alone, and learns it from them. Decided locally."""

import asyncio
import contextlib
from time import monotonic

from gateway.core.errors import StoreError
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.served import Route
from gateway.store.admission import Admission
from gateway.store.targets import TargetBoard, Told

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
            now = self._admission.now()
            self._board.tell(name, Told(now + seconds, now, route.state.where))

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
        """Leave alone what others do, but for what has answered here since they told.

        Whoever sees a target that was left alone answer again takes back what was told before.
        """
        for name, told in (await self._board.read(self._admission.now())).items():
            state = self._states.get(name)
            if state is None or state.where != told.where:
                continue
            breaker, offset = state.breaker, monotonic() - self._admission.now()
            told_at = told.at + offset
            if told_at <= breaker.closed_at:
                self._board.take_back(name, told)
            elif told_at > breaker.well_at and breaker.closed(monotonic()):
                breaker.eject(monotonic(), told.until + offset - monotonic())
