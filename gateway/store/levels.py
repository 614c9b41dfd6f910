"""What the workers of a gateway know of limits, in memory that they share, for when Redis is away.

Made before they are forked. Each tells what it has heard of a limit; so another one that is asked
while Redis is away, and has heard nothing, does not take it for untouched. What is left of a share
belongs to the slot: whoever serves in it, also beside one that is about to end, takes of the same.
"""

import mmap
import struct
from collections.abc import Iterator

from gateway.store import debts
from gateway.store.debts import Debts

COMMON_ENTRIES, OWN_ENTRIES = 2**15, 2**15  # some 10,000 limits a worker, whose hashes may collide
PROBES = 16
NEVER = -1.0

# The hash of a limit's key, an amount, since when it is so (monotonic microseconds), the limit's
# capacity then, a check.
_ENTRY = struct.Struct("<qdqqq")
# Of all workers everywhere, how many there are.
_LIVE = struct.Struct("<q")
# Of a slot: its worker's place among them, from 1 on; since when Redis alone decides.
_SLOT = struct.Struct("<qd")


class Table:
    """Amounts by key, in a part of shared memory; the oldest go where there is no place.

    Keys are known by their hashes, which are alike in forked processes.
    """

    def __init__(self, memory: mmap.mmap, start: int, entries: int) -> None:
        self._memory, self._start, self._mask = memory, start, entries - 1

    def put(self, key: str, amount: float, at: float, capacity: int) -> None:
        """Write an amount and its moment (monotonic seconds), unless there is a newer one."""
        name, moment = hash(key), int(at * 1e6)
        oldest, place = moment, -1
        for here in self._places(name):
            found, _, since, _, _ = _ENTRY.unpack_from(self._memory, here)
            if found == name:
                if since > moment:
                    return
                place = here
                break
            if since < oldest:
                oldest, place = since, here
            if not found:
                break
        if place >= 0:
            check = _check(name, moment, capacity)
            _ENTRY.pack_into(self._memory, place, name, amount, moment, capacity, check)

    def get(self, key: str) -> tuple[float, float, int] | None:
        """Return an amount, since when it is so, and the limit's capacity then."""
        name = hash(key)
        for here in self._places(name):
            found, amount, since, capacity, check = _ENTRY.unpack_from(self._memory, here)
            if found == name:
                whole = check == _check(found, since, capacity)
                return (amount, since / 1e6, capacity) if whole else None
            if not found:
                break
        return None

    def _places(self, name: int) -> Iterator[int]:
        """Give the places a hash may have, far apart: what is side by side would grow together."""
        step = name >> 32 | 1
        for i in range(PROBES):
            yield self._start + (name + i * step & self._mask) * _ENTRY.size


def _check(name: int, moment: int, capacity: int) -> int:
    """Return what tells a whole entry from one that is being written."""
    return name ^ moment ^ capacity


class Levels:
    """One worker's view, in its slot. See `gateway.policy.share.Shared`.

    `process`: its number among all processes, of which a slot may have two.
    """

    def __init__(
        self, memory: mmap.mmap, slot: int, workers: int, process: int | None = None
    ) -> None:
        self._memory, self._slot, self._workers = memory, slot, workers
        slots = _slots_of(memory)
        self._here = _LIVE.size + slot * _SLOT.size
        commons = _LIVE.size + slots * _SLOT.size
        own = commons + COMMON_ENTRIES * _ENTRY.size + slot * OWN_ENTRIES * _ENTRY.size
        self._common = Table(memory, commons, COMMON_ENTRIES)
        self._own = Table(memory, own, OWN_ENTRIES)
        start = len(memory) - debts.size_of(slots)
        self.debts = Debts(memory, start, slots, slot if process is None else process)
        (place, _) = _SLOT.unpack_from(memory, self._here)
        self._new = not place and bool(self.debts.others())

    @property
    def has_none(self) -> bool:
        """Tell whether limits were divided among others before anybody was in this slot."""
        return self._new

    @property
    def live(self) -> int:
        """Return how many workers there are everywhere, as last counted here."""
        return _LIVE.unpack_from(self._memory)[0] or self._workers

    @property
    def place(self) -> int:
        """Return the place among them, from 0 on, of this worker or of the last one in its slot."""
        (place, _) = _SLOT.unpack_from(self._memory, self._here)
        return place - 1 if place else self._slot

    def counted(self, place: int, live: int) -> None:
        """Note this worker's place among all, and how many there are."""
        _LIVE.pack_into(self._memory, 0, live)
        (_, told) = _SLOT.unpack_from(self._memory, self._here)
        _SLOT.pack_into(self._memory, self._here, place + 1, told)

    def tell(self, key: str, level: float, at: float, capacity: int) -> None:
        """Let the others know what Redis has said of a limit."""
        self._common.put(key, level, at, capacity)

    def heard(self, key: str) -> tuple[float, float, int] | None:
        """Return what any worker has heard last of a limit, when, and of which capacity."""
        return self._common.get(key)

    def keep(self, key: str, left: float, at: float, capacity: int) -> None:
        """Note what is left of this slot's share of a limit."""
        self._own.put(key, left, at, capacity)

    def left(self, key: str, whose: str) -> tuple[float, float, int] | None:
        """Return what is left of this slot's share, unless Redis has decided alone since then."""
        found = self._own.get(key)
        return found if found is not None and found[1] > self._told(whose) else None

    def told(self, whose: str, at: float) -> None:
        """Know that Redis decides alone over a part: it has heard all of before."""
        self._new = False
        if whose:
            self._own.put(_told_key(whose), 0.0, at, 0)
            return
        (place, _) = _SLOT.unpack_from(self._memory, self._here)
        _SLOT.pack_into(self._memory, self._here, place, at)

    def _told(self, whose: str) -> float:
        if whose:
            found = self._own.get(_told_key(whose))
            return found[1] if found is not None else NEVER
        (_, at) = _SLOT.unpack_from(self._memory, self._here)
        return float(at)


def _told_key(whose: str) -> str:
    return f"told {whose}"


def _slot_size() -> int:
    return _SLOT.size + OWN_ENTRIES * _ENTRY.size + debts.size_of(1) - debts.size_of(0)


def _slots_of(memory: mmap.mmap) -> int:
    common = _LIVE.size + COMMON_ENTRIES * _ENTRY.size + debts.size_of(0)
    return (len(memory) - common) // _slot_size()


def shared_memory(slots: int) -> mmap.mmap:
    """Return the memory for so many workers; pages that nobody touches cost nothing.

    Raises OSError.
    """
    common = _LIVE.size + COMMON_ENTRIES * _ENTRY.size + debts.size_of(0)
    return mmap.mmap(-1, common + slots * _slot_size())
