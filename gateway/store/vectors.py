"""Where questions that were answered are found by their meaning: in Redis's search, or in memory.

A question is only ever compared with those of its scope: one tenant, one model, one system prompt,
one set of tools, one conversation before it. Imported where the semantic cache is configured.
"""

import asyncio
import logging
import os
import threading
from collections import OrderedDict
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

MAX_SCOPES = 1000
FIRST_ROWS = 16
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
    """The questions of one scope: a row each; a new one takes the place of the oldest.

    Rows are added by the event loop while threads compare. A comparison finds which row is nearest;
    that row's own vector then says how alike it is, with the lock held, so that no place is told
    for the vector that another had before.
    """

    def __init__(self, most: int, size: int) -> None:
        self._most = most
        self._rows = np.zeros((min(FIRST_ROWS, most), size), dtype=np.float32)
        self._until = np.zeros(len(self._rows))
        self._places: list[Place] = []
        self._next = 0
        self._lock = threading.Lock()

    def add(self, vector: Any, place: Place, until: float) -> None:
        with self._lock:
            row = self._free_row(vector.size)
            self._rows[row], self._until[row], self._places[row] = vector, until, place

    def _free_row(self, size: int) -> int:
        count = len(self._places)
        if count == self._most:
            row, self._next = self._next, (self._next + 1) % self._most
            return row
        if count == len(self._rows):
            more = min(count, self._most - count)
            self._rows = np.vstack((self._rows, np.zeros((more, size), dtype=np.float32)))
            self._until = np.concatenate((self._until, np.zeros(more)))
        self._places.append(NOWHERE)
        return count

    def drop(self, place: Place) -> None:
        with self._lock:
            gone = [row for row, one in enumerate(self._places) if one.name == place.name]
            self._until[gone] = 0

    def nearest(self, vector: Any, now: float) -> Near | None:
        """Return the nearest question that is kept by now, if there is any."""
        with self._lock:
            count = len(self._places)
            rows, until = self._rows[:count], self._until[:count]
        if not count:
            return None
        best = int(np.argmax(np.where(until > now, rows @ vector, -1.0)))
        with self._lock:
            likeness = float(self._rows[best] @ vector) if self._until[best] > now else 0.0
            return Near(self._places[best], likeness) if likeness > 0 else None


class MemoryIndex:
    """A worker's own index: so many questions a scope, the newest scopes."""

    def __init__(self, entries: int, clock: Callable[[], float]) -> None:
        self._entries, self._clock = entries, clock
        self._scopes: OrderedDict[bytes, _Scope] = OrderedDict()

    async def add(self, scope: bytes, vector: Any, place: Place, seconds: float) -> None:
        """Remember a question for so long."""
        found = self._scopes.get(scope)
        if found is None:
            if len(self._scopes) >= MAX_SCOPES:
                self._scopes.popitem(last=False)
            found = self._scopes[scope] = _Scope(self._entries, vector.size)
        self._scopes.move_to_end(scope)
        found.add(vector, place, self._clock() + seconds)

    async def nearest(self, scope: bytes, vector: Any) -> Near | None:
        """Return the nearest one, off the event loop."""
        found = self._scopes.get(scope)
        if found is None:
            return None
        self._scopes.move_to_end(scope)
        return await asyncio.to_thread(found.nearest, vector, self._clock())

    def drop(self, scope: bytes, vector: Any, place: Place) -> None:
        """Forget a question whose answer is gone."""
        found = self._scopes.get(scope)
        if found is not None:
            found.drop(place)

    def empty(self) -> None:
        """Forget everything."""
        self._scopes.clear()


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
