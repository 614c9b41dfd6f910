"""`sluice doctor`: looks at all that a gateway needs, and says what is amiss."""

import asyncio
import resource
import shutil
import sys
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import aiohttp
import msgspec

from gateway.cli.gateway_url import place_of, trusting, url_of
from gateway.cli.store import TIMEOUT_SECONDS, explained
from gateway.config.schema import Config
from gateway.core.errors import StoreError, UpstreamError
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.served import Lister
from gateway.policy.pricing import PriceTable
from gateway.store.client import Client, make_client
from gateway.store.location import parse_url
from gateway.upstream.pool import Transport

PROVIDER_SECONDS = 10.0
READY_SECONDS = 5.0
SKEW_SECONDS = 1.0  # windows and days are Redis's; more confuses who compares
SLOW_MS = 20.0  # the worker loses patience after 100
FEW_FILES = 4096  # a client and its provider's connection take two
LITTLE_BYTES = 2**30
REFUSED_KEYS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
# How some say so with another status: Google's, and what is usual.
_OF_THE_KEY = (b"API_KEY_INVALID", b"invalid_api_key")

DEMO = "demo"

OK, NOTE, BAD = "ok", "note", "BAD"


class Finding(msgspec.Struct, frozen=True):
    """What was looked at, how it is, and what to say of it."""

    what: str
    level: str
    said: str


def run(url: str, config: Config, prices: PriceTable, state: Path, *, offline: bool) -> int:
    """Print what is found; return 0 where nothing is bad, else 1."""
    findings = asyncio.run(_examine(url, config, prices, state, offline=offline))
    for one in findings:
        said = "".join(c if c.isprintable() else "?" for c in one.said)
        print(f"{one.level:<4}  {one.what:<{max(len(f.what) for f in findings)}}  {said}")
    bad = sum(one.level == BAD for one in findings)
    if bad:
        print(f"sluice: {bad} of {len(findings)} are bad", file=sys.stderr)
    return 1 if bad else 0


async def _examine(
    url: str, config: Config, prices: PriceTable, state: Path, *, offline: bool
) -> list[Finding]:
    found = [Finding("configuration", OK, "valid"), *_machine(state)]
    ready = await _gateway(config)
    found.append(ready)
    found += [one async for one in _store(url, embedded=not config.redis.url)]
    if not offline:
        found += await _providers(config, prices)
    return found


def _machine(state: Path) -> list[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    said = "no limit" if unlimited else f"a worker may open {hard}"
    enough = unlimited or hard >= FEW_FILES
    files = Finding("files", OK if enough else NOTE, said if enough else f"{said}: few clients")
    there = next(folder for folder in (state, *state.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    said = f"{free / 2**30:.1f} GiB free in {there}"
    return [files, Finding("disk", OK if free >= LITTLE_BYTES else NOTE, said)]


async def _gateway(config: Config) -> Finding:
    """Ask whoever listens where this gateway would."""
    where = place_of(config)
    timeout = aiohttp.ClientTimeout(total=READY_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(f"{url_of(config)}/health/ready", ssl=trusting()) as reply,
        ):
            status = reply.status
    except (aiohttp.ClientError, TimeoutError, OSError):
        return Finding("gateway", NOTE, f"nobody answers at {where}: is it running?")
    if status == HTTPStatus.OK:
        return Finding("gateway", OK, f"ready at {where}")
    if status in REFUSED_KEYS:
        return Finding("gateway", OK, f"serves at {where}, and tells its health to keys only")
    return Finding("gateway", BAD, f"not ready at {where}: it answers {status}")


async def _store(url: str, *, embedded: bool) -> AsyncIterator[Finding]:
    location = parse_url(url)
    client = make_client(location, TIMEOUT_SECONDS, "sluice-cli")
    try:
        await client.start()
        began = time.monotonic()
        seconds, micros = map(int, await client.call("TIME"))
        took = time.monotonic() - began
    except StoreError as error:
        await client.aclose()
        yield Finding("store", NOTE if embedded else BAD, explained(error))
        return
    try:
        said = f"{location} answers in {took * 1000:.1f} ms"
        yield Finding("store", OK if took * 1000 < SLOW_MS else NOTE, said)
        skew = seconds + micros / 1e6 - time.time()
        said = f"{abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'} of this machine's"
        if abs(skew) > SKEW_SECONDS:
            yield Finding("store's clock", NOTE, said)
        async for finding in _kept(client):
            yield finding
    finally:
        await client.aclose()


async def _kept(client: Client) -> AsyncIterator[Finding]:
    """Say whether counters may be lost: pushed out for others, or with the server."""
    try:
        told = await client.call("INFO")
    except StoreError:
        yield Finding("store's memory", NOTE, "not known: its user may not ask (+info)")
        return
    lines = told.decode(errors="replace").splitlines()
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "?")
    yield Finding("store's version", OK, f"{name} {version}")
    policy, most = info.get("maxmemory_policy", ""), int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0))
    said = f"{used / 2**20:.0f} MiB used"
    if most:
        said += f" of {most / 2**20:.0f} ({policy})"
    evicts = bool(most) and policy.startswith("allkeys")
    if evicts:
        said += ": budgets and usage may be evicted; volatile-lru evicts answers only"
    yield Finding("store's memory", NOTE if evicts or (most and used > 0.9 * most) else OK, said)
    kept = info.get("aof_enabled") == "1"
    said = "every write is kept (AOF)" if kept else "no AOF: usage since its last save can be lost"
    yield Finding("store's disk", OK if kept else NOTE, said)


async def _providers(config: Config, prices: PriceTable) -> list[Finding]:
    """Ask each for its models, with its key."""
    catalogue = Catalogue(config, prices, "")
    kinds = {name: provider.kind for name, provider in config.providers.items()}
    listers = [one for one in catalogue.listers(every=True) if kinds[one.target.provider] != DEMO]
    asked = {one.target.provider for one in listers}
    transport = Transport()
    try:
        found = await asyncio.gather(*(_provider(transport, one) for one in listers))
    finally:
        transport.close()
    rest = [name for name in config.providers if name not in asked]
    not_asked = [Finding(f"provider {name}", OK, _unasked(kinds[name])) for name in rest]
    return sorted([*found, *not_asked], key=lambda one: one.what)


def _unasked(kind: str) -> str:
    return "answers by itself" if kind == DEMO else "not asked: it has no list of models"


async def _provider(transport: Transport, lister: Lister) -> Finding:
    target, began = lister.target, time.monotonic()
    what = f"provider {target.provider}" + (f", key {lister.number}" if lister.number > 1 else "")
    until = asyncio.get_running_loop().time() + PROVIDER_SECONDS
    try:
        reply = await transport.send(target.origin, lister.request, None, target.deadlines, until)
    except UpstreamError as error:
        return Finding(what, BAD, error.message)
    refused = reply.status == HTTPStatus.UNAUTHORIZED or any(
        words in reply.body for words in _OF_THE_KEY
    )
    if refused and reply.status != HTTPStatus.OK:
        return Finding(what, BAD, f"refuses the key ({reply.status})")
    if reply.status == HTTPStatus.FORBIDDEN:
        return Finding(what, NOTE, "reached; the key may not list its models (403)")
    if reply.status != HTTPStatus.OK:
        return Finding(what, NOTE, f"reached; asked for its models it answers {reply.status}")
    models = len(lister.adapter.parse_listing(reply.body))
    if not models:
        return Finding(what, NOTE, "reached; it lists no model: is the address right?")
    took = (time.monotonic() - began) * 1000
    return Finding(what, OK, f"{models} models, told in {took:.0f} ms")
