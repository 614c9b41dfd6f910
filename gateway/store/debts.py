"""Which processes of a gateway decide what Redis has yet to hear, in memory that they share.

Each decides by its share of the limits while Redis is away. Redis decides again once it has heard
of all of that: until then nobody asks it, and from one moment on everybody does.
"""

import mmap
import os
import struct

# A process's id, and since when it has had something to tell (monotonic seconds); 0.0: nothing.
_DEBT = struct.Struct("<qd")
_AGREED = struct.Struct("<d")

Debt = tuple[int, float]


def size_of(processes: int) -> int:
    """Return how much memory so many need."""
    return _AGREED.size + processes * _DEBT.size


class Debts:
    """One process's view of them; `own` is its number among all that there may be."""

    def __init__(self, memory: mmap.mmap, start: int, processes: int, own: int) -> None:
        self._memory, self._start, self._processes = memory, start, processes
        self._here = start + _AGREED.size + own * _DEBT.size
        self._own = own
        self._pid = os.getpid()
        self.pay()

    def owe(self, since: float) -> None:
        """Know that this one has something to tell, and since when."""
        if not _DEBT.unpack_from(self._memory, self._here)[1]:
            _DEBT.pack_into(self._memory, self._here, self._pid, since)

    def pay(self) -> None:
        """Know that this one has nothing to tell."""
        _DEBT.pack_into(self._memory, self._here, self._pid, 0.0)

    def others(self) -> frozenset[Debt]:
        """Return the debts of other processes that live: what the dead had to tell is on disk."""
        first = self._start + _AGREED.size
        debts = _DEBT.iter_unpack(self._memory[first : first + self._processes * _DEBT.size])
        return frozenset(
            [
                (number, since)
                for number, (pid, since) in enumerate(debts)
                if since and number != self._own and _lives(pid)
            ]
        )

    @property
    def agreed(self) -> float:
        """Return the moment from which Redis decides again, as one has found last."""
        return float(_AGREED.unpack_from(self._memory, self._start)[0])

    def agree(self, at: float) -> None:
        """Have Redis decide again from a moment on (monotonic seconds)."""
        _AGREED.pack_into(self._memory, self._start, at)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
