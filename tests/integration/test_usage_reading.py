"""Counters are found by their names: those of the periods asked for, and no others are read."""

from datetime import date, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store import usage
from gateway.store.usage import Query, UsageReader
from tests.support.store import StoreServer, connected, store_server

FIRST, DAYS, KEYS = date(2026, 8, 1), 92, 20
PERIODS = [(FIRST + timedelta(days=n)).isoformat() for n in range(DAYS)]
MONTHS = ["2026-08", "2026-09", "2026-10"]


def fill(server: StoreServer) -> None:
    """Count a request of each key and model, each day and each month."""
    pipeline = server.redis.pipeline(transaction=False)
    pipeline.sadd("sluice:tenants", "acme")
    for period in [*PERIODS, *MONTHS]:
        for n in range(KEYS):
            for part in ("key", "model"):
                pipeline.hset(f"sluice:usage:{{acme}}:{period}:{part}:k{n}", "requests", 1)
    pipeline.execute()


@pytest.mark.parametrize(
    ("fields", "periods"),
    [
        ({"month": "2026-09"}, 1),
        ({"from": "2026-09-30", "to": "2026-10-01"}, 2),
        ({"from": "2026-09-29", "to": "2026-10-02"}, 4),
        ({"to": "2026-09-09", "from": "2026-09-09"}, 1),
        ({"from": "2026-09-01", "to": "2026-09-30"}, 30),
        ({"from": "2026-08-31", "to": "2026-10-01"}, 32),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
async def test_as_many_rows_as_are_asked_for_are_not_too_many(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, str],
    periods: int,
    alone: bool,
) -> None:
    query = Query.of({"by": "key", **fields, **({"tenant": "acme"} if alone else {})})
    with store_server(tmp_path) as server:
        fill(server)
        async with connected(server) as (_, client):
            monkeypatch.setattr(usage, "MAX_ROWS", periods * KEYS)
            scan, brought = client.scan, list[bytes]()

            async def watched(*args: Any) -> set[bytes]:
                found = await scan(*args)
                brought.extend(found)
                return found

            monkeypatch.setattr(client, "scan", watched)
            rows = await UsageReader(client).read(query)
            assert len(brought) == len(rows)
            wanted = [(period, f"k{n}") for period in query.periods for n in range(KEYS)]
            assert [(row.period, row.group) for row in rows] == sorted(wanted)
            monkeypatch.setattr(usage, "MAX_ROWS", periods * KEYS - 1)
            with pytest.raises(ValueError, match="rows: ask for fewer days"):
                await UsageReader(client).read(query)


@given(st.integers(0, 800), st.integers(1, 400))
def test_patterns_match_the_days_asked_for_and_no_others(start: int, length: int) -> None:
    every = [(date(2023, 1, 1) + timedelta(days=n)).isoformat() for n in range(1300)]
    asked = every[start : start + length]
    patterns = usage._patterns(tuple(asked))
    months = {day[:7] for day in every}
    for period in [*every, *months]:
        matched = sum(fnmatchcase(period, pattern) for pattern in patterns)
        assert matched == (period in asked)
    assert len(patterns) <= 12 + 2 * 4


def test_a_month_is_its_own_pattern() -> None:
    assert usage._patterns(("2026-09",)) == ["2026-09"]
