"""The only wiring: builds a worker's gateway from a configuration, starts it and stops it."""

import asyncio
import contextlib
import logging
import mmap
import os
import random
import resource
import secrets
import socket
from collections.abc import Set
from functools import partial
from math import inf
from pathlib import Path

import msgspec
from aiohttp import web

from gateway.check import open_ledger
from gateway.config.caching import Cache as CacheSettings
from gateway.config.caching import KeyCache, ModelCache
from gateway.config.schema import MEBIBYTE, Config, Ledger
from gateway.connecting import trusting
from gateway.core.errors import ConfigError, StoreError
from gateway.core.record import RequestRecord
from gateway.http.admin import AdminRoutes
from gateway.http.demo import DemoUpstream
from gateway.http.hot import HotRoutes
from gateway.http.routes import PlainRoutes, Readiness
from gateway.http.server import GatewayServer
from gateway.observe.log import LineWriter
from gateway.observe.recorder import Recorder, Writer
from gateway.observe.scoreboard import Scoreboard
from gateway.observe.traces import TraceExporter
from gateway.observe.webhook import WebhookPoster
from gateway.pipeline.cached import Cache
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.copies import Copies
from gateway.pipeline.health import Health
from gateway.pipeline.keyring import Keyring
from gateway.pipeline.looking import Answers
from gateway.pipeline.planning import KIBIBYTE
from gateway.pipeline.serve import serve
from gateway.pipeline.services import Services
from gateway.pipeline.targets import base_url_of
from gateway.pipeline.upkeep import Mishaps, Upkeep
from gateway.policy.overload import Gate
from gateway.policy.overload import Rules as OverloadRules
from gateway.policy.pricing import PriceTable
from gateway.policy.retry import Rules
from gateway.spool import Spool
from gateway.store import requests
from gateway.store.admission import Admission
from gateway.store.cache import RedisTier
from gateway.store.client import Client, make_client
from gateway.store.journal import Journal
from gateway.store.keys import VirtualKeys
from gateway.store.levels import Levels
from gateway.store.location import Location
from gateway.store.targets import TargetBoard
from gateway.store.usage import UsageReader
from gateway.upstream.dial import PROTOCOL
from gateway.upstream.pool import Transport

logger = logging.getLogger("sluice.app")

LAST_UPKEEP_SECONDS = 5.0
LEVELS_SECONDS = 0.25
LAG_SECONDS = 0.1
YOUNG_SECONDS = 10.0
SPREAD = 0.1  # of the requests after which a worker is replaced
SPARE_FILES = 128  # for the store, logs, and what libraries open
SHUTDOWN_SECONDS = 2.0  # for Redis to take the last settlements, and changes of keys
CANCEL_SECONDS = 0.2


class Resources(msgspec.Struct, frozen=True):
    """What the process gives its gateway.

    `levels` is memory for what workers know of limits; `slot` is this one's number among the
    `workers` that there are on this machine; `follows` tells that others have served before, and
    `replaces` that this one takes the place of one of them, so that a Redis that is away now has
    been there.
    """

    location: Location
    prices: PriceTable
    scoreboard: Scoreboard
    segment: int
    writer: LineWriter
    demo_socket: str
    name: str
    state: Path
    levels: mmap.mmap
    slot: int = 0
    workers: int = 1
    follows: bool = False
    replaces: bool = False


class Gateway:
    """One worker's gateway. `server` is the protocol factory to put behind listeners."""

    def __init__(self, config: Config, resources: Resources) -> None:
        self._config, self._resources = config, resources
        self._loop = asyncio.get_running_loop()
        self._client = make_client(resources.location, config.redis.timeout, resources.name)
        degrade = config.limits.on_store_failure == "degrade"
        self._journal = _journal(config.redis.journal_mb, resources)
        self._admission = Admission(
            self._client,
            config.limits.lease,
            degrade=degrade,
            journal=self._journal,
            levels=_levels(resources) if degrade else None,
        )
        # A live stream's lease is extended in good time, also when a turn or two are missed.
        self._upkeep_seconds = min(LAST_UPKEEP_SECONDS, config.limits.lease / 6)
        self._transport = Transport()
        self._keys = VirtualKeys(self._client)
        self._lag = 0.0
        # Among the workers of all machines; containers may have the same names and numbers.
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._ledger = open_ledger(config.ledger, resources.name)
        self._webhook = _webhook(config.ledger, resources)
        writers: list[Writer] = [resources.writer] if config.log.requests else []
        writers += [one for one in (self._ledger, self._webhook) if one is not None]
        self.recorder = Recorder(
            self._loop,
            resources.scoreboard,
            resources.segment,
            writers,
            self._gauges,
            self._admission.ended_here_only,
        )
        self._cache = _cache(config, self._client) if _caches(config) else None
        catalogue = Catalogue(config, resources.prices, resources.demo_socket)
        overload = config.server.overload
        self._health = Health(catalogue, TargetBoard(self._client), self._admission)
        self._services = Services(
            loop=self._loop,
            config=config,
            keyring=Keyring(config, self._keys, trusting=degrade),
            catalogue=catalogue,
            admission=self._admission,
            transport=self._transport,
            retries=msgspec.convert(config.retries, Rules, from_attributes=True),
            emit=self._emit,
            append=partial(requests.append, self._client),
            ejected=self._health.ejected,
            copies=Copies(),
            gate=Gate(OverloadRules(most=overload.requests, lag=overload.lag)),
            cache=self._cache,
        )
        self._traces = TraceExporter(config.tracing) if config.tracing.enabled else None
        self._readiness = Readiness(
            store_connected=lambda: self._client.connected, degrades=degrade
        )
        self._started_at = self._loop.time()
        self._drained_by, self._hurried = inf, False
        most = config.server.recycle.requests
        # Not all workers at the same time.
        spread = 1 + SPREAD * random.random()  # noqa: S311
        self._most_requests = None if most is None else int(most * spread)
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._demo: DemoUpstream | None = None
        self._hot: HotRoutes | None = None
        self._admin: AdminRoutes | None = None
        self.server: GatewayServer | None = None

    async def start(self) -> GatewayServer:
        """Connect to the store, open the demo upstream, build the server. Raises StoreError."""
        _trust_ahead(self._config)
        await self._connect()
        mishaps = Mishaps()
        upkeep = Upkeep(self._services, mishaps, self._journal, self._name, self._upkeep_seconds)
        if self._client.connected:
            has_share = self._resources.follows and not self._client.clustered
            await upkeep.catch_up(has_share=has_share)
        with contextlib.suppress(StoreError):
            await self._admission.roster.count(self._name, self._upkeep_seconds)
        if self._traces is not None:
            self._traces.start()
        if self._webhook is not None:
            self._webhook.start()
        if self._cache is not None and self._config.cache.semantic is not None:
            from gateway.pipeline.semantic import semantic_of  # needs what few have installed

            wanted, answers = self._config.cache.semantic, self._cache.answers
            answers.semantic = await semantic_of(wanted, self._client, serve, answers.redis)
        if any(provider.kind == "demo" for provider in self._config.providers.values()):
            self._demo = DemoUpstream(self._resources.demo_socket)
            await self._demo.start()
        self._admin = admin = AdminRoutes(
            self._config.auth.admin_key,
            self._keys,
            self._services.keyring.book,
            UsageReader(self._client),
        )
        plain = PlainRoutes(self._services, self.recorder, self._readiness, admin)
        self._runner = web.AppRunner(plain.application(), access_log=None)
        await self._runner.setup()
        assert self._runner.server is not None
        self._hot = hot = HotRoutes(self._services)
        server = self._config.server
        bounds = msgspec.structs.replace(
            server.overload, connections=min(server.overload.connections, _affordable())
        )
        self.server = GatewayServer(self._runner.server, hot, server.request_timeout, bounds)
        self._watch_all(upkeep, mishaps)
        self.recorder.fold()
        return self.server

    def _watch_all(self, upkeep: Upkeep, mishaps: Mishaps) -> None:
        """Begin what goes on beside serving, until this is closed."""
        watches = {
            "leases": upkeep.keep_leases,
            "workers": upkeep.be_counted,
            "orphans": upkeep.settle_orphans,
            "keys": self._services.keyring.watch,
            "health": self._health.watch,
            "lag": self._watch_lag,
            "levels": self._tell_levels,
            "counters": self._watch_counters,
        }
        if self._cache is not None:
            watches["cache"] = partial(self._cache.answers.watch, self._services)
        self._tasks = [
            self._loop.create_task(mishaps.outlived(name, watch), name=name)
            for name, watch in watches.items()
        ]

    async def _connect(self) -> None:
        """Connect to the store. Raises StoreError where nobody has before."""
        self._admission.roster.expect(self._resources.workers)
        try:
            await self._client.start()
        except StoreError as error:
            if not self._resources.replaces or self._config.limits.on_store_failure != "degrade":
                raise
            logger.warning("serving without Redis: %s", error)
            self._admission.begin_without()
            self._client.start_later()

    @property
    def worn(self) -> bool:
        """Tell whether a fresh worker should take this one's place."""
        recycle = self._config.server.recycle
        served, most = self._services.gate.entered, self._most_requests
        if most is not None and served >= most:
            return True
        if self._loop.time() - self._started_at < YOUNG_SECONDS:
            return False  # a bound below what a fresh worker needs must not turn in circles
        return recycle.rss_mb is not None and resident_bytes() > recycle.rss_mb * MEBIBYTE

    def accept_only(self, keys: Set[str], admin: str | None, *, anonymous: bool) -> None:
        """Forget other keys of the configuration: there is a newer one without them.

        SHA-256 as hexadecimal digits; `anonymous`: nobody is asked for a key in that one.
        """
        self._services.keyring.accept_only(keys, anonymous=anonymous)
        if self._admin is not None:
            self._admin.accept_only(admin)

    def lame_duck(self) -> None:
        """Go on serving, but ask for no more traffic."""
        self._readiness.draining = True

    def hurry(self, grace: float) -> None:
        """Let a drain under way take no longer than this from now on; the first word counts."""
        if not self._hurried:
            self._hurried = True
            self._drained_by = min(self._drained_by, self._loop.time() + grace)

    async def drain(self, grace: float, linger: float) -> None:
        """Finish what is in flight within the grace, closing each connection after its reply.

        A connection that is idle stays open for `linger`: a client may be about to use it, also one
        that has just taken the last of its reply.
        """
        self._readiness.draining = True
        self._admission.roster.leave(self._name)
        assert self.server is not None
        self.server.draining = True
        self._drained_by = min(self._drained_by, self._loop.time() + grace)
        idle_end = self._loop.time() + linger
        while (now := self._loop.time()) < self._drained_by:
            busy = self.server.busy + (self._hot.draining if self._hot is not None else 0)
            busy += self._cache.in_flight if self._cache is not None else 0
            if self.server.unread:
                idle_end = now + linger
            elif not busy and (not self.server.open or now >= idle_end):
                return
            await asyncio.sleep(0.02)

    async def aclose(self) -> None:
        """Close everything; what is still in flight is settled as it stands. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with contextlib.AsyncExitStack() as ends:  # the last first, whatever fails in one
                ends.push_async_callback(self._close_records)
                if self._journal is not None:
                    ends.push_async_callback(self._journal.aclose)
                # What Redis has not answered by now fails, and goes to the journal.
                ends.push_async_callback(self._client.aclose)
                ends.push_async_callback(self._admission.aclose, SHUTDOWN_SECONDS)
                await self._end_requests()
        except Exception:
            logger.exception("not everything could be closed in order")

    async def _end_requests(self) -> None:
        await self._services.copies.aclose()
        if self._cache is not None:
            await self._cache.aclose()
        if self._hot is not None:
            await self._hot.aclose()
        if self.server is not None:
            self.server.pre_shutdown()
            await self.server.shutdown(CANCEL_SECONDS)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._admin is not None:
            await self._admin.aclose(SHUTDOWN_SECONDS)
        self._transport.close()
        if self._demo is not None:
            await self._demo.aclose()

    async def _close_records(self) -> None:
        self.recorder.close()
        if self._ledger is not None:
            self._ledger.close()
        if self._webhook is not None:
            await self._webhook.aclose()
        if self._traces is not None:  # last: a collector may take as long as the supervisor waits
            await self._traces.aclose()

    def _emit(self, record: RequestRecord) -> None:
        self.recorder.emit(record)
        if self._traces is not None:
            self._traces.emit(record)

    def _gauges(self) -> dict[str, float]:
        server = self.server
        return {
            "sluice_workers": 1,
            "sluice_open_leases": self._admission.open_leases,
            "sluice_client_connections": len(server.connections) if server else 0,
            "sluice_upstream_connections": self._transport.connections,
            "sluice_unsettled": self._admission.unsettled,
            "sluice_degraded": float(self._admission.degraded),
            "sluice_store_connected": float(self._client.connected),
            "sluice_loop_lag_seconds": self._lag,
            "sluice_requests_in_flight": self._services.gate.in_flight,
            "sluice_requests_bound": self._services.gate.bound,
            "sluice_cache_entries": self._cache.answers.entries if self._cache is not None else 0,
            "sluice_cache_bytes": self._cache.answers.bytes if self._cache is not None else 0,
        }

    async def _tell_levels(self) -> None:
        """Keep the other workers informed, for when Redis is away."""
        while True:
            await asyncio.sleep(LEVELS_SECONDS)
            self._admission.tell_levels()

    async def _watch_lag(self) -> None:
        """Look how late the loop is: often while requests are served, else now and then."""
        gate = self._services.gate
        while True:
            seconds = LAG_SECONDS if gate.in_flight else LAST_UPKEEP_SECONDS / 10
            before = self._loop.time()
            await asyncio.sleep(seconds)
            self._lag = max(0.0, self._loop.time() - before - seconds)
            gate.late(self._lag)

    async def _watch_counters(self) -> None:
        """Publish what others count, now and then."""
        while True:
            await asyncio.sleep(self._upkeep_seconds)
            for name, amount in self._counters().items():
                self.recorder.count(name, amount)
            self.recorder.fold()  # gauges move where no request ends, too

    def _counters(self) -> dict[str, float]:
        counters: dict[str, float] = {
            "sluice_log_lines_dropped": self._resources.writer.dropped,
            "sluice_requests_shed": self._services.gate.refused,
            "sluice_settlements_lost": self._admission.lost_settlements,
        }
        if self.server is not None:
            counters["sluice_connections_refused"] = self.server.refused_connections
        if self._cache is not None:
            counters["sluice_cache_corrupted"] = self._cache.answers.corrupted
        if self._ledger is not None:
            counters["sluice_ledger_lines_dropped"] = self._ledger.dropped
        if self._webhook is not None:
            counters["sluice_webhook_records_dropped"] = self._webhook.dropped
        if self._traces is not None:
            counters["sluice_spans_dropped"] = self._traces.dropped
        return counters


def _trust_ahead(config: Config) -> None:
    """Read authorities before serving: it takes so long that others' requests would wait."""
    for provider in config.providers.values():
        if base_url_of(provider).startswith("https:"):
            trusting(provider.ca_file, PROTOCOL)


def _caches(config: Config) -> bool:
    """Tell whether any request's answer may be kept."""
    sections: list[CacheSettings | ModelCache | KeyCache] = [config.cache]
    sections += [model.cache for model in config.models.values()]
    sections += [key.cache for key in config.auth.keys]
    return any(section.enabled for section in sections)


def _cache(config: Config, client: Client) -> Cache:
    from gateway.store.memory import MemoryTier  # aiocache is slow to import
    from gateway.store.packed import Packing

    settings = config.cache
    memory = MemoryTier(
        settings.memory_mb * MEBIBYTE, settings.entries, asyncio.get_running_loop().time
    )
    redis = None
    if settings.redis:
        packing = Packing(settings.compress_kb * KIBIBYTE)
        redis = RedisTier(client, packing, settings.max_value_kb * KIBIBYTE)
    return Cache(settings, Answers(memory, redis, client), serve)


def _levels(resources: Resources) -> Levels:
    """Return what this worker shares with the others of its machine."""
    given = resources
    return Levels(given.levels, given.slot, given.workers, given.segment)


def _affordable() -> int:
    """Return how many clients there are file descriptors for, each with a provider's connection."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10**9 if soft == resource.RLIM_INFINITY else max(16, (soft - SPARE_FILES) // 2)


def resident_bytes() -> int:
    """Return how much memory this process has now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _journal(most_mb: int, resources: Resources) -> Journal | None:
    if not most_mb:
        return None
    try:
        return Journal(resources.state / "journal", resources.name, most_mb * MEBIBYTE)
    except OSError as error:
        logger.warning("no journal, so what Redis misses is in memory only: %s", error)
        return None


def _webhook(ledger: Ledger, resources: Resources) -> WebhookPoster | None:
    """Open the spool of what is to be posted. Raises ConfigError."""
    webhook = ledger.webhook
    if webhook is None:
        return None
    directory = resources.state / "webhook"
    try:
        spool = Spool(directory, resources.name, webhook.spool_mb * MEBIBYTE)
    except OSError as error:
        message = f"{directory} cannot be written: {error.strerror}"
        raise ConfigError(message, field="ledger.webhook") from None
    return WebhookPoster(webhook, spool)
