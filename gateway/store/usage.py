"""Reads the usage counters for people: by tenant, key, model, provider, label, day or month."""

import asyncio
import csv
import io
import re
from calendar import monthrange
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from itertools import groupby

import msgspec

from gateway.store import names
from gateway.store.client import Client
from gateway.store.lease import batches

# What rows can be grouped by; the tenant and the period are always part of a row.
GROUPS = ("tenant", "key", "model", "provider", "label")
MAX_DAYS = 400
MAX_ROWS = 20_000
MAX_LOOKS = 1_000_000  # most tenants have nothing on most days
TOO_MANY = f"more than {MAX_ROWS} rows: ask for fewer days, or one tenant"

# What OWASP names under CSV injection; some programs read wide signs, and skip blanks before them.
_FORMULA, _BLANKS = tuple("=+-@\uff1d\uff0b\uff0d\uff20"), ("\t", "\r", "\n")

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
    """Reads counters. Raises StoreError, and ValueError where that would be too much."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self, query: Query) -> list[Row]:
        """Return the rows of a query, in the order of period, tenant and group."""
        if query.tenant is not None:
            tenants = [query.tenant]
        else:
            found = await self._client.call("SMEMBERS", names.TENANTS)
            tenants = sorted(name.decode() for name in found)
        if query.by == "tenant":
            if len(tenants) * len(query.periods) > MAX_LOOKS:
                raise ValueError("too many tenants and days: ask for fewer days, or one tenant")
            places = [(t, p, "", names.usage(t, p)) for t in tenants for p in query.periods]
        else:
            places = await self._grouped(query, set(tenants))
        rows: list[Row] = []
        for part in batches(places):
            hashes = await asyncio.gather(*(self._client.call("HGETALL", p[-1]) for p in part))
            rows += [
                _row(period, tenant, group, flat)
                for (tenant, period, group, _), flat in zip(part, hashes, strict=True)
                if flat
            ]
            if len(rows) > MAX_ROWS:
                raise ValueError(TOO_MANY)
        return sorted(rows, key=lambda row: (row.period, row.tenant, row.group))

    async def _grouped(self, query: Query, tenants: set[str]) -> list[tuple[str, str, str, str]]:
        """Find the counters of a group by their names."""
        found: list[tuple[str, str, str, str]] = []
        mark, periods = f":{query.by}:", set(query.periods)
        tenant = "*" if query.tenant is None else _literal(query.tenant)
        for period in _patterns(query.periods):
            pattern = f"sluice:usage:{{{tenant}}}:{period}{mark}*"
            keys = await self._client.scan(pattern, MAX_ROWS)
            if len(found) + len(keys) > MAX_ROWS:
                raise ValueError(TOO_MANY)
            for key in keys:
                name = key.decode()
                whose, _, rest = name.removeprefix("sluice:usage:{").partition("}:")
                when, _, group = rest.partition(mark)
                if whose in tenants and when in periods:
                    found.append((whose, when, group, name))
        return found


def _patterns(periods: tuple[str, ...]) -> list[str]:
    """Return Redis patterns of a month, or of successive days and no others, few to a month.

    A scan looks at every key there is, and brings those that match.
    """
    found = []
    for month, days in _parted(periods, 7):
        if len(days) == monthrange(int(month[:4]), int(month[5:]))[1]:
            found.append(f"{month}-??")
        elif days == (month,):
            found.append(month)
        else:
            found += [f"{ten}[{some[0][9]}-{some[-1][9]}]" for ten, some in _parted(days, 9)]
    return found


def _parted(texts: Iterable[str], length: int) -> list[tuple[str, tuple[str, ...]]]:
    """Group successive texts by what they begin with."""
    return [(start, tuple(some)) for start, some in groupby(texts, lambda text: text[:length])]


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


def as_csv(rows: Iterable[Row]) -> str:
    """Return rows as CSV, with a line of names first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row.__struct_fields__)
    writer.writerows(map(_plain, msgspec.structs.astuple(row)) for row in rows)
    return text.getvalue()


def _plain(cell: str | int) -> str | int:
    """Return a cell that no spreadsheet takes for a formula: clients choose some of these names."""
    if isinstance(cell, str) and (cell.startswith(_BLANKS) or cell.lstrip().startswith(_FORMULA)):
        return f"'{cell}"
    return cell
