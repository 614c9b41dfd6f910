"""Legacy completions, for providers that only chat: a prompt is what the user says."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.errors import ApiError
from gateway.core.events import Event
from gateway.core.messages import USER, Message, Prompt, Reply, Text
from gateway.core.request import Request
from gateway.core.usage import Usage
from gateway.formats.chat_reply import END, usage
from gateway.formats.fields import convert, present
from gateway.formats.openai import error_event
from gateway.formats.reply import Meta

# The hub's name of a field -> the client's, where they differ.
NAMES = {"max_output": "max_tokens", "choices": "n"}

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]


class CompletionFields(msgspec.Struct):
    """The fields that the hub understands."""

    prompt: str | list[Raw]
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    user: str | None = None


_READ = frozenset(CompletionFields.__struct_fields__) | {"model", "stream", "stream_options"}
_READ |= {"max_tokens", "n"}
# What these mean where they are at their defaults is what everybody does.
_PLAIN = {"echo": b"false", "best_of": b"1"}
_FALLBACK_MAX = 16  # what OpenAI's completions generate where nobody says how much


def prompt(request: Request) -> Prompt:
    """Translate a request. Raises ApiError naming the field that is wrong."""
    fields = convert(request.fields, CompletionFields)
    given = [n for n in present(request.fields) if bytes(request.fields[n]) != _PLAIN.get(n)]
    return Prompt(
        model=request.model,
        messages=(Message(USER, (Text(_text(fields.prompt)),)),),
        max_output=_FALLBACK_MAX if request.max_output is None else request.max_output,
        temperature=fields.temperature,
        top_p=fields.top_p,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        stop=(fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ()),
        seed=fields.seed,
        choices=request.choices,
        user=fields.user or "",
        stream=request.stream,
        unknown=tuple([name for name in given if name not in _READ]),
    )


def _text(given: str | list[Raw]) -> str:
    if isinstance(given, str):
        return given
    if len(given) == 1:
        try:
            return msgspec.json.decode(given[0], type=str)
        except msgspec.ValidationError:
            pass
    text = "This provider takes one prompt that is text, no list of prompts and no tokens."
    raise ApiError("unsupported_parameter", text, param="prompt")


def encode(reply: Reply, meta: Meta) -> bytes:
    """Write a whole reply."""
    text = "".join([part.text for part in reply.parts if isinstance(part, Text)])
    found = _completion(reply.id, reply.model, meta, text, _reason(reply.finish))
    if reply.usage is not None:
        found["usage"] = usage(reply.usage)
    return _encode(found)


def _completion(id: str, model: str, meta: Meta, text: str, finish: str | None) -> Json:
    return {
        "id": id or f"cmpl-{meta.id}",
        "object": "text_completion",
        "created": meta.created,
        "model": model or meta.model,
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}],
    }


def _reason(finish: str) -> str:
    return "stop" if finish == "tool_calls" else finish


class CompletionStream:
    """Writes one stream's events."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._id = self._model = ""
        self._reason = "stop"
        self._usage: Usage | None = None

    def write(self, found: list[Event]) -> bytes:
        """Return what the client may have of these events."""
        return b"".join([self._one(event) for event in found])

    def finish(self) -> bytes:
        """Return the stream's end: why, and what was used where that was asked for."""
        chunk = _completion(self._id, self._model, self._meta, "", self._reason)
        end = self._chunk(chunk)
        if not self._meta.wants_usage or self._usage is None:
            return end + END
        return end + self._chunk({**chunk, "choices": [], "usage": usage(self._usage)}) + END

    def error(self, error: ApiError) -> bytes:
        """Return the event that ends a stream which failed."""
        return error_event(error)

    def _one(self, event: Event) -> bytes:
        match event:
            case events.TextDelta(text=text):
                return self._chunk(_completion(self._id, self._model, self._meta, text, None))
            case events.Finished(reason=reason):
                self._reason = _reason(reason)
            case events.Begun(id=id, model=model):
                self._id, self._model = id or self._id, model or self._model
            case events.Used(usage=used):
                self._usage = used
        return b""

    def _chunk(self, chunk: Json) -> bytes:
        return b"data: %b\n\n" % _encode(chunk)
