"""TLS at the listener: modern protocols only, and a certificate that a reload replaces."""

import asyncio
import contextlib
import signal
import socket
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest
import trustme
import uvloop

from gateway.http import tls
from gateway.http.server import GatewayServer
from gateway.http.tls import TlsListener
from tests.support.config import KEY, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, once
from tests.support.upstream import Upstream
from tests.support.wire import connected


class Certificates:
    """A CA, and the files from which the gateway serves."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.certificate, self.key = directory / "cert.pem", directory / "key.pem"
        self.issue()

    def issue(self) -> None:
        """Write a new certificate over the old one."""
        issued = self.ca.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(b"".join(p.bytes() for p in issued.cert_chain_pems))

    @property
    def server(self) -> dict[str, object]:
        """The configuration's section."""
        return {"tls": {"certificate": str(self.certificate), "key": str(self.key)}}

    def context(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client's context, for just one protocol version if given."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if version is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.set_ciphers("ALL:@SECLEVEL=0")
                context.minimum_version = context.maximum_version = version
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def serial(gateway: Gateway, context: ssl.SSLContext) -> object:
    """The serial number of the certificate that a new connection is shown."""
    async with Client(gateway.port, tls=context) as client:
        await client.connect()
        assert client.writer is not None
        return client.writer.get_extra_info("peercert")["serialNumber"]


async def reloaded(gateway: Gateway) -> None:
    before = gateway.errors.count("serving on ")
    gateway.signal(signal.SIGHUP)
    while gateway.errors.count("serving on ") == before:
        await asyncio.sleep(0.01)


async def test_requests_and_streams_over_tls(
    upstream: Upstream, certificates: Certificates
) -> None:
    text = config(upstream.url, server=certificates.server)
    with running(text, workers=2) as gateway:
        assert "serving on https://" in gateway.errors
        context = certificates.context()
        outcome = await once(gateway.port, tls=context)
        assert (outcome.status, outcome.failure) == (200, "")
        outcome = await once(gateway.port, Ask(chat(stream=True)), tls=context)
        assert outcome.events[-1] == "[DONE]"
        plain = await once(gateway.port)
        assert plain.failure or plain.status == 400


async def test_old_protocols_are_refused(upstream: Upstream, certificates: Certificates) -> None:
    old = certificates.context(ssl.TLSVersion.TLSv1_1)
    # The same client is served by a listener that allows the old version: it can speak it.
    lenient = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lenient.load_cert_chain(certificates.certificate, certificates.key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        lenient.set_ciphers("ALL:@SECLEVEL=0")
        lenient.minimum_version = ssl.TLSVersion.TLSv1_1
    async with Upstream(tls=lenient) as other, Client(other.port, tls=old) as client:
        await client.connect()
        assert client.writer is not None
        assert client.writer.get_extra_info("ssl_object").version() == "TLSv1.1"

    with running(config(upstream.url, server=certificates.server)) as gateway:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Client(gateway.port, tls=old).connect()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            outcome = await once(gateway.port, tls=certificates.context(version))
            assert outcome.status == 200


async def test_a_reload_serves_the_new_certificate_and_cuts_nobody(
    upstream: Upstream, certificates: Certificates
) -> None:
    context = certificates.context()
    with running(config(upstream.url, server=certificates.server), workers=2) as gateway:
        old = await serial(gateway, context)
        async with Client(gateway.port, tls=context) as kept:
            assert (await kept.ask()).status == 200
            certificates.issue()
            assert await serial(gateway, context) == old, "not before it is asked to"
            await reloaded(gateway)
            outcome = await kept.ask()
            assert (outcome.status, outcome.failure) == (200, "")
        serials = {await serial(gateway, context) for _ in range(10)}
        assert len(serials) == 1
        assert old not in serials

        certificates.key.write_text("not a key")
        await reloaded(gateway)
        assert "reload refused" in gateway.errors
        assert "server.tls" in gateway.errors
        assert {await serial(gateway, context)} == serials


async def test_a_reload_waits_for_a_connection_that_is_only_being_made(
    upstream: Upstream, certificates: Certificates
) -> None:
    with running(config(upstream.url, server=certificates.server)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        # A second connection's answer says that the worker has accepted the first.
        assert (await once(gateway.port, tls=certificates.context())).status == 200
        await reloaded(gateway)
        await asyncio.sleep(0.5)  # what is idle and closed would be gone by now
        await writer.start_tls(certificates.context(), server_hostname="127.0.0.1")
        body = msgspec.json.encode(chat())
        head = (
            "POST /v1/chat/completions HTTP/1.1",
            "host: x",
            f"authorization: Bearer {KEY}",
            f"content-length: {len(body)}",
            "connection: close",
        )
        writer.write("\r\n".join((*head, "", "")).encode() + body)
        assert (await reader.readline()).split()[1] == b"200"
        await reader.read()
        writer.close()


async def closed_at_once(stack: contextlib.AsyncExitStack, port: int) -> bool:
    """Connect and say nothing; whether the gateway closes that, for all there is time."""
    wire = await stack.enter_async_context(connected(port))
    return await wire.is_closed(0.5)


@pytest.mark.parametrize("bound", ["connections", "connections_per_address"])
async def test_handshakes_that_stall_count_as_connections(
    upstream: Upstream, certificates: Certificates, bound: str
) -> None:
    server = {**certificates.server, "overload": {bound: 5}}
    context = certificates.context()
    with running(config(upstream.url, server=server)) as gateway:
        async with Client(gateway.port, tls=context) as client:
            assert (await client.ask()).status == 200
            async with contextlib.AsyncExitStack() as stack:
                closed = [await closed_at_once(stack, gateway.port) for _ in range(8)]
                assert closed == [False] * 4 + [True] * 4
                assert (await client.ask()).status == 200
        async with asyncio.timeout(10):  # who leaves amid a handshake makes room
            while (await once(gateway.port, tls=context)).status != 200:
                await asyncio.sleep(0.05)


class _Silent(asyncio.Protocol):
    """Stands for a connection; knows whether it was ever made."""

    made = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True


class _Counting:
    """As much of a server as a listener asks."""

    def __init__(self) -> None:
        self.claimed: list[_Silent] = []
        self.released: list[_Silent] = []

    def claim(self, address: str) -> _Silent:
        self.claimed.append(_Silent())
        return self.claimed[-1]

    def release(self, protocol: _Silent) -> None:
        self.released.append(protocol)


@pytest.mark.parametrize("kind", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_handshake_has_its_time(
    kind: Callable[[], asyncio.AbstractEventLoop],
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def silent() -> None:
        counting, sock = _Counting(), socket.create_server(("127.0.0.1", 0))
        address = sock.getsockname()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certificate, certificates.key)
        listener = TlsListener(cast(GatewayServer, counting), sock, context)
        listener.start(10)
        try:
            with socket.create_connection(address) as client:
                client.setblocking(False)
                async with asyncio.timeout(10):
                    assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
                    while not counting.released:
                        await asyncio.sleep(0.01)
        finally:
            listener.close()
            listener.close()
        assert counting.released == counting.claimed
        assert [one.made for one in counting.claimed] == [False]

    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.1)
    with asyncio.Runner(loop_factory=kind) as runner:
        runner.run(silent())
