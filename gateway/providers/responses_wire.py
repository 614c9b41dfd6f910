"""The Responses API's replies and streams on the wire, and what is read from them."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.errors import ApiError
from gateway.core.events import Event
from gateway.core.messages import (
    FILTERED,
    LENGTH,
    STOP,
    TOOL_CALLS,
    of_responses,
)
from gateway.core.raw import NOTHING, given
from gateway.core.sse import MAX_WHOLE_BYTES, SseEvent, frame
from gateway.core.usage import Usage
from gateway.providers.decoding import SseDecoder, inner_json
from gateway.providers.figures import figures

# Items that the hub has a place for.
HUB_ITEMS = ("message", "reasoning", "function_call")
FAILURES = ("response.failed", "error")
NOTHING_DRAWN = Usage()
# Deltas that are no text.
_SOUND = ("response.audio.delta", "response.output_audio.delta")
BETWEEN_PARTS = "\n\n"  # of a summary: each has a heading
_INCOMPLETE = {"max_output_tokens": LENGTH, "content_filter": FILTERED}


class CachedDetails(msgspec.Struct, gc=False):
    """`usage.input_tokens_details.cached_tokens_details`."""

    image_tokens: int | None = None


class InputDetails(msgspec.Struct, gc=False):
    """`usage.input_tokens_details`."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    image_tokens: int | None = None
    cached_tokens_details: CachedDetails | None = None

    @property
    def fresh_image_tokens(self) -> int:
        """Return how much of the pictures no cache gave."""
        cached = self.cached_tokens_details or CachedDetails()
        return max(0, (self.image_tokens or 0) - (cached.image_tokens or 0))


class OutputDetails(msgspec.Struct, gc=False):
    """`usage.output_tokens_details`."""

    reasoning_tokens: int | None = None
    image_tokens: int | None = None


class WireUsage(msgspec.Struct, gc=False):
    """`usage`, of the Images API too."""

    input_tokens: int | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None

    @property
    def whole(self) -> bool:
        """Tell whether it says what went in and what came out."""
        return self.input_tokens is not None and self.output_tokens is not None

    def counted(self) -> Usage:
        """Convert to the gateway's counts."""
        given = self.input_tokens_details or InputDetails()
        made = self.output_tokens_details or OutputDetails()
        return Usage(
            self.input_tokens or 0,
            given.cached_tokens or 0,
            given.cache_write_tokens or 0,
            self.output_tokens or 0,
            made.reasoning_tokens or 0,
            image_prompt_tokens=given.fresh_image_tokens if given.image_tokens else 0,
            image_completion_tokens=made.image_tokens or 0,
        )


class ToolUsage(msgspec.Struct, gc=False):
    """`tool_usage`: what other models have used that OpenAI's tools ask."""

    image_gen: WireUsage | None = None


class ContentPart(msgspec.Struct, gc=False):
    """A part of a message or of a summary."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    logprobs: Raw = NOTHING


class Item(msgspec.Struct, gc=False):
    """An output item."""

    type: str | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Raw = NOTHING  # text; some servers send an object
    input: Raw = NOTHING  # of a custom tool
    code: Raw = NOTHING  # for the code interpreter
    content: list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    encrypted_content: str | None = None
    action: Any = None


class Incomplete(msgspec.Struct, gc=False):
    """Why a response is not complete."""

    reason: str | None = None


class Head(msgspec.Struct, gc=False):
    """What a stream's first and last events are read for."""

    id: str | None = None
    model: str | None = None
    incomplete_details: Incomplete | None = None
    usage: Any = None
    tool_usage: Any = None


class Response(Head, gc=False):
    """A whole response."""

    status: str | None = None
    output: list[Item] | None = None
    error: Any = None


class StreamEvent(msgspec.Struct, gc=False):
    """An event of any type."""

    type: str | None = None
    sequence_number: Any = None
    output_index: int | None = None
    summary_index: int | None = None
    delta: Any = None
    item: Item | None = None
    response: Head | None = None
    logprobs: Raw = NOTHING


_decode_event = msgspec.json.Decoder(StreamEvent).decode


def thought(item: Item) -> str:
    """Return what a reasoning item shows: its summary, or else the thought itself."""
    if item.summary:
        return BETWEEN_PARTS.join([part.text for part in item.summary if part.text])
    return "".join([part.text or "" for part in item.content or ()])


def other_text(item: Item) -> str:
    """Return what the model wrote for a tool that only its provider has, but for its name."""
    return "".join([inner_json(one) for one in (item.input, item.arguments, item.code)])


def searched(kind: str | None, action: Any) -> bool:
    """Tell whether an item is a web search that is charged: opening what it found is not."""
    if kind != "web_search_call":
        return False
    return not isinstance(action, dict) or action.get("type") in (None, "search")


def drawn_by(tool_usage: Any) -> Usage:
    """Return what the pictures came to that a tool has drawn, beside the response."""
    told = figures(tool_usage, ToolUsage)
    if told is None or told.image_gen is None:
        return NOTHING_DRAWN
    return told.image_gen.counted()


def usage_of(response: Head, searches: int) -> Usage | None:
    """Return a response's usage, None where it is not whole; how often it searched is elsewhere."""
    told = figures(response.usage, WireUsage)
    if told is None or not told.whole:
        return None
    counted = told.counted()
    if response.tool_usage is not None:
        counted = counted.plus(drawn_by(response.tool_usage))
    return msgspec.structs.replace(counted, web_searches=searches) if searches else counted


def logprobs_of(raw: Raw) -> Raw | None:
    return None if bytes(raw) == b"[]" else given(raw)


def finish_of(response: Head, *, called: bool, completed: bool) -> tuple[str, bool]:
    """Return why a response ended, and whether that is only a guess."""
    details = response.incomplete_details
    if details is not None and details.reason in _INCOMPLETE:
        return _INCOMPLETE[details.reason], False
    return TOOL_CALLS if called else STOP, not completed


def error_event(error: ApiError, number: int) -> bytes:
    """Encode an error inside a stream: as it is documented, and as it is sent, which SDKs raise."""
    said = {"code": error.code, "message": error.message, "param": error.param}
    nested = {"type": error.type, **said}
    found = {"type": "error", "sequence_number": number, **said, "error": nested}
    return frame("error", msgspec.json.encode(found))


def _said(part: ContentPart) -> list[Event]:
    if part.refusal:
        return [events.RefusalDelta(part.refusal)]
    return [events.TextDelta(part.text)] if part.text else []


class ResponsesDecoder(SseDecoder):
    """Reads a stream of events. Items are told by their place: some servers change their ids."""

    max_event_bytes = MAX_WHOLE_BYTES  # the last event holds all items

    def __init__(self) -> None:
        super().__init__()
        self.next_number = 0
        self._calls: dict[int, int] = {}
        self._shown: set[int] = set()  # items of which there were deltas
        self._parts: dict[int, int] = {}  # which part of an item's summary came last
        self._begun = False
        self._searches = 0

    def read(self, event: SseEvent) -> list[Event]:
        """Return what an event says."""
        found = _decode_event(event.data)
        place = found.output_index or 0
        if isinstance(found.sequence_number, int) and found.type not in FAILURES:
            self.next_number = found.sequence_number + 1
        match found.type:
            case "response.output_text.delta" if isinstance(found.delta, str):
                self._shown.add(place)
                return [events.TextDelta(found.delta, logprobs_of(found.logprobs))]
            case "response.refusal.delta" if isinstance(found.delta, str):
                self._shown.add(place)
                return [events.RefusalDelta(found.delta)]
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                return self._thought(place, found.summary_index or 0, found.delta)
            case "response.function_call_arguments.delta":
                return self._arguments(place, found.delta)
            case "response.output_item.added" if found.item is not None:
                return self._added(place, found.item)
            case "response.output_item.done" if found.item is not None:
                return self._done(place, found.item)
            case "response.created" if found.response is not None and not self._begun:
                self._begun = True
                return [events.Begun(found.response.id or "", found.response.model or "")]
            case "response.completed" | "response.incomplete" if found.response is not None:
                return self._ended(found.response, completed=found.type == "response.completed")
            case str(kind) if kind in FAILURES:
                return [events.Failed(event.data.decode(errors="replace"))]
            case str(kind) if kind.endswith(".delta") and kind not in _SOUND:
                return self._other(place, found.delta)
        return []

    def _thought(self, place: int, part: int, delta: Any) -> list[Event]:
        text = delta if isinstance(delta, str) else ""
        if text and self._parts.setdefault(place, part) != part:
            self._parts[place], text = part, BETWEEN_PARTS + text
        self._shown.add(place)
        return [events.ThinkingDelta(text, place)]

    def _arguments(self, place: int, delta: Any) -> list[Event]:
        if place not in self._calls:
            return []
        self._shown.add(place)
        text = delta if isinstance(delta, str) else ""
        return [events.CallDelta(self._calls[place], text)]

    def _other(self, place: int, delta: Any) -> list[Event]:
        """Take more of what is written for a tool that only its provider has."""
        if not isinstance(delta, str):
            return []
        self._shown.add(place)
        return [events.OtherDelta(delta)]

    def _added(self, place: int, item: Item) -> list[Event]:
        if item.type != "function_call":
            return [events.OtherDelta(item.name)] if item.name else []
        if place in self._calls:
            return []
        number = self._calls[place] = len(self._calls)
        return [events.CallBegun(number, item.call_id or item.id or "", item.name or "")]

    def _done(self, place: int, item: Item) -> list[Event]:
        """Take what only the whole item says: a secret, or what no delta said before."""
        self._searches += searched(item.type, item.action)
        if item.type == "reasoning":
            return self._reasoned(place, item)
        if place in self._shown:
            return []
        if item.type == "function_call":
            found = self._added(place, item)  # where nobody said so before
            if arguments := inner_json(item.arguments):
                self._shown.add(place)
                found.append(events.CallDelta(self._calls[place], arguments))
            return found
        if item.type == "message":
            return [event for part in item.content or () for event in _said(part)]
        text = other_text(item)
        return [events.OtherDelta(text)] if text else []

    def _reasoned(self, place: int, item: Item) -> list[Event]:
        found: list[Event] = []
        if place not in self._shown and (text := thought(item)):
            found += self._thought(place, 0, text)
        if item.encrypted_content:
            secrets = of_responses(item.encrypted_content, shown=place in self._shown)
            found.append(events.ThinkingSigned(*secrets, block=place))
        return found

    def _ended(self, response: Head, *, completed: bool) -> list[Event]:
        found: list[Event] = []
        used = usage_of(response, self._searches)
        if used is not None:
            found.append(events.Used(used))
        called = bool(self._calls)
        reason, odd = finish_of(response, called=called, completed=completed)
        return [*found, events.Finished(reason, odd=odd), events.Ended()]
