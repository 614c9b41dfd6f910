"""Anthropic's Messages, to the client: replies, streams and errors of the hub as it writes them."""

from collections import deque
from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.call_ids import plain
from gateway.core.errors import ApiError
from gateway.core.events import Event
from gateway.core.messages import (
    FILTERED,
    LENGTH,
    STOP,
    TOOL_CALLS,
    UNSIGNED,
    Part,
    Refusal,
    Reply,
    Text,
    Thinking,
    ToolCall,
)
from gateway.core.sse import frame
from gateway.core.usage import Usage
from gateway.formats.reply import Meta, is_whole

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]

_REASONS = {
    STOP: "end_turn",
    LENGTH: "max_tokens",
    TOOL_CALLS: "tool_use",
    FILTERED: "refusal",
}
# https://docs.anthropic.com/en/api/errors: the type that goes with a status.
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def encode(reply: Reply, meta: Meta) -> bytes:
    """Write a whole reply."""
    content = [block for part in reply.parts for block in _blocks(part)]
    reason, sequence = _reason(reply.finish, reply.stop_sequence)
    used = usage(reply.usage or Usage())
    return _encode(_message(reply.id, reply.model, meta, content, reason, sequence, used))


def usage(used: Usage) -> Json:
    """Write a usage object: what came from a cache, or went there, is not in `input_tokens`."""
    fresh = used.prompt_tokens - used.cached_tokens - used.cache_write_tokens
    found: Json = {
        "input_tokens": max(fresh, 0),
        "cache_creation_input_tokens": used.cache_write_tokens,
        "cache_read_input_tokens": used.cached_tokens,
        "output_tokens": used.completion_tokens,
    }
    if used.cache_write_1h_tokens:
        lasting, written = used.cache_write_1h_tokens, used.cache_write_tokens
        found["cache_creation"] = {
            "ephemeral_5m_input_tokens": max(written - lasting, 0),
            "ephemeral_1h_input_tokens": lasting,
        }
    if used.web_searches:
        found["server_tool_use"] = {"web_search_requests": used.web_searches}
    if used.reasoning_tokens:
        found["output_tokens_details"] = {"thinking_tokens": used.reasoning_tokens}
    return found


def error_body(error: ApiError, request_id: str = "") -> bytes:
    """Encode an error as Anthropic's API does."""
    return _encode(_error(error, request_id))


def error_event(error: ApiError, request_id: str = "") -> bytes:
    """Encode an error inside a stream."""
    return frame("error", _encode(_error(error, request_id)))


def _error(error: ApiError, request_id: str) -> Json:
    kind = _ERROR_TYPES.get(error.status, "api_error" if error.status >= 500 else "")
    found: Json = {
        "type": "error",
        "error": {"type": kind or "invalid_request_error", "message": error.message},
    }
    if error.param is not None:
        found["error"]["param"] = error.param
    found["error"]["code"] = error.code
    if request_id:
        found["request_id"] = request_id
    return found


def _message(
    id: str,
    model: str,
    meta: Meta,
    content: list[Json],
    reason: str | None,
    sequence: str | None,
    used: Json,
) -> Json:
    return {
        # Never the provider's: Claude Code takes replies of one id for one reply.
        "id": f"msg_{meta.id.removeprefix('req_')}",
        "type": "message",
        "role": "assistant",
        "model": model or meta.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": used,
    }


def _reason(finish: str, sequence: str) -> tuple[str, str | None]:
    if sequence:
        return "stop_sequence", sequence
    return _REASONS.get(finish, "end_turn"), None


def _blocks(part: Part) -> list[Json]:
    match part:
        case Text(text=text) | Refusal(text=text):
            return [{"type": "text", "text": text}] if text else []
        case Thinking(redacted=data) if data:
            return [{"type": "redacted_thinking", "data": data}]
        case Thinking(text=text, signature=signature):
            signature = signature or UNSIGNED
            return [{"type": "thinking", "thinking": text, "signature": signature}]
        case ToolCall(id=id, name=name, arguments=arguments, signature=signature):
            call = {"type": "tool_use", "id": plain(id), "name": name, "input": _object(arguments)}
            return [*_signature_block(signature), call]
    return []


def _signature_block(signature: str) -> list[Json]:
    """A call has no place for its signature: it goes before it, as thought nobody can read."""
    return [{"type": "redacted_thinking", "data": signature}] if signature else []


def _object(arguments: str) -> Raw | Json:
    """Return arguments as JSON; what a model has garbled stays readable as text."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {"raw": arguments}
    return Raw(arguments.encode() or b"{}") if isinstance(found, dict) else {"value": found}


# As `_delta` writes it, at a third of the cost.
_TEXT_DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":%b}}\n\n'
)


# What is held back while a call before it is not whole; past it that call is taken to have ended.
MAX_HELD_CHARS = 1024 * 1024
EVENT_CHARS = 64  # that an event without text counts
_SILENT = (events.Begun, events.OtherDelta, events.Finished, events.Used)  # they write nothing


def _size(event: Event) -> int:
    return EVENT_CHARS + len(getattr(event, "arguments", "") or getattr(event, "text", ""))


class MessagesStream:
    """Writes one stream's events: blocks one after the other, each begun and ended.

    Some providers go on with a call after the next has begun: what follows it waits until its
    arguments are whole. `reason` is why it stops, where its provider has said that in this dialect.
    """

    def __init__(self, meta: Meta, reason: str = "") -> None:
        self._meta, self._told_reason = meta, reason
        self._begun = False
        self._id = self._model = ""
        self._index = -1
        self._open = ""  # the kind of the block that is open, and which of its kind
        self._signed = False
        self._call: int | None = None  # the number of the call whose block is open
        self._arguments: list[str] = []  # what came of its arguments
        self._held: deque[Event] = deque()
        self._held_chars = 0
        self._later: dict[int, list[Event]] = {}  # more of calls that are held back
        self._usage = Usage(prompt_tokens=meta.prompt_tokens)
        self._reason = "end_turn"
        self._sequence: str | None = None

    def write(self, found: list[Event]) -> bytes:
        """Return what the client may have of these events."""
        return b"".join([self._one(event) for event in found])

    def finish(self) -> bytes:
        """Return the stream's end: why, and what was used."""
        before = []
        while self._held:  # behind calls whose arguments never became whole
            before += [self._close(), self._release()]
        reason = self._told_reason or self._reason
        delta = {"stop_reason": reason, "stop_sequence": self._sequence}
        end = {"type": "message_delta", "delta": delta, "usage": usage(self._usage)}
        return b"".join(
            (
                *before,
                self._begin(),
                self._close(),
                frame("message_delta", _encode(end)),
                frame("message_stop", b'{"type":"message_stop"}'),
            )
        )

    def error(self, error: ApiError) -> bytes:
        """Return the event that ends a stream which failed."""
        return error_event(error, self._meta.id)

    def _one(self, event: Event) -> bytes:
        """Write an event, or hold it back while a call before it is not whole."""
        if self._call is None or isinstance(event, _SILENT):
            return self._write(event)
        if isinstance(event, events.CallDelta):
            return self._more(event)
        if not self._held and is_whole(self._arguments):
            return self._write(event)
        if isinstance(event, events.CallBegun):
            self._later[event.index] = []
        self._held.append(event)
        return self._hold(event)

    def _more(self, event: events.CallDelta) -> bytes:
        """Write more of the open call; of one that is held back it stays with that."""
        if event.index == self._call:
            out = self._write(event)
            if self._held and event.arguments.rstrip().endswith("}") and is_whole(self._arguments):
                out += self._release()
            return out
        if event.index not in self._later:
            return b""  # its block is closed
        self._later[event.index].append(event)
        return self._hold(event)

    def _hold(self, event: Event) -> bytes:
        self._held_chars += _size(event)
        return self._close() + self._release() if self._held_chars > MAX_HELD_CHARS else b""

    def _release(self) -> bytes:
        """Write what was held back, up to what must wait for another call."""
        out = []
        while self._held and (self._call is None or is_whole(self._arguments)):
            event = self._held.popleft()
            more = self._later.pop(event.index) if isinstance(event, events.CallBegun) else []
            for one in (event, *more):
                self._held_chars -= _size(one)
                out.append(self._write(one))
        return b"".join(out)

    def _write(self, event: Event) -> bytes:
        match event:
            case events.TextDelta(text=text) | events.RefusalDelta(text=text) if text:
                if self._open == "text":
                    return _TEXT_DELTA % (self._index, _encode(text))
                block = self._block("text", {"type": "text", "text": ""})
                return block + self._delta({"type": "text_delta", "text": text})
            case events.ThinkingDelta(text=text, block=number):
                block = self._thinking(number)
                return block + self._delta({"type": "thinking_delta", "thinking": text})
            case events.ThinkingSigned(redacted=data) if data:
                return self._redacted(data)
            case events.ThinkingSigned(signature=signature, block=number):
                block = self._thinking(number)
                self._signed = True
                return block + self._delta({"type": "signature_delta", "signature": signature})
            case events.CallBegun(index=index, id=id, name=name, signature=signature):
                before = self._redacted(signature) if signature else b""
                use = {"type": "tool_use", "id": plain(id), "name": name, "input": {}}
                begun = before + self._block(f"call {index}", use)
                self._call = index
                return begun
            case events.CallDelta(index=index, arguments=arguments) if index == self._call:
                self._arguments.append(arguments)
                return self._delta({"type": "input_json_delta", "partial_json": arguments})
            case events.Finished(reason=reason, stop_sequence=sequence):
                self._reason, self._sequence = _reason(reason, sequence)
            case events.Begun(id=id, model=model):
                self._id, self._model = id or self._id, model or self._model
            case events.Used(usage=used):
                self._usage = used
        return b""

    def _thinking(self, number: int) -> bytes:
        empty = {"type": "thinking", "thinking": "", "signature": ""}
        return self._block(f"thinking {number}", empty)

    def _redacted(self, data: str) -> bytes:
        return self._block("redacted", {"type": "redacted_thinking", "data": data}) + self._close()

    def _block(self, kind: str, content: Json) -> bytes:
        """Open a block unless it is open, ending the one before it."""
        if self._open == kind:
            return b""
        before = self._begin() + self._close()
        self._open = kind
        self._index += 1
        begun = {"type": "content_block_start", "index": self._index, "content_block": content}
        return before + frame("content_block_start", _encode(begun))

    def _delta(self, delta: Json) -> bytes:
        found = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return frame("content_block_delta", _encode(found))

    def _close(self) -> bytes:
        if not self._open:
            return b""
        before = b""
        if self._open.startswith("thinking") and not self._signed:
            before = self._delta({"type": "signature_delta", "signature": UNSIGNED})
        self._open, self._signed, self._call = "", False, None
        self._arguments.clear()
        end = {"type": "content_block_stop", "index": self._index}
        return before + frame("content_block_stop", _encode(end))

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        used = usage(self._usage)
        message = _message(self._id, self._model, self._meta, [], None, None, used)
        return frame("message_start", _encode({"type": "message_start", "message": message}))
