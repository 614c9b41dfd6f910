"""Hot path: sums of what happened, by label set. Bounded, mergeable, and plain enough to publish.

A worker folds its records into one `Totals`; the sum over all workers is what a scrape shows.
"""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

# OpenTelemetry GenAI semantic conventions, metrics: advised bucket boundaries.
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)

BOUNDS: dict[str, tuple[float, ...]] = {
    "gen_ai_server_request_duration_seconds": SECONDS,
    "gen_ai_server_time_to_first_token_seconds": SECONDS,
    "gen_ai_client_token_usage": TOKENS,
    "sluice_gateway_overhead_seconds": OVERHEAD_SECONDS,
}

# Label values are joined by a character that no name may hold.
SEPARATOR = "\x1f"
# Of one worker. Labels are names from the configuration, and some that clients make up, so this
# many appear only where something is wrong.
MAX_SERIES = 4000


class Totals(msgspec.Struct):
    """Series name -> label values -> amount. A histogram is its bucket counts, then its sum."""

    counters: dict[str, dict[str, float]] = {}
    histograms: dict[str, dict[str, list[float]]] = {}
    gauges: dict[str, float] = {}
    size: int = 0

    def add(self, name: str, labels: str, amount: float) -> None:
        """Add to a counter."""
        family = self.counters.get(name)
        if family is None:
            family = self.counters[name] = {}
        known = family.get(labels)
        if known is None:
            if self.size >= MAX_SERIES:
                return
            self.size += 1
            known = 0
        family[labels] = known + amount

    def observe(self, name: str, labels: str, values: Sequence[float]) -> None:
        """Add observations to a histogram."""
        family = self.histograms.setdefault(name, {})
        cells = family.get(labels)
        bounds = BOUNDS[name]
        if cells is None:
            if self.size >= MAX_SERIES or not values:
                return
            self.size += 1
            cells = family[labels] = [0.0] * (len(bounds) + 2)
        for value in values:
            cells[bisect_left(bounds, value)] += 1
        cells[-1] += sum(values)

    def merge(self, other: "Totals") -> None:
        """Add another worker's totals to these. They are bounded, so their sum is."""
        for name, family in other.counters.items():
            sums = self.counters.setdefault(name, {})
            for labels, amount in family.items():
                known = sums.get(labels)
                if known is None:
                    self.size += 1
                    known = 0
                sums[labels] = known + amount
        for name, histogram in other.histograms.items():
            mine = self.histograms.setdefault(name, {})
            for labels, cells in histogram.items():
                own = mine.get(labels)
                if own is not None:
                    mine[labels] = [a + b for a, b in zip(own, cells, strict=True)]
                else:
                    self.size += 1
                    mine[labels] = cells[:]
        for name, value in other.gauges.items():
            self.gauges[name] = self.gauges.get(name, 0) + value


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Totals).decode
