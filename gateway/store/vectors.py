"""Where questions that were answered are found by their meaning: in Redis's search, or in memory.

A question is only ever compared with those of its scope: one tenant, one model, one system prompt,
one set of tools, one conversation before it. Imported where the semantic cache is configured.
"""

import asyncio
import heapq
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.core.errors import StoreError
from gateway.store import names, scripts
from gateway.store.answers import NONCE_BYTES, Place
from gateway.store.client import Client

FIND_SECONDS = 0.5
# What Redis takes for a question: its vector in the hash and in the index, and what joins them.
COPIES, ROW_BYTES = 2, 1024
NOWHERE = Place("", "", b"", "", ("", ""), b"")

logger = logging.getLogger("sluice.cache")

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Place).decode


class Near(NamedTuple):
    """The nearest question that was answered: where its answer is, and how alike they are."""

    place: Place
    likeness: float


class Index(Protocol):
    """Finds the nearest question of a scope."""

    async def add(self, scope: bytes, vector: Any, place: Place, seconds: float) -> None:
        """Remember a question for so long."""
        ...

    async def nearest(self, scope: bytes, vector: Any) -> Near | None:
        """Return the nearest one, if there is any."""
        ...

    def drop(self, scope: bytes, vector: Any, place: Place) -> None:
        """Forget a question whose answer is gone."""
        ...

    def empty(self) -> None:
        """Forget what this worker remembers."""
        ...


class _Scope:
    """The questions of one scope, a row each.

    Rows are changed by the event loop while threads compare. A comparison finds which row is
    nearest; that row's own vector then says how alike it is, with the lock held, so that no place
    is told for the vector that another had before.
    """

    def __init__(self, size: int) -> None:
        self._rows = np.zeros((1, size), dtype=np.float32)
        self._until = np.zeros(1)
        self._places: list[Place] = []
        self._numbers: dict[str, int] = {}  # which row a place's name has
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def add(self, vector: Any, place: Place, until: float) -> None:
        """Put a question in its row, or in a new one."""
        with self._lock:
            row = self._numbers.get(place.name)
            if row is None:
                row = self._numbers[place.name] = len(self._places)
                self._places.append(NOWHERE)
                if row == len(self._rows):
                    self._resize(row, 2 * row)
            self._rows[row], self._until[row], self._places[row] = vector, until, place

    def drop(self, name: str) -> None:
        """Free a row; the last one takes its place."""
        with self._lock:
            row = self._numbers.pop(name)
            last = self._places.pop()
            count = len(self._places)
            if row < count:
                self._rows[row], self._until[row] = self._rows[count], self._until[count]
                self._places[row], self._numbers[last.name] = last, row
            self._until[count] = 0
            if 0 < count * 4 <= len(self._rows):
                self._resize(count, 2 * count)

    def _resize(self, count: int, rows: int) -> None:
        """Have room for so many rows; whoever compares at the moment has the old ones."""
        for name in ("_rows", "_until"):
            old = getattr(self, name)
            new = np.zeros((rows, *old.shape[1:]), dtype=old.dtype)
            new[:count] = old[:count]
            setattr(self, name, new)

    def nearest(self, vector: Any, now: float) -> Near | None:
        """Return the nearest question that is kept by now, if there is any."""
        with self._lock:
            count = len(self._places)
            rows, until = self._rows[:count], self._until[:count]
        if not count:
            return None
        best = int(np.argmax(np.where(until > now, rows @ vector, -1.0)))
        with self._lock:
            if best >= len(self._places) or self._until[best] <= now:
                return None
            likeness = float(self._rows[best] @ vector)
            return Near(self._places[best], likeness) if likeness > 0 else None


class MemoryIndex:
    """A worker's own index: so many questions in all. Where there are more the oldest goes."""

    def __init__(self, entries: int, clock: Callable[[], float]) -> None:
        self._entries, self._clock = entries, clock
        self._scopes: dict[bytes, _Scope] = {}
        # Until when each is kept, by scope and name, the oldest first; and by when they are over,
        # where some may be kept no more, or for longer.
        self._kept: dict[tuple[bytes, str], float] = {}
        self._endings: list[tuple[float, bytes, str]] = []

    async def add(self, scope: bytes, vector: Any, place: Place, seconds: float) -> None:
        """Remember a question for so long."""
        now = self._clock()
        self._free(now)
        question, until = (scope, place.name), now + seconds
        known = self._kept.pop(question, None) is not None
        if not known and len(self._kept) >= self._entries:
            self._remove(next(iter(self._kept)))
        self._kept[question] = until
        heapq.heappush(self._endings, (until, *question))
        if len(self._endings) > 2 * self._entries:
            self._endings = [(end, *which) for which, end in self._kept.items()]
            heapq.heapify(self._endings)
        found = self._scopes.get(scope)
        if found is None:
            found = self._scopes[scope] = _Scope(vector.size)
        found.add(vector, place, until)

    async def nearest(self, scope: bytes, vector: Any) -> Near | None:
        """Return the nearest one, off the event loop."""
        now = self._clock()
        self._free(now)
        found = self._scopes.get(scope)
        return await asyncio.to_thread(found.nearest, vector, now) if found is not None else None

    def drop(self, scope: bytes, vector: Any, place: Place) -> None:
        """Forget a question whose answer is gone."""
        if (scope, place.name) in self._kept:
            self._remove((scope, place.name))

    def empty(self) -> None:
        """Forget everything."""
        for kept in (self._scopes, self._kept, self._endings):
            kept.clear()

    def _free(self, now: float) -> None:
        """Forget what is over."""
        while self._endings and self._endings[0][0] <= now:
            until, scope, name = heapq.heappop(self._endings)
            if self._kept.get((scope, name)) == until:
                self._remove((scope, name))

    def _remove(self, question: tuple[bytes, str]) -> None:
        scope, name = question
        del self._kept[question]
        found = self._scopes[scope]
        found.drop(name)
        if not found:
            del self._scopes[scope]


class RedisIndex:
    """Redis's, or Valkey's, own search. What opens an answer is sealed with its scope.

    `take` tells whether Redis has room for so many bytes, and takes them.
    """

    def __init__(self, client: Client, take: Callable[[int], bool]) -> None:
        self._client, self._take = client, take
        self._made: set[int] = set()

    @classmethod
    async def offered(cls, client: Client, take: Callable[[int], bool]) -> "RedisIndex | None":
        """Return the index if this Redis has one that can be used."""
        if client.clustered:
            return None
        try:
            await client.call("FT._LIST")
        except StoreError:
            return None
        index = cls(client, take)
        try:
            await index._make(1)
        except StoreError as error:  # some search their first database alone
            logger.warning("Redis's search is not used: %s", error)
            return None
        return index

    async def add(self, scope: bytes, vector: Any, place: Place, seconds: float) -> None:
        """Remember a question, if its answer is kept, and for as long as that is."""
        size = vector.size
        if not self._take(ROW_BYTES + COPIES * vector.nbytes):
            return
        await self._make(size)
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + AESGCM(scope[-32:]).encrypt(nonce, _pack(place), None)
        keys = [place.keys[0], names.vector(size, place.tenant, place.name)]
        args = (_tag(scope).encode(), vector.tobytes(), sealed)
        self._client.run(scripts.CACHE_LEARN, keys, args, lambda _: None)

    async def nearest(self, scope: bytes, vector: Any) -> Near | None:
        """Return the nearest one."""
        size = vector.size
        query = f"(@scope:{{{_tag(scope)}}})=>[KNN 1 @vector $v AS far]"
        words = ("PARAMS", 2, "v", vector.tobytes(), "RETURN", 2, "far", "place", "DIALECT", 2)
        try:
            async with asyncio.timeout(FIND_SECONDS):
                await self._make(size)
                reply = await self._client.call("FT.SEARCH", names.vectors(size), query, *words)
        except StoreError:
            self._made.discard(size)  # it may be gone
            return None
        except TimeoutError:
            return None
        if not reply or not reply[0] or not reply[2]:  # a hash may expire as it is found
            return None
        fields = dict(zip(reply[2][::2], reply[2][1::2], strict=True))
        sealed = fields[b"place"]
        try:
            data = AESGCM(scope[-32:]).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        except InvalidTag:
            return None
        return Near(_unpack(data), 1.0 - float(fields[b"far"]))

    def drop(self, scope: bytes, vector: Any, place: Place) -> None:
        """Forget a question whose answer is gone."""
        self._client.post("DEL", names.vector(vector.size, place.tenant, place.name))

    def empty(self) -> None:
        """Do nothing: a purge deletes what it means."""

    async def _make(self, size: int) -> None:
        """Have an index of vectors that are so long. Raises StoreError."""
        if size in self._made:
            return
        words = (
            *("FT.CREATE", names.vectors(size)),
            *("ON", "HASH", "PREFIX", 1, names.vector_prefix(size), "SCHEMA"),
            *("scope", "TAG", "vector", "VECTOR", "HNSW", 6, "TYPE", "FLOAT32"),
            *("DIM", size, "DISTANCE_METRIC", "COSINE"),
        )
        try:
            await self._client.call(*words)
        except StoreError as error:
            if "already exists" not in str(error):
                raise
        self._made.add(size)


def _tag(scope: bytes) -> str:
    return scope[:20].hex()
