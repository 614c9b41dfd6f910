"""Hot path: a worker's own tier of kept answers, bounded in bytes and entries, newest used first.

aiocache's interface over a store that has a bound: its own memory backend has none. The hot path
uses `peek` and `put`, which need no await. Imported where a cache is configured.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from aiocache.base import SENTINEL, BaseCache
from aiocache.serializers import NullSerializer


class Sized(Protocol):
    """What can be kept: how many bytes it takes, and until when it is good by the clock."""

    size: int
    until: float


class MemoryTier(BaseCache):  # type: ignore[misc]
    """Keeps values by name until their time, or until others need the room."""

    NAME = "sluice-memory"

    def __init__(self, most_bytes: int, most_entries: int, clock: Callable[[], float]) -> None:
        super().__init__(serializer=NullSerializer(), timeout=0)
        self._most_bytes, self._most_entries, self._clock = most_bytes, most_entries, clock
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def peek(self, name: str) -> Any:
        """Return a value, or None."""
        found = self._kept.get(name)
        if found is None:
            return None
        if found.until <= self._clock():
            self.drop(name)
            return None
        self._kept.move_to_end(name)
        return found

    def put(self, name: str, value: Sized) -> bool:
        """Keep a value; False where it alone would take too much of the room."""
        if not self._most_bytes:
            return False
        self.drop(name)
        if value.size * 4 > self._most_bytes:
            return False
        self._kept[name] = value
        self.bytes += value.size
        self._make_room()
        return True

    def grown(self, name: str, value: Sized, more: int) -> None:
        """Know that a value takes more room than before."""
        if self._kept.get(name) is value:
            value.size += more
            self.bytes += more
            self._make_room()

    def drop(self, name: str) -> bool:
        """Forget a value; tell whether there was one."""
        found = self._kept.pop(name, None)
        if found is None:
            return False
        self.bytes -= found.size
        return True

    def empty(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.bytes = 0

    def _make_room(self) -> None:
        while self.bytes > self._most_bytes or len(self._kept) > self._most_entries:
            _, gone = self._kept.popitem(last=False)
            self.bytes -= gone.size

    async def _get(self, key: str, encoding: str | None = None, _conn: Any = None) -> Any:
        return self.peek(key)

    async def _multi_get(
        self, keys: list[str], encoding: str | None = None, _conn: Any = None
    ) -> list[Any]:
        return [self.peek(key) for key in keys]

    async def _set(
        self, key: str, value: Any, ttl: Any = SENTINEL, _cas_token: Any = None, _conn: Any = None
    ) -> bool:
        if ttl not in (None, SENTINEL):
            value.until = self._clock() + ttl
        return self.put(key, value)

    async def _exists(self, key: str, _conn: Any = None) -> bool:
        return self.peek(key) is not None

    async def _delete(self, key: str, _conn: Any = None) -> int:
        return int(self.drop(key))

    async def _clear(self, namespace: str | None = None, _conn: Any = None) -> bool:
        for name in [name for name in self._kept if name.startswith(namespace or "")]:
            self.drop(name)
        return True
