"""Hot path: takes each finished request's record and folds them, a batch at a time."""

import asyncio
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Protocol

from gateway.core.record import RequestRecord
from gateway.observe.log import request_line
from gateway.observe.scoreboard import Scoreboard
from gateway.observe.series import SEPARATOR, Totals

FOLD_SECONDS = 0.25
MAX_BATCH = 2000  # folded at once past this, so that a burst cannot grow the batch
MAX_LABELS = 1024  # sets of label values whose joined form is remembered
MICROSECONDS = 1_000_000

UNPRICED = "unpriced"


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
        for record in batch:
            _fold_one(self._totals, record)
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


@lru_cache(MAX_LABELS)
def _labels(*values: str) -> str:
    return SEPARATOR.join(values)


def _fold_one(totals: Totals, r: RequestRecord) -> None:
    operation, provider, model = r.operation, r.provider, r.model
    add, observe = totals.add, totals.observe
    add("sluice_requests", _labels(operation, provider, model, str(r.status), r.outcome), 1)
    overhead = (r.duration_us - r.upstream_us) / MICROSECONDS
    observe("sluice_gateway_overhead_seconds", operation, overhead)
    if r.error:
        add("sluice_errors", r.error, 1)
    for limit in r.shadow:
        add("sluice_shadow_refusals", limit, 1)
    if r.cache:
        add("sluice_cache_requests", r.cache, 1)
        add("sluice_cache_saved_microusd", _labels(provider, model), r.saved_microusd)
    if not r.attempts:
        return
    served = _labels(operation, provider, model)
    add("sluice_attempts", provider, r.attempts)
    observe("gen_ai_server_request_duration_seconds", served, r.duration_us / MICROSECONDS)
    if r.first_byte_us:
        seconds = r.first_byte_us / MICROSECONDS
        observe("gen_ai_server_time_to_first_token_seconds", served, seconds)
    if r.usage_source == "none":
        return
    tokens, usage = "gen_ai_client_token_usage", r.usage
    observe(tokens, _labels(operation, provider, model, "input"), usage.prompt_tokens)
    observe(tokens, _labels(operation, provider, model, "output"), usage.completion_tokens)
    if r.price == UNPRICED:
        add("sluice_unpriced_requests", _labels(provider, model), 1)
    elif r.cost_microusd:
        add("sluice_cost_microusd", _labels(provider, model), r.cost_microusd)
