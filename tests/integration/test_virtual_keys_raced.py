"""Changes of one virtual key at the same moment, and what an operator may still do to one."""

import asyncio
import json
from typing import Any

import aiohttp

from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.upstream import Upstream

ADMIN = {"Authorization": "Bearer an-admin-key-0123456"}
TRIES = 12


def governed(url: str, **tenant: Any) -> str:
    text = json.loads(config(url))
    text["auth"]["admin_key"] = "an-admin-key-0123456"
    text["tenants"] = {"default": tenant}
    return json.dumps(text)


async def admin(gateway: Gateway, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, gateway.url + path, json=body, headers=ADMIN) as response,
    ):
        return response.status, await response.json()


async def opens(gateway: Gateway, secret: str) -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            gateway.url + "/v1/chat/completions", json=chat(), headers=headers
        ) as response,
    ):
        await response.read()
        return response.status


async def test_a_change_never_revives_a_key_that_is_revoked_meanwhile(upstream: Upstream) -> None:
    with running(governed(upstream.url), workers=2) as gateway:
        for number in range(TRIES):
            _, made = await admin(gateway, "POST", "/admin/keys", {"name": f"k{number}"})
            path = f"/admin/keys/{made['id']}"
            await asyncio.gather(
                admin(gateway, "DELETE", path),
                admin(gateway, "PATCH", path, {"rpm": 1000}),
                admin(gateway, "POST", f"{path}/rotate", {}),
            )
            _, shown = await admin(gateway, "GET", path)
            assert shown["revoked"] > 0
            assert await opens(gateway, made["key"]) == 401


async def test_two_rotations_at_once_lose_no_secret(upstream: Upstream) -> None:
    with running(governed(upstream.url), workers=2) as gateway:
        for number in range(TRIES):
            _, made = await admin(gateway, "POST", "/admin/keys", {"name": f"k{number}"})
            path = f"/admin/keys/{made['id']}/rotate"
            answers = await asyncio.gather(
                *(admin(gateway, "POST", path, {"grace_seconds": 600}) for _ in range(2))
            )
            assert [status for status, _ in answers] == [200, 200]
            await asyncio.sleep(0.7)  # what workers remembered of before is gone
            statuses = [await opens(gateway, answer["key"]) for _, answer in answers]
            assert statuses == [200, 200]


async def test_no_two_changes_give_a_key_more_than_its_tenant_has(upstream: Upstream) -> None:
    text = json.loads(governed(upstream.url))
    text["tenants"]["small"] = {"rpm": 10, "budget": {"usd": 1, "per": "day"}}
    much = {"rpm": 100_000, "budget": {"usd": 999, "per": "day"}}
    with running(json.dumps(text), workers=2) as gateway:
        done = set()
        for number in range(TRIES):
            _, made = await admin(gateway, "POST", "/admin/keys", {"name": f"k{number}", "rpm": 5})
            path = f"/admin/keys/{made['id']}"
            answers = await asyncio.gather(
                admin(gateway, "PATCH", path, {"tenant": "small"}),
                admin(gateway, "PATCH", path, much),
            )
            done |= {status for status, _ in answers}
            _, shown = await admin(gateway, "GET", path)
            assert (shown["tenant"], shown["rpm"]) in (("small", 5), ("default", 100_000)), shown
        assert done == {200, 400}  # one of the two is refused each time


async def test_no_two_changes_leave_a_burst_without_its_rate(upstream: Upstream) -> None:
    with running(governed(upstream.url), workers=2) as gateway:
        for number in range(TRIES):
            _, made = await admin(
                gateway, "POST", "/admin/keys", {"name": f"k{number}", "rpm": 100}
            )
            path = f"/admin/keys/{made['id']}"
            await asyncio.gather(
                admin(gateway, "PATCH", path, {"rpm": None}),
                admin(gateway, "PATCH", path, {"burst": 5}),
            )
            _, shown = await admin(gateway, "GET", path)
            assert (shown["rpm"], shown["burst"]) in ((None, None), (100, 5))
            assert await opens(gateway, made["key"]) == 200


async def test_a_limit_that_lua_could_not_count_is_refused(upstream: Upstream) -> None:
    with running(governed(upstream.url)) as gateway:
        for name in ("rpm", "tpm", "concurrency"):
            body = {"name": "a", name: 2**63 - 512}
            status, answer = await admin(gateway, "POST", "/admin/keys", body)
            assert (status, answer["error"]["param"]) == (400, name)
        body = {"name": "a", "budget": {"usd": 1e15}}
        status, answer = await admin(gateway, "POST", "/admin/keys", body)
        assert (status, answer["error"]["param"]) == (400, "budget.usd")
        _, made = await admin(gateway, "POST", "/admin/keys", {"name": "a", "rpm": 10**12})
        assert await opens(gateway, made["key"]) == 200


async def test_a_key_above_its_tenant_can_still_be_blocked(upstream: Upstream) -> None:
    with running(governed(upstream.url, rpm=100)) as gateway:
        _, made = await admin(gateway, "POST", "/admin/keys", {"name": "a", "rpm": 80})
        gateway.stop()
        gateway.config_file.write_text(governed(upstream.url, rpm=50))
        gateway.start()
        path = f"/admin/keys/{made['id']}"
        assert (await admin(gateway, "PATCH", path, {"rpm": 70}))[0] == 400
        status, changed = await admin(gateway, "PATCH", path, {"blocked": True})
        assert (status, changed["blocked"]) == (200, True)
        assert await opens(gateway, made["key"]) == 401


async def test_null_takes_any_limit_away(upstream: Upstream) -> None:
    full = {"name": "a", "rpm": 5, "budget": {"usd": 1}, "per_model": {"m": {"rpm": 1}}}
    with running(governed(upstream.url)) as gateway:
        _, made = await admin(gateway, "POST", "/admin/keys", full)
        nothing = {"rpm": None, "budget": None, "per_model": None}
        status, changed = await admin(gateway, "PATCH", f"/admin/keys/{made['id']}", nothing)
        assert status == 200
        assert (changed["rpm"], changed["budget"], changed["per_model"]) == (None, [], {})


async def test_one_damaged_record_hides_no_other(upstream: Upstream) -> None:
    with running(governed(upstream.url)) as gateway:
        _, broken = await admin(gateway, "POST", "/admin/keys", {"name": "broken"})
        _, whole = await admin(gateway, "POST", "/admin/keys", {"name": "whole"})
        with gateway.store as store:
            store.hset(f"sluice:key:{broken['id']}", "name", b"\xff")
        status, listed = await admin(gateway, "GET", "/admin/keys")
        assert (status, [key["id"] for key in listed["data"]]) == (200, [whole["id"]])
        assert await opens(gateway, broken["key"]) == 401


async def test_changes_of_different_fields_all_hold(upstream: Upstream) -> None:
    with running(governed(upstream.url), workers=2) as gateway:
        _, made = await admin(gateway, "POST", "/admin/keys", {"name": "k"})
        path = f"/admin/keys/{made['id']}"
        for number in range(1, TRIES):
            changes: list[dict[str, Any]] = [
                {"tpm": 100 + number},
                {"concurrency": number},
                {"budget": {"usd": number, "per": "day"}},
                {"labels": {"round": f"{number}"}},
            ]
            answers = await asyncio.gather(*(admin(gateway, "PATCH", path, c) for c in changes))
            assert [status for status, _ in answers] == [200] * 4
            _, record = await admin(gateway, "GET", path)
            assert (record["tpm"], record["concurrency"]) == (100 + number, number)
            assert record["budget"]["usd"] == number
            assert record["labels"] == {"round": f"{number}"}
        status, refused = await admin(gateway, "PATCH", path, {"tenant": None})
        assert (status, refused["error"]["param"]) == (400, "tenant")
