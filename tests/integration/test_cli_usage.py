"""`sluice usage` tells what the gateway counted, to the micro-dollar, in each of its formats."""

import asyncio
import contextlib
import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.store.usage import COUNTERS, GROUPS, Row
from tests.support.admin import ADMIN_KEY, make, use
from tests.support.command import failed, run, sluice
from tests.support.config import KEY, PRICED_MODEL, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, once
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, Upstream, delta, like_openai

FIELDS = list(Row.__struct_fields__)
DAYS = ("2024-02-28", "2024-02-29", "2024-03-01")


async def moody(exchange: Exchange) -> None:
    """Fail whoever asks for the model `broken`."""
    if exchange.request.json["model"] == "broken":
        await exchange.reply({"error": {"message": "no"}}, status=400)
    else:
        await like_openai(exchange)


async def traffic(gateway: Gateway) -> None:
    """Three keys of two tenants use three models."""
    teams = (("acme", "x"), ("acme", "y"), ("globex", "x"))
    for n, (tenant, team) in enumerate(teams, 1):
        _, secret = await make(gateway, tenant=tenant, labels={"team": team, "env": "prod"})
        for model in ("m", "own", "broken"):
            for _ in range(n):
                await use(gateway, secret, model)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway that was used today, and whose counters have some days of 2024."""
    static = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
    names = {"m": PRICED_MODEL, "own": "own", "broken": "broken"}
    models: dict[str, Any] = {
        name: {"targets": [{"provider": "p0", "model": target}]} for name, target in names.items()
    }
    models["own"]["price"] = {"input": "3.3", "output": "15.7", "per_request": "1.000001"}
    with UpstreamThread(behaviour=moody) as upstream:
        auth = {"admin_key": ADMIN_KEY, "keys": [static]}
        with running(config(upstream.url, auth=auth, models=models), workers=2) as started:
            asyncio.run(traffic(started))
            started.settled()
            with contextlib.closing(started.store) as store:
                for n, day in enumerate((*DAYS, "2024-02"), 1):
                    counters = {name: n * 10**i for i, name in enumerate(COUNTERS)}
                    for part in ("", ":model:m", ":key:k", ":provider:p0", ":label:team=x"):
                        store.hset(f"sluice:usage:{{acme}}:{day}{part}", mapping=counters)
            yield started


def counted(gateway: Gateway, by: str, period: str) -> dict[tuple[str, str, str], dict[str, int]]:
    """What Redis has of a group in a period, by period, tenant and group."""
    mark = "" if by == "tenant" else f":{by}:"
    with contextlib.closing(gateway.store) as store:
        found = {}
        for tenant in ("acme", "globex"):
            start = f"sluice:usage:{{{tenant}}}:{period}{mark}"
            for key in store.scan_iter(f"{start}*" if mark else start):
                hashed = store.hgetall(key)
                counters = {name: int(hashed.get(name, 0)) for name in COUNTERS}
                found[period, tenant, key.removeprefix(start)] = counters
    return found


def place(row: dict[str, Any]) -> tuple[str, str, str]:
    """Whose row it is."""
    return row["period"], row["tenant"], row["group"]


def dollars(microusd: int) -> str:
    """Whole micro-dollars as dollars."""
    return f"{microusd // 10**6}.{microusd % 10**6:06d}"


def now() -> str:
    """Today, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def test_the_traffic_is_worth_looking_at(gateway: Gateway) -> None:
    total = gateway.usage("acme")
    assert (total["requests"], total["errors"]) == (9, 3)
    assert total["cost_microusd"] > 3_000_003
    assert total["cost_microusd"] % 10 != 0


@pytest.mark.parametrize("by", GROUPS)
@pytest.mark.parametrize("monthly", [False, True])
def test_json_and_csv_are_the_counters_of_redis(gateway: Gateway, by: str, monthly: bool) -> None:
    period = now()[:7] if monthly else now()
    words = ["--by", by, "--month", period] if monthly else ["--by", by]
    expected = counted(gateway, by, period)
    assert len(expected) >= 2
    rows = json.loads(run(gateway, "usage", *words, "--format", "json"))
    assert {place(row): {name: row[name] for name in COUNTERS} for row in rows} == expected
    assert [place(row) for row in rows] == sorted(expected)
    reader = csv.DictReader(io.StringIO(run(gateway, "usage", *words, "--format", "csv")))
    assert reader.fieldnames == FIELDS
    assert list(reader) == [{name: str(row[name]) for name in FIELDS} for row in rows]
    asked = f"/admin/usage?by={by}" + (f"&month={period}" if monthly else "")
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    status, body = gateway.get(asked, admin)
    assert (status, json.loads(body)["data"]) == (200, rows)
    status, body = gateway.get(f"{asked}&format=csv", admin)
    assert (status, list(csv.DictReader(io.StringIO(body.decode())))) == (
        200,
        [{name: str(row[name]) for name in FIELDS} for row in rows],
    )
    assert gateway.get(f"{asked}&format=xml", admin)[0] == 400


@pytest.mark.parametrize("by", GROUPS)
def test_a_table_has_the_same_figures_and_their_total(gateway: Gateway, by: str) -> None:
    expected = counted(gateway, by, now())
    head, *lines = run(gateway, "usage", "--by", by).splitlines()
    named = [] if by == "tenant" else [by.upper()]
    titles = ["PERIOD", "TENANT", *named, "REQUESTS", "ERRORS", "HITS", "PROMPT", "CACHED"]
    assert head.split() == [*titles, "COMPLETION", "REASONING", "USD", "SAVED"]
    cells = [line.split() for line in lines]
    *counts, cost, saved = COUNTERS
    wanted = [
        [
            *filter(None, whose),
            *(str(row[name]) for name in counts),
            *(dollars(row[name]) for name in (cost, saved)),
        ]
        for whose, row in sorted(expected.items())
    ]
    if by != "label":  # one request may have several
        sums = {name: sum(row[name] for row in expected.values()) for name in COUNTERS}
        wanted.append(
            [
                "TOTAL",
                *(str(sums[name]) for name in counts),
                dollars(sums[cost]),
                dollars(sums[saved]),
            ]
        )
        whole = dict.fromkeys(COUNTERS, 0)
        for row in counted(gateway, "tenant", now()).values():
            whole = {name: whole[name] + row[name] for name in COUNTERS}
        assert sums == whole
    assert cells == wanted
    assert len({len(line) for line in (head, *lines)}) == 1


@pytest.mark.parametrize("by", GROUPS)
def test_one_tenant_is_shown_alone(gateway: Gateway, by: str) -> None:
    everyone = json.loads(run(gateway, "usage", "--by", by, "--format", "json"))
    words = ("usage", "--by", by, "--format", "json", "--tenant")
    for tenant in ("acme", "globex"):
        alone = json.loads(run(gateway, *words, tenant))
        assert alone == [row for row in everyone if row["tenant"] == tenant]
        assert alone
    for nobody in ("nobody", "*", "acm?"):
        assert json.loads(run(gateway, *words, nobody)) == []


@pytest.mark.parametrize(
    ("words", "periods"),
    [
        (("--from", DAYS[0], "--to", DAYS[2]), DAYS),
        (("--from", DAYS[1], "--to", DAYS[2]), DAYS[1:]),
        (("--from", DAYS[1], "--to", DAYS[1]), DAYS[1:2]),
        (("--to", DAYS[0]), DAYS[:1]),
        (("--month", "2024-02"), ("2024-02",)),
        (("--month", "2024-03"), ()),
        (("--from", "2024-04-01", "--to", "2024-04-30"), ()),
    ],
)
@pytest.mark.parametrize("by", GROUPS)
def test_periods_of_the_past_are_shown(
    gateway: Gateway, words: tuple[str, ...], periods: tuple[str, ...], by: str
) -> None:
    rows = json.loads(run(gateway, "usage", "--by", by, *words, "--format", "json"))
    assert [row["period"] for row in rows] == list(periods)
    for row in rows:
        assert {name: row[name] for name in COUNTERS} == counted(gateway, by, row["period"])[
            place(row)
        ]
    _, *lines = run(gateway, "usage", "--by", by, *words).splitlines()
    totals = [line.split()[1:] for line in lines if line.startswith("TOTAL")]
    assert len(totals) == (len(periods) > 1 and by != "label")
    for total in totals:
        *counts, cost, saved = (sum(row[name] for row in rows) for name in COUNTERS)
        assert total == [*map(str, counts), dollars(cost), dollars(saved)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--from", "yesterday"), "'yesterday'"),
        (("--to", "2026-02-30"), "'2026-02-30'"),
        (("--from", "2026-03-02", "--to", "2026-03-01"), "is after"),
        (("--from", "2024-01-01", "--to", "2025-02-04"), "400 days"),
        (("--month", "2026"), "'2026'"),
        (("--by", "day"), "--by"),
        (("--format", "xml"), "--format"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_reason(
    gateway: Gateway, words: tuple[str, ...], reason: str
) -> None:
    code, said = failed(gateway, "usage", *words)
    assert code in (1, 2)
    assert reason in said


def test_a_check_makes_no_state_and_knows_what_the_gateway_would_refuse(tmp_path: Path) -> None:
    state, file = tmp_path / "there" / "state", tmp_path / "sluice.yaml"
    file.write_text("redis: {url: 'localhost:6379'}\n")
    done = sluice(state, file, "check")
    assert done.returncode == 2
    assert "sluice.yaml:1: redis.url: expected redis://" in done.stderr
    file.write_text("providers: {p: {kind: openai, api_key: sk-1}}\n")
    done = sluice(state, file, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert not state.exists()


async def test_a_client_that_leaves_is_counted_under_the_model_it_asked(
    upstream: Upstream,
) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(1000):
            await exchange.event(delta("word "))
            await asyncio.sleep(0.02)

    upstream.behaviour = endless
    with running(config(upstream.url), workers=1) as gateway:
        ask = Ask(chat("p0/gpt-4o", stream=True), leave_after=3)
        await once(gateway.port, ask)
        (record,) = await asyncio.to_thread(gateway.records, 1)
    assert (record["model"], record["outcome"]) == ("p0/gpt-4o", "disconnected")


def test_no_cell_is_a_formula(gateway: Gateway) -> None:
    key = f"sluice:usage:{{acme}}:{DAYS[0]}:model:=HYPERLINK()"
    with contextlib.closing(gateway.store) as store:
        store.hset(key, mapping={"requests": 1})
        words = ("--by", "model", "--from", DAYS[0], "--to", DAYS[0], "--format", "csv")
        rows = list(csv.DictReader(io.StringIO(run(gateway, "usage", *words))))
        store.delete(key)
    assert [row["group"] for row in rows if row["requests"] == "1"].count("'=HYPERLINK()") == 1


@pytest.mark.parametrize("shape", ["table", "csv", "json"])
def test_a_terminal_that_cannot_show_a_name_shows_its_numbers(gateway: Gateway, shape: str) -> None:
    key = f"sluice:usage:{{acme}}:{DAYS[0]}:model:日本ü"
    words = ("usage", "--by", "model", "--from", DAYS[0], "--to", DAYS[0], "--format", shape)
    with contextlib.closing(gateway.store) as store:
        store.hset(key, mapping={"requests": 1})
        done = sluice(gateway.state, gateway.config_file, *words, encoding="latin-1")
        store.delete(key)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("\\u65e5\\u672c\\u00fc" if shape == "json" else "\\u65e5\\u672cü") in done.stdout
