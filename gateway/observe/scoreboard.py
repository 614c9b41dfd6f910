"""The shared memory in which workers publish their totals, made before they are forked.

Each process writes one segment; any may read all. A segment outlives its writer until the
supervisor retires it into the common sum, so a scrape never goes backwards when a worker dies.
"""

import mmap
import struct
from collections.abc import Collection

from gateway.observe.folding import add_ended
from gateway.observe.series import Totals, decode, encode

SEGMENT_BYTES = 4 * 1024 * 1024  # untouched pages cost nothing; a model's labels take 730 bytes
HALF_BYTES = SEGMENT_BYTES // 2
RETIRED = 0  # the segment of the sum of those whose workers have ended

# A version and a length for each half. The newest content is in half `version % 2`; a writer fills
# the other one and then raises the version, so one that dies while writing has changed nothing.
_VERSION = struct.Struct("<Q")
_HEADER = struct.Struct("<QQQ")
_LENGTHS = struct.Struct("<QQ")
_READ_TRIES = 100


class Scoreboard:
    """So many segments: one for each worker that may live, and the retired sum. Raises OSError."""

    def __init__(self, segments: int) -> None:
        self.segments = segments
        # Behind them: how often the supervisor has begun or ended to retire one. Odd: it is at it.
        self._retirements_at = segments * SEGMENT_BYTES
        self._memory = mmap.mmap(-1, self._retirements_at + _VERSION.size)

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
        # By assignment: `pack_into` writes zeros first, which a reader would see.
        self._memory[start + _VERSION.size : start + _HEADER.size] = _LENGTHS.pack(*lengths)
        self._set(start, version + 1)
        return True

    def _set(self, at: int, number: int) -> None:
        self._memory[at : at + _VERSION.size] = _VERSION.pack(number)

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
        for _ in range(_READ_TRIES):
            begun = self._retirements()
            total = Totals()
            total.merge(own_totals)
            for segment in range(self.segments):
                if segment != own and (totals := self.read(segment)) is not None:
                    total.merge(totals)
            if begun % 2 == 0 and self._retirements() == begun:
                break  # nothing was moved meanwhile
        return total

    def _retirements(self) -> int:
        count: int = _VERSION.unpack_from(self._memory, self._retirements_at)[0]
        return count

    def retire(self, segment: int, configured: Collection[str] = ()) -> None:
        """Add a dead worker's counts to the retired sum and clear its segment.

        `configured`: the models whose names nobody made up.
        """
        totals = self.read(segment)
        self._set(self._retirements_at, self._retirements() + 1)
        if totals is not None:
            totals.gauges = {}
            retired = self.read(RETIRED) or Totals()
            self.publish(RETIRED, add_ended(retired, totals, configured))
        self.clear(segment)
        self._set(self._retirements_at, self._retirements() + 1)

    def clear(self, segment: int) -> None:
        """Empty a segment."""
        _HEADER.pack_into(self._memory, segment * SEGMENT_BYTES, 0, 0, 0)
