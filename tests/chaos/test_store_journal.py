"""Workers that are killed while Redis is away: what they had served is counted once it is back."""

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
import msgspec
import pytest

from gateway.core.errors import StoreError
from gateway.policy.limits import TOKENS, grants
from gateway.store import backlog, lease, names, scripts
from gateway.store.admission import Admission
from gateway.store.journal import Journal
from gateway.store.link import Link
from gateway.store.location import Location
from gateway.store.packing import pack_asks
from gateway.store.replay import Replay
from tests.chaos.test_store_degraded import degrading, nothing_unsettled, slow
from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, once, steady
from tests.support.store import (
    StoreServer,
    ask,
    bucket,
    connected,
    holding,
    new_tenant,
    principal,
    settlement,
    store_server,
)
from tests.support.upstream import Behaviour, Exchange, Upstream

SERVED, HANGING = 40, 3


def kill_workers(gateway: Gateway) -> None:
    for pid in gateway.worker_pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def hanging(upstream: Upstream) -> int:
    return sum(received.json.get("user") == "hang" for received in upstream.received)


def journals(gateway: Gateway) -> list[Path]:
    return journal_of(gateway.state / "journal")


def journal_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.spool"))


async def until(what: str, done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not done():
            await asyncio.sleep(0.05)


async def hang_or_answer(exchange: Exchange) -> None:
    if exchange.request.json.get("user") == "hang":
        await exchange.gone()
    else:
        await slow(exchange)


def slow_once(ready: asyncio.Event) -> Behaviour:
    """Answers slowly, and nobody before that is set."""

    async def when_ready(exchange: Exchange) -> None:
        await ready.wait()
        await slow(exchange)

    return when_ready


async def test_killed_workers_leave_what_redis_has_missed(upstream: Upstream) -> None:
    upstream.behaviour = hang_or_answer
    with running(degrading(upstream.url), workers=2) as gateway:
        store = gateway.store_pid
        os.kill(store, signal.SIGSTOP)
        async with contextlib.AsyncExitStack() as stack:
            number = 0

            def one() -> Ask:
                nonlocal number
                number += 1
                return Ask(chat(max_tokens=10), key="sk-limited" if number % 2 else "sk-unlimited")

            async with steady(gateway.port, one, connections=4, pause=0.02) as outcomes:
                await until("enough", lambda: len(outcomes) >= SERVED)
            # What waits for the store's answer is given up after its timeout of a second; what
            # comes then the store never hears of from this worker.
            await asyncio.sleep(1.5)
            for _ in range(HANGING):
                client = await stack.enter_async_context(Client(gateway.port))
                await client.send(Ask(chat(user="hang", max_tokens=10), key="sk-limited"))
            await until("hanging", lambda: hanging(upstream) == HANGING)
            assert {(o.status, o.failure) for o in outcomes} == {(200, "")}
            lines = SERVED + HANGING
            await until("written", lambda: count(journals(gateway)) >= lines)
            kill_workers(gateway)
        os.kill(store, signal.SIGCONT)
        await until("served again", lambda: gateway.get("/health/live")[0] == 200)
        kill_workers(gateway)  # perhaps amidst the replay
        await until("replayed", lambda: not journals(gateway))
        await nothing_unsettled(gateway)
        for key, tenant in (("sk-limited", "acme"), ("sk-unlimited", "free")):
            served = sum(o.ask.key == key for o in outcomes)
            lost = HANGING if tenant == "acme" else 0
            used = gateway.usage(tenant)
            assert (used["requests"], used.get("errors", 0)) == (served + lost, lost)
        with gateway.store as redis:
            assert redis.hget("sluice:limit:{acme}:key:k:concurrency", "in_use") in ("0", None)
            (budget,) = redis.keys("sluice:limit:{acme}:key:k:budget:*")
            assert redis.hget(budget, "reserved") == "0"
            assert redis.hget(budget, "spent") == str(gateway.usage("acme")["cost_microusd"])
            entries = [fields["id"] for _, fields in redis.xrange("sluice:requests")]
        assert len(entries) == len(set(entries)) == len(outcomes) + HANGING


def count(paths: list[Path], what: bytes = b"\n") -> int:
    return sum(path.read_bytes().count(what) for path in paths)


@contextlib.asynccontextmanager
async def journaled(
    server: StoreServer, directory: Path, timeout: float = 5.0
) -> AsyncIterator[tuple[Admission, Link, Journal]]:
    client = Link(Location(unix_path=server.socket), timeout, "test")
    journal = Journal(directory, "test", 2**20)
    admission = Admission(client, 30, degrade=True, journal=journal)
    await client.start()
    try:
        yield admission, client, journal
    finally:
        await client.aclose()
        await journal.aclose()


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sluice-") as place:  # a socket's path is short
        yield Path(place)


async def test_what_memory_cannot_hold_is_told_from_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backlog, "MAX_UNSETTLED", 10)
    with short_directory() as place, store_server(place) as server:
        tenant = new_tenant()
        who = principal(tenant, bucket(tenant, TOKENS, 10_000, 1))
        async with journaled(server, tmp_path) as (admission, client, journal):
            server.kill()
            while client.connected:
                await asyncio.sleep(0)
            for number in range(300):
                await ask(admission, who, f"l{number}", holding())
                admission.settle(settlement(f"l{number}", who))
            assert (admission.unsettled, admission.lost_settlements) == (10, 0)
            server.start()
            await until("connected", lambda: client.connected)
            await until("told", lambda: admission.unsettled == 0)
            for _ in range(3):  # as often as anybody looks
                await Replay(admission.orphans, journal).turn()
            assert server.usage(tenant)["requests"] == 300
            assert not list(tmp_path.iterdir())
            assert server.redis.exists(names.leases(tenant)[0]) == 0


async def test_an_interrupted_replay_counts_nothing_twice(tmp_path: Path) -> None:
    with short_directory() as place, store_server(place) as server:
        tenant = new_tenant()
        who = principal(tenant, bucket(tenant, TOKENS, 10_000, 1))
        async with journaled(server, tmp_path) as (admission, client, _):
            server.kill()
            while client.connected:
                await asyncio.sleep(0)
            for number in range(20):
                await ask(admission, who, f"l{number}", holding())
                admission.settle(settlement(f"l{number}", who))
            await asyncio.sleep(0.1)
        (left,) = tmp_path.iterdir()
        kept = left.read_bytes()
        server.start()
        async with journaled(server, tmp_path) as (admission, _, journal):
            for torn in (kept[: len(kept) // 2], kept + b'{"type":"opened","ten', kept):
                left.write_bytes(torn)
                await Replay(admission.orphans, journal).turn()
                assert not left.exists()
        assert server.usage(tenant)["requests"] == 20
        assert server.redis.exists(names.leases(tenant)[0]) == 0
        assert 0 < server.redis.ttl(names.settled(tenant)) <= 2 * 86_400


async def test_a_request_that_ends_before_redis_is_given_up_counts_once(tmp_path: Path) -> None:
    with short_directory() as place, store_server(place) as server:
        who = principal(new_tenant())  # no limits: nothing waits for the lease
        async with journaled(server, tmp_path) as (admission, client, _):
            server.kill()  # which the worker has yet to see
            for number in range(20):
                await ask(admission, who, f"l{number}", holding())
                admission.settle(settlement(f"l{number}", who))
            await until("given up", lambda: not client.connected)
            await asyncio.sleep(0.1)
        (left,) = tmp_path.iterdir()
        kept = left.read_bytes()
        server.start()
        async with journaled(server, tmp_path) as (admission, _, journal):
            for _ in range(2):
                left.write_bytes(kept)
                await Replay(admission.orphans, journal).turn()
        assert server.usage(who.tenant)["requests"] == 20


async def test_what_begins_and_ends_at_once_while_redis_hangs_is_kept_whole(tmp_path: Path) -> None:
    with short_directory() as place, store_server(place) as server:
        limited = principal("t", bucket("t", TOKENS, 10_000, 1))
        free = principal("t")  # as an answer from the cache, of a key without a rate
        async with journaled(server, tmp_path, timeout=90) as (admission, _, _):
            server.stop()
            await ask(admission, limited, "late", holding())
            for number in range(20):
                await ask(admission, free, f"l{number}", holding())
                admission.settle(settlement(f"l{number}", free))
            await until("opened", lambda: count(journal_of(tmp_path), b'"opened"') == 21)
            await until("settled", lambda: count(journal_of(tmp_path), b'"settled"') == 20)
            kept = b"".join(path.read_bytes() for path in journal_of(tmp_path))
            server.kill()
        for path in journal_of(tmp_path):
            path.unlink()
        server.start()
        async with journaled(server, tmp_path) as (admission, _, journal):
            (tmp_path / f"{time.time_ns()}-gone-1.spool").write_bytes(kept)
            await Replay(admission.orphans, journal).turn()
        assert server.usage("t")["requests"] == 20


async def test_what_is_on_its_way_to_a_late_redis_is_on_disk(tmp_path: Path) -> None:
    with short_directory() as place, store_server(place) as server:
        tenant = new_tenant()
        who = principal(tenant, bucket(tenant, TOKENS, 10_000, 1))
        async with journaled(server, tmp_path, timeout=90) as (admission, _, journal):
            for number in range(20):
                await ask(admission, who, f"l{number}", holding())
            server.stop()
            for number in range(20):
                admission.settle(settlement(f"l{number}", who))
            await ask(admission, who, "late", holding())
            admission.settle(settlement("late", who))
            await until("written", lambda: count(journal_of(tmp_path), b'"settled"') == 21)
            kept = b"".join(path.read_bytes() for path in journal_of(tmp_path))
            server.go_on()
            await until("told", lambda: not journal_of(tmp_path))
            assert server.usage(tenant)["requests"] == 21
            (tmp_path / f"{time.time_ns()}-gone-1.spool").write_bytes(kept)
            await Replay(admission.orphans, journal).turn()
        assert server.usage(tenant)["requests"] == 21


async def test_what_is_asked_again_and_refused_then_is_asked_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is there by what was asked first, which was answered late."""
    refusals: list[Callable[[Exception], None]] = []

    def held(*asked: Any) -> None:
        refusals.append(asked[-1])

    with short_directory() as place, store_server(place) as server:
        tenant = new_tenant()
        who = principal(tenant, bucket(tenant, TOKENS, 10_000, 1))
        async with journaled(server, tmp_path, timeout=90) as (admission, client, _):
            server.stop()
            await ask(admission, who, "l", holding())
            with monkeypatch.context() as patch:
                patch.setattr(client, "run", held)
                admission.retry_unsettled()
                await until("asked again", lambda: len(refusals) == 1)
            server.go_on()
            await client.call("PING")
            admission.settle(settlement("l", who))
            await client.call("PING")
            refusals[0](hiredis.ReplyError("OOM command not allowed"))
            admission.retry_unsettled()
            await until("told", lambda: server.usage(tenant).get("requests") == 1)
            await until("forgotten", lambda: not journal_of(tmp_path))
            assert server.redis.hget(who.limits[0].name, "level") == str(10_000 - 10)


async def test_who_waits_for_redis_is_told_once_at_the_end(tmp_path: Path) -> None:
    with short_directory() as place, store_server(place) as server:
        who = principal("t", bucket("t", TOKENS, 10_000, 1))
        told: list[int] = []
        async with journaled(server, tmp_path, timeout=90) as (admission, _, _):
            await ask(admission, who, "l", holding())
            server.stop()
            admission.settle(settlement("l", who), told.append)
            await admission.aclose(0.2)
        assert told == [lease.ELSE]
        server.go_on()


async def test_a_lease_that_arrives_late_is_not_taken_again() -> None:
    with short_directory() as place, store_server(place) as server:
        tenant = new_tenant()
        who = principal(tenant, bucket(tenant, TOKENS, 10_000, 1))
        granted = grants(who.limits, 10, 0, time.time())
        asked = lease.Ask("l", msgspec.json.encode(holding()), granted)
        keys, data, _ = pack_asks(tenant, [asked], 30_000)
        late: tuple[str | bytes | int, ...] = ("EVAL", scripts.ADMIT.source, len(keys), *keys, data)
        async with connected(server) as (admission, client):
            await ask(admission, who, "l", holding())
            level = server.redis.hget(granted[0].key, "level")
            assert level == "9990"
            await client.call(*late)
            assert server.redis.hget(granted[0].key, "level") == level
            ended = msgspec.structs.replace(settlement("l", who), marked=True)
            await admission.orphans.deliver(tenant, [ended])
            await client.call(*late)
            assert server.redis.hget(granted[0].key, "level") == level
            assert server.redis.exists(names.leases(tenant)[0]) == 0
            assert server.usage(tenant)["requests"] == 1


async def test_a_replay_goes_on_where_redis_left(tmp_path: Path) -> None:
    with short_directory() as place, store_server(place) as server:
        who = principal(new_tenant())
        async with journaled(server, tmp_path) as (admission, client, journal):
            (tmp_path / f"{time.time_ns()}-gone-1.spool").write_bytes(
                b'{"type":"settled","settlement":%b}\n'
                % msgspec.json.encode(settlement("l", who, counts=(0,) * 8))
            )
            server.kill()
            while client.connected:
                await asyncio.sleep(0)
            with pytest.raises(StoreError):
                await Replay(admission.orphans, journal).turn()
            assert len(list(tmp_path.iterdir())) == 1
            server.start()
            await until("connected", lambda: client.connected)
            await Replay(admission.orphans, journal).turn()
            assert not list(tmp_path.iterdir())


async def test_a_full_disk_loses_what_memory_cannot_hold_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backlog, "MAX_UNSETTLED", 10)
    journal = Journal(tmp_path, "test", 2000)
    kept = backlog.Backlog(journal)
    kept.keep([(settlement(f"l{number}", principal("t")), None) for number in range(40)])
    await journal.aclose()
    on_disk = count(list(tmp_path.iterdir()))
    assert 0 < on_disk < 30
    assert (kept.unsettled, kept.lost) == (10, 30 - on_disk)


async def test_what_is_settled_from_memory_is_not_lost_however_full_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal = Journal(tmp_path, "test", 10)
    kept = backlog.Backlog(journal)
    for number in range(50):
        kept.postpone("t", lease.Ask(f"l{number}", msgspec.json.encode(holding()), ()))
        assert kept.hold(settlement(f"l{number}", principal("t")), None) is None
    await until("refused", lambda: journal.lost == 100)
    assert kept.lost == 0
    monkeypatch.setattr(backlog, "MAX_UNSETTLED", 40)
    kept.keep([])
    assert kept.lost == 10
    asks, _ = kept.take(lambda _: True)
    due = [kept.opened(ask.lease) for _, ask in asks]
    kept.settled([one for one in due if one is not None])
    await journal.aclose()
    assert (len(due), kept.unsettled, kept.lost) == (40, 0, 10)


async def test_a_lease_whose_settlement_is_lost_keeps_no_journal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backlog, "MAX_UNSETTLED", 1)
    journal = Journal(tmp_path, "test", 2**20)
    kept = backlog.Backlog(journal)
    who = principal("t")
    for name in ("lost", "l"):  # which Redis is asked for
        kept.expect(name)
        assert kept.hold(settlement(name, who), None) is None
    for name in ("lost", "l"):  # and does not answer
        kept.postpone("t", lease.Ask(name, msgspec.json.encode(holding()), ()))
    assert kept.lost == 1
    asks, _ = kept.take(lambda _: True)
    assert [ask.lease for _, ask in asks] == ["l"]
    due = kept.opened("l")
    assert due is not None
    kept.settled([due])
    await journal.aclose()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hangs", ["before the request", "during it"])
async def test_what_redis_has_not_answered_at_the_end_is_told_by_the_next(
    upstream: Upstream, hangs: str
) -> None:
    ready = asyncio.Event()
    upstream.behaviour = slow_once(ready)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(short_directory())
        server = stack.enter_context(store_server(place))
        text = json.loads(config(upstream.url))
        text["redis"] = {"url": f"unix://{server.socket}", "timeout": 30}
        gateway = stack.enter_context(running(json.dumps(text)))
        pid = server.redis.info("server")["process_id"]
        if hangs == "before the request":
            os.kill(pid, signal.SIGSTOP)
        asked = asyncio.create_task(once(gateway.port, Ask(chat(max_tokens=10))))
        await until("asked", lambda: bool(upstream.received))
        if hangs == "during it":
            await until("a lease", lambda: server.redis.zcard(names.leases("acme")[0]) == 1)
            os.kill(pid, signal.SIGSTOP)
        ready.set()
        assert (await asked).status == 200
        assert await asyncio.to_thread(gateway.stop) == 0
        server.kill()
        server.start()
        gateway.start()
        await until("told", lambda: server.usage("acme").get("requests") == 1)
        await until("read", lambda: not journals(gateway))
