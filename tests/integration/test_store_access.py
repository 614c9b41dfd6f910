"""A Redis that asks for a user with just the rights README names, and one that speaks TLS."""

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

from gateway.store.link import Link
from gateway.store.location import Location
from tests.bench.processes import free_port
from tests.support.config import chat, config
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Upstream
from workers.store_server import find_server

SECRET = "store-secret-0123"
USER = f"user sluice on >{SECRET} ~sluice:* &* +@all -@dangerous"


@contextlib.contextmanager
def server(directory: Path, text: str, **client: Any) -> Iterator[int]:
    """A server of its own with these settings; yields its port."""
    port = free_port()
    file = directory / "store.conf"
    place = text.format(port=port, directory=directory)
    file.write_text(f"bind 127.0.0.1\ndir {directory}\nsave ''\n{place}")
    process = subprocess.Popen([find_server(), str(file)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, "the server does not start"
            with contextlib.suppress(redis.ConnectionError):
                redis.Redis(port=port, **client).ping()
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


async def serves(upstream: Upstream, url: str) -> str:
    """Serve a limited request with this store; return what the gateway printed."""
    text = json.loads(config(upstream.url, redis={"url": url}))
    text["auth"]["keys"][0] |= {"rpm": 60, "concurrency": 3, "budget": {"usd": 5}}
    text["auth"]["admin_key"] = "an-admin-key-0123456"
    admin = {"Authorization": "Bearer an-admin-key-0123456"}
    with running(json.dumps(text)) as gateway:
        assert (await once(gateway.port, Ask(chat()))).status == 200
        assert gateway.get("/admin/keys", admin)[0] == 200
        assert gateway.get("/admin/usage?by=model", admin)[0] == 200
        assert gateway.get("/health/ready")[0] == 200
        return gateway.errors + gateway.log_file.read_text()


async def test_a_user_with_the_rights_that_are_documented_is_enough(
    upstream: Upstream, tmp_path: Path
) -> None:
    text = f"port {{port}}\nuser default off\n{USER}\n"
    with server(tmp_path, text, username="sluice", password=SECRET) as port:
        printed = await serves(upstream, f"redis://sluice:{SECRET}@127.0.0.1:{port}/0")
        store = redis.Redis(port=port, username="sluice", password=SECRET, decode_responses=True)
        assert "sluice:requests" in list(store.scan_iter())
        store.close()
    assert SECRET not in printed


@contextlib.asynccontextmanager
async def behind_tls(port: int, authority: trustme.CA) -> AsyncIterator[int]:
    """A TLS endpoint in front of a server: the embedded one is built without. Yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing.add(asyncio.current_task())
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    passing: set[Any] = set()
    listener = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await asyncio.gather(*passing, return_exceptions=True)


async def test_tls_is_verified_against_the_operators_own_authority(
    upstream: Upstream, tmp_path: Path
) -> None:
    known, unknown = trustme.CA(), trustme.CA()
    for name, authority in (("known", known), ("unknown", unknown)):
        authority.cert_pem.write_to_path(str(tmp_path / f"{name}.pem"))
    with server(tmp_path, "port {port}\n") as port:
        async with behind_tls(port, known) as secure:
            url = f"rediss://127.0.0.1:{secure}/0?ssl_ca_certs={tmp_path}"
            # In a thread: the endpoint is in this loop, which starting a gateway would block.
            await asyncio.to_thread(asyncio.run, serves(upstream, f"{url}/known.pem"))
            with pytest.raises(AssertionError, match="CERTIFICATE_VERIFY_FAILED"):
                await asyncio.to_thread(asyncio.run, serves(upstream, f"{url}/unknown.pem"))


async def test_a_name_of_which_one_address_never_answers_is_reached_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    with server(tmp_path, "port {port}\n") as port, deaf() as silent:

        async def addresses(host: str, *_: object, **__: object) -> list[Any]:
            assert host == "redis.test"
            return [
                (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", one))
                for one in (silent, port)
            ]

        monkeypatch.setattr(loop, "getaddrinfo", addresses)
        link = Link(Location(host="redis.test", port=port), 20.0, "test")
        try:
            await link.start()
            assert await link.call("PING") == b"PONG"
        finally:
            await link.aclose()


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A port that answers no connection, as a host that is gone does; yields it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(10):  # until nobody more may wait to be accepted
            one = stack.enter_context(socket.socket())
            one.settimeout(0.3)
            try:
                one.connect(("127.0.0.1", port))
            except TimeoutError:
                yield port
                return
        pytest.skip("this system lets any number wait")


async def test_authorities_are_read_once_for_all_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, made = trustme.CA(), []
    bundle = tmp_path / "known.pem"
    authority.cert_pem.write_to_path(str(bundle))
    make = ssl.create_default_context

    def counted(**options: Any) -> ssl.SSLContext:
        made.append(options)
        return make(**options)

    monkeypatch.setattr(ssl, "create_default_context", counted)
    with server(tmp_path, "port {port}\n") as port:
        async with behind_tls(port, authority) as secure:
            place = Location(port=secure, tls=True, ca_file=str(bundle))
            for _ in range(3):
                link = Link(place, 20.0, "test")
                await link.start()
                assert await link.call("PING") == b"PONG"
                await link.aclose()
    assert len(made) == 1
