"""Bedrock's Converse: replies and streams, read into the hub's values and events."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.aws_events import AwsMessage, AwsReader, Damaged
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
    mark,
)
from gateway.core.raw import NOTHING
from gateway.core.usage import Usage
from gateway.providers.decoding import inner_json, raw_text
from gateway.providers.errors import UNREADABLE, unreadable
from gateway.providers.figures import figures

MAKER = "bedrock"
AWS_STREAM = b"application/vnd.amazon.eventstream"
_encode = msgspec.json.Encoder().encode

FINISH = {
    "end_turn": STOP,
    "stop_sequence": STOP,
    "max_tokens": LENGTH,
    "model_context_window_exceeded": LENGTH,
    "tool_use": TOOL_CALLS,
    "guardrail_intervened": FILTERED,
    "content_filtered": FILTERED,
}


class CacheDetail(msgspec.Struct, gc=False, rename="camel"):
    """What was written to a cache, to be kept for one time."""

    ttl: str | None = None
    input_tokens: int | None = None


class WireUsage(msgspec.Struct, gc=False, rename="camel"):
    """`usage`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None
    cache_details: list[CacheDetail] | None = None

    @property
    def whole(self) -> bool:
        """Tell whether it says what went in and what came out."""
        return self.input_tokens is not None and self.output_tokens is not None

    def counted(self) -> Usage:
        """Convert to the gateway's counts: what a cache gave or took is part of the prompt."""
        cached, written = self.cache_read_input_tokens or 0, self.cache_write_input_tokens or 0
        lasting = [d.input_tokens or 0 for d in self.cache_details or () if d.ttl == "1h"]
        return Usage(
            (self.input_tokens or 0) + cached + written,
            cached,
            written,
            self.output_tokens or 0,
            cache_write_1h_tokens=sum(lasting),
        )


class Invoked(msgspec.Struct, gc=False, rename="camel"):
    """Bedrock's figures of an invocation in a model's own API."""

    input_token_count: int | None = None
    output_token_count: int | None = None
    cache_read_input_token_count: int | None = None
    cache_write_input_token_count: int | None = None

    @property
    def whole(self) -> bool:
        """Tell whether it says what went in and what came out."""
        return self.input_token_count is not None and self.output_token_count is not None

    def counted(self) -> Usage:
        """Convert to the gateway's counts."""
        return WireUsage(
            self.input_token_count,
            self.output_token_count,
            self.cache_read_input_token_count,
            self.cache_write_input_token_count,
        ).counted()


class ToolUse(msgspec.Struct, gc=False, rename="camel"):
    """A call; in a stream `input` is a piece of JSON text."""

    tool_use_id: str | None = None
    name: str | None = None
    input: Raw = NOTHING


class ReasoningText(msgspec.Struct, gc=False):
    """A thought."""

    text: str | None = None
    signature: str | None = None


class ReasoningContent(msgspec.Struct, gc=False, rename="camel"):
    """A block of thought, or what is new in one."""

    reasoning_text: ReasoningText | None = None
    redacted_content: str | None = None
    text: str | None = None
    signature: str | None = None


class Block(msgspec.Struct, gc=False, rename="camel"):
    """A content block, or what is new in one."""

    text: str | None = None
    tool_use: ToolUse | None = None
    reasoning_content: ReasoningContent | None = None


class WireMessage(msgspec.Struct, gc=False):
    """What the model says."""

    content: list[Block] | None = None


class Output(msgspec.Struct, gc=False):
    """`output`."""

    message: WireMessage | None = None


class Answer(msgspec.Struct, gc=False, rename="camel"):
    """A whole reply."""

    output: Output | None = None
    stop_reason: str | None = None
    usage: Any = None


class StreamEvent(msgspec.Struct, gc=False, rename="camel"):
    """An event of any type."""

    content_block_index: int | None = None
    start: Block | None = None
    delta: Block | None = None
    stop_reason: str | None = None
    usage: Any = None
    message: str | None = None


_decode = msgspec.json.Decoder(Answer).decode
_decode_event = msgspec.json.Decoder(StreamEvent).decode


def parse(body: bytes) -> Reply:
    """Read a whole reply. Raises UpstreamError."""
    try:
        answer = _decode(body)
    except UNREADABLE as error:
        raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
    if answer.output is None:
        raise UpstreamError(Failure.STREAM_ERROR, body.decode(errors="replace"))
    message = answer.output.message or WireMessage()
    parts = tuple([part for block in message.content or () if (part := _part(block)) is not None])
    return Reply(
        id="",
        model="",
        parts=parts,
        finish=FINISH.get(answer.stop_reason or "", STOP),
        odd=answer.stop_reason not in FINISH,
        usage=_usage_of(answer.usage),
    )


def _usage_of(usage: Any) -> Usage | None:
    """Return the counts of a `usage`; None where it is not whole, or cannot be understood."""
    told = figures(usage, WireUsage)
    return told.counted() if told is not None and told.whole else None


def _part(block: Block) -> Part | None:
    if block.text:
        return Text(block.text)
    if block.tool_use is not None:
        call = block.tool_use
        return ToolCall(call.tool_use_id or "", call.name or "", raw_text(call.input) or "{}")
    thought = block.reasoning_content
    if thought is not None and thought.redacted_content is not None:
        return Thinking(redacted=mark(MAKER, thought.redacted_content))
    if thought is not None and thought.reasoning_text is not None:
        said = thought.reasoning_text
        return Thinking(said.text or "", said.signature or "")
    return None


class ConverseDecoder:
    """Reads a stream of AWS's messages."""

    content_type = AWS_STREAM

    def __init__(self) -> None:
        self._reader = AwsReader()
        self._begun = self._failed = False
        self._calls: dict[int, int] = {}

    def feed(self, data: bytes) -> list[Event]:
        """Take any split of the stream. Raises UpstreamError where a message cannot be read."""
        try:
            messages = self._reader.feed(data)
        except Damaged as error:
            raise UpstreamError(Failure.PROTOCOL, f"the stream is damaged: {error}") from None
        found: list[Event] = []
        if messages and not self._begun:
            self._begun = True
            found.append(events.Begun())
        return found + [event for message in messages for event in self._take(message)]

    def end(self) -> list[Event]:
        """Return nothing: an unfinished message says nothing."""
        return []

    def _take(self, message: AwsMessage) -> list[Event]:
        headers = message.headers
        if self._failed:
            return []
        if headers.get(":message-type") in ("exception", "error"):
            self._failed = True
            return [_failed(headers, message.payload)]
        if not message.payload.strip():
            return []
        try:
            found = _decode_event(message.payload)
        except msgspec.ValidationError:
            return []  # not a shape we know, and no reason to end
        except UNREADABLE as error:
            raise unreadable(error) from None
        index = found.content_block_index or 0
        match headers.get(":event-type"):
            case "contentBlockDelta" if found.delta is not None:
                return self._delta(index, found.delta)
            case "contentBlockStart" if found.start is not None:
                call = found.start.tool_use
                if call is None or index in self._calls:
                    return []
                number = self._calls[index] = len(self._calls)
                return [events.CallBegun(number, call.tool_use_id or "", call.name or "")]
            case "messageStop":
                reason = found.stop_reason or ""
                return [events.Finished(FINISH.get(reason, STOP), odd=reason not in FINISH)]
            case "metadata" if (used := _usage_of(found.usage)) is not None:
                return [events.Used(used)]
        return []

    def _delta(self, index: int, delta: Block) -> list[Event]:
        if delta.text is not None:
            return [events.TextDelta(delta.text)]
        if delta.tool_use is not None and index in self._calls:
            piece = inner_json(delta.tool_use.input)
            return [events.CallDelta(self._calls[index], piece)] if piece else []
        thought = delta.reasoning_content
        if thought is None:
            return []
        if thought.text is not None:
            return [events.ThinkingDelta(thought.text, index)]
        if thought.signature is not None:
            return [events.ThinkingSigned(thought.signature, block=index)]
        redacted = mark(MAKER, thought.redacted_content or "")
        return [events.ThinkingSigned(redacted=redacted, block=index)] if redacted else []


def _failed(headers: dict[str, str], payload: bytes) -> Event:
    kind = headers.get(":exception-type") or headers.get(":error-code") or "exception"
    try:
        said = _decode_event(payload).message or headers.get(":error-message", "")
    except UNREADABLE:
        said = ""
    told = {"message": f"{kind}: {said}", "type": kind}
    return events.Failed(_encode({"error": told}).decode())
