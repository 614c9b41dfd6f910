"""Hot path: takes each finished request's record and folds them, a batch at a time."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.core.record import RequestRecord
from gateway.observe.log import request_line
from gateway.observe.scoreboard import Scoreboard
from gateway.observe.series import (
    MAX_SERIES,
    OVERHEAD_SECONDS,
    SECONDS,
    SEPARATOR,
    TOKENS,
    Totals,
)

FOLD_SECONDS = 0.25
MAX_BATCH = 2000  # folded at once past this, so that a burst cannot grow the batch
MICROSECONDS = 1_000_000

UNPRICED = "unpriced"
OVERHEAD = "sluice_gateway_overhead_seconds"
TOOK = "gen_ai_server_request_duration_seconds"
FIRST = "gen_ai_server_time_to_first_token_seconds"
USED = "gen_ai_client_token_usage"


class Writer(Protocol):
    """Where finished requests go as JSON lines."""

    def write(self, data: bytes, /) -> None:
        """Take whole lines."""
        ...


class Recorder:
    """Collects records; on a timer that runs only while there are any, folds and publishes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scoreboard: Scoreboard,
        segment: int,
        writers: Iterable[Writer],
        gauges: Callable[[], dict[str, float]],
    ) -> None:
        self._loop, self._scoreboard, self._segment = loop, scoreboard, segment
        self._writers = tuple(writers)
        self._gauges = gauges
        self._batch: list[RequestRecord] = []
        self._timer: asyncio.TimerHandle | None = None
        self._totals = Totals()
        self._fold = _Fold(self._totals)

    def emit(self, record: RequestRecord) -> None:
        """Take a record."""
        self._batch.append(record)
        if len(self._batch) >= MAX_BATCH:
            self.fold()
        elif self._timer is None:
            self._timer = self._loop.call_later(FOLD_SECONDS, self.fold)

    def fold(self) -> None:
        """Fold what there is into the totals and the log, and publish."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._batch = self._batch, []
        add = self._fold.add
        for record in batch:
            add(record)
        if self._writers and batch:
            lines = b"".join([request_line(record) for record in batch])
            for writer in self._writers:
                writer.write(lines)
        self._totals.gauges = self._gauges()
        self._scoreboard.publish(self._segment, self._totals)

    def count(self, name: str, amount: float) -> None:
        """Set a counter without labels to what its owner has counted."""
        self._totals.counters[name] = {"": amount}

    def sum(self) -> Totals:
        """Return the totals of all workers."""
        self.fold()
        return self._scoreboard.sum(self._segment, self._totals)

    def close(self) -> None:
        """Fold the rest; the gauges of a worker that ends are nothing."""
        self.fold()
        self._totals.gauges = {}
        self._scoreboard.publish(self._segment, self._totals)


class _Served:
    """Where answers of one operation, provider and model are counted."""

    __slots__ = ("first", "input", "model", "output", "took")

    def __init__(self, totals: Totals, operation: str, provider: str, model: str) -> None:
        labels = SEPARATOR.join((operation, provider, model))
        self.model = SEPARATOR.join((provider, model))
        self.took = totals.cells(TOOK, labels)
        self.first = totals.cells(FIRST, labels)
        self.input = totals.cells(USED, f"{labels}{SEPARATOR}input")
        self.output = totals.cells(USED, f"{labels}{SEPARATOR}output")


class _Fold:
    """Adds records to totals. What is alike in them is looked up once, and remembered."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._overhead: dict[str, list[float]] = {}
        self._requests: dict[tuple[str | int, ...], str] = {}
        self._served: dict[tuple[str, str, str], _Served] = {}

    def add(self, r: RequestRecord) -> None:
        """Add one request."""
        add, operation = self._totals.add, r.operation
        add("sluice_requests", self._outcome_of(r), 1)
        overhead = (r.duration_us - r.upstream_us) / MICROSECONDS
        cells = self._overhead.get(operation)
        if cells is None:
            cells = self._overhead[operation] = self._totals.cells(OVERHEAD, operation)
        cells[bisect_left(OVERHEAD_SECONDS, overhead)] += 1
        cells[-1] += overhead
        if r.error:
            add("sluice_errors", r.error, 1)
        for limit in r.shadow:
            add("sluice_shadow_refusals", limit, 1)
        if r.cache:
            add("sluice_cache_requests", r.cache, 1)
            if r.saved_microusd:
                saved = SEPARATOR.join((r.provider, r.model))
                add("sluice_cache_saved_microusd", saved, r.saved_microusd)
        if r.attempts:
            self._add_served(r)

    def _add_served(self, r: RequestRecord) -> None:
        add, served = self._totals.add, self._served_of(r)
        add("sluice_attempts", r.provider, r.attempts)
        seconds = r.duration_us / MICROSECONDS
        cells = served.took
        cells[bisect_left(SECONDS, seconds)] += 1
        cells[-1] += seconds
        if r.first_byte_us:
            seconds = r.first_byte_us / MICROSECONDS
            cells = served.first
            cells[bisect_left(SECONDS, seconds)] += 1
            cells[-1] += seconds
        if r.usage_source == "none":
            return
        tokens, cells = r.usage.prompt_tokens, served.input
        cells[bisect_left(TOKENS, tokens)] += 1
        cells[-1] += tokens
        tokens, cells = r.usage.completion_tokens, served.output
        cells[bisect_left(TOKENS, tokens)] += 1
        cells[-1] += tokens
        if r.price == UNPRICED:
            add("sluice_unpriced_requests", served.model, 1)
        elif r.cost_microusd:
            add("sluice_cost_microusd", served.model, r.cost_microusd)

    def _outcome_of(self, r: RequestRecord) -> str:
        key = (r.operation, r.provider, r.model, r.status, r.outcome)
        labels = self._requests.get(key)
        if labels is None:
            if len(self._requests) >= MAX_SERIES:
                self._requests.clear()
            labels = self._requests[key] = SEPARATOR.join(map(str, key))
        return labels

    def _served_of(self, r: RequestRecord) -> _Served:
        key = (r.operation, r.provider, r.model)
        served = self._served.get(key)
        if served is None:
            if len(self._served) >= MAX_SERIES:
                self._served.clear()
            served = self._served[key] = _Served(self._totals, *key)
        return served
