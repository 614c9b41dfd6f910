"""Chat completions, to the client: replies and streams of the hub as OpenAI writes them.

What OpenAI has no place for stands where others have put it: thoughts in `reasoning_content`
(DeepSeek, vLLM), their signatures in `reasoning_details` (OpenRouter), a call's signature in
`extra_content` (Google). A client that sends messages back as they came keeps all of it.
"""

from typing import Any

import msgspec

from gateway.core import events
from gateway.core.errors import ApiError
from gateway.core.events import Event
from gateway.core.messages import Refusal, Reply, Text, Thinking, ToolCall
from gateway.core.usage import Usage
from gateway.formats.openai import error_event
from gateway.formats.reply import Meta
from gateway.providers.chat_thoughts import at_calls, detail, google_extra

_encode = msgspec.json.Encoder().encode
END = b"data: [DONE]\n\n"

Json = dict[str, Any]


def encode(reply: Reply, meta: Meta) -> bytes:
    """Write a whole reply."""
    message: Json = {"role": "assistant", "content": None, "refusal": None}
    parts = at_calls(reply.parts)
    texts = [part for part in parts if isinstance(part, Text)]
    if texts:
        message["content"] = "".join([part.text for part in texts])
    refusals = [part.text for part in parts if isinstance(part, Refusal)]
    if refusals:
        message["refusal"] = "".join(refusals)
    thoughts = [part for part in parts if isinstance(part, Thinking)]
    if thinking := "".join([part.text for part in thoughts]):
        message["reasoning_content"] = thinking
    details = [detail(part, i) for i, part in enumerate(thoughts)]
    if any("signature" in one or "data" in one for one in details):
        message["reasoning_details"] = details
    calls = [part for part in parts if isinstance(part, ToolCall)]
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    logprobs = [one for part in texts if part.logprobs is not None for one in listed(part.logprobs)]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
        "finish_reason": reply.finish,
    }
    found: Json = {
        "id": reply.id or f"chatcmpl-{meta.id}",
        "object": "chat.completion",
        "created": meta.created,
        "model": reply.model or meta.model,
        "choices": [choice],
    }
    if reply.usage is not None:
        found["usage"] = usage(reply.usage)
    return _encode(found)


def usage(used: Usage) -> Json:
    """Write a usage object."""
    prompt = {"cached_tokens": used.cached_tokens, "cache_write_tokens": used.cache_write_tokens}
    completion = {"reasoning_tokens": used.reasoning_tokens}
    if used.audio_prompt_tokens:
        prompt["audio_tokens"] = used.audio_prompt_tokens
    if used.audio_completion_tokens:
        completion["audio_tokens"] = used.audio_completion_tokens
    if used.image_prompt_tokens:
        prompt["image_tokens"] = used.image_prompt_tokens
    if used.image_completion_tokens:
        completion["image_tokens"] = used.image_completion_tokens
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": prompt,
        "completion_tokens_details": completion,
    }


def _call(call: ToolCall) -> Json:
    found: Json = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    if call.signature:
        found["extra_content"] = google_extra(call.signature)
    return found


def listed(raw: msgspec.Raw) -> list[Any]:
    """Return what is in a list that nobody has read yet; nothing where it cannot be read."""
    try:
        return msgspec.json.decode(raw, type=list[Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


class ChatStream:
    """Writes one stream's events."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._head: Json = {}
        self._begun = False
        self._thought: list[str] = []
        self._block = 0
        self._reason = "stop"
        self._bare: set[int] = set()  # calls whose arguments nobody has written yet
        self._usage: Usage | None = None

    def write(self, found: list[Event]) -> bytes:
        """Return what the client may have of these events."""
        return b"".join([self._one(event) for event in found])

    def finish(self) -> bytes:
        """Return the stream's end: why, and what was used where that was asked for.

        Some providers say why with every event, and then go on.
        """
        end = b"".join([self._one(events.CallDelta(i, "{}")) for i in sorted(self._bare)])
        end += self._delta({}, self._reason)
        if not self._meta.wants_usage or self._usage is None:
            return end + END
        chunk = {**self._chunk(), "choices": [], "usage": usage(self._usage)}
        return b"%bdata: %b\n\n%b" % (end, _encode(chunk), END)

    def error(self, error: ApiError) -> bytes:
        """Return the event that ends a stream which failed."""
        return error_event(error)

    def _one(self, event: Event) -> bytes:
        match event:
            case events.TextDelta(text=text, logprobs=logprobs):
                return self._delta({"content": text}, logprobs=logprobs)
            case events.ThinkingDelta(text=text, block=block):
                self._next_block(block)
                self._thought.append(text)
                return self._delta({"reasoning_content": text})
            case events.ThinkingSigned(signature=signature, redacted=redacted, block=block):
                self._next_block(block)
                part = Thinking("".join(self._thought), signature, redacted)
                self._thought.clear()
                return self._delta({"reasoning_details": [detail(part, block)]})
            case events.CallBegun(index=index, id=id, name=name, signature=signature):
                self._bare.add(index)
                call = _call(ToolCall(id, name, "", signature))
                return self._delta({"tool_calls": [{"index": index, **call}]})
            case events.CallDelta(index=index, arguments=arguments):
                if arguments:
                    self._bare.discard(index)
                call = {"index": index, "function": {"arguments": arguments}}
                return self._delta({"tool_calls": [call]})
            case events.RefusalDelta(text=text):
                return self._delta({"refusal": text})
            case events.Finished(reason=reason):
                self._reason = reason
            case events.Begun(id=id, model=model):
                self._begin(id, model)
            case events.Used(usage=used):
                self._usage = used
        return b""

    def _next_block(self, block: int) -> None:
        if block != self._block:
            self._block = block
            self._thought.clear()

    def _begin(self, id: str, model: str) -> None:
        if not self._head:
            self._head = {
                "id": id or f"chatcmpl-{self._meta.id}",
                "object": "chat.completion.chunk",
                "created": self._meta.created,
                "model": model or self._meta.model,
            }

    def _chunk(self) -> Json:
        self._begin("", "")
        return self._head

    def _delta(
        self, delta: Json, finish: str | None = None, logprobs: msgspec.Raw | None = None
    ) -> bytes:
        if not self._begun:
            self._begun = True
            delta = {"role": "assistant", **delta}
        choice: Json = {"index": 0, "delta": delta, "finish_reason": finish}
        if logprobs is not None:
            choice["logprobs"] = {"content": listed(logprobs), "refusal": None}
        return b"data: %b\n\n" % _encode({**self._chunk(), "choices": [choice]})
