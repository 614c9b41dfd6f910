"""Anthropic's replies and streams, read into the hub's values and events."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.errors import Failure, UpstreamError
from gateway.core.events import Event
from gateway.core.messages import (
    FILTERED,
    LENGTH,
    STOP,
    TOOL_CALLS,
    Part,
    Reply,
    Text,
    Thinking,
    ToolCall,
)
from gateway.core.raw import NOTHING
from gateway.core.sse import SseEvent
from gateway.core.usage import Usage
from gateway.providers.decoding import SseDecoder, raw_text
from gateway.providers.errors import UNREADABLE, has_field, unreadable
from gateway.providers.figures import figures

FINISH = {  # a `pause_turn` is no end, though all that comes
    "end_turn": STOP,
    "stop_sequence": STOP,
    "max_tokens": LENGTH,
    "model_context_window_exceeded": LENGTH,
    "tool_use": TOOL_CALLS,
    "refusal": FILTERED,
}


# The types of iterations that a `usage` leaves out of its own figures.
_BESIDE = frozenset(("compaction", "advisor_message"))


class OutputDetails(msgspec.Struct, gc=False):
    """`usage.output_tokens_details`."""

    thinking_tokens: int | None = None


class CacheCreation(msgspec.Struct, gc=False):
    """`usage.cache_creation`: what was written, by how long it is kept."""

    ephemeral_1h_input_tokens: int | None = None


class ServerToolUse(msgspec.Struct, gc=False):
    """`usage.server_tool_use`: what the provider did itself."""

    web_search_requests: int | None = None


class Figures(msgspec.Struct, gc=False):
    """What a model read and wrote: in all, or in one of several rounds."""

    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None
    cache_creation: CacheCreation | None = None

    def counted(self) -> Usage:
        """Convert to the gateway's counts: what a cache gave or took is part of the prompt."""
        cached, written = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        details = self.output_tokens_details or OutputDetails()
        lasting = self.cache_creation.ephemeral_1h_input_tokens if self.cache_creation else 0
        return Usage(
            (self.input_tokens or 0) + cached + written,
            cached,
            written,
            self.output_tokens or 0,
            details.thinking_tokens or 0,
            cache_write_1h_tokens=lasting or 0,
        )


class Iteration(Figures, gc=False):
    """One of `usage.iterations`: a round of the model, or of another beside it."""

    type: str | None = None


class WireUsage(Figures, gc=False):
    """`usage`. In a stream the last figure of each kind counts.

    Its own figures are those of the answer alone; what is billed besides stands in `iterations`.
    """

    server_tool_use: ServerToolUse | None = None
    iterations: list[Iteration] | None = None

    @property
    def whole(self) -> bool:
        """Tell whether it says what went in and what came out."""
        return self.input_tokens is not None and self.output_tokens is not None

    def updated(self, later: "WireUsage") -> "WireUsage":
        """Return the figures with later ones in their place."""
        return WireUsage(
            *[
                old if new is None else new
                for old, new in zip(
                    msgspec.structs.astuple(self), msgspec.structs.astuple(later), strict=True
                )
            ]
        )

    def counted(self) -> Usage:
        """Convert to the gateway's counts, with what is billed besides the answer."""
        usage = super().counted()
        for iteration in self.iterations or ():
            if iteration.type in _BESIDE:
                more = iteration.counted()
                beside = msgspec.structs.replace(more, beside_prompt_tokens=more.prompt_tokens)
                usage = usage.plus(beside)
        searched = self.server_tool_use.web_search_requests if self.server_tool_use else 0
        return msgspec.structs.replace(usage, web_searches=searched) if searched else usage


class Block(msgspec.Struct, gc=False):
    """A content block, or what is new in one."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = NOTHING
    partial_json: str | None = None


class WireMessage(msgspec.Struct, gc=False):
    """A reply, or what a stream's first event has of it."""

    id: str | None = None
    model: str | None = None
    content: list[Block] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Any = None
    error: Any = None


class Delta(msgspec.Struct, gc=False):
    """`delta` of any event."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class StreamEvent(msgspec.Struct, gc=False):
    """An event of any type."""

    type: str | None = None
    index: int | None = None
    message: WireMessage | None = None
    content_block: Block | None = None
    delta: Delta | None = None
    usage: Any = None


_decode_message = msgspec.json.Decoder(WireMessage).decode
_decode_event = msgspec.json.Decoder(StreamEvent).decode


class _Reading(msgspec.Struct):
    """A whole reply's usage."""

    usage: Any = None


_decode_usage = msgspec.json.Decoder(_Reading).decode


def parse(body: bytes) -> Reply:
    """Read a whole reply. Raises UpstreamError."""
    try:
        message = _decode_message(body)
    except UNREADABLE as error:
        raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
    if message.error is not None:
        raise UpstreamError(Failure.STREAM_ERROR, body.decode(errors="replace"))
    if message.content is None and not has_field(body, "content"):
        raise UpstreamError(Failure.PROTOCOL, "the reply is no message")
    parts = [part for block in message.content or () if (part := _part(block)) is not None]
    return Reply(
        id=message.id or "",
        model=message.model or "",
        parts=tuple(parts),
        finish=FINISH.get(message.stop_reason or "", STOP),
        odd=message.stop_reason not in FINISH,
        stop_sequence=message.stop_sequence or "",
        usage=_usage(_figures(message.usage)),
    )


def parse_usage(body: bytes) -> Usage | None:
    """Read the usage of a whole reply."""
    try:
        return _usage(_figures(_decode_usage(body).usage))
    except msgspec.ValidationError:
        return None
    except UNREADABLE as error:
        raise unreadable(error) from None


def _figures(found: Any) -> WireUsage:
    """Return what a `usage` says: nothing where it cannot be understood."""
    return figures(found, WireUsage) or WireUsage()


def _usage(told: WireUsage) -> Usage | None:
    return told.counted() if told.whole else None


def _part(block: Block) -> Part | None:
    match block.type:
        case "text" if block.text:
            return Text(block.text)
        case "thinking":
            return Thinking(block.thinking or "", block.signature or "")
        case "redacted_thinking" if block.data:
            return Thinking(redacted=block.data)
        case "tool_use":
            return ToolCall(block.id or "", block.name or "", _input(block) or "{}")
    return None  # of tools that Anthropic itself runs: their text stands in blocks of its own


def _input(block: Block) -> str:
    """Return what a call's block says of its arguments; in a stream that is mostly nothing."""
    text = raw_text(block.input)
    return "" if text.replace(" ", "") == "{}" else text


class MessagesDecoder(SseDecoder):
    """Reads a stream of events."""

    def __init__(self) -> None:
        super().__init__()
        self._id: str | None = None
        self._usage = WireUsage()
        self._calls: dict[int, int] = {}  # a block's number -> its call's
        self._given: dict[int, str] = {}  # arguments that stand in a call's first event
        self._reason = ""

    def read(self, event: SseEvent) -> list[Event]:
        """Return what an event says."""
        found = _decode_event(event.data)
        index = found.index or 0
        match found.type:
            case "content_block_delta" if found.delta is not None:
                return self._delta(index, found.delta)
            case "content_block_start" if found.content_block is not None:
                return self._block(index, found.content_block)
            case "content_block_stop":
                return self._stop(index)
            case "message_start" if found.message is not None:
                return self._start(found.message)
            case "message_delta":
                return self._message_delta(found)
            case "message_stop":
                return [events.Ended()]
            case "error":
                return [events.Failed(event.data.decode(errors="replace"))]
        return []  # a ping, or news

    def _start(self, message: WireMessage) -> list[Event]:
        id = message.id or ""
        if self._id is not None:
            if self._id == id:
                return []
            return [events.Failed('{"error":{"message":"another message began in this stream"}}')]
        self._id = id
        found: list[Event] = [events.Begun(id, message.model or "")]
        found += (used := self._used(message.usage))
        for number, block in enumerate(message.content or ()):
            found += [*self._block(number, block), *self._stop(number)]
        if message.content:
            found += used  # they are of what stands beside them
        if message.stop_reason:
            found.append(self._finished(message.stop_reason, message.stop_sequence))
        return found

    def _block(self, index: int, block: Block) -> list[Event]:
        match block.type:
            case "text" if block.text:
                return [events.TextDelta(block.text)]
            case "thinking":
                found: list[Event] = []
                if block.thinking:
                    found.append(events.ThinkingDelta(block.thinking, index))
                if block.signature:
                    found.append(events.ThinkingSigned(block.signature, block=index))
                return found
            case "redacted_thinking" if block.data:
                return [events.ThinkingSigned(redacted=block.data, block=index)]
            case "tool_use" if index not in self._calls:  # some proxies tell beginnings twice
                number = self._calls[index] = len(self._calls)
                if given := _input(block):
                    self._given[index] = given
                return [events.CallBegun(number, block.id or "", block.name or "")]
        return []

    def _delta(self, index: int, delta: Delta) -> list[Event]:
        if delta.text is not None:
            return [events.TextDelta(delta.text)] if delta.type == "text_delta" else []
        if delta.thinking is not None:
            return [events.ThinkingDelta(delta.thinking, index)]
        if delta.signature:
            return [events.ThinkingSigned(delta.signature, block=index)]
        if delta.partial_json and index not in self._calls:
            return [events.OtherDelta(delta.partial_json)]
        if delta.partial_json:
            self._given.pop(index, None)
            return [events.CallDelta(self._calls[index], delta.partial_json)]
        return []

    def _stop(self, index: int) -> list[Event]:
        given = self._given.pop(index, "")
        return [events.CallDelta(self._calls[index], given)] if given else []

    def _message_delta(self, found: StreamEvent) -> list[Event]:
        shown = self._used(found.usage)
        if found.delta is not None and found.delta.stop_reason:
            shown.append(self._finished(found.delta.stop_reason, found.delta.stop_sequence))
        return shown

    def _used(self, usage: Any) -> list[Event]:
        """Take more figures: the beginning tells half of them, the end the rest."""
        if usage is None:
            return []
        self._usage = self._usage.updated(_figures(usage))
        used = _usage(self._usage)
        return [events.Used(used)] if used is not None else []

    def _finished(self, reason: str, sequence: str | None) -> Event:
        return events.Finished(FINISH.get(reason, STOP), sequence or "", reason not in FINISH)
