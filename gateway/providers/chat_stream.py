"""Streams of chat completions, read into the hub's events."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.events import Event
from gateway.core.messages import (
    FILTERED,
    LENGTH,
    STOP,
    TOOL_CALLS,
    mark,
)
from gateway.core.raw import given
from gateway.core.sse import SseEvent
from gateway.providers.chat_calls import StreamedCalls
from gateway.providers.chat_thoughts import CALL_MAKER, MAKER
from gateway.providers.chat_wire import Choice, Chunk, decode_chunk
from gateway.providers.chat_wire import Message as WireMessage
from gateway.providers.chat_wire import ToolCall as WireCall
from gateway.providers.decoding import SseDecoder, raw_text
from gateway.providers.errors import UNREADABLE
from gateway.providers.openai_wire import usage_of

FINISH = {
    "stop": STOP,
    "eos": STOP,
    "length": LENGTH,
    "model_length": LENGTH,
    "tool_calls": TOOL_CALLS,
    "function_call": TOOL_CALLS,
    "content_filter": FILTERED,
}


def signature_of(call: WireCall) -> str:
    """Return what stands beside a call as its signature."""
    return mark(CALL_MAKER, raw_text(call.extra_content))


class ChatDecoder(SseDecoder):
    """Reads a stream of chunks."""

    def __init__(self) -> None:
        super().__init__()
        self._begun, self._reply_id = False, ""
        self._calls = StreamedCalls()
        self._details: list[Raw] = []
        self._block = 0  # of thought: it ends with its signature

    def read(self, event: SseEvent) -> list[Event]:
        """Return what an event says."""
        if event.data.strip() == b"[DONE]":
            return [*self.signed(), *self._calls.rest(self._reply_id), events.Ended()]
        chunk: Chunk = decode_chunk(event.data)
        if chunk.error is not None:
            return [events.Failed(event.data.decode(errors="replace"))]
        found: list[Event] = []
        if not self._begun and (chunk.id or chunk.choices):
            self._begun, self._reply_id = True, chunk.id or ""
            found.append(events.Begun(self._reply_id, chunk.model or ""))
        for choice in chunk.choices or ():
            if not choice.index:
                found += self._choice(choice)
        told = (chunk.usage, *[choice.usage for choice in chunk.choices or ()])
        usage = next((used for one in told if one and (used := usage_of(one)) is not None), None)
        if usage is not None:
            found.append(events.Used(usage))
        return found

    def _choice(self, choice: Choice) -> list[Event]:
        delta = choice.delta or choice.message or WireMessage(content=choice.text)
        found = self.think(delta)
        text = delta.text()
        logprobs = given(choice.logprobs.content) if choice.logprobs is not None else None
        if text or delta.tool_calls or delta.refusal or choice.finish_reason:
            found += self.signed()
        if text or logprobs is not None:
            found.append(events.TextDelta(text, logprobs))
        if delta.refusal:
            found.append(events.RefusalDelta(delta.refusal))
        for call in delta.tool_calls or ():
            found += self._call(call)
        if choice.finish_reason:  # some servers send an empty one with every chunk
            reason = FINISH.get(choice.finish_reason, STOP)
            if reason == STOP and self._calls:
                reason = TOOL_CALLS
            found += self._calls.rest(self._reply_id)
            found.append(events.Finished(reason, odd=choice.finish_reason not in FINISH))
        return found

    def _call(self, call: WireCall) -> list[Event]:
        if call.custom is not None:
            text = call.custom.text()
            return [events.OtherDelta(text)] if text else []
        return self._calls.take(call, self.signature(call), self._reply_id)

    def end(self) -> list[Event]:
        """Tell of calls whose names never came."""
        return [*super().end(), *self._calls.rest(self._reply_id)]

    def think(self, delta: WireMessage) -> list[Event]:
        """Take more of a thought."""
        self._details += delta.reasoning_details or ()
        thought = delta.thought()
        return [events.ThinkingDelta(thought, self._block)] if thought else []

    def signed(self) -> list[Event]:
        """Sign the thoughts so far."""
        details, self._details = self._details, []
        blocks = [msgspec.json.encode(block).decode() for block in merged(details)]
        if not blocks:
            return []
        block, self._block = self._block, self._block + 1
        return [events.ThinkingSigned(mark(MAKER, ",".join(blocks)), block=block)]

    def signature(self, call: WireCall) -> str:
        """Return a call's signature."""
        return signature_of(call)


def merged(pieces: list[Raw]) -> list[dict[str, Any]]:
    """Put the pieces of OpenRouter's blocks together again: text grows, the rest is set once."""
    blocks: dict[tuple[str, str], dict[str, Any]] = {}
    grown: dict[tuple[str, str, str], list[str]] = {}
    for piece in pieces:
        try:
            found = msgspec.json.decode(piece, type=dict[str, Any])
        except UNREADABLE:
            continue
        key = str(found.get("index")), str(found.get("type"))
        block = blocks.setdefault(key, {})
        for name, value in found.items():
            if name in ("text", "summary", "data") and isinstance(value, str):
                grown.setdefault((*key, name), []).append(value)
            elif value not in (None, "") or name not in block:
                block[name] = value
    for (index, kind, name), texts in grown.items():
        blocks[index, kind][name] = "".join(texts)
    return list(blocks.values())
