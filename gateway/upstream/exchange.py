"""One request and its reply, as those see it who send the one and take the other."""

from typing import Protocol

import msgspec

from gateway.core.errors import UpstreamError

MAX_BODY_BYTES = 64 * 1024 * 1024  # of a reply that is gathered


class Flow(Protocol):
    """The source of a stream, for whoever must slow it down."""

    def pause(self) -> None:
        """Send nothing for now."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...

    def hold(self) -> None:
        """Send nothing until `release`, whatever `resume` says."""
        ...

    def release(self) -> None:
        """Go on, unless paused."""
        ...

    def fail(self, error: UpstreamError) -> None:
        """End the exchange with an error."""
        ...


class Sender(Protocol):
    """Whose request it is."""

    def queued(self, seconds: float) -> None:
        """Know for how long it has waited for a place in a full pool, in vain or not."""
        ...

    def sent(self, waited: float) -> None:
        """Know that the request leaves; `waited` (seconds) for a connection."""
        ...

    def unsent(self) -> None:
        """Know that nobody has it: its connection had ended, and another is to be made."""
        ...


class Sink(Protocol):
    """Takes a streamed body. Its calls may raise UpstreamError, which ends the exchange.

    `careful`: it must be able to stop the stream soon, so that reads stay small.
    """

    careful: bool

    def begin(self, status: int, headers: dict[bytes, bytes], flow: Flow) -> bool:
        """See the head; False means: gather the body instead."""
        ...

    def feed(self, data: bytes) -> bool:
        """Take the next piece of the body; True means: that was all that matters of it."""
        ...

    def feed_frame(self, frame: bytes) -> bool:
        """Take what may be one HTTP chunk with its framing, or leave it to be parsed (False)."""
        ...


class Reply(msgspec.Struct, gc=False):
    """A finished exchange; `body` is empty where a sink took it. Header names are lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    streamed: bool
    first_byte_at: float


class Stale(Exception):
    """A reused connection ended before any byte of the reply: the request was not processed."""
