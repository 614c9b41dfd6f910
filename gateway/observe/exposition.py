"""Totals in Prometheus's text format, by way of its own library."""

import asyncio
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from gateway.observe.series import BOUNDS, SEPARATOR, Totals

# Rendering takes milliseconds, or a good part of a second where there are very many series: so many
# times as long it is not done again, and not longer.
REST_TIMES, LONGEST_REST_SECONDS = 20, 5.0

GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

# Name -> (help, labels in the order in which the recorder joins their values).
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sluice_requests": (
        "Finished requests.",
        ("operation", "provider", "model", "status", "outcome"),
    ),
    "sluice_errors": ("Requests that were refused or failed, by error code.", ("code",)),
    "sluice_shadow_refusals": ("Requests that a limit in shadow would have refused.", ("limit",)),
    "sluice_attempts": ("Attempts at upstreams.", ("provider",)),
    "sluice_cost_microusd": ("Cost in micro-dollars.", ("provider", "model")),
    "sluice_unpriced_requests": ("Requests whose model has no known price.", ("provider", "model")),
    "sluice_cache_requests": ("Requests by what the cache had to do with them.", ("state",)),
    "sluice_cache_saved_microusd": ("Cost of calls that were not made.", ("provider", "model")),
    "sluice_cache_corrupted": ("Kept answers that were damaged, and deleted.", ()),
    "sluice_log_lines_dropped": ("Log lines lost because standard output was too slow.", ()),
    "sluice_spans_dropped": ("Spans lost because the trace collector did not take them.", ()),
    "sluice_ledger_lines_dropped": ("Ledger lines lost because the file took none.", ()),
    "sluice_webhook_records_dropped": ("Records lost because the webhook's spool was full.", ()),
    "sluice_requests_shed": ("Requests refused because there were too many at once.", ()),
    "sluice_connections_refused": ("Connections closed because there were too many.", ()),
    "sluice_settlements_lost": ("Settlements lost because Redis was away too long.", ()),
}
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gen_ai_server_request_duration_seconds": ("Time to the end of the answer.", GEN_AI),
    "gen_ai_server_time_to_first_token_seconds": ("Time to the first content.", GEN_AI),
    "gen_ai_client_token_usage": ("Tokens of a request.", (*GEN_AI, "gen_ai_token_type")),
    "sluice_gateway_overhead_seconds": ("Time not spent waiting for an upstream.", ("operation",)),
}
GAUGES: dict[str, str] = {
    "sluice_open_leases": "Requests in flight.",
    "sluice_client_connections": "Open connections from clients.",
    "sluice_upstream_connections": "Open connections to upstreams.",
    "sluice_degraded": "Workers that decide over limits by themselves.",
    "sluice_unsettled": "Settlements that wait for Redis.",
    "sluice_store_connected": "Workers connected to Redis.",
    "sluice_workers": "Workers that run.",
    "sluice_loop_lag_seconds": "Lag of the event loops, summed over the workers.",
    "sluice_requests_in_flight": "Requests that are being served.",
    "sluice_cache_entries": "Answers in the workers' memory.",
    "sluice_cache_bytes": "Bytes they take.",
    "sluice_requests_bound": "Requests that workers would serve at once, as busy as they are.",
}


class Expositions:
    """Renders totals in a thread, once for all who ask meanwhile, in a small share of the time."""

    def __init__(self, total: Callable[[], Totals]) -> None:
        self._total = total
        self._next: asyncio.Task[bytes] | None = None
        self._rests_until = 0.0

    async def get(self) -> bytes:
        """Return totals as they are now, or a little later."""
        if self._next is None:
            self._next = asyncio.create_task(self._render())
        return await asyncio.shield(self._next)

    async def _render(self) -> bytes:
        now = asyncio.get_running_loop().time
        await asyncio.sleep(self._rests_until - now())
        self._next = None  # who asks from now on is told what is so later
        began = now()
        body = await asyncio.to_thread(exposition, self._total())
        self._rests_until = now() + min(REST_TIMES * (now() - began), LONGEST_REST_SECONDS)
        return body


def exposition(totals: Totals) -> bytes:
    """Render totals."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(totals))
    return generate_latest(registry)


class _Collector:
    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        for name, (text, labels) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for values, amount in self._totals.counters.get(name, {}).items():
                counter.add_metric(_split(values, labels), amount)
            yield counter
        for name, (text, labels) in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for values, cells in self._totals.histograms.get(name, {}).items():
                histogram.add_metric(_split(values, labels), _buckets(name, cells), cells[-1])
            yield histogram
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(name, text)
            gauge.add_metric([], self._totals.gauges.get(name, 0))
            yield gauge


def _split(values: str, labels: tuple[str, ...]) -> list[str]:
    return values.split(SEPARATOR) if labels else []


def _buckets(name: str, cells: list[float]) -> list[tuple[str, float]]:
    below, buckets = 0.0, []
    for bound, amount in zip((*BOUNDS[name], float("inf")), cells, strict=False):
        below += amount
        buckets.append(("+Inf" if bound == float("inf") else f"{float(bound)}", below))
    return buckets
