"""Reads the usage counters for people: by tenant, key, model, provider, label, day or month."""

import asyncio
import re
from datetime import UTC, date, datetime, timedelta

import msgspec

from gateway.store import names
from gateway.store.client import Client
from gateway.store.lease import batches

# What rows can be grouped by; the tenant and the period are always part of a row.
GROUPS = ("tenant", "key", "model", "provider", "label")
MAX_DAYS = 400
MAX_ROWS = 20_000
MAX_LOOKS = 1_000_000  # most tenants have nothing on most days

_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Row(msgspec.Struct, kw_only=True):
    """The sum of one group in one period. Money is micro-dollars."""

    period: str
    tenant: str
    group: str = ""
    requests: int = 0
    errors: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost_microusd: int = 0
    saved_microusd: int = 0


COUNTERS = tuple(Row.__struct_fields__[3:])


class Query(msgspec.Struct, frozen=True):
    """What to read: a group, the days (or a month), and maybe one tenant."""

    by: str
    periods: tuple[str, ...]
    tenant: str | None = None

    @classmethod
    def of(cls, fields: dict[str, str]) -> "Query":
        """Build from text: by, tenant, from, to (dates), month. Raises ValueError."""
        if unknown := set(fields) - {"by", "tenant", "from", "to", "month"}:
            raise ValueError(f"unknown parameter {min(unknown)!r}")
        by = fields.get("by", "tenant")
        if by not in GROUPS:
            raise ValueError(f"cannot group by {by!r}")
        if (month := fields.get("month")) is not None:
            if not _MONTH.fullmatch(month):
                raise ValueError(f"expected a month like 2026-11, got {month!r}")
            if {"from", "to"} & set(fields):
                raise ValueError("give a month, or days from and to")
            return cls(by, (month,), fields.get("tenant"))
        last = _day(fields.get("to")) or datetime.now(UTC).date()
        first = _day(fields.get("from")) or last
        if first > last:
            raise ValueError(f"'from' ({first}) is after 'to' ({last})")
        if (last - first).days >= MAX_DAYS:
            raise ValueError(f"expected at most {MAX_DAYS} days, from the first to the last")
        days = ((first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1))
        return cls(by, tuple(days), fields.get("tenant"))


def this_month() -> str:
    """Return the month that is counted now, as it stands in a query."""
    return f"{datetime.now(UTC):%Y-%m}"


class UsageReader:
    """Reads counters. Raises StoreError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self, query: Query) -> list[Row]:
        """Return the rows of a query, in the order of period, tenant and group."""
        if query.tenant is not None:
            tenants = [query.tenant]
        else:
            found = await self._client.call("SMEMBERS", names.TENANTS)
            tenants = sorted(name.decode() for name in found)
        wanted = [(tenant, period) for tenant in tenants for period in query.periods]
        if query.by == "tenant":
            places = [(t, p, "", names.usage(t, p)) for t, p in wanted]
        else:
            places = await self._grouped(query, set(wanted))
        if len(places) > MAX_LOOKS:
            raise ValueError("too many tenants and days: ask for fewer days, or one tenant")
        rows: list[Row] = []
        for part in batches(places):
            hashes = await asyncio.gather(*(self._client.call("HGETALL", p[-1]) for p in part))
            rows += [
                _row(period, tenant, group, flat)
                for (tenant, period, group, _), flat in zip(part, hashes, strict=True)
                if flat
            ]
            if len(rows) > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS} rows: ask for fewer days, or one tenant")
        return sorted(rows, key=lambda row: (row.period, row.tenant, row.group))

    async def _grouped(
        self, query: Query, wanted: set[tuple[str, str]]
    ) -> list[tuple[str, str, str, str]]:
        """Find the counters of a group by their names."""
        found: dict[str, tuple[str, str, str, str]] = {}  # a scan may name a key twice
        mark = f":{query.by}:"
        tenant = "*" if query.tenant is None else _literal(query.tenant)
        # What all periods begin with: days of the same month, or one alone.
        first, last = min(query.periods), max(query.periods)
        period = next(first[:n] for n in range(len(first), -1, -1) if last.startswith(first[:n]))
        for key in await self._client.scan(f"sluice:usage:{{{tenant}}}:{period}*{mark}*"):
            name = key.decode()
            whose, _, rest = name.removeprefix("sluice:usage:{").partition("}:")
            when, _, group = rest.partition(mark)
            if (whose, when) in wanted:
                found[name] = (whose, when, group, name)
        return list(found.values())


def _row(period: str, tenant: str, group: str, flat: list[bytes]) -> Row:
    values = {n.decode(): int(v) for n, v in zip(flat[::2], flat[1::2], strict=True)}
    counted = {name: values.get(name, 0) for name in COUNTERS}
    return Row(period=period, tenant=tenant, group=group, **counted)


def _literal(text: str) -> str:
    """Quote what a Redis pattern would otherwise take for a wildcard."""
    return re.sub(r"([*?\[\]\\^-])", r"\\\1", text)


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        if not _DAY.fullmatch(text):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected a date like 2026-11-21, got {text!r}") from None
