"""Virtual keys that change, rotate, expire and end; every worker knows of it soon."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.store import names
from tests.support.admin import ADMIN_KEY, admin, everywhere, make, until_all, use
from tests.support.command import failed, run
from tests.support.config import KEY, config, digest
from tests.support.gateway import Gateway, running
from tests.support.threaded import UpstreamThread

UNKNOWN = "key_0123456789abcdef"
TENANT = {
    "rpm": 1000,
    "tpm": 1_000_000,
    "concurrency": 100,
    "budget": [{"usd": 50, "per": "day"}, {"usd": "500.5", "per": "30d"}],
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway of two workers; the tenant `bounded` has limits."""
    static = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
    with UpstreamThread() as upstream:
        text = config(
            upstream.url,
            auth={"admin_key": ADMIN_KEY, "keys": [static]},
            tenants={"bounded": TENANT},
        )
        with running(text, workers=2) as started:
            yield started


async def changed(gateway: Gateway, key_id: str, **fields: Any) -> dict[str, Any]:
    """Change a key and return its record, which is what is shown of it from then on."""
    reply = await admin(gateway, "PATCH", f"/keys/{key_id}", fields)
    assert reply.status == 200, reply
    shown: dict[str, Any] = reply.json
    assert (await admin(gateway, "GET", f"/keys/{key_id}")).json == shown
    return shown


async def rotated(gateway: Gateway, key_id: str, body: Any = None) -> str:
    """Rotate a key and return its new secret."""
    reply = await admin(gateway, "POST", f"/keys/{key_id}/rotate", body)
    assert reply.status == 200, reply
    secret: str = reply.json["key"]
    return secret


async def test_a_blocked_key_opens_nothing_until_it_is_unblocked(gateway: Gateway) -> None:
    key_id, secret = await make(gateway)
    assert await everywhere(gateway, secret) == {200}
    assert (await changed(gateway, key_id, blocked=True))["blocked"] is True
    await until_all(gateway, secret, 401)
    assert (await changed(gateway, key_id, blocked=False))["blocked"] is False
    await until_all(gateway, secret, 200)


async def test_a_limit_can_be_set_changed_and_taken_away(gateway: Gateway) -> None:
    key_id, secret = await make(gateway)
    assert await everywhere(gateway, secret) == {200}
    assert (await changed(gateway, key_id, rpm=1))["rpm"] == 1
    await until_all(gateway, secret, 429)
    assert (await changed(gateway, key_id, rpm=100_000))["rpm"] == 100_000
    await until_all(gateway, secret, 200)
    assert (await changed(gateway, key_id, rpm=1, burst=1))["burst"] == 1
    await until_all(gateway, secret, 429)
    assert (await changed(gateway, key_id, rpm=None, burst=None))["rpm"] is None
    await until_all(gateway, secret, 200)


async def test_a_change_leaves_everything_else_as_it_was(gateway: Gateway) -> None:
    full = {
        "name": "full",
        "models": ["m", "o*"],
        "rpm": 10,
        "tpm": 1000,
        "concurrency": 5,
        "budget": [{"usd": "1.5", "per": "day"}, {"usd": 7, "per": "30d", "shadow": True}],
        "labels": {"team": "x"},
        "per_model": {"m": {"rpm": 3}},
        "expires": time.time() + 3600,
        "shadow": ["tpm"],
    }
    key_id, _ = await make(gateway, **full)
    before = (await admin(gateway, "GET", f"/keys/{key_id}")).json
    assert {name: before[name] for name in full if name not in ("budget", "per_model")} == {
        name: value for name, value in full.items() if name not in ("budget", "per_model")
    }
    assert await changed(gateway, key_id) == before
    assert await changed(gateway, key_id, blocked=None) == before
    assert await changed(gateway, key_id, name="other") == {**before, "name": "other"}
    assert await changed(gateway, key_id, name="full", tpm=None) == {**before, "tpm": None}


async def test_a_key_can_move_to_other_models_and_labels(gateway: Gateway) -> None:
    key_id, secret = await make(gateway, models=["other"], labels={"team": "x"})
    assert await everywhere(gateway, secret) == {403}
    await changed(gateway, key_id, models=["m"], labels={"team": "moved"})
    await until_all(gateway, secret, 200)
    gateway.settled()
    assert gateway.usage("acme", part="label:team=moved")["requests"] >= 2
    assert not gateway.usage("acme", part="label:team=x")


async def test_both_secrets_work_during_the_grace(gateway: Gateway) -> None:
    key_id, first = await make(gateway)
    second = await rotated(gateway, key_id, {"grace_seconds": 600})
    assert first != second
    assert await everywhere(gateway, first) == {200}
    assert await everywhere(gateway, second) == {200}
    until = (await admin(gateway, "GET", f"/keys/{key_id}")).json["previous_until"]
    assert 500 < until - time.time() <= 600


async def test_a_rotation_without_a_body_has_a_day_of_grace(gateway: Gateway) -> None:
    key_id, first = await make(gateway)
    second = await rotated(gateway, key_id)
    until = (await admin(gateway, "GET", f"/keys/{key_id}")).json["previous_until"]
    assert 86_000 < until - time.time() <= 86_400
    assert await everywhere(gateway, first) | await everywhere(gateway, second) == {200}


async def test_the_old_secret_ends_with_the_grace(gateway: Gateway) -> None:
    key_id, first = await make(gateway)
    assert await everywhere(gateway, first) == {200}
    second = await rotated(gateway, key_id, {"grace_seconds": 1})
    await until_all(gateway, first, 401)
    assert await everywhere(gateway, second) == {200}
    third = await rotated(gateway, key_id, {"grace_seconds": 0})
    await until_all(gateway, second, 401)
    assert await everywhere(gateway, third) == {200}
    assert await everywhere(gateway, first) == {401}


async def test_a_second_rotation_ends_the_first_secret(gateway: Gateway) -> None:
    key_id, first = await make(gateway)
    second = await rotated(gateway, key_id, {"grace_seconds": 600})
    third = await rotated(gateway, key_id, {"grace_seconds": 600})
    await until_all(gateway, first, 401)
    assert await everywhere(gateway, second) == {200}
    assert await everywhere(gateway, third) == {200}
    with gateway.store as store:
        assert store.hget("sluice:keys", digest(first)) is None


@pytest.mark.parametrize("way", [("POST", "/revoke"), ("DELETE", "")])
async def test_a_revoked_key_ends_with_all_its_secrets(
    gateway: Gateway, way: tuple[str, str]
) -> None:
    key_id, first = await make(gateway)
    second = await rotated(gateway, key_id, {"grace_seconds": 600})
    assert await everywhere(gateway, first) | await everywhere(gateway, second) == {200}
    reply = await admin(gateway, way[0], f"/keys/{key_id}{way[1]}")
    assert (reply.status, reply.json["revoked"] > 0) == (200, True)
    await until_all(gateway, first, 401)
    await until_all(gateway, second, 401)
    again = await admin(gateway, way[0], f"/keys/{key_id}{way[1]}")
    assert again.json["revoked"] == reply.json["revoked"]


async def test_nothing_revives_a_revoked_key(gateway: Gateway) -> None:
    key_id, secret = await make(gateway)
    assert await everywhere(gateway, secret) == {200}
    revoked = (await admin(gateway, "DELETE", f"/keys/{key_id}")).json["revoked"]
    await until_all(gateway, secret, 401)
    shown = await changed(gateway, key_id, blocked=True, rpm=5)
    shown = await changed(gateway, key_id, blocked=False, rpm=None, expires=time.time() + 600)
    assert shown["revoked"] == revoked
    for _ in range(3):
        assert await everywhere(gateway, secret) == {401}
    listed = (await admin(gateway, "GET", "/keys?tenant=acme")).json["data"]
    assert [one["revoked"] for one in listed if one["id"] == key_id] == [revoked]


async def test_an_expired_key_opens_nothing_until_it_may_again(gateway: Gateway) -> None:
    _, late = await make(gateway, expires=time.time() - 1)
    assert await everywhere(gateway, late) == {401}
    key_id, secret = await make(gateway, expires=time.time() + 3)
    assert (await use(gateway, secret)).status == 200
    await until_all(gateway, secret, 401)
    await changed(gateway, key_id, expires=time.time() + 600)
    await until_all(gateway, secret, 200)
    await changed(gateway, key_id, expires=None)
    assert await everywhere(gateway, secret) == {200}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"rpm": 5}),
        ("POST", "/rotate", {}),
        ("POST", "/revoke", None),
        ("DELETE", "", None),
    ],
)
@pytest.mark.parametrize("key_id", [UNKNOWN, "x", "%00", "%ff", "%0d%0aGET", "x" * 2000])
async def test_an_id_that_nobody_has_is_not_found(
    gateway: Gateway, method: str, path: str, body: Any, key_id: str
) -> None:
    reply = await admin(gateway, method, f"/keys/{key_id}{path}", body)
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert len(reply.body) < 1000


@pytest.mark.parametrize(
    ("limit", "field"),
    [
        ({"rpm": 1001}, "rpm"),
        ({"tpm": 1_000_001}, "tpm"),
        ({"concurrency": 101}, "concurrency"),
        ({"budget": {"usd": "50.000001", "per": "day"}}, "budget"),
        ({"budget": [{"usd": 1, "per": "day"}, {"usd": 501, "per": "30d"}]}, "budget"),
    ],
)
async def test_a_limit_above_the_tenants_is_refused(
    gateway: Gateway, limit: dict[str, Any], field: str
) -> None:
    body = {"name": "greedy", "tenant": "bounded", **limit}
    key_id, _ = await make(gateway, tenant="bounded", rpm=1000, budget={"usd": 50, "per": "day"})
    elsewhere, _ = await make(gateway, **limit)
    for method, path, sent in (
        ("POST", "/keys", body),
        ("PATCH", f"/keys/{key_id}", limit),
        ("PATCH", f"/keys/{elsewhere}", {"tenant": "bounded"}),
    ):
        reply = await admin(gateway, method, path, sent)
        assert (reply.status, reply.error["code"]) == (400, "invalid_value")
        assert reply.error["param"] == field


async def test_a_key_that_is_above_its_tenant_can_be_restricted(gateway: Gateway) -> None:
    key_id, _ = await make(gateway, tenant="bounded", rpm=1000)
    with contextlib.closing(gateway.store) as store:  # as of when the tenant had more
        store.hset(names.key(key_id), "rpm", 5000)
    shown = await changed(gateway, key_id, models=["m"], tenant="bounded", concurrency=100)
    assert (shown["models"], shown["rpm"]) == (["m"], 5000)
    words = ("--label", "team=x", "--expires", "1h", "--json")
    assert json.loads(run(gateway, "keys", "update", key_id, *words))["labels"] == {"team": "x"}
    for more in (4999, 5001):
        reply = await admin(gateway, "PATCH", f"/keys/{key_id}", {"rpm": more})
        assert (reply.status, reply.error["param"]) == (400, "rpm")
        assert failed(gateway, "keys", "update", key_id, "--rpm", str(more))[0] == 2
    assert (await changed(gateway, key_id, rpm=1000))["rpm"] == 1000
