"""What servers say of where Redis is, when they are wrong or do not know."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from gateway.store.cluster import Cluster
from gateway.store.link import Link
from gateway.store.location import Location, parse_url
from tests.integration.conftest import unused_port


@contextlib.asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers whatever it is asked alike."""
    asked: list[bytes] = []

    served: set[Any] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        while data := await reader.read(65536):
            asked.append(data)
            writer.write(reply)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()
        await asyncio.gather(*served)


def naming(port: int) -> bytes:
    number = str(port).encode()
    return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%b\r\n" % (len(number), number)


async def test_a_sentinel_that_is_cut_off_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def greet(self: Link, connection: Any) -> None:
        """Take any server for the master."""

    monkeypatch.setattr(Link, "_greet", greet)
    async with (
        answering(b"+OK\r\n") as (live, _),
        answering(naming(unused_port())) as (stale, _),
        answering(naming(live)) as (good, asked),
    ):
        places = f"127.0.0.1:{stale},127.0.0.1:{good}"
        link = Link(parse_url(f"redis+sentinel://{places}/main"), 2.0, "test")
        await link.start()
        assert link.connected
        assert len(asked) == 1
        await link.aclose()


@pytest.mark.parametrize("host", [None, b""])
async def test_a_server_that_does_not_know_its_own_name_has_the_one_it_was_asked_by(
    host: bytes | None,
) -> None:
    class Source:
        host = "10.1.2.3"

        async def call(self, *args: Any) -> Any:
            return [[0, 16383, [host, 7001, b"id"]]]

    cluster = Cluster(Location(host="seed", port=7000, seeds=(("seed", 7000),)), 1.0, "test")
    await cluster._learn(cast(Link, Source()))
    assert list(cluster._links) == [("10.1.2.3", 7001)]
    await cluster.aclose()


async def test_a_master_that_is_cut_off_from_its_cluster_is_believed_last() -> None:
    class Master:
        """Says whether its cluster is well, and who has all slots."""

        connected, host = True, "127.0.0.1"

        def __init__(self, state: bytes, named: int) -> None:
            self.state, self.named = state, named

        async def call(self, *args: Any) -> Any:
            if args == ("CLUSTER", "INFO"):
                return b"cluster_enabled:1\r\ncluster_state:" + self.state
            return [[0, 16383, [b"127.0.0.1", self.named, b"id"]]]

        async def aclose(self) -> None:
            """Nothing is open."""

    old, heir = unused_port(), unused_port()
    for states, expected in (((b"fail", b"ok"), heir), ((b"fail", b"fail"), old)):
        cluster = Cluster(Location(host="seed", port=7000, seeds=(("seed", 7000),)), 1.0, "test")
        masters = [Master(states[0], old), Master(states[1], heir)]
        cluster._links = {
            ("127.0.0.1", number): cast(Link, one) for number, one in enumerate(masters)
        }
        await cluster._look()
        assert list(cluster._links) == [("127.0.0.1", expected)]
        await cluster.aclose()


async def test_a_scan_ends_where_it_has_found_too_much() -> None:
    link = Link(Location(), 1.0, "test")
    parts = [[b"a", b"b"], [b"b", b"a"], [b"c"], [b"d"]]

    async def call(*args: Any) -> Any:
        return [b"7", parts.pop(0)]

    link.call = call  # type: ignore[assignment,method-assign]
    assert await link.scan("*", 2) == {b"a", b"b", b"c"}
    assert parts == [[b"d"]]
