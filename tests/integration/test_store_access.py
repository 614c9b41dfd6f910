"""A Redis that asks for a user with just the rights README names, and one that speaks TLS."""

import asyncio
import contextlib
import json
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

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

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    listener = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


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
