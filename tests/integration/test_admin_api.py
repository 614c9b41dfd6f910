"""Who may use the admin API, from its own table of routes; and what was used, read through it."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import quote

import pytest

from gateway.http.admin import AdminRoutes
from gateway.store.usage import COUNTERS, GROUPS, MAX_ROWS
from tests.support.admin import ADMIN_KEY, admin, make, use
from tests.support.command import failed
from tests.support.config import KEY, config, digest
from tests.support.gateway import Gateway, running
from tests.support.threaded import UpstreamThread
from tests.support.wire import Reply, ask, head_of

_nobody = cast(Any, None)
TABLE = [
    (route.method, route.path)
    for route in AdminRoutes(ADMIN_KEY, _nobody, _nobody, _nobody).routes()
]
ALLOWED: dict[str, set[str]] = {}
for _method, _path in TABLE:
    ALLOWED.setdefault(_path, set()).add(_method)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MADE_OF_NOTHING = "2019-05"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with an admin key."""
    static = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
    with UpstreamThread() as upstream:
        auth = {"admin_key": ADMIN_KEY, "keys": [static]}
        with running(config(upstream.url, auth=auth), workers=2) as started:
            yield started


@pytest.fixture(scope="module")
def without() -> Iterator[Gateway]:
    """A gateway without one."""
    with running(config("http://127.0.0.1:9/v1")) as started:
        yield started


async def present(gateway: Gateway, method: str, path: str, *lines: str) -> Reply:
    """Ask for a route with these header lines, and a body that every route understands."""
    place = path.replace("{id}", "key_0123456789abcdef")
    head = head_of(*lines, "Content-Length: 2", path=place, key=None, method=method)
    return await ask(gateway.port, head + b"{}")


def refusal(reply: Reply) -> tuple[int, str]:
    """The status and the code of an error."""
    return reply.status, reply.error["code"]


# -- who may -----------------------------------------------------------------------------------


def test_the_table_has_all_that_the_api_offers() -> None:
    assert len(TABLE) >= 8
    assert all(path.startswith("/admin/") for _, path in TABLE)


@pytest.mark.parametrize(("method", "path"), TABLE)
async def test_nobody_gets_in_without_a_key(gateway: Gateway, method: str, path: str) -> None:
    for line in ("x-nothing: 1", "Authorization: ", "Authorization: Bearer ", "x-api-key: "):
        assert refusal(await present(gateway, method, path, line)) == (401, "missing_api_key")


@pytest.mark.parametrize(("method", "path"), TABLE)
async def test_no_key_but_the_admin_key_opens_anything(
    gateway: Gateway, method: str, path: str
) -> None:
    _, virtual = await make(gateway)
    wrong = [KEY, virtual, digest(KEY), digest(ADMIN_KEY), digest(ADMIN_KEY).upper()]
    wrong += [ADMIN_KEY[:-1], ADMIN_KEY + "0", ADMIN_KEY.upper(), f'"{ADMIN_KEY}"', "k", "\xff"]
    for key in wrong:
        for line in (f"Authorization: Bearer {key}", f"x-api-key: {key}", f"api-key: {key}"):
            reply = await present(gateway, method, path, line)
            assert refusal(reply) == (403, "admin_key_required"), line


@pytest.mark.parametrize(("method", "path"), TABLE)
async def test_without_an_admin_key_nothing_opens(without: Gateway, method: str, path: str) -> None:
    for key in (ADMIN_KEY, KEY, digest(KEY), "None", "null", "0", digest("")):
        line = f"Authorization: Bearer {key}"
        assert refusal(await present(without, method, path, line)) == (403, "admin_key_required")
    nothing = await present(without, method, path, "x-nothing: 1")
    assert refusal(nothing) == (401, "missing_api_key")


@pytest.mark.parametrize(("method", "path"), TABLE)
async def test_the_admin_key_opens_every_route_however_it_comes(
    gateway: Gateway, method: str, path: str
) -> None:
    expected = {404} if "{id}" in path else {400} if method == "POST" else {200}
    ways = ("Authorization: Bearer", "authorization: bearer", "x-api-key:", "api-key:")
    found = [await present(gateway, method, path, f"{way} {ADMIN_KEY}") for way in ways]
    assert {reply.status for reply in found} == expected


async def test_the_admin_key_is_no_clients_key(gateway: Gateway) -> None:
    assert refusal(await use(gateway, ADMIN_KEY)) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", ALLOWED)
async def test_another_method_is_not_allowed(gateway: Gateway, path: str) -> None:
    allowed = ALLOWED[path] | ({"HEAD"} if "GET" in ALLOWED[path] else set())
    for method in METHODS:
        if method not in allowed:
            reply = await present(gateway, method, path, f"Authorization: Bearer {ADMIN_KEY}")
            assert refusal(reply) == (405, "method_not_allowed"), method
            assert set(reply.headers["allow"].split(", ")) == allowed


async def test_answers_are_not_for_caches_to_keep(gateway: Gateway) -> None:
    created = await admin(gateway, "POST", "/keys", {"name": "a"})
    path = f"/keys/{created.json['id']}"
    replies = [created] + [
        await admin(gateway, method, place, body)
        for method, place, body in (
            ("GET", "/keys", None),
            ("GET", path, None),
            ("PATCH", path, {"rpm": 5}),
            ("POST", f"{path}/rotate", {}),
            ("POST", f"{path}/revoke", None),
            ("DELETE", path, None),
            ("GET", "/usage", None),
        )
    ]
    assert len(replies) == len(TABLE)
    assert [reply.status for reply in replies] == [201] + [200] * (len(TABLE) - 1)
    assert {reply.headers["cache-control"] for reply in replies} == {"no-store"}
    assert all(reply.headers["content-type"] == "application/json" for reply in replies)


async def test_keys_are_listed_the_oldest_first_and_by_tenant(gateway: Gateway) -> None:
    ids = [(await make(gateway, tenant=tenant))[0] for tenant in ("l1", "l2", "l1")]
    everyone = (await admin(gateway, "GET", "/keys")).json
    assert everyone["object"] == "list"
    assert {one["id"] for one in everyone["data"]} >= set(ids)
    times = [one["created"] for one in everyone["data"]]
    assert times == sorted(times)
    of_one = (await admin(gateway, "GET", "/keys?tenant=l1")).json["data"]
    assert {one["id"] for one in of_one} == {ids[0], ids[2]}
    for nobody in ("", "nobody", "*", "l"):
        assert (await admin(gateway, "GET", f"/keys?tenant={nobody}")).json["data"] == []


# -- what was used -----------------------------------------------------------------------------


async def rows(gateway: Gateway, query: str) -> list[dict[str, Any]]:
    """The rows of a query."""
    reply = await admin(gateway, "GET", f"/usage?{query}")
    assert (reply.status, reply.json["object"]) == (200, "list"), reply
    found: list[dict[str, Any]] = reply.json["data"]
    return found


@pytest.mark.parametrize("by", GROUPS)
async def test_rows_are_the_counters_of_redis(gateway: Gateway, by: str) -> None:
    for tenant in ("u1", "u2"):
        _, secret = await make(gateway, tenant=tenant, labels={"team": tenant, "env": "x"})
        assert [(await use(gateway, secret)).status for _ in range(2)] == [200, 200]
    gateway.settled()
    month = time.strftime("%Y-%m", time.gmtime())
    for query, period in (("", None), (f"month={month}", month)):
        found = [r for r in await rows(gateway, f"by={by}&{query}") if r["tenant"] in ("u1", "u2")]
        assert found
        for row in found:
            part = f"{by}:{row['group']}" if by != "tenant" else ""
            counted = gateway.usage(row["tenant"], period or row["period"], part)
            assert {name: row[name] for name in COUNTERS if row[name]} == counted
        sums = dict.fromkeys(("u1", "u2"), 0)
        for row in found:
            sums[row["tenant"]] += row["requests"]
        whole = {tenant: gateway.usage(tenant, period)["requests"] for tenant in sums}
        labels = 2 if by == "label" else 1
        assert sums == {tenant: total * labels for tenant, total in whole.items()}
        assert await rows(gateway, f"by={by}&tenant=u1&{query}") == [
            row for row in found if row["tenant"] == "u1"
        ]


async def test_days_and_months_of_the_past_are_read_by_their_dates(gateway: Gateway) -> None:
    days = ("2020-02-28", "2020-02-29", "2020-03-01", "2020-03-02")
    with contextlib.closing(gateway.store) as store:
        store.sadd("sluice:tenants", "past")
        for n, day in enumerate((*days, MADE_OF_NOTHING), 1):
            for part in ("", ":model:a:b", ":model:a:model:b", ":key:k"):
                store.hset(f"sluice:usage:{{past}}:{day}{part}", "requests", n)
    dated = {
        "from=2020-02-28&to=2020-03-02": [1, 2, 3, 4],
        "from=2020-02-29&to=2020-03-01": [2, 3],
        "from=2020-03-01&to=2020-03-01": [3],
        "from=2019-02-28&to=2020-02-28": [1],
        "to=2020-02-29": [2],
        f"month={MADE_OF_NOTHING}": [5],
        "month=2020-02": [],
    }
    for query, expected in dated.items():
        for by in ("tenant", "key"):
            found = await rows(gateway, f"{query}&by={by}&tenant=past")
            assert [row["requests"] for row in found] == expected, query
            assert found == await rows(gateway, f"{query}&by={by}")
    named = await rows(gateway, "by=model&to=2020-02-29")
    assert sorted(row["group"] for row in named) == ["a:b", "a:model:b"]


@pytest.mark.parametrize("tenant", ["", "*", "u?", "[u]1", "u1}:x", "\x00", "ü", "a" * 3000])
async def test_a_tenant_is_no_pattern(gateway: Gateway, tenant: str) -> None:
    for by in GROUPS:
        assert await rows(gateway, f"by={by}&tenant={quote(tenant)}") == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("by=day", "'day'"),
        ("by=", "''"),
        ("by=Tenant", "'Tenant'"),
        ("group=key", "'group'"),
        ("from=yesterday", "'yesterday'"),
        ("from=2026-02-30", "'2026-02-30'"),
        ("to=2026-13-01", "'2026-13-01'"),
        ("from=2026-03-02&to=2026-03-01", "is after"),
        ("from=2024-01-01&to=2025-02-04", "400 days"),
        ("from=9999-12-31", "is after"),
        ("month=2026", "'2026'"),
        ("month=2026-1", "'2026-1'"),
        ("month=2026-11-21", "'2026-11-21'"),
        ("month=2026-11%0a", "2026-11"),
        ("month=*", "'*'"),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(
    gateway: Gateway, query: str, said: str
) -> None:
    reply = await admin(gateway, "GET", f"/usage?{query}")
    assert refusal(reply) == (400, "invalid_value")
    assert said in json.loads(reply.body)["error"]["message"]


async def test_more_than_can_be_shown_is_the_clients_error(gateway: Gateway) -> None:
    with contextlib.closing(gateway.store) as store:
        store.sadd("sluice:tenants", "crowded")
        names = [f"sluice:usage:{{crowded}}:2018-05-01:key:{n}" for n in range(MAX_ROWS + 1)]
        pipeline = store.pipeline(transaction=False)
        for name in names:
            pipeline.hset(name, "requests", 1)
        pipeline.execute()
        reply = await admin(gateway, "GET", "/usage?by=key&from=2018-05-01&to=2018-05-01")
        words = ("usage", "--by", "key", "--from", "2018-05-01", "--to", "2018-05-01")
        code, said = await asyncio.to_thread(failed, gateway, *words)
        store.delete(*names)
    assert refusal(reply) == (400, "invalid_value")
    assert "more than 20000 rows: ask for fewer days" in reply.error["message"]
    assert (code, said) == (2, "sluice: more than 20000 rows: ask for fewer days, or one tenant")
