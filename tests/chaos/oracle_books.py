"""What a gateway has written down of some traffic, and whether that agrees with itself.

Each check gives what is wrong, in words; nothing where all is well.
"""

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
LIMIT_KEY = re.compile(
    r"sluice:limit:\{(.*?)\}:tenant(:model:.+?)?:(rpm|tpm|concurrency|budget.*)$"
)
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

    @classmethod
    def of(cls, gateway: Gateway, directory: Path, killed: bool) -> "Books":
        """Read all of a gateway's."""
        lines = [
            json.loads(line)
            for file in directory.iterdir()
            for line in file.read_text().splitlines()
        ]
        with gateway.store as store:
            usage = {
                key: {name: int(value) for name, value in store.hgetall(key).items()}
                for key in store.scan_iter("sluice:usage:*", count=1000)
            }
            limits = {
                key: store.hgetall(key) for key in store.scan_iter("sluice:limit:*", count=1000)
            }
            entries = [entry for _, entry in store.xrange("sluice:requests")]
        metrics = Counter[str]()
        for family in text_string_to_metric_families(gateway.get("/metrics")[1].decode()):
            for sample in family.samples:
                metrics[sample.name] += sample.value  # type: ignore[assignment]  # floats
        records = [line for line in lines if line["event"] == "request"]
        return cls(records, gateway.records(), entries, usage, limits, metrics, killed)

    def record_of(self, one: Asked) -> Record | None:
        """The record of a request; the last one, where there are several."""
        found = [r for r in self.records if _trace(r) == one.trace and r["tenant"] == one.tenant]
        return found[-1] if found else None

    def wrong(self, traffic: Traffic) -> Iterator[str]:
        """Everything that does not agree."""
        yield from self._each_once()
        yield from self._entries_as_records()
        yield from self._usage_is_the_sum()
        yield from self._at_rest()
        yield from self._within_limits(traffic)
        if not self.killed:
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
        if sorted(r["id"] for r in self.records) != sorted(r["id"] for r in self.logged):
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

    def _at_rest(self) -> Iterator[str]:
        for key, found in self.limits.items():
            if int(found.get("in_use", 0)) or int(found.get("reserved", 0)):
                yield f"taken at rest: {key} {found}"

    def _within_limits(self, traffic: Traffic) -> Iterator[str]:
        for key, found in self.limits.items():
            match = LIMIT_KEY.match(key)
            if match is None:
                yield f"a limit that nobody configured: {key}"
                continue
            mine = [
                e for e in self.entries if e["tenant"] == match[1] and e["outcome"] != "refused"
            ]
            # What a killed worker had taken of a rate beyond its record comes back as time passes.
            lost = any(entry["outcome"] == "aborted" for entry in mine)
            if match[3].startswith("budget"):
                if int(found["spent"]) > int(found["capacity"]):
                    yield f"overspent: {key} {found}"
                total = sum(int(entry["cost_microusd"]) for entry in mine)
                if not match[2] and int(found["spent"]) != total:
                    yield f"{key} has {found}, what was spent is {total}"
            elif match[3] == "tpm" and not match[2] and not lost:
                used = sum(int(e["prompt_tokens"]) + int(e["completion_tokens"]) for e in mine)
                if int(found["level"]) < int(found["capacity"]) - used - 1:
                    yield f"tokens are lost: {key} {found}, used {used}"
            elif match[3] == "rpm" and not match[2]:
                refilled = int(found["refill"]) * (traffic.took + 1) / 60
                if len(mine) > int(found["capacity"]) + refilled + 1:
                    yield f"{len(mine)} requests let in: {key} {found} in {traffic.took} s"

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
