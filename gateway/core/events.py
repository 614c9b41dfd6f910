"""What happens in a stream, as no provider and no client writes it: the hub's other half."""

import msgspec
from msgspec import Raw

from gateway.core.usage import Usage


class Begun(msgspec.Struct, frozen=True, gc=False):
    """The reply has a name and a model."""

    id: str = ""
    model: str = ""


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """More text."""

    text: str
    logprobs: Raw | None = None


class RefusalDelta(msgspec.Struct, frozen=True, gc=False):
    """More of the model's words of refusal."""

    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, gc=False):
    """More thought. `block` tells one block from the next."""

    text: str
    block: int = 0


class ThinkingSigned(msgspec.Struct, frozen=True, gc=False):
    """A block of thought has its signature, or is one that only its provider can read."""

    signature: str = ""
    redacted: str = ""
    block: int = 0


class CallBegun(msgspec.Struct, frozen=True, gc=False):
    """A tool call; `index` counts calls from 0."""

    index: int
    id: str
    name: str
    signature: str = ""


class CallDelta(msgspec.Struct, frozen=True, gc=False):
    """More of a tool call's arguments, as JSON text."""

    index: int
    arguments: str


class OtherDelta(msgspec.Struct, frozen=True, gc=False):
    """More of what the model writes for a tool that only its provider has: it counts, no more."""

    text: str


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The model has ended. `odd`: for a reason that nobody here knows, so `reason` is a guess."""

    reason: str
    stop_sequence: str = ""
    odd: bool = False


class Used(msgspec.Struct, frozen=True, gc=False):
    """What was used, so far or in all; the last one counts."""

    usage: Usage


class Failed(msgspec.Struct, frozen=True, gc=False):
    """The provider says that it failed; `body` is its error as JSON."""

    body: str


class Ended(msgspec.Struct, frozen=True, gc=False):
    """Nothing follows."""


Event = (
    Begun
    | TextDelta
    | RefusalDelta
    | ThinkingDelta
    | ThinkingSigned
    | CallBegun
    | CallDelta
    | OtherDelta
    | Finished
    | Used
    | Failed
    | Ended
)
