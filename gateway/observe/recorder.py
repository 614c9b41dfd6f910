"""Hot path: takes each finished request's record and folds them, a batch at a time."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable
from itertools import chain
from typing import Protocol

import msgspec

from gateway.core.record import MICROSECONDS, RequestRecord
from gateway.observe.log import encode_lines
from gateway.observe.scoreboard import Scoreboard
from gateway.observe.series import SEPARATOR, Totals

logger = logging.getLogger("sluice.metrics")

FOLD_SECONDS = 0.25
MAX_BATCH = 2000  # folded at once past this, so that a burst cannot grow the batch
MAX_UNSURE = 20_000  # past this, records are written all the same
MAX_LINES, MAX_WRITES = 1000, 4  # what one write has, and how many there are at a time

# What msgspec raises at text that is no Unicode, or at numbers that JSON's readers do not know.
UNWRITABLE = (ValueError, OverflowError, TypeError, msgspec.EncodeError)

UNPRICED = "unpriced"
LATE = 408
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
    """Collects records; on a timer that runs only while there are any, folds and publishes.

    `unsure` gives the ids of requests that somebody else would record, were this worker killed now:
    their lines wait until that cannot be.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scoreboard: Scoreboard,
        segment: int,
        writers: Iterable[Writer],
        gauges: Callable[[], dict[str, float]],
        unsure: Callable[[], Container[str]] = frozenset,
    ) -> None:
        self._loop, self._scoreboard, self._segment = loop, scoreboard, segment
        self._writers = tuple(writers)
        self._gauges = gauges
        self._unsure = unsure
        self._batch: list[RequestRecord] = []
        self._waiting: list[RequestRecord] = []
        self._timer: asyncio.TimerHandle | None = None
        self._totals = Totals()
        self._overfull = False

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
        _add(self._totals, batch)
        if self._writers and (batch or self._waiting):
            self._write(batch)
        self._totals.gauges = self._gauges()
        if not self._scoreboard.publish(self._segment, self._totals) and not self._overfull:
            self._overfull = True
            logger.error("the metrics have too many labels to be published: they stand still")

    def count(self, name: str, amount: float) -> None:
        """Set a counter without labels to what its owner has counted."""
        self._totals.counters[name] = {"": amount}

    def sum(self) -> Totals:
        """Return the totals of all workers."""
        self.fold()
        return self._scoreboard.sum(self._segment, self._totals)

    def close(self) -> None:
        """Fold and write the rest; the gauges of a worker that ends are nothing."""
        self._unsure = frozenset
        self.fold()
        while self._waiting:
            self.fold()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._totals.gauges = {}
        self._scoreboard.publish(self._segment, self._totals)

    def _write(self, batch: list[RequestRecord]) -> None:
        """Write what waited, and a batch, but for what is to wait."""
        batch, self._waiting = self._waiting + batch, []
        unsure = self._unsure() if len(batch) <= MAX_UNSURE else ()
        if unsure:
            self._waiting = [record for record in batch if record.id in unsure]
        if self._waiting:
            batch = [record for record in batch if record.id not in unsure]
        most = MAX_LINES * MAX_WRITES  # what has waited is more than the writers can queue, maybe
        if len(batch) > most:
            self._waiting, batch = batch[most:] + self._waiting, batch[:most]
        if self._waiting:
            self._timer = self._loop.call_later(FOLD_SECONDS, self.fold)
        for start in range(0, len(batch), MAX_LINES):
            lines = _lines(batch[start : start + MAX_LINES])
            for writer in self._writers if lines else ():
                writer.write(lines)


def _lines(batch: list[RequestRecord]) -> bytes:
    """Return records as JSON lines; one that cannot be written takes no others along."""
    try:
        return encode_lines(batch)
    except UNWRITABLE:
        return b"".join(map(_line, batch))


def _line(record: RequestRecord) -> bytes:
    try:
        return encode_lines([record])
    except UNWRITABLE:
        logger.exception("the record of request %s cannot be written", record.id)
        return b""


def _add(totals: Totals, batch: Iterable[RequestRecord]) -> None:
    """Add records to totals. What is alike in them is looked up once."""
    groups: dict[tuple[str, str, str, int, str, str], list[RequestRecord]] = {}
    for r in batch:
        key = (r.operation, r.provider, r.model, r.status, r.outcome, r.cache)
        group = groups.get(key)
        if group is None:
            groups[key] = [r]
        else:
            group.append(r)
    for key, group in groups.items():
        operation, provider, model, status, _, cache = key
        totals.add("sluice_requests", SEPARATOR.join(map(str, key[:5])), len(group))
        if provider or status != LATE:  # a body that did not come was its client's to send
            overheads = [(r.duration_us - r.upstream_us) / MICROSECONDS for r in group]
            totals.observe(OVERHEAD, operation, overheads)
        if cache:
            totals.add("sluice_cache_requests", cache, len(group))
            if saved := sum([r.saved_microusd for r in group]):
                named = SEPARATOR.join((provider, model))
                totals.add("sluice_cache_saved_microusd", named, saved)
        for r in group:
            if r.error or r.shadow:
                _add_rest(totals, r)
        labels = SEPARATOR.join((operation, provider, model))
        if served := [r for r in group if r.attempts]:
            _add_served(totals, labels, provider, served)
        if counted := [r for r in group if r.usage_source != "none"]:  # sharers of a call, too
            _add_used(totals, labels, provider, model, counted)


def _add_rest(totals: Totals, r: RequestRecord) -> None:
    """Add what few requests have."""
    if r.error:
        totals.add("sluice_errors", r.error, 1)
    for limit in r.shadow:
        totals.add("sluice_shadow_refusals", limit, 1)


def _add_served(totals: Totals, labels: str, provider: str, served: list[RequestRecord]) -> None:
    """Add requests that were put to a provider, each attempt under the one that it was put to."""
    several = [
        r for r in served if r.attempts > 1 or not r.tries or r.tries[0].provider != provider
    ]
    asked = Counter(chain.from_iterable(map(_asked, several)))
    if len(several) < len(served):
        asked[provider] += len(served) - len(several)
    for name, attempts in asked.items():
        totals.add("sluice_attempts", name, attempts)
    totals.observe(TOOK, labels, [r.duration_us / MICROSECONDS for r in served])
    firsts = [r.first_byte_us / MICROSECONDS for r in served if r.first_byte_us]
    totals.observe(FIRST, labels, firsts)


def _asked(r: RequestRecord) -> Iterable[str]:
    """Return the provider of every attempt; the last one's where nothing says how one ended."""
    told = [tried.provider for tried in r.tries[: r.attempts]]
    return told + [r.provider] * (r.attempts - len(told))


def _add_used(
    totals: Totals, labels: str, provider: str, model: str, counted: list[RequestRecord]
) -> None:
    """Add what requests have used."""
    used = [r.usage for r in counted]
    totals.observe(USED, f"{labels}{SEPARATOR}input", [u.prompt_tokens for u in used])
    totals.observe(USED, f"{labels}{SEPARATOR}output", [u.completion_tokens for u in used])
    named = SEPARATOR.join((provider, model))
    if cost := sum([r.cost_microusd for r in counted if r.price != UNPRICED]):
        totals.add("sluice_cost_microusd", named, cost)
    if unpriced := sum([r.price == UNPRICED for r in counted]):
        totals.add("sluice_unpriced_requests", named, unpriced)
