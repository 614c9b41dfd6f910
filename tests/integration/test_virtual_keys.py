"""Virtual keys on two workers: what they open, what they are held to, where no secret stands."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.admin import ADMIN_KEY, EVERY_WORKER, admin, everywhere, make, use
from tests.support.config import KEY, PRICED_MODEL, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, flood
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, completion, usage

FLOOD = 2000
MEBIBYTE = 1024 * 1024
READERS = {
    "string": lambda store, key: store.get(key),
    "hash": lambda store, key: store.hgetall(key),
    "set": lambda store, key: store.smembers(key),
    "zset": lambda store, key: store.zrange(key, 0, -1, withscores=True),
    "stream": lambda store, key: store.xrange(key),
    "list": lambda store, key: store.lrange(key, 0, -1),
}


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamThread]:
    """The upstream behind every gateway here."""
    with UpstreamThread() as upstream:
        yield upstream


def settings(url: str) -> str:
    """Models `m` and `other`, and `paid`, of which a request costs a dollar."""
    targets = [{"provider": "p0", "model": PRICED_MODEL}]
    price = {"input": 0, "output": 0, "per_request": 1}
    static = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
    return config(
        url,
        auth={"admin_key": ADMIN_KEY, "keys": [static]},
        models={
            "m": {"targets": targets},
            "other": {"targets": targets},
            "paid": {"targets": targets, "price": price},
        },
    )


@pytest.fixture(scope="module")
def gateway(provider: UpstreamThread) -> Iterator[Gateway]:
    """A gateway of two workers."""
    with running(settings(provider.url), workers=2) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(provider: UpstreamThread) -> None:
    """The upstream behaves."""
    provider.reset()


def everything(gateway: Gateway) -> str:
    """Every key and value of the store, and every file the gateway wrote."""
    with contextlib.closing(gateway.store) as store:
        kept = [(key, READERS[store.type(key)](store, key)) for key in store.scan_iter()]
    written = [path for path in gateway.directory.rglob("*") if path.is_file()]
    return repr(kept) + "".join(_text(path) for path in written)


def _text(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


async def test_a_new_key_works_at_once_on_every_worker(gateway: Gateway) -> None:
    for _ in range(5):
        _, secret = await make(gateway)
        assert await everywhere(gateway, secret) == {200}


async def test_a_key_tried_before_it_exists_is_unknown_and_a_new_one_is_not(
    gateway: Gateway,
) -> None:
    assert await everywhere(gateway, "sk-sluice-of-nobody") == {401}
    _, secret = await make(gateway)
    assert await everywhere(gateway, secret) == {200}
    assert await everywhere(gateway, "sk-sluice-of-nobody") == {401}


async def test_a_secret_stands_nowhere_but_in_the_answer_that_made_it(gateway: Gateway) -> None:
    key_id, first = await make(gateway, name="quiet", labels={"team": "hush"})
    replies = [await use(gateway, first), await use(gateway, first[:-1])]
    rotated = await admin(gateway, "POST", f"/keys/{key_id}/rotate", {"grace_seconds": 60})
    second = rotated.json["key"]
    replies += [await use(gateway, second)]
    assert [reply.status for reply in replies] == [200, 401, 200]
    later = [
        await admin(gateway, "GET", "/keys"),
        await admin(gateway, "GET", f"/keys/{key_id}"),
        await admin(gateway, "PATCH", f"/keys/{key_id}", {"rpm": 1000}),
        await admin(gateway, "GET", "/usage?by=key"),
        await admin(gateway, "DELETE", f"/keys/{key_id}"),
    ]
    gateway.settled()
    assert key_id in everything(gateway)
    shown = everything(gateway) + "".join(str(reply) for reply in [*later, *replies])
    for secret in (first, second):
        assert secret not in shown
        assert secret.removeprefix("sk-sluice-") not in shown
    assert first not in str(rotated)
    assert ADMIN_KEY not in shown.replace(_text(gateway.config_file), "")


async def test_the_digest_that_is_stored_opens_nothing(gateway: Gateway) -> None:
    key_id, secret = await make(gateway)
    shown = (await admin(gateway, "GET", f"/keys/{key_id}")).json
    assert shown["sha256"] == digest(secret)
    for wrong in (shown["sha256"], shown["sha256"].upper(), key_id, secret[:-1], secret + "0"):
        assert await everywhere(gateway, wrong) == {401}
        assert (await admin(gateway, "GET", "/keys", key=wrong)).status == 403


async def test_a_key_opens_the_models_it_names_and_no_other(gateway: Gateway) -> None:
    _, secret = await make(gateway, models=["oth*"])
    refused = await use(gateway, secret)
    assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")
    assert (await use(gateway, secret, "other")).status == 200


async def test_a_key_is_held_to_its_requests_a_minute_on_all_workers_together(
    gateway: Gateway,
) -> None:
    _, secret = await make(gateway, rpm=5)
    statuses = [(await use(gateway, secret)).status for _ in range(EVERY_WORKER)]
    assert statuses[:5] == [200] * 5
    assert statuses.count(200) <= 7  # one comes back in twelve seconds
    assert set(statuses) == {200, 429}


async def test_a_key_is_held_to_its_requests_at_once(
    gateway: Gateway, provider: UpstreamThread
) -> None:
    release = threading.Event()

    async def slow(exchange: Exchange) -> None:
        while not release.is_set():
            await asyncio.sleep(0.01)
        await exchange.reply(completion("done", usage(1, 1)))

    provider.reset(slow)
    _, secret = await make(gateway, concurrency=3)
    tasks = [asyncio.create_task(use(gateway, secret)) for _ in range(10)]
    try:
        async with asyncio.timeout(20):
            while sum(task.done() for task in tasks) < 7:
                await asyncio.sleep(0.02)
    finally:
        release.set()
    statuses = sorted([(await task).status for task in tasks])
    assert statuses == [200] * 3 + [429] * 7
    gateway.settled()
    assert (await use(gateway, secret)).status == 200


async def test_a_key_is_held_to_its_budget(gateway: Gateway) -> None:
    key_id, secret = await make(gateway, budget={"usd": 3, "per": "total"})
    replies = [await use(gateway, secret, "paid") for _ in range(6)]
    assert [reply.status for reply in replies] == [200] * 3 + [429] * 3
    assert replies[-1].error["code"] == "budget_exceeded"
    gateway.settled()
    with contextlib.closing(gateway.store) as store:
        spent = store.hget(f"sluice:limit:{{acme}}:key:{key_id}:budget:total:total", "spent")
    assert spent == "3000000"


async def test_a_key_is_held_to_the_limits_of_a_model(gateway: Gateway) -> None:
    _, secret = await make(gateway, per_model={"oth*": {"rpm": 1}})
    statuses = [(await use(gateway, secret, "other")).status for _ in range(3)]
    assert statuses == [200, 429, 429]
    assert (await use(gateway, secret)).status == 200


async def test_what_a_key_uses_is_counted_by_key_and_by_label(gateway: Gateway) -> None:
    labels = {"team": "x", "env": "prod"}
    key_id, secret = await make(gateway, tenant="labelled", labels=labels)
    _, twin = await make(gateway, tenant="labelled", labels={"team": "x"})
    for each in (secret, secret, twin):
        assert (await use(gateway, each)).status == 200
    gateway.settled()
    by_part: dict[str, Any] = {
        part: gateway.usage("labelled", part=part)
        for part in ("", f"key:{key_id}", "label:team=x", "label:env=prod")
    }
    assert {part: found["requests"] for part, found in by_part.items()} == {
        "": 3,
        f"key:{key_id}": 2,
        "label:team=x": 3,
        "label:env=prod": 2,
    }
    assert by_part["label:team=x"] == by_part[""]
    assert by_part["label:env=prod"] == by_part[f"key:{key_id}"]
    shown = (await admin(gateway, "GET", f"/keys/{key_id}")).json
    assert (shown["labels"], shown["last_used"] >= shown["created"]) == (labels, True)


async def test_keys_survive_a_restart(provider: UpstreamThread) -> None:
    with running(settings(provider.url), workers=2) as gateway:
        key_id, secret = await make(gateway, models=["m"], labels={"team": "x"})
        revoked_id, revoked = await make(gateway)
        await admin(gateway, "POST", f"/keys/{revoked_id}/revoke")
        before = (await admin(gateway, "GET", f"/keys/{key_id}")).json
        assert gateway.stop() == 0
        gateway.start()
        assert (await admin(gateway, "GET", f"/keys/{key_id}")).json == before
        assert await everywhere(gateway, secret) == {200}
        assert await everywhere(gateway, revoked) == {401}
        assert secret not in everything(gateway)


async def test_a_flood_of_wrong_keys_leaves_a_good_one_working(gateway: Gateway) -> None:
    _, secret = await make(gateway)
    workers = [psutil.Process(pid) for pid in gateway.worker_pids]
    before = [worker.memory_info().rss for worker in workers]
    strangers = [Ask(key=f"sk-sluice-stranger-{n}") for n in range(FLOOD)]
    good = [Ask(key=secret) for _ in range(200)]
    wrong, right = await asyncio.gather(
        flood(gateway.port, strangers, 16), flood(gateway.port, good, 4)
    )
    assert [one.status for one in wrong] == [401] * FLOOD
    assert [one.status for one in right] == [200] * 200
    grown = [worker.memory_info().rss - rss for worker, rss in zip(workers, before, strict=True)]
    assert max(grown) < 50 * MEBIBYTE
    with contextlib.closing(gateway.store) as store:
        assert not any("stranger" in key for key in store.scan_iter())
