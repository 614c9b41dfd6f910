"""What a gateway has written down of some traffic, and whether that agrees with itself.

Each check gives what is wrong, in words; nothing where all is well.
"""

import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.oracle_traffic import Asked, Traffic
from tests.support.gateway import Gateway

TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
TEXTS = ("outcome", "tenant", "key", "model", "provider", "usage_source")
FAILED = ("error", "aborted")
USAGE_KEY = re.compile(r"sluice:usage:\{(.*?)\}:([0-9-]+)(?::(.*))?$")
BEYOND_USAGE = ("cache_hits", "saved_microusd")  # entries do not have them

Record = dict[str, Any]


@dataclass
class Books:
    """Records as files have them and as they were logged, entries and hashes as Redis has them."""

    records: list[Record]
    logged: list[Record]
    entries: list[dict[str, str]]
    usage: dict[str, dict[str, int]]
    limits: dict[str, dict[str, str]]
    metrics: Counter[str]
    killed: bool  # a worker was, so that records may be missing
    restarted: bool = False  # a gateway was, which counts anew then

    @classmethod
    def of(cls, gateways: list[Gateway], ledgers: list[Path], client: Any, killed: bool) -> "Books":
        """Read all of several gateways', and what a client finds in their store."""
        lines = [
            json.loads(line)
            for directory in ledgers
            for file in directory.iterdir()
            for line in file.read_text().splitlines()
        ]
        with contextlib.closing(client) as store:
            usage = {
                key: {name: int(value) for name, value in store.hgetall(key).items()}
                for key in store.scan_iter("sluice:usage:*", count=1000)
            }
            limits = {
                key: store.hgetall(key) for key in store.scan_iter("sluice:limit:*", count=1000)
            }
            # In a cluster each tenant has one of its own.
            streams = store.scan_iter("sluice:requests*", count=1000)
            entries = [entry for stream in streams for _, entry in store.xrange(stream)]
        metrics = Counter[str]()
        for gateway in gateways:
            for family in text_string_to_metric_families(gateway.get("/metrics")[1].decode()):
                for sample in family.samples:
                    metrics[sample.name] += sample.value  # type: ignore[assignment]  # floats
        logged = [record for gateway in gateways for record in gateway.records()]
        records = [line for line in lines if line["event"] == "request"]
        return cls(records, logged, entries, usage, limits, metrics, killed)

    def record_of(self, one: Asked) -> Record | None:
        """The record of a request; the last one, where there are several."""
        found = [r for r in self.records if _trace(r) == one.trace and r["tenant"] == one.tenant]
        return found[-1] if found else None

    def knows_as_nobodys(self, one: Asked) -> bool:
        """Tell whether its record has no tenant: whose it was, nobody heard in time."""
        return any(_trace(r) == one.trace and not r["tenant"] for r in self.records)

    def wrong(self, traffic: Traffic) -> Iterator[str]:
        """Everything that does not agree."""
        yield from self._each_once()
        yield from self._entries_as_records()
        yield from self._usage_is_the_sum()
        yield from traffic.limits.wrong(self.limits, self.entries, traffic.took)
        if not (self.killed or self.restarted):
            yield from self._metrics()

    def _each_once(self) -> Iterator[str]:
        for what, several in (("record", self.records), ("log line", self.logged)):
            for (trace, tenant), count in Counter(
                (_trace(r), r["tenant"]) for r in several
            ).items():
                if trace and count > 1:
                    yield f"{count} {what}s of one request: {trace} of {tenant}"
        for name, count in Counter(entry["id"] for entry in self.entries).items():
            if count > 1:
                yield f"{count} entries of one request: {name}"
        written, logged = [sorted(r["id"] for r in each) for each in (self.records, self.logged)]
        if written != logged and not self.killed:  # between the one and the other
            yield "the ledger's files and the log have other records"

    def _entries_as_records(self) -> Iterator[str]:
        entries = {entry["id"]: entry for entry in self.entries}
        for record in self.records:
            entry = entries.pop(record["id"], None)
            if entry is None:
                if record["attempts"] or record["outcome"] not in ("disconnected", "refused"):
                    yield f"a record without an entry: {record}"
                continue
            said = {name: str(record["usage"][name]) for name in TOKENS}
            said |= {name: str(record[name]) for name in (*TEXTS, "cost_microusd")}
            if other := {name: (entry[name], v) for name, v in said.items() if entry[name] != v}:
                yield f"entry and record of {record['id']} differ: {other}"
        if entries and not self.killed:
            yield f"entries without a record: {list(entries.values())[:2]}"

    def _usage_is_the_sum(self) -> Iterator[str]:
        sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        early = Counter[str]()  # left before anything was known of them: not in all counters
        for entry in self.entries:
            if entry["outcome"] == "refused":
                continue
            if entry["outcome"] == "disconnected" and entry["attempts"] == "0":
                early[entry["tenant"]] += 1
            parts = ["", f"model:{entry['model']}", f"key:{entry['key']}"]
            for part in (*parts, *([f"provider:{p}"] if (p := entry["provider"]) else [])):
                total = sums[entry["tenant"], part]
                total["requests"] += 1
                total["errors"] += entry["outcome"] in FAILED
                total.update({name: int(entry[name]) for name in (*TOKENS, "cost_microusd")})
        for length in (len("2026-11"), len("2026-11-22")):
            seen = self._usage_of_periods(length)
            for place in seen.keys() | sums.keys():
                has, due = +seen[place], +sums[place]
                if 0 < due["requests"] - has["requests"] <= early[place[0]]:
                    due["requests"] = has["requests"]
                if has != +due:
                    yield f"usage of {place} is {dict(has)}, its entries have {dict(due)}"

    def _usage_of_periods(self, length: int) -> dict[tuple[str, str], Counter[str]]:
        """What usage hashes have, of periods whose names are so long."""
        seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for key, found in self.usage.items():
            match = USAGE_KEY.match(key)
            assert match is not None, key
            if len(match[2]) == length:
                counted = {k: v for k, v in found.items() if k not in BEYOND_USAGE}
                seen[match[1], match[3] or ""].update(counted)
        return seen

    def _metrics(self) -> Iterator[str]:
        tokens = ("prompt_tokens", "completion_tokens")
        due = {
            "sluice_requests_total": len(self.records),
            "sluice_attempts_total": sum(r["attempts"] for r in self.records),
            "sluice_cost_microusd_total": sum(r["cost_microusd"] for r in self.records),
            "sluice_open_leases": 0,
            "gen_ai_client_token_usage_sum": sum(
                r["usage"][name] for r in self.records for name in tokens
            ),
        }
        for name, value in due.items():
            if self.metrics[name] != value:
                yield f"metric {name} is {self.metrics[name]}, its records have {value}"


def _trace(record: Record) -> str:
    """The trace that a request belongs to; what a killed worker had is recorded without."""
    return str(record["trace"])[3:35]
