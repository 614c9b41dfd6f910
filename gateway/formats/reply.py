"""What a client dialect's reply says beyond what the provider said, and how streams are written."""

from typing import Protocol

import msgspec
from msgspec import Raw

from gateway.core.errors import ApiError
from gateway.core.events import Event


class Meta(msgspec.Struct, frozen=True):
    """`id` and `model` stand in where the provider gave none; `created` is Unix seconds.

    `wants_usage`: a chat stream's client has asked for it. `prompt_tokens` is our estimate, for
    dialects that begin a stream with it; `echo` the request's fields, for those that repeat them.
    """

    id: str
    model: str
    created: int
    wants_usage: bool = True
    prompt_tokens: int = 0
    echo: dict[str, Raw] = {}


def is_whole(arguments: list[str]) -> bool:
    """Tell whether the pieces of a call's arguments need no more: they are a JSON object."""
    try:
        msgspec.json.decode("".join(arguments), type=dict[str, Raw])
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


class StreamWriter(Protocol):
    """Writes one stream's events in a client's dialect."""

    def write(self, found: list[Event]) -> bytes:
        """Return what the client may have of these events."""
        ...

    def finish(self) -> bytes:
        """Return the stream's end."""
        ...

    def error(self, error: ApiError) -> bytes:
        """Return what ends a stream that failed."""
        ...
