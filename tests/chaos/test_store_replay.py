"""What dead workers have left is told as far as it goes: what cannot be told waits alone."""

import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.core.errors import StoreError
from gateway.policy.limits import (
    MONEY,
    REQUESTS,
    SLOTS,
    TOKENS,
    Budget,
    Grant,
    Rates,
    grants,
    limits,
)
from gateway.spool import Left
from gateway.store import names
from gateway.store.admission import Admission
from gateway.store.journal import Journal, Opened, Settled
from gateway.store.lease import Holding, Return, holds
from gateway.store.link import Link
from gateway.store.replay import Replay
from tests.chaos.test_store_journal import count, journal_of, journaled, short_directory, until
from tests.support.store import (
    StoreServer,
    ask,
    bucket,
    holding,
    new_tenant,
    principal,
    settlement,
    store_server,
)


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with short_directory() as place, store_server(place) as server:
        yield server


async def dead_worker(directory: Path, name: str, *tenants: str) -> Path:
    """A file with a request of each tenant."""
    before = set(directory.iterdir())
    journal = Journal(directory, name, 2**20)
    held = msgspec.Raw(msgspec.json.encode(holding()))
    for tenant in tenants:
        lease = f"{name}-{tenant}"
        journal.enter(Opened(tenant, lease, held))
        ended = msgspec.structs.replace(settlement(lease, principal(tenant)), marked=True)
        journal.enter(Settled(ended))
    await journal.aclose()
    (left,) = set(directory.iterdir()) - before
    return left


class Cut:
    """Fails what goes to some keys, as the client of a cluster does whose master is away."""

    def __init__(self, client: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: set[str] = set()
        self.runs = 0
        run, call = client.run, client.call

        def cut_run(
            script: Any, keys: list[str], args: Any, done: Any, command: bytes = b""
        ) -> None:
            self.runs += 1
            if any(cut in keys[0] for cut in self.keys):
                done(StoreError("away"))
            else:
                run(script, keys, args, done, command)

        def cut_call(*args: Any) -> Any:
            return call("CUT") if args[1] in self.keys else call(*args)  # which Redis refuses

        monkeypatch.setattr(client, "run", cut_run)
        monkeypatch.setattr(client, "call", cut_call)
        monkeypatch.setattr(client, "reaches", lambda tenant: f"{{{tenant}}}" not in self.keys)


async def test_a_dead_master_holds_up_its_own_tenants_alone(
    server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, well = new_tenant(), new_tenant()
    both = await dead_worker(tmp_path, "w1", gone, well)
    await dead_worker(tmp_path, "w2", well)
    async with journaled(server, tmp_path) as (admission, client, journal):
        cut = Cut(client, monkeypatch)
        cut.keys = {f"{{{gone}}}"}
        replay = Replay(admission.orphans, journal)
        with pytest.raises(StoreError):
            await replay.turn()
        assert server.usage(well)["requests"] == 2
        assert list(tmp_path.iterdir()) == [both]
        # The marks of what was told may be over by the time the master is back.
        server.redis.delete(names.settled(well))
        runs = cut.runs
        await replay.turn()
        assert cut.runs == runs, "nobody is asked again for nothing"
        cut.keys.clear()
        await replay.turn()
        assert not list(tmp_path.iterdir())
        assert [server.usage(tenant)["requests"] for tenant in (gone, well)] == [1, 2]


async def test_tenants_count_though_the_list_of_them_is_away(
    server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = new_tenant()
    await dead_worker(tmp_path, "w", tenant)
    async with journaled(server, tmp_path) as (admission, client, journal):
        cut = Cut(client, monkeypatch)
        cut.keys = {names.TENANTS}
        replay = Replay(admission.orphans, journal)
        await replay.turn()
        assert server.usage(tenant)["requests"] == 1
        assert not server.redis.sismember(names.TENANTS, tenant)
        cut.keys.clear()
        await replay.turn()
        assert server.redis.sismember(names.TENANTS, tenant)


@pytest.mark.parametrize("fails", ["read", "remove"])
async def test_a_file_that_its_disk_does_not_give_holds_up_no_other(
    server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    tenant = new_tenant()
    bad = await dead_worker(tmp_path, "w1", tenant)
    await dead_worker(tmp_path, "w2", tenant)
    real: Callable[[Left], Any] = getattr(Left, fails)

    def failing(left: Left) -> Any:
        if left.name == bad.stem:
            raise OSError(errno.EIO, "Input/output error")
        return real(left)

    async with journaled(server, tmp_path) as (admission, _, journal):
        replay = Replay(admission.orphans, journal)
        with monkeypatch.context() as patch:
            patch.setattr(Left, fails, failing)
            for _ in range(2):
                with pytest.raises(OSError, match="Input"):
                    await replay.turn()
                server.redis.delete(names.settled(tenant))
        assert list(tmp_path.iterdir()) == [bad]
        assert server.usage(tenant)["requests"] == (2 if fails == "remove" else 1)
        await replay.turn()
        assert not list(tmp_path.iterdir())
        assert server.usage(tenant)["requests"] == 2


async def killed(
    server: StoreServer, directory: Path, lines: int, kind: bytes = b'"settled"'
) -> bytes:
    """What a worker's journal has once it has so many; Redis never reads what it was sent."""
    await until("written", lambda: count(journal_of(directory), kind) == lines)
    kept = b"".join(path.read_bytes() for path in journal_of(directory))
    server.kill()
    return kept


@contextlib.asynccontextmanager
async def inherited(
    server: StoreServer, directory: Path, kept: bytes, hours: int = 0
) -> AsyncIterator[Admission]:
    """Its heir, when Redis is back, has told what it left, so much later."""
    for path in journal_of(directory):
        path.unlink()
    server.start()
    async with journaled(server, directory) as (admission, _, journal):
        (directory / f"{time.time_ns()}-gone-1.spool").write_bytes(kept)
        real = admission.orphans.now
        admission.orphans.now = lambda: real() + hours * 3600
        await Replay(admission.orphans, journal).turn()
        yield admission


@pytest.mark.parametrize("hours", [0, 17], ids=["at once", "when they are full again"])
async def test_what_was_taken_of_rates_without_redis_outlives_its_worker(
    tmp_path: Path, hours: int
) -> None:
    tenant = new_tenant()
    rates = bucket(tenant, TOKENS, 1000, 1), bucket(tenant, REQUESTS, 100, 1)
    who = principal(tenant, *rates)
    with short_directory() as place, store_server(place) as server:
        async with journaled(server, tmp_path, timeout=90) as (admission, _, _):
            server.stop()
            for number in range(5):
                await ask(admission, who, f"l{number}", holding(50))
            for number in range(3):
                admission.settle(settlement(f"l{number}", who, surplus=30))
            kept = await killed(server, tmp_path, 3)
        async with inherited(server, tmp_path, kept, hours):
            levels = [server.redis.hget(one.name, "level") for one in rates]
            assert levels == ([None, None] if hours else [str(1000 - 5 * 50 + 3 * 30), "95"])
            assert server.usage(tenant)["requests"] == 3
            assert server.redis.zcard(names.leases(tenant)[0]) == 2


async def test_what_was_reserved_without_redis_outlives_its_worker(tmp_path: Path) -> None:
    """Or others would spend it, until the leases of a killed worker are over."""
    tenant = new_tenant()
    budgets = Budget(1000, "total"), Budget(2000, "1m")
    bounds = limits("key", f"sluice:limit:{{{tenant}}}:key:k", Rates(budgets=budgets))
    who = principal(tenant, *bounds)
    granted = grants(bounds, 1, 100, time.time())
    held = msgspec.structs.replace(holding(), holds=holds(granted))
    used = tuple([Return(grant.key, grant.spec, 100, 7) for grant in granted])
    ended = [
        msgspec.structs.replace(settlement(f"l{number}", who), returns=used) for number in range(3)
    ]
    with short_directory() as place, store_server(place) as server:
        async with journaled(server, tmp_path, timeout=90) as (admission, _, _):
            server.stop()
            for one in ended:
                verdict = await admission.admit(tenant, one.lease, held, granted)
                assert verdict.refused_by is None
            admission.settle(ended[0])
            kept = await killed(server, tmp_path, 1)
        async with inherited(server, tmp_path, kept) as admission:
            for grant in granted:
                assert server.redis.hmget(grant.key, "reserved", "spent") == ["200", "7"]
            await admission.orphans.deliver(tenant, ended[1:])
        for grant in granted:
            assert server.redis.hmget(grant.key, "reserved", "spent") == ["0", "21"]
        assert server.usage(tenant)["requests"] == 3


@pytest.mark.parametrize("begun", ["before", "without"])
@pytest.mark.parametrize("ends", ["by itself", "with its worker"])
async def test_what_a_stream_was_given_without_redis_outlives_its_worker(
    tmp_path: Path, begun: str, ends: str
) -> None:
    tenant = new_tenant()
    rates = Rates(concurrency=2, budgets=(Budget(1000, "total"),))
    bounds = limits("key", f"sluice:limit:{{{tenant}}}:key:k", rates)
    (slots,) = [bound.key(0) for bound in bounds if bound.unit not in (MONEY, TOKENS)]
    (budget,) = [bound.key(0) for bound in bounds if bound.unit == MONEY]
    who = principal(tenant, *bounds)

    def slices(money: int) -> tuple[Holding, tuple[Grant, ...]]:
        granted = grants(bounds, 1, money, 0)
        return Holding("k", "m", "p", "g", "chat", 1, money, 1, holds(granted)), granted

    with short_directory() as place, store_server(place) as server:
        async with journaled(server, tmp_path, timeout=90) as (admission, _, _):
            if begun == "without":
                server.stop()
            held, granted = slices(100)
            verdict = await admission.admit(tenant, "stream", held, granted)
            assert verdict.refused_by is None
            if begun == "before":
                server.stop()
            for money in (200, 300):
                held, granted = slices(money)
                more = tuple([grant for grant in granted if grant.limit.unit == MONEY])
                with pytest.raises(StoreError):
                    await admission.grow(tenant, "stream", held, more, 100)
                assert admission.grow_alone(tenant, "stream", held, more, 100) is None
            used = tuple([Return(one.key, one.spec, one.amount, 0) for one in granted[:-1]])
            used += (Return(budget, granted[-1].spec, 300, 250),)
            ended = msgspec.structs.replace(settlement("stream", who), returns=used, marked=True)
            if ends == "by itself":
                admission.settle(ended)
                await until("written", lambda: count(journal_of(tmp_path), b'"settled"') == 1)
            kept = await killed(server, tmp_path, 2, b'"grown"')
        async with inherited(server, tmp_path, kept) as admission:
            if ends == "with its worker":
                assert server.redis.hmget(budget, "reserved", "spent") == ["300", "0"]
                assert server.redis.hget(slots, "in_use") == ("1" if begun == "before" else None)
                found = msgspec.json.decode(
                    server.redis.hget(names.leases(tenant)[1], "stream"), type=Holding
                )
                assert found.output == 300, "what it is charged for if nobody settles it"
                sorts = {spec[0] for _, spec, _ in found.holds}
                assert (SLOTS in sorts) is (begun == "before"), "it gives back what it has"
                await admission.orphans.deliver(tenant, [ended])
        assert server.redis.hmget(budget, "reserved", "spent") == ["0", "250"]
        assert server.redis.hget(slots, "in_use") in (None, "0")
        assert server.usage(tenant)["requests"] == 1
        assert server.redis.zcard(names.leases(tenant)[0]) == 0
