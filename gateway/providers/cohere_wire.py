"""Cohere's replies and streams as they stand on the wire, and what is read from them."""

from typing import Any

import msgspec

from gateway.core import events
from gateway.core.events import Event
from gateway.core.messages import (
    LENGTH,
    STOP,
    TOOL_CALLS,
)
from gateway.core.sse import SseEvent
from gateway.core.usage import Usage
from gateway.providers.decoding import SseDecoder
from gateway.providers.figures import Count, figures

FINISH = {
    "COMPLETE": STOP,
    "STOP_SEQUENCE": STOP,
    "MAX_TOKENS": LENGTH,
    "TOOL_CALL": TOOL_CALLS,
}


# How a call without arguments may say so.
NO_ARGUMENTS = "null"
FAILURES = frozenset(("ERROR", "TIMEOUT"))


class Tokens(msgspec.Struct, gc=False):
    """Counts of tokens; Cohere sends some as floats."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    search_units: Count | None = None
    classifications: Count | None = None
    images: Count | None = None

    def told(self) -> int:
        """Return how many of its figures there are."""
        return 2 - (self.input_tokens, self.output_tokens).count(None)


class WireUsage(msgspec.Struct, gc=False):
    """`usage`: `tokens` is what the model had, `billed_units` what is paid for.

    The latter leaves out Cohere's own preamble, which is where most of `cached_tokens` are.
    """

    tokens: Tokens | None = None
    billed_units: Tokens | None = None
    cached_tokens: Count | None = None

    @property
    def whole(self) -> bool:
        """Tell whether it says what went in and what came out."""
        found = self._best()
        return found is not None and found.told() == 2

    @property
    def otherwise(self) -> bool:
        """Tell whether something else than tokens is paid for."""
        units = self.billed_units or Tokens()
        return (units.search_units, units.classifications, units.images) != (None, None, None)

    def counted(self) -> Usage | None:
        """Convert to the gateway's counts: of what is paid for nothing came from a cache."""
        found = self._best()
        if found is None:
            return None
        cached = int(self.cached_tokens or 0) if found is self.tokens else 0
        return Usage(int(found.input_tokens or 0), cached, 0, int(found.output_tokens or 0))

    def _best(self) -> Tokens | None:
        """Return the counts that say most; what is paid for where both say as much."""
        found = [one for one in (self.billed_units, self.tokens) if one is not None]
        return max(found, key=Tokens.told, default=None)


def usage_of(usage: Any) -> Usage | None:
    """Return the counts of a `usage`; None where it is not whole, or cannot be understood."""
    told = figures(usage, WireUsage)
    return told.counted() if told is not None and told.whole else None


class Function(msgspec.Struct, gc=False):
    """What a call calls."""

    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct, gc=False):
    """A tool call."""

    id: str | None = None
    function: Function | None = None

    def arguments(self) -> str:
        """Return the arguments, or the piece of them that this is."""
        return (self.function.arguments if self.function else None) or ""


class ContentPart(msgspec.Struct, gc=False):
    """A part of the content."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None


class WireMessage(msgspec.Struct, gc=False):
    """What the model says, or what is new in it."""

    content: list[ContentPart] | ContentPart | str | None = None
    tool_plan: str | None = None
    tool_calls: list[Call] | Call | None = None

    def parts(self) -> list[ContentPart]:
        """Return the content as parts."""
        if isinstance(self.content, str):
            return [ContentPart("text", self.content)]
        return self.content if isinstance(self.content, list) else [self.content or ContentPart()]

    def calls(self) -> list[Call]:
        """Return the calls; in a stream there is one, by itself."""
        found = self.tool_calls
        return found if isinstance(found, list) else [found] if found is not None else []


class Answer(msgspec.Struct, gc=False):
    """A whole reply."""

    id: str | None = None
    message: WireMessage | str | None = None
    finish_reason: str | None = None
    usage: Any = None


class Delta(msgspec.Struct, gc=False):
    """What is new in an event."""

    message: WireMessage | None = None
    finish_reason: str | None = None
    usage: Any = None
    error: str | None = None


class StreamEvent(msgspec.Struct, gc=False):
    """An event of any type."""

    type: str | None = None
    id: str | None = None
    index: int | None = None
    delta: Delta | None = None


_decode_event = msgspec.json.Decoder(StreamEvent).decode


class CohereDecoder(SseDecoder):
    """Reads a stream of events."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, int] = {}
        # Calls whose arguments may yet turn out to be none -> what came of them.
        self._bare: dict[int, str] = {}

    def read(self, event: SseEvent) -> list[Event]:
        """Return what an event says."""
        found = _decode_event(event.data)
        delta = found.delta or Delta()
        message = delta.message or WireMessage()
        match found.type:
            case "message-start":
                return [events.Begun(found.id or "")]
            case "content-delta" | "content-start":
                return _content(message)
            case "tool-plan-delta":
                return [events.ThinkingDelta(message.tool_plan or "")]
            case "tool-call-start" | "tool-call-delta":
                return self._call(found.index or 0, message)
            case "message-end":
                return _ended(delta)
        return []

    def _call(self, index: int, message: WireMessage) -> list[Event]:
        found: list[Event] = []
        for call in message.calls():
            number = self._calls.get(index)
            if number is None:
                number = self._calls[index] = len(self._calls)
                name = (call.function.name if call.function else None) or ""
                found.append(events.CallBegun(number, call.id or "", name))
                self._bare[number] = ""
            if arguments := self._arguments(number, call.arguments()):
                found.append(events.CallDelta(number, arguments))
        return found

    def _arguments(self, number: int, piece: str) -> str:
        """Return what there is to tell of a call's arguments, once they are some."""
        if number not in self._bare:
            return piece
        piece = self._bare[number] + piece
        if NO_ARGUMENTS.startswith(piece):
            self._bare[number] = piece
            return ""
        del self._bare[number]
        return piece


def _content(message: WireMessage) -> list[Event]:
    found: list[Event] = []
    for part in message.parts():
        if part.thinking:
            found.append(events.ThinkingDelta(part.thinking))
        if part.text:
            found.append(events.TextDelta(part.text))
    return found


def _ended(delta: Delta) -> list[Event]:
    if delta.finish_reason in FAILURES:
        said = delta.error or delta.finish_reason
        return [events.Failed(msgspec.json.encode({"error": {"message": said}}).decode())]
    found: list[Event] = []
    if (used := usage_of(delta.usage)) is not None:
        found.append(events.Used(used))
    reason = delta.finish_reason or ""
    ended = events.Finished(FINISH.get(reason, STOP), odd=reason not in FINISH)
    return [*found, ended, events.Ended()]
