"""`sluice tail` shows the newest requests, and those that follow while it runs."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.store import names
from gateway.store.client import make_client
from gateway.store.location import parse_url
from gateway.store.recent import PAGE, TENANTS_EVERY, Recent
from tests.support.admin import ADMIN_KEY, make, use
from tests.support.cluster import cluster
from tests.support.command import failed, run, sluice
from tests.support.config import KEY, chat, config, digest
from tests.support.gateway import PASSED_ON, ROOT, Gateway, running
from tests.support.load import Ask, once
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, like_openai

WORDS = ("tail", "--no-follow", "--format", "json")
SECONDS = 15


async def moody(exchange: Exchange) -> None:
    """Fail whoever asks for the model `broken`."""
    if exchange.request.json["model"] == "broken":
        await exchange.reply({"error": {"message": "no"}}, status=400)
    else:
        await like_openai(exchange)


async def traffic(gateway: Gateway) -> None:
    """Two tenants use two models; one of them fails."""
    for tenant in ("acme", "globex"):
        _, secret = await make(gateway, tenant=tenant)
        for model in ("m", "broken"):
            await use(gateway, secret, model)
    assert (await once(gateway.port, Ask(chat("unknown")))).status == 404


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway that five requests were made of."""
    static = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
    models = {name: {"targets": [{"provider": "p0", "model": name}]} for name in ("m", "broken")}
    with UpstreamThread(behaviour=moody) as upstream:
        auth = {"admin_key": ADMIN_KEY, "keys": [static]}
        with running(config(upstream.url, auth=auth, models=models), workers=2) as started:
            asyncio.run(traffic(started))
            started.settled()
            yield started


def shown(gateway: Gateway, *words: str) -> list[dict[str, Any]]:
    """What it prints, as JSON."""
    return [json.loads(line) for line in run(gateway, *WORDS, *words).splitlines()]


def kept(gateway: Gateway) -> list[tuple[str, dict[str, str]]]:
    """What Redis has, oldest first."""
    with contextlib.closing(gateway.store) as store:
        entries: list[tuple[str, dict[str, str]]] = store.xrange(names.REQUESTS)
        return entries


def test_json_is_what_redis_has(gateway: Gateway) -> None:
    entries = kept(gateway)
    assert len(entries) == 5
    lines = shown(gateway)
    assert [one.pop("time") for one in lines] == [int(n.split("-")[0]) / 1000 for n, _ in entries]
    assert [{k: str(v) for k, v in one.items()} for one in lines] == [e for _, e in entries]
    assert all(isinstance(one["cost_microusd"], int) for one in lines)
    assert shown(gateway, "-n", "2") == shown(gateway)[-2:]
    assert shown(gateway, "-n", "0") == []


@pytest.mark.parametrize(
    ("words", "matches"),
    [
        (("--tenant", "acme"), lambda one: one["tenant"] == "acme"),
        (("--model", "m"), lambda one: one["model"] == "m"),
        (("--tenant", "globex", "--model", "broken"), lambda one: one["status"] == 400),
        (("--provider", "p0"), lambda one: one["provider"] == "p0"),
        (("--errors",), lambda one: one["error"]),
    ],
)
def test_what_is_not_asked_for_is_left_out(
    gateway: Gateway, words: tuple[str, ...], matches: Callable[[dict[str, Any]], bool]
) -> None:
    every = shown(gateway)
    if words[:2] == ("--tenant", "globex"):
        every = [one for one in every if one["tenant"] == "globex"]
    expected = [one for one in every if matches(one)]
    assert 0 < len(expected) < 5
    assert shown(gateway, *words) == expected


def test_a_key_has_its_own(gateway: Gateway) -> None:
    key = shown(gateway, "--tenant", "globex")[0]["key"]
    assert {one["key"] for one in shown(gateway, "--key", key)} == {key}


def test_a_table_has_a_line_each(gateway: Gateway) -> None:
    head, *lines = run(gateway, "tail", "--no-follow").splitlines()
    assert head.split()[:5] == ["TIME", "STATUS", "TENANT/KEY", "OPERATION", "MODEL"]
    statuses = [line.split()[1] for line in lines]
    assert statuses == [entry["status"] for _, entry in kept(gateway)]
    assert sorted(statuses) == ["200", "200", "400", "400", "404"]
    first = shown(gateway)[0]
    cells = lines[0].split()
    assert cells[2:6] == [f"acme/{first['key']}", first["operation"], "m", "p0"]
    assert cells[6] == f"{first['prompt_tokens']}+{first['completion_tokens']}"
    assert float(cells[7]) == first["cost_microusd"] / 1e6
    assert "error" in lines[1]


def test_no_name_steers_the_terminal(gateway: Gateway) -> None:
    _, entry = kept(gateway)[0]
    with contextlib.closing(gateway.store) as store:
        added = store.xadd(names.REQUESTS, {**entry, "model": "\x1b[2Jm\r\nx"})
        try:
            lines = run(gateway, "tail", "--no-follow", "-n", "1").splitlines()
        finally:
            store.xdel(names.REQUESTS, added)
    assert len(lines) == 2
    assert "?[2Jm??x" in lines[1]


@contextlib.contextmanager
def following(gateway: Gateway, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs."""
    environ = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "workers", "tail", "--config", str(gateway.config_file), *words],
        cwd=ROOT,
        env={**environ, "SLUICE_STATE_DIR": str(gateway.state)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    assert process.stderr
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_what_follows_is_shown_until_it_is_interrupted(gateway: Gateway) -> None:
    with following(gateway, "-n", "1", "--format", "json") as process:
        assert process.stdout
        assert process.stderr
        first = json.loads(process.stdout.readline())
        asyncio.run(once_more(gateway))
        second = json.loads(process.stdout.readline())
        assert (second["status"], second["model"]) == (200, "m")
        assert second["time"] > first["time"]
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 128 + signal.SIGINT
        assert process.stderr.read() == ""


async def once_more(gateway: Gateway) -> None:
    """Make a request."""
    assert (await once(gateway.port, Ask(chat("m")))).status == 200


def test_who_has_seen_enough_ends_it(gateway: Gateway) -> None:
    with following(gateway, "-n", "1") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.readline()
        process.stdout.close()
        asyncio.run(once_more(gateway))
        assert process.wait(SECONDS) == 1
        assert process.stderr.read() == ""


def test_it_goes_on_once_redis_is_back(gateway: Gateway) -> None:
    with following(gateway, "-n", "1", "--format", "json") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        before = gateway.store_pid
        os.kill(before, signal.SIGKILL)
        assert "waiting for it" in process.stderr.readline()
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(Exception), contextlib.closing(gateway.store) as store:
                store.ping()
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        asyncio.run(once_more(gateway))
        assert json.loads(process.stdout.readline())["model"] == "m"


def test_without_a_gateway_it_says_so(gateway: Gateway, tmp_path: Path) -> None:
    done = sluice(tmp_path, None, "tail")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Is the gateway running?" in done.stderr
    code, said = failed(gateway, "tail", "-n", "many")
    assert code == 2
    assert "expected a number from 0 to 10000, got 'many'" in said


async def test_a_cluster_has_a_stream_a_tenant(tmp_path: Path) -> None:
    entry = {"model": "m", "status": "200", "error": ""}
    with cluster(tmp_path, replicas=False) as nodes:
        client = make_client(parse_url(nodes.url), 10, "test")
        await client.start()

        async def add(tenant: str, number: str) -> None:
            await client.call("SADD", names.TENANTS, *([tenant] if tenant else ["a"]))
            flat = [part for pair in {**entry, "tenant": tenant}.items() for part in pair]
            await client.call("XADD", names.requests(tenant, clustered=True), number, *flat)

        try:
            for n, tenant in enumerate(("a", "b", "c", "", "a", "b"), 1):
                await add(tenant, f"{n}-0")
            recent = Recent(client, {})
            assert [one["tenant"] for one in await recent.last(4)] == ["c", "", "a", "b"]
            await add("c", "8-0")
            await add("a", "7-0")
            assert [one["tenant"] for one in await recent.next()] == ["a", "c"]
            await add("new", "9-0")
            seen = [one["tenant"] for _ in range(TENANTS_EVERY) for one in await recent.next()]
            assert seen == ["new"]
            only = Recent(client, {"tenant": "b"})
            assert [one["time"] for one in await only.last(10)] == [0.002, 0.006]
        finally:
            await client.aclose()


async def test_more_than_one_page_is_looked_through(gateway: Gateway) -> None:
    _, entry = kept(gateway)[0]
    with contextlib.closing(gateway.store) as store:
        store.rename(names.REQUESTS, "aside")
        try:
            with store.pipeline() as pipe:
                for n in range(1, 2 * PAGE + 3):
                    fields = {**entry, "model": "rare" if n in (1, PAGE + 1) else "m"}
                    pipe.xadd(names.REQUESTS, fields, id=f"{n}-0")
                pipe.execute()
            client = make_client(parse_url(f"unix://{gateway.state}/redis.sock"), 10, "test")
            await client.start()
            try:
                rare = Recent(client, {"model": "rare"})
                assert [one["time"] for one in await rare.last(5)] == [0.001, (PAGE + 1) / 1000]
                every = Recent(client, {})
                assert await every.last(0) == []
                with store.pipeline() as pipe:
                    for n in range(3 * PAGE, 5 * PAGE + 1):
                        pipe.xadd(names.REQUESTS, entry, id=f"{n}-0")
                    pipe.execute()
                assert len(await every.next()) == 2 * PAGE + 1
                assert await every.next() == []
            finally:
                await client.aclose()
        finally:
            store.delete(names.REQUESTS)
            store.rename("aside", names.REQUESTS)
