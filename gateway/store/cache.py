"""The tier of kept answers that all workers share, and who of them gets an answer nobody has.

A Redis that is away or slow costs nobody more than a moment: the tier rests then, and all are
misses.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Literal, Protocol
from urllib.parse import unquote

import msgspec

from gateway.core.errors import StoreError
from gateway.store import names, scripts
from gateway.store.answers import Answer, Place, seal, unseal
from gateway.store.client import Client
from gateway.store.connection import Reply
from gateway.store.lease import batches
from gateway.store.patience import Patience
from gateway.store.usage import Query, UsageReader, this_month

logger = logging.getLogger("sluice.cache")

REST_SECONDS = 1.0
LEAD_SECONDS = 3.0
LEAD_MS = b"%d" % int(LEAD_SECONDS * 1000)
# For so long all who wait for an answer that could not be kept get their own, each at once: longer
# than they look again for it.
VAIN_MS = 1000
THREAD_BYTES = 64 * 1024  # of an answer whose packing would hold up other requests
# Redis is not filled above this share of what it may hold: the rest is for what must be counted.
MOST_MEMORY = 0.75

NOBODY, MINE, ANOTHERS = 0, 1, 2
ASKED_BYTES = 16  # of a kept answer: when it was asked for, in digits, which `cache_keep.lua` reads

_FIND, _LEAD = scripts.CACHE_FIND.beginning(keys=2, args=3), scripts.bulk(LEAD_MS)


class Found(msgspec.Struct, frozen=True, gc=False):
    """What Redis says: the answer and its age (ms), or who gets it."""

    answer: Answer | None
    age_ms: int = 0
    lead: int = NOBODY


NOTHING = Found(None)


class Packing(Protocol):
    """Turns answers into bytes, and back: `store.packed`."""

    def dumps(self, value: Answer) -> bytes:
        """Return an answer's bytes."""
        ...

    def loads(self, value: bytes) -> Answer:
        """Return the answer. Raises ValueError where it is none."""
        ...


async def purge_count(client: Client) -> int:
    """Return how often answers were purged. Raises StoreError."""
    return int(await client.call("GET", names.CACHE_VERSION) or 0)


class RedisTier:
    """Finds and keeps answers in Redis. Nothing here raises StoreError."""

    def __init__(self, client: Client, packing: Packing, most_bytes: int) -> None:
        self._client, self._packing, self._most_bytes = client, packing, most_bytes
        self._loop = asyncio.get_running_loop()
        self._patience = Patience()
        self._rests_until = 0.0
        self._room: float = float("inf")
        self.corrupted = 0
        self.refused = 0  # answers that were too large, or had no room

    def close(self) -> None:
        """Wait for no answer any more. Idempotent."""
        self._patience.close()

    def reaches(self, tenant: str) -> bool:
        """Tell whether Redis is worth asking now."""
        return self._loop.time() >= self._rests_until and self._client.reaches(tenant)

    def find(self, where: Place, token: str, least_ms: int, done: Callable[[Found], None]) -> None:
        """Look for an answer that is kept for so long yet; with a token, else get it for all.

        `done` learns what there is, always once: nothing, where Redis is away or late.
        """
        if not self.reaches(where.tenant):
            done(NOTHING)
            return
        number = 0

        def give_up() -> None:
            self._rests_until = self._loop.time() + REST_SECONDS
            done(NOTHING)

        def answered(reply: Reply | Exception) -> None:
            if not self._patience.end(number):
                if not isinstance(reply, Exception) and reply[2] == MINE:
                    self.leave(where, token)
            elif isinstance(reply, Exception):
                give_up()
            else:
                self._read(where, reply, done)

        number = self._patience.begin(give_up)
        args = asked, _, least = token.encode(), LEAD_MS, b"%d" % least_ms
        # Some three times as quick as it is packed otherwise.
        command = b"%b%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n" % (
            _FIND,
            where.packed,
            len(asked),
            asked,
            _LEAD,
            len(least),
            least,
        )
        self._client.run(scripts.CACHE_FIND, [*where.keys], args, answered, command)

    async def find_soon(self, where: Place, token: str, least_ms: int) -> Found:
        """Look for an answer, as `find` does."""
        future: asyncio.Future[Found] = self._loop.create_future()

        def done(found: Found) -> None:
            if not future.done():
                future.set_result(found)
            elif found.lead == MINE:
                self.leave(where, token)

        self.find(where, token, least_ms, done)
        return await future

    def take(self, size: int) -> bool:
        """Tell whether Redis has room for so many bytes, and take them."""
        if size > self._room:
            return False
        self._room -= size
        return True

    async def keep(
        self,
        where: Place,
        answer: Answer,
        token: str,
        purges: int,
        told: Callable[[bool], None] = lambda taken: None,
        *,
        renews: bool = False,
    ) -> bool:
        """Keep an answer, if there is room; whoever waits for it finds it.

        One that `renews` takes the place of what is there, also where there is no room for it: then
        nothing is there. `told` learns whether Redis has taken it so: not where one is there that
        was asked for later, nor where a purge has overtaken it. `purges` is how often answers had
        been purged when it was asked for. (In a cluster that is known up to a second late.)
        """
        if not self._client.reaches(where.tenant):
            return False
        size = len(answer.body)
        if size > THREAD_BYTES or answer.usage.completion_tokens > THREAD_BYTES // 4:
            sealed = await asyncio.to_thread(self._sealed, answer, where)
        else:
            sealed = self._sealed(answer, where)
        fits = len(sealed) <= self._most_bytes and self.take(len(sealed))
        if not fits:
            self.refused += 1
            self.leave(where, token, in_vain=True)
            if not renews:
                return False
            sealed = b""
        keys = [*where.keys, names.answers(where.tenant)]
        args: tuple[bytes, ...] = (
            _asked(answer) + sealed,
            b"%d" % answer.kept_ms,
            token.encode(),
            where.entry.encode(),
        )
        if not self._client.clustered:
            keys.append(names.CACHE_VERSION)
            args = (*args, b"%d" % purges)

        def done(reply: Reply | Exception) -> None:
            if not isinstance(reply, Exception):
                told(reply == 1)

        self._client.run(scripts.CACHE_KEEP, keys, args, done)
        return fits

    def extend(self, where: Place, token: str) -> None:
        """Go on getting an answer."""
        self._lead(where, token, int(LEAD_SECONDS * 1000))

    def leave(self, where: Place, token: str, *, in_vain: bool = False) -> None:
        """Leave it to others to get an answer; `in_vain`: each by itself, as none can be kept."""
        if token:
            self._lead(where, token, -VAIN_MS if in_vain else 0)

    async def look(self, live_workers: int) -> None:
        """See how much room Redis has."""
        if self._client.clustered:  # its masters say it each for themselves
            return
        try:
            memory = await self._client.call("INFO", "memory")
        except StoreError:  # an ACL may forbid it
            self._room = float("inf")
        else:
            self._room = _room(memory) / max(1, live_workers)

    def _lead(self, where: Place, token: str, more_ms: int) -> None:
        if self._client.reaches(where.tenant):
            args = (token.encode(), b"%d" % more_ms)
            self._client.run(scripts.CACHE_LEAD, [where.keys[1]], args, lambda _: None)

    def _sealed(self, answer: Answer, where: Place) -> bytes:
        return seal(self._packing.dumps(answer), where)

    def _read(self, where: Place, reply: Reply, done: Callable[[Found], None]) -> None:
        data, left_ms, lead = reply
        if not data:
            done(Found(None, 0, lead))
        elif len(data) <= THREAD_BYTES:
            done(self._opened(where, data, left_ms, lead))
        else:
            job = self._loop.run_in_executor(None, self._opened, where, data, left_ms, lead)
            job.add_done_callback(lambda found: done(found.result()))

    def _opened(self, where: Place, data: bytes, left_ms: int, lead: int) -> Found:
        try:
            answer = self._packing.loads(unseal(data[ASKED_BYTES:], where))
            if not data.startswith(_asked(answer)):
                raise ValueError("damaged")
        except Exception:  # of whatever kind: it is waited for
            self.corrupted += 1
            logger.warning("a kept answer is damaged, and deleted")
            self._loop.call_soon_threadsafe(self._client.post, "DEL", where.keys[0])
            return Found(None, 0, lead)
        return Found(answer, max(0, answer.kept_ms - left_ms), lead)


def _asked(answer: Answer) -> bytes:
    return b"%0*d" % (ASKED_BYTES, answer.asked_us)


def _room(memory: Any) -> float:
    """Return how many bytes Redis may still be given, by its own report."""
    text = memory.decode() if isinstance(memory, bytes) else str(memory)
    found = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)
    most, used = int(found.get("maxmemory", 0)), int(found.get("used_memory", 0))
    return max(0.0, most * MOST_MEMORY - used) if most else float("inf")


class Kept(msgspec.Struct):
    """How many answers are kept of one tenant, namespace, model or key, and their bytes.

    `hits` and what they saved are this month's; None where nobody counts them so.
    """

    group: str
    answers: int = 0
    bytes: int = 0
    hits: int | None = None
    saved_microusd: int | None = None


Group = Literal["tenant", "namespace", "model", "key"]
GROUPS: tuple[Group, ...] = ("tenant", "namespace", "model", "key")


class Which(msgspec.Struct, frozen=True):
    """Which answers are meant; what is None may be any."""

    tenant: str | None = None
    namespace: str | None = None
    model: str | None = None
    key: str | None = None

    def means(self, about: dict[str, str]) -> bool:
        """Tell whether an answer is one of them."""
        return all(getattr(self, name) in (None, about[name]) for name in GROUPS)

    def hits_are_counted(self, by: Group) -> bool:
        """Tell whether usage has their hits: it counts them by tenant and one thing more.

        Hits of what tenants share are counted for the tenant that had them.
        """
        others = set(GROUPS) - {"tenant", by}
        chosen = any(getattr(self, name) is not None for name in others)
        return by != "namespace" and not chosen and self.tenant != names.SHARED_TENANT


class CacheKeeper:
    """Counts and purges kept answers, for operators. Raises StoreError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def stats(self, by: Group, which: Which) -> list[Kept]:
        """Return what is kept, by group. Raises ValueError where there are too many to count."""
        found: dict[str, Kept] = {}
        for tenant, entries in (await self._entries(which)).items():
            for part in batches(entries):
                keys = [names.answer(tenant, entry.split(" ")[0])[0] for entry in part]
                sizes = await asyncio.gather(*[self._client.call("STRLEN", key) for key in keys])
                for entry, size in zip(part, sizes, strict=True):
                    group = _about(tenant, entry)[by]
                    row = found.setdefault(group, Kept(group))
                    row.answers += 1 if size else 0
                    row.bytes += size
        if which.hits_are_counted(by):
            await self._add_hits(found, by, which)
        return sorted(found.values(), key=lambda row: row.group)

    async def _add_hits(self, found: dict[str, Kept], by: Group, which: Which) -> None:
        fields = {"by": by, "month": this_month()}
        if which.tenant is not None:
            fields["tenant"] = which.tenant
        for row in found.values():
            if by != "tenant" or row.group != names.SHARED_TENANT:
                row.hits = row.saved_microusd = 0
        for used in await UsageReader(self._client).read(Query.of(fields)):
            group = used.group or used.tenant
            chosen = getattr(which, by)
            if used.cache_hits and chosen in (None, group):
                row = found.setdefault(group, Kept(group))
                row.hits = (row.hits or 0) + used.cache_hits
                row.saved_microusd = (row.saved_microusd or 0) + used.saved_microusd

    async def purge(self, which: Which) -> int:
        """Delete answers, everywhere within a second; return how many there were."""
        count, sizes = 0, await self._sizes()
        await self._client.call("INCR", names.CACHE_VERSION)  # nothing older is kept from now on
        for tenant, entries in (await self._entries(which)).items():
            for part in batches(entries):
                found = {entry.split(" ")[0] for entry in part}
                keys = [names.answer(tenant, name)[0] for name in found]
                count += await self._client.call("DEL", *keys)
                for size in sizes:
                    questions = [names.vector(size, tenant, name) for name in found]
                    await self._client.call("DEL", *questions)
                await self._client.call("ZREM", names.answers(tenant), *part)
        await self._client.call("INCR", names.CACHE_VERSION)  # and none is in anybody's memory
        return count

    async def _sizes(self) -> list[int]:
        """Return how long the vectors of questions are, where Redis searches them."""
        if self._client.clustered:
            return []
        try:
            indexes = await self._client.call("FT._LIST")
        except StoreError:  # it does not
            return []
        found = [index.decode() for index in indexes]
        prefix = names.VECTORS
        return [int(name.removeprefix(prefix)) for name in found if name.startswith(prefix)]

    async def _entries(self, which: Which) -> dict[str, list[str]]:
        if which.tenant is not None:
            tenants = [which.tenant]
        else:
            known = await self._client.call("SMEMBERS", names.TENANTS)
            tenants = [*sorted(name.decode() for name in known), names.SHARED_TENANT]
        found = {}
        for tenant in tenants:
            entries = await self._client.call("ZRANGE", names.answers(tenant), 0, -1)
            texts = [entry.decode() for entry in entries]
            meant = [one for one in texts if which.means(_about(tenant, one))]
            if meant:
                found[tenant] = meant
        return found


def _about(tenant: str, entry: str) -> dict[str, str]:
    _, namespace, model, key = entry.split(" ")
    return {
        "tenant": tenant,
        "namespace": "" if namespace == "-" else namespace,
        "model": unquote(model),
        "key": unquote(key),
    }
