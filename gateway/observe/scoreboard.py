"""The shared memory in which workers publish their totals, made before they are forked.

Each process writes one segment; any may read all. A segment outlives its writer until the
supervisor retires it into the common sum, so a scrape never goes backwards when a worker dies.
"""

import mmap
import struct

from gateway.observe.series import Totals, decode, encode

SEGMENTS = 128  # a generation of workers, the one it replaces, and then some; 0 is the retired sum
SEGMENT_BYTES = 512 * 1024  # untouched pages cost nothing
HALF_BYTES = SEGMENT_BYTES // 2
RETIRED = 0

# A version and a length for each half. The newest content is in half `version % 2`; a writer fills
# the other one and then raises the version, so one that dies while writing has changed nothing.
_VERSION = struct.Struct("<Q")
_HEADER = struct.Struct("<QQQ")
_READ_TRIES = 100


class Scoreboard:
    """All segments."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SEGMENTS * SEGMENT_BYTES)

    def publish(self, segment: int, totals: Totals) -> bool:
        """Replace a segment's content; False if it does not fit."""
        data = encode(totals)
        start = segment * SEGMENT_BYTES
        if len(data) > HALF_BYTES - _HEADER.size:
            return False
        version, *lengths = _HEADER.unpack_from(self._memory, start)
        half = (version + 1) % 2
        at = start + _HEADER.size + half * (HALF_BYTES - _HEADER.size)
        self._memory[at : at + len(data)] = data
        lengths[half] = len(data)
        _HEADER.pack_into(self._memory, start, version, *lengths)
        _VERSION.pack_into(self._memory, start, version + 1)
        return True

    def read(self, segment: int) -> Totals | None:
        """Return a segment's totals; None where it is empty."""
        start = segment * SEGMENT_BYTES
        for _ in range(_READ_TRIES):
            version, *lengths = _HEADER.unpack_from(self._memory, start)
            half = version % 2
            if version == 0 or lengths[half] == 0:
                return None
            at = start + _HEADER.size + half * (HALF_BYTES - _HEADER.size)
            data = self._memory[at : at + lengths[half]]
            if _VERSION.unpack_from(self._memory, start)[0] == version:
                return decode(data)
        return None

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
        _HEADER.pack_into(self._memory, segment * SEGMENT_BYTES, 0, 0, 0)
