"""What Redis has yet to be told, as lines of a spool: the entries and their encoding."""

import logging

import msgspec

from gateway.spool import Spool
from gateway.store.lease import Settlement

logger = logging.getLogger("sluice.store")


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """A request that was admitted without Redis; `holding` is what its lease is to hold."""

    tenant: str
    lease: str
    holding: msgspec.Raw


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """What became of a request."""

    settlement: Settlement


Entry = Opened | Settled

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Journal(Spool):
    """A worker's spool of entries."""

    def enter(self, entry: Entry) -> None:
        """Queue an entry."""
        self.write(_encode(entry) + b"\n")


def entries(lines: list[bytes]) -> list[Entry]:
    """Decode what was written, without what a crash has cut short."""
    found: list[Entry] = []
    for line in lines:
        try:
            found.append(_decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.warning("a line of the journal cannot be read")
    return found
