"""What Redis has yet to be told, as lines of a spool: the entries and their encoding."""

import logging
from collections import deque
from pathlib import Path

import msgspec

from gateway.policy.limits import Spec
from gateway.spool import Spool
from gateway.store.lease import Holding, Settlement

logger = logging.getLogger("sluice.store")


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """A request that was admitted without Redis; `holding` is what its lease is to hold.

    `took` is what it has of rates and budgets (keys, sorts, amounts), since `at` (Unix seconds).
    """

    tenant: str
    lease: str
    holding: msgspec.Raw
    took: tuple[tuple[str, Spec, int], ...] = ()
    at: float = 0.0


class Grown(msgspec.Struct, frozen=True, tag="grown"):
    """A request that reserved more of its budgets without Redis: what its lease is to hold now."""

    tenant: str
    lease: str
    holding: Holding
    budgets: tuple[tuple[str, Spec], ...]


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """What became of a request; `began`: when it was admitted without Redis, 0 if it was not."""

    settlement: Settlement
    began: float = 0.0


Entry = Opened | Grown | Settled

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Journal(Spool):
    """A worker's spool of entries."""

    def __init__(self, directory: Path, name: str, most_bytes: int) -> None:
        super().__init__(directory, name, most_bytes)
        self._missed: deque[str] = deque()

    @property
    def writing(self) -> bool:
        """Tell whether entries are still on their way to the disk."""
        return self._queued > 0

    def enter(self, entry: Entry) -> int:
        """Queue an entry; return how many bytes are `written` once it is."""
        return self.write(_encode(entry) + b"\n")

    def missed(self) -> list[str]:
        """Return the leases of entries that the disk did not take, since this was last asked."""
        return [self._missed.popleft() for _ in range(len(self._missed))]

    def _lose(self, lines: bytes, why: object) -> None:
        super()._lose(lines, why)
        for entry in entries(lines.splitlines()):
            if isinstance(entry, Opened):
                self._missed.append(entry.lease)
            elif isinstance(entry, Settled):
                self._missed.append(entry.settlement.lease)


def entries(lines: list[bytes]) -> list[Entry]:
    """Decode what was written, without what a crash has cut short."""
    found: list[Entry] = []
    for line in lines:
        try:
            found.append(_decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.warning("a line of the journal cannot be read")
    return found
