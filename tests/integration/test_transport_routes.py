"""Ways to an upstream: verified TLS, forward proxies, Unix sockets, names."""

import asyncio
import base64
import contextlib
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.integration.conftest import TIMEOUTS
from tests.support.config import PRICED_MODEL, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Outcome, flood, once
from tests.support.upstream import Exchange, Upstream, completion, usage


def routed(*providers: dict[str, Any]) -> str:
    """A model a provider: m0, m1, ... all of kind openai."""
    rows = {
        f"p{i}": {"kind": "openai", "api_key": "sk-up", "timeouts": TIMEOUTS, **provider}
        for i, provider in enumerate(providers)
    }
    models = {
        f"m{i}": {"targets": [{"provider": name, "model": PRICED_MODEL}]}
        for i, name in enumerate(rows)
    }
    return config(providers=rows, models=models)


async def ask(gateway: Gateway, number: int, **fields: Any) -> Outcome:
    return await once(gateway.port, Ask(chat(f"m{number}", **fields)))


def server_side(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_tls_upstreams_are_verified(tmp_path: Path) -> None:
    known, unknown = trustme.CA(), trustme.CA()
    ca_file = tmp_path / "ca.pem"
    known.cert_pem.write_to_path(ca_file)
    async with (
        Upstream(tls=server_side(known, "127.0.0.1")) as good,
        Upstream(tls=server_side(unknown, "127.0.0.1")) as stranger,
        Upstream(tls=server_side(known, "other.example")) as misnamed,
        Upstream(tls=server_side(known, "localhost")) as named,
        Upstream() as plain,
    ):
        trusted = {"ca_file": str(ca_file)}
        text = routed(
            {"base_url": good.url, **trusted},
            {"base_url": stranger.url, **trusted},
            {"base_url": misnamed.url, **trusted},
            {"base_url": named.url.replace("127.0.0.1", "localhost"), **trusted},
            {"base_url": good.url},
            {"base_url": plain.url.replace("http:", "https:"), **trusted},
        )
        with running(text) as gateway:
            assert (await ask(gateway, 0)).status == 200
            assert (await ask(gateway, 0, stream=True)).events[-1] == "[DONE]"
            assert (await ask(gateway, 3)).status == 200
            assert good.connections == 1, "not kept"
            assert (await ask(gateway, 5)).status in (502, 504)  # no TLS there: silence, or noise
            for refused in (1, 2, 4):
                outcome = await ask(gateway, refused)
                assert outcome.status == 502, f"m{refused}"
                assert outcome.json["error"]["code"] == "upstream_failed"
            assert stranger.received == misnamed.received == plain.received == []


class Proxy:
    """A forward proxy: tunnels, while it may, and absolute-form requests, all heads kept."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.heads: list[str] = []
        self.may_tunnel = asyncio.Event()
        self.may_tunnel.set()
        self.port = 0
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        other: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode())
            method, place, _ = head.decode().split(" ", 2)
            if method == "CONNECT":
                await self.may_tunnel.wait()
                for i in range(len(self._answer)):  # in pieces: the gateway must wait for all
                    writer.write(self._answer[i : i + 1])
                    await writer.drain()
                if b" 200 " not in self._answer[:15]:
                    return
            else:
                place = place.removeprefix("http://").partition("/")[0]
            host, _, port = place.rpartition(":")
            backward, other = await asyncio.open_connection(host, int(port))
            if method != "CONNECT":
                other.write(head)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, other))
                group.create_task(_pump(backward, writer))
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, other):
                if end is not None:
                    end.close()
                    with contextlib.suppress(OSError, asyncio.CancelledError):
                        await end.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_forward_proxies(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    async with (
        Upstream(tls=server_side(authority, "127.0.0.1")) as secure,
        Upstream() as plain,
        Proxy().serving() as proxy,
        Proxy(refusal).serving() as unwilling,
    ):
        through = {"proxy": f"http://user:p%40ss@127.0.0.1:{proxy.port}", "ca_file": str(ca_file)}
        text = routed(
            {"base_url": secure.url, **through},
            {"base_url": plain.url, **through},
            {"base_url": secure.url, **through, "proxy": f"http://127.0.0.1:{unwilling.port}"},
        )
        with running(text) as gateway:
            for _ in range(2):
                assert (await ask(gateway, 0)).status == 200
            assert (await ask(gateway, 0, stream=True)).events[-1] == "[DONE]"
            (connect,) = proxy.heads
            place = f"127.0.0.1:{secure.port}"
            assert connect.startswith(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n")
            basic = base64.b64encode(b"user:p@ss").decode()
            assert f"Proxy-Authorization: Basic {basic}\r\n" in connect
            assert "sk-up" not in connect

            assert (await ask(gateway, 1)).status == 200
            target = f"http://127.0.0.1:{plain.port}/v1/chat/completions"
            assert proxy.heads[1].startswith(f"POST {target} HTTP/1.1\r\n")

            outcome = await ask(gateway, 2)
            assert outcome.status == 502
            assert len(secure.received) == 3


@pytest.mark.parametrize("full", [False, True], ids=["a slow way", "a full pool as well"])
async def test_a_wait_in_a_pool_is_told_from_a_slow_way_to_its_target(
    tmp_path: Path, *, full: bool
) -> None:
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)

    async def last_words(exchange: Exchange) -> None:
        if not full:
            await exchange.gone()
            return
        await asyncio.sleep(1)
        await exchange.reply(completion("yes", usage(7, 5)), headers={"Connection": "close"})
        exchange.keep_alive = False

    async with (
        Upstream(last_words, tls=server_side(authority, "127.0.0.1")) as slow,
        Proxy().serving() as proxy,
    ):
        text = json.loads(config(slow.url, breaker={"failures": 1, "ejection": 60}))
        text["providers"]["p0"] |= {
            "proxy": f"http://127.0.0.1:{proxy.port}",
            "ca_file": str(ca_file),
            "max_connections": 1,
            "timeouts": {"connect": 20, "total": 2},
        }
        with running(json.dumps(text)) as gateway:
            if full:  # the second one waits for the first, and then for the way
                first = asyncio.create_task(once(gateway.port, Ask()))
                while not slow.received:
                    await asyncio.sleep(0.01)
                proxy.may_tunnel.clear()
                outcome = await once(gateway.port, Ask())
                assert (await first).status == 200
                told = 503, "overloaded", "busy"
            else:
                proxy.may_tunnel.clear()
                asyncio.get_running_loop().call_later(1, proxy.may_tunnel.set)
                outcome = await once(gateway.port, Ask())
                told = 504, "deadline_exceeded", "attempt_timeout"
            *_, record = await asyncio.to_thread(gateway.records, 1 + full)
            failures = record["tries"][-1]["failure"]
            assert (outcome.status, outcome.json["error"]["code"], failures) == told


async def test_a_plain_request_gives_the_proxy_its_credentials() -> None:
    async with Upstream() as plain, Proxy().serving() as proxy:
        through = {"proxy": f"http://user:pass@127.0.0.1:{proxy.port}"}
        with running(routed({"base_url": plain.url, **through})) as gateway:
            assert (await ask(gateway, 0)).status == 200
    basic = base64.b64encode(b"user:pass").decode()
    assert f"proxy-authorization: basic {basic}".lower() in proxy.heads[0].lower()


async def test_unix_sockets() -> None:
    with tempfile.TemporaryDirectory(prefix="sluice-") as directory:
        path = str(Path(directory) / "up.sock")
        async with Upstream(unix_path=path) as upstream:
            absent = {"base_url": f"unix://{path}.absent"}
            with running(routed({"base_url": upstream.url}, absent)) as gateway:
                outcomes = await flood(gateway.port, [Ask(chat("m0"))] * 20, 4)
                assert [o.status for o in outcomes] == [200] * 20
                assert (await ask(gateway, 0, stream=True)).events[-1] == "[DONE]"
                assert upstream.received[0].path == "/v1/chat/completions"
                assert 1 <= upstream.connections <= 4
                assert (await ask(gateway, 1)).status == 502


@pytest.mark.parametrize("name", ["localhost", "no-such-host.invalid"])
async def test_names(upstream: Upstream, name: str) -> None:
    url = upstream.url.replace("127.0.0.1", name)
    with running(routed({"base_url": url})) as gateway:
        outcome = await ask(gateway, 0)
    if name == "localhost":
        assert outcome.status == 200
        assert upstream.received[0].headers["host"] == f"localhost:{upstream.port}"
    else:
        assert outcome.status in (502, 504)
