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
LEAST_SECONDS = 0.5  # what is over sooner is not worth telling


class Health:
    """The worker's part: `ejected` is called where a target is, `watch` runs until cancelled."""

    def __init__(self, catalogue: Catalogue, board: TargetBoard, admission: Admission) -> None:
        self._board, self._admission = board, admission
        # Where a model has one target there is nothing to decide.
        self._states = catalogue.shared_states()

    def ejected(self, route: Route) -> None:
        """Tell that a target is left alone."""
        name = f"{route.target.provider}/{route.target.model}"
        seconds = route.state.breaker.open_until - monotonic()
        if name in self._states and seconds > LEAST_SECONDS:
            self._board.tell(name, self._admission.now() + seconds)

    async def watch(self) -> None:
        """Leave alone what others do."""
        while self._states:
            await asyncio.sleep(WATCH_SECONDS)
            with contextlib.suppress(StoreError):
                await self._learn()

    async def _learn(self) -> None:
        now = self._admission.now()
        for name, until in (await self._board.read(now)).items():
            state = self._states.get(name)
            if state is not None and state.breaker.closed(monotonic()):
                state.breaker.eject(monotonic(), until - now)
