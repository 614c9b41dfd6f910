"""What every provider's file supplies: plain functions over bytes and values. No I/O, no clock."""

from typing import Protocol

import msgspec

from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage


class Endpoint(msgspec.Struct, frozen=True):
    """Where an operation lives at a target, and the headers that never change for it."""

    path: str
    headers: tuple[tuple[str, str], ...]


class StreamDecoder(Protocol):
    """Reads one attempt's stream, event by event, in the client's own dialect.

    `done`: the end marker was seen; `finished`: the model said it is finished; `failure`: the text
    of an error event. `attention` is set when one of these, or a lot of untaken text, wants
    looking at. `text_bytes` is how much text was generated so far.
    """

    usage: Usage | None
    done: bool
    finished: bool
    attention: bool
    text_bytes: int
    failure: str | None

    def feed(self, data: bytes) -> bytes:
        """Take any split of the stream; return what the client may have now."""
        ...

    def repeats(self, frame: bytes) -> bool:
        """Take an HTTP chunk, framing and all, if it is one event that may pass as it is.

        False leaves it to `feed`; an adapter may always say so.
        """
        ...

    def take_text(self) -> str:
        """Return the text generated since the last call, for a count where no usage arrives."""
        ...

    def finish(self) -> bytes:
        """Return the bytes that end the stream for the client."""
        ...


class Adapter(Protocol):
    """One provider's wire format."""

    @property
    def operations(self) -> frozenset[Operation]:
        """Return what the provider can do."""
        ...

    def endpoint(self, operation: Operation, target: Target) -> Endpoint:
        """Say where to send an operation. Asked once a target."""
        ...

    def listing(self, target: Target) -> Endpoint:
        """Say where a target lists its models."""
        ...

    def parse_listing(self, body: bytes) -> list[str]:
        """Return the models' names; none where the reply is of another shape."""
        ...

    def build(self, request: Request, target: Target) -> bytes:
        """Return the request body."""
        ...

    def parse_usage(self, body: bytes) -> Usage | None:
        """Read the usage of a whole reply; None where it reports none."""
        ...

    def parse_text(self, body: bytes) -> str:
        """Return the generated text of a whole reply, for a count where no usage is reported."""
        ...

    def parse_error(self, body: bytes) -> str | None:
        """Return the message of an error reply; None where it is not this provider's shape."""
        ...

    def decoder(self, request: Request) -> StreamDecoder:
        """Return a fresh stream decoder for one attempt."""
        ...
