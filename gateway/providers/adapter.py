"""What every provider's file supplies: plain functions over bytes and values. No I/O, no clock."""

from typing import Protocol

import msgspec

from gateway.core.errors import ApiError
from gateway.core.events import Event
from gateway.core.messages import Fit, Prompt, Reply
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage

EVENT_STREAM = b"text/event-stream"


class Endpoint(msgspec.Struct, frozen=True):
    """Where an operation lives at a target, and the headers that never change for it.

    `passed_on`: headers of the client's that go along, with what is sent where it has none.
    """

    path: str
    headers: tuple[tuple[str, str], ...]
    passed_on: tuple[tuple[str, str], ...] = ()


class StreamDecoder(Protocol):
    """Reads one attempt's stream, event by event, in the client's own dialect.

    `done`: the end marker was seen; `finished`: the model said it is finished, and `odd`: for a
    reason that nobody here knows; `failure`: the text of an error event. `attention` is set when
    one of these, or a lot of untaken text, wants looking at. `text_bytes` is how much text was
    generated so far, `told_bytes` how much of it when `usage` came.
    """

    usage: Usage | None
    done: bool
    finished: bool
    odd: bool
    attention: bool
    text_bytes: int
    told_bytes: int
    failure: str | None

    @property
    def content_type(self) -> bytes:
        """Return how the provider calls its streams."""
        ...

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

    def close(self) -> bytes:
        """Take what the end of the bytes brings to light; return what the client may have."""
        ...

    def finish(self) -> bytes:
        """Return the bytes that end the stream for the client."""
        ...

    def fail(self, error: ApiError) -> bytes:
        """Return what ends a stream that failed; nothing where the dialect's own event will do."""
        ...


class EventDecoder(Protocol):
    """Reads one attempt's stream into the hub's events."""

    content_type: bytes

    def feed(self, data: bytes) -> list[Event]:
        """Take any split of the stream. Raises UpstreamError where it is past a cap."""
        ...

    def end(self) -> list[Event]:
        """Return what the stream's end brings to light."""
        ...


class Native(Protocol):
    """A client dialect that the provider speaks itself: bodies pass as they are."""

    def endpoint(self, operation: Operation, target: Target, *, stream: bool) -> Endpoint:
        """Say where to send an operation. Asked once a target."""
        ...

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Return the request body, and note what does not fit. Raises ApiError."""
        ...

    def parse_usage(self, body: bytes) -> Usage | None:
        """Read the usage of a whole reply; None where it reports none."""
        ...

    def parse_text(self, body: bytes) -> str:
        """Return the generated text of a whole reply, for a count where no usage is reported."""
        ...

    def decoder(self, request: Request) -> StreamDecoder:
        """Return a fresh stream decoder for one attempt."""
        ...


class Conversation(Protocol):
    """How the hub's prompts are put to a provider, and its replies read."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where to send a prompt. Asked once a target."""
        ...

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Return the request body, and note what does not fit."""
        ...

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply. Raises UpstreamError."""
        ...

    def decoder(self) -> EventDecoder:
        """Return a fresh stream decoder for one attempt."""
        ...


class Embedding(Protocol):
    """How a request for embeddings, as OpenAI writes it, is put to another provider."""

    def endpoint(self, target: Target) -> Endpoint:
        """Say where to send it. Asked once a target."""
        ...

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Return the request body, and note what does not fit. Raises ApiError."""
        ...

    def parse(self, body: bytes, request: Request) -> tuple[bytes, Usage | None]:
        """Return the reply as OpenAI writes it, and what was used. Raises UpstreamError."""
        ...


class Adapter(Protocol):
    """One provider's wire format: what it speaks itself, and how it is spoken to otherwise."""

    @property
    def natives(self) -> dict[Operation, Native]:
        """Return the client dialects that it speaks."""
        ...

    @property
    def conversation(self) -> Conversation | None:
        """Return how to translate conversations for it."""
        ...

    @property
    def embedding(self) -> Embedding | None:
        """Return how to translate embeddings for it."""
        ...

    def listing(self, target: Target) -> Endpoint | None:
        """Say where a target lists its models, if it does."""
        ...

    def parse_listing(self, body: bytes) -> list[str]:
        """Return the models' names; none where the reply is of another shape."""
        ...

    def parse_error(self, body: bytes) -> str | None:
        """Return the message of an error reply; None where there is none to be found."""
        ...
