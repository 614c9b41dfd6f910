"""One answer as providers of five dialects would write it, whole and as a stream of events."""

import json
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

from gateway.core.aws_events import framed


@dataclass(frozen=True)
class Figures:
    """What a provider tells of its tokens; cached and written ones are part of the prompt's."""

    prompt: int
    completion: int
    cached: int = 0
    written: int = 0
    reasoning: int = 0

    def told_by(self, dialect: str) -> "Figures":
        """These figures without those that a dialect has no field for."""
        prompt, completion, cached, written, reasoning = astuple(self)
        if dialect == "embeddings":
            return Figures(prompt, 0)
        if dialect in ("messages", "converse"):
            return Figures(prompt, completion, cached, written)
        return Figures(prompt, completion, cached, 0, reasoning)


class Piece(NamedTuple):
    """A part of a stream: whether it has a word of the answer, whether it has the last figures."""

    data: bytes
    word: bool = False
    figures: bool = False


Whole = Callable[[str, Figures | None], dict[str, Any]]
Stream = Callable[[list[str], Figures | None], Iterator[Piece]]


class Dialect(NamedTuple):
    """How answers are written in it. `end`: of the path that it is asked at."""

    end: str
    content_type: str
    whole: Whole
    stream: Stream


def _event(content: dict[str, Any]) -> bytes:
    name = f"event: {content['type']}\n" if "type" in content else ""
    return f"{name}data: {json.dumps(content)}\n\n".encode()


# -- chat ----------------------------------------------------------------------------------


def _chat_usage(told: Figures) -> dict[str, Any]:
    return {
        "prompt_tokens": told.prompt,
        "completion_tokens": told.completion,
        "total_tokens": told.prompt + told.completion,
        "prompt_tokens_details": {"cached_tokens": told.cached},
        "completion_tokens_details": {"reasoning_tokens": told.reasoning},
    }


def _chat(text: str, told: Figures | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    reply = {"id": "c1", "object": "chat.completion", "created": 1, "model": "u"}
    return {**reply, "choices": [choice], **({"usage": _chat_usage(told)} if told else {})}


def _chat_stream(words: list[str], told: Figures | None) -> Iterator[Piece]:
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "u"}

    def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _event({**base, "choices": [choice]})

    yield Piece(chunk({"role": "assistant", "content": ""}))
    for word in words:
        yield Piece(chunk({"content": word}), word=True)
    yield Piece(chunk({}, "stop"))
    if told:
        last = _event({**base, "choices": [], "usage": _chat_usage(told)})
        yield Piece(last, figures=True)
    yield Piece(b"data: [DONE]\n\n")


# -- completions, embeddings -----------------------------------------------------------------


def _completions(text: str, told: Figures | None) -> dict[str, Any]:
    reply = {"id": "t1", "object": "text_completion", "created": 1, "model": "u"}
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    return {**reply, "choices": [choice], **_if(told, "usage", _chat_usage)}


def _completions_stream(words: list[str], told: Figures | None) -> Iterator[Piece]:
    base = {"id": "t1", "object": "text_completion", "created": 1, "model": "u"}
    for word in words:
        choice = {"index": 0, "text": word, "finish_reason": None, "logprobs": None}
        yield Piece(_event({**base, "choices": [choice]}), word=True)
    ended = {"index": 0, "text": "", "finish_reason": "stop", "logprobs": None}
    yield Piece(_event({**base, "choices": [ended]}))
    if told:
        last = _event({**base, "choices": [], "usage": _chat_usage(told)})
        yield Piece(last, figures=True)
    yield Piece(b"data: [DONE]\n\n")


def _embeddings(text: str, told: Figures | None) -> dict[str, Any]:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
    usage = {"prompt_tokens": told.prompt, "total_tokens": told.prompt} if told else None
    reply = {"object": "list", "model": "u", "data": data}
    return {**reply, **({"usage": usage} if usage else {})}


def _no_stream(words: list[str], told: Figures | None) -> Iterator[Piece]:
    raise NotImplementedError


# -- messages ------------------------------------------------------------------------------


def _messages_usage(told: Figures) -> dict[str, int]:
    return {
        "input_tokens": told.prompt - told.cached - told.written,
        "cache_read_input_tokens": told.cached,
        "cache_creation_input_tokens": told.written,
        "output_tokens": told.completion,
    }


def _messages(text: str, told: Figures | None) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    reply = {"id": "msg_1", "type": "message", "role": "assistant", "model": "u"}
    ending = {"stop_reason": "end_turn", "stop_sequence": None}
    return {**reply, "content": content, **ending, **_if(told, "usage", _messages_usage)}


def _messages_stream(words: list[str], told: Figures | None) -> Iterator[Piece]:
    begun = {**_messages("", told), "content": [], "stop_reason": None}
    if told:
        begun["usage"]["output_tokens"] = 1
    yield Piece(_event({"type": "message_start", "message": begun}))
    block = {"type": "text", "text": ""}
    yield Piece(_event({"type": "content_block_start", "index": 0, "content_block": block}))
    for word in words:
        delta = {"type": "text_delta", "text": word}
        event = {"type": "content_block_delta", "index": 0, "delta": delta}
        yield Piece(_event(event), word=True)
    yield Piece(_event({"type": "content_block_stop", "index": 0}))
    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    yield Piece(_event({**ended, **_if(told, "usage", _messages_usage)}), figures=told is not None)
    yield Piece(_event({"type": "message_stop"}))


# -- responses -----------------------------------------------------------------------------


def _responses_usage(told: Figures) -> dict[str, Any]:
    return {
        "input_tokens": told.prompt,
        "input_tokens_details": {"cached_tokens": told.cached},
        "output_tokens": told.completion,
        "output_tokens_details": {"reasoning_tokens": told.reasoning},
        "total_tokens": told.prompt + told.completion,
    }


def _responses(text: str, told: Figures | None) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "m1", "role": "assistant", "status": "completed"}
    reply = {"id": "resp_1", "object": "response", "created_at": 1, "model": "u"}
    output = [{**item, "content": [part]}]
    done = {**reply, "status": "completed", "output": output}
    return {**done, **_if(told, "usage", _responses_usage)}


def _responses_stream(words: list[str], told: Figures | None) -> Iterator[Piece]:
    number = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return _event({"type": kind, "sequence_number": number, **fields})

    whole = _responses("".join(words), told)
    (item,) = whole["output"]
    begun = {**_responses("", None), "status": "in_progress", "output": []}
    place = {"item_id": "m1", "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": []}
    opened = {**item, "status": "in_progress", "content": []}
    yield Piece(event("response.created", response=begun))
    yield Piece(event("response.output_item.added", output_index=0, item=opened))
    yield Piece(event("response.content_part.added", **place, part=empty))
    for word in words:
        yield Piece(event("response.output_text.delta", **place, delta=word), word=True)
    yield Piece(event("response.output_text.done", **place, text="".join(words)))
    yield Piece(event("response.output_item.done", output_index=0, item=item))
    yield Piece(event("response.completed", response=whole), figures=told is not None)


# -- gemini --------------------------------------------------------------------------------


def _gemini_usage(told: Figures) -> dict[str, int]:
    return {
        "promptTokenCount": told.prompt,
        "cachedContentTokenCount": told.cached,
        "candidatesTokenCount": told.completion - told.reasoning,
        "thoughtsTokenCount": told.reasoning,
        "totalTokenCount": told.prompt + told.completion,
    }


def _gemini(text: str, told: Figures | None, finish: str | None = "STOP") -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    reply = {"candidates": [candidate], "modelVersion": "u", "responseId": "r1"}
    return {**reply, **_if(told, "usageMetadata", _gemini_usage)}


def _gemini_stream(words: list[str], told: Figures | None) -> Iterator[Piece]:
    for word in words:
        yield Piece(_event(_gemini(word, None, None)), word=True)
    yield Piece(_event(_gemini("", told)), figures=told is not None)


# -- converse ------------------------------------------------------------------------------


def _converse_usage(told: Figures) -> dict[str, int]:
    return {
        "inputTokens": told.prompt - told.cached - told.written,
        "cacheReadInputTokens": told.cached,
        "cacheWriteInputTokens": told.written,
        "outputTokens": told.completion,
        "totalTokens": told.prompt + told.completion,
    }


def _converse(text: str, told: Figures | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": [{"text": text}]}
    reply = {"output": {"message": message}, "stopReason": "end_turn", "metrics": {"latencyMs": 1}}
    return {**reply, **_if(told, "usage", _converse_usage)}


def _converse_stream(words: list[str], told: Figures | None) -> Iterator[Piece]:
    def event(kind: str, content: dict[str, Any]) -> bytes:
        head = {":message-type": "event", ":event-type": kind, ":content-type": "application/json"}
        return framed(head, json.dumps(content).encode())

    yield Piece(event("messageStart", {"role": "assistant"}))
    for word in words:
        delta = {"contentBlockIndex": 0, "delta": {"text": word}}
        yield Piece(event("contentBlockDelta", delta), word=True)
    yield Piece(event("contentBlockStop", {"contentBlockIndex": 0}))
    yield Piece(event("messageStop", {"stopReason": "end_turn"}))
    if told:
        last = {"usage": _converse_usage(told), "metrics": {"latencyMs": 1}}
        yield Piece(event("metadata", last), figures=True)


def _if(
    told: Figures | None, name: str, usage: Callable[[Figures], dict[str, Any]]
) -> dict[str, Any]:
    return {name: usage(told)} if told else {}


SSE = "text/event-stream"
DIALECTS = {
    "chat": Dialect("/chat/completions", SSE, _chat, _chat_stream),
    "completions": Dialect("/completions", SSE, _completions, _completions_stream),
    "embeddings": Dialect("/embeddings", SSE, _embeddings, _no_stream),
    "messages": Dialect("/messages", SSE, _messages, _messages_stream),
    "responses": Dialect("/responses", SSE, _responses, _responses_stream),
    "gemini": Dialect("enerateContent", SSE, _gemini, _gemini_stream),
    "converse": Dialect(
        "/converse", "application/vnd.amazon.eventstream", _converse, _converse_stream
    ),
}


def dialect_of(path: str) -> str:
    """The dialect that a path belongs to."""
    plain = path.partition("?")[0].removesuffix("-stream")
    return next(name for name, dialect in DIALECTS.items() if plain.endswith(dialect.end))
