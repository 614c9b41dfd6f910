"""Which virtual keys a listing shows where there are more than it may hold."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config.schema import KeySettings
from gateway.store import keys, names
from gateway.store.keys import VirtualKeys
from tests.support.store import StoreServer, connected, store_server

MOST = 10


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with tempfile.TemporaryDirectory(prefix="sluice-") as place, store_server(Path(place)) as one:
        yield one


async def test_the_newest_are_listed_and_a_tenants_are_found_among_all(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_LISTED", MOST)
    async with connected(server) as (_, client):
        virtual = VirtualKeys(client)
        made = []
        for number in range(3 * MOST):
            tenant = "rare" if number % MOST == 0 else "acme"
            record, _ = await virtual.create(KeySettings(name=f"k{number}", tenant=tenant))
            server.redis.hset(names.key(record.id), "created", 1_700_000_000 + number)
            made.append(record.id)
        found, more = await virtual.all()
        assert ([record.id for record in found], more) == (made[-MOST:], True)
        rare, more = await virtual.all("rare")
        assert ([record.id for record in rare], more) == (made[::MOST], False)
        assert await virtual.all("nobody") == ([], False)
