"""The shared memory in which workers publish their totals, made before they are forked.

Each process writes one segment; any may read all. A segment outlives its writer until the
supervisor retires it into the common sum, so a scrape never goes backwards when a worker dies.
"""

import mmap
import struct

from gateway.observe.series import Totals, decode, encode

SEGMENTS = 128  # a generation of workers, the one it replaces, and then some; 0 is the retired sum
SEGMENT_BYTES = 512 * 1024  # untouched pages cost nothing
RETIRED = 0

_HEADER = struct.Struct("<QQ")  # version (odd while being written), length
_READ_TRIES = 100


class Scoreboard:
    """All segments."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SEGMENTS * SEGMENT_BYTES)

    def publish(self, segment: int, totals: Totals) -> bool:
        """Replace a segment's content; False if it does not fit."""
        data = encode(totals)
        start = segment * SEGMENT_BYTES
        if len(data) > SEGMENT_BYTES - _HEADER.size:
            return False
        version, _ = _HEADER.unpack_from(self._memory, start)
        writing = version + 1 + version % 2
        _HEADER.pack_into(self._memory, start, writing, len(data))
        self._memory[start + _HEADER.size : start + _HEADER.size + len(data)] = data
        _HEADER.pack_into(self._memory, start, writing + 1, len(data))
        return True

    def read(self, segment: int) -> Totals | None:
        """Return a segment's totals; None where it is empty."""
        start = segment * SEGMENT_BYTES
        for _ in range(_READ_TRIES):
            version, length = _HEADER.unpack_from(self._memory, start)
            if version == 0 or length == 0:
                return None
            data = self._memory[start + _HEADER.size : start + _HEADER.size + length]
            if version % 2 == 0 and _HEADER.unpack_from(self._memory, start)[0] == version:
                return decode(data)
        return None  # its writer died while writing

    def sum(self, own: int, own_totals: Totals) -> Totals:
        """Return the sum over all processes, with the caller's newest figures for itself."""
        total = Totals()
        total.merge(own_totals)
        for segment in range(SEGMENTS):
            if segment != own and (totals := self.read(segment)) is not None:
                total.merge(totals)
        return total

    def retire(self, segment: int) -> None:
        """Add a dead worker's counts to the retired sum and clear its segment."""
        totals = self.read(segment)
        if totals is not None:
            totals.gauges = {}
            retired = self.read(RETIRED) or Totals()
            retired.merge(totals)
            self.publish(RETIRED, retired)
        self.clear(segment)

    def clear(self, segment: int) -> None:
        """Empty a segment."""
        _HEADER.pack_into(self._memory, segment * SEGMENT_BYTES, 0, 0)
