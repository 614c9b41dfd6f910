"""Cohere's API, version 2: chat and embeddings."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.errors import Failure, UpstreamError
from gateway.core.events import Event
from gateway.core.messages import (
    ASSISTANT,
    LENGTH,
    STOP,
    SYSTEM,
    TOOL_CALLS,
    Fit,
    Media,
    Message,
    Part,
    Prompt,
    Refusal,
    Reply,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
)
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.sse import SseEvent
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers.adapter import Conversation, Embedding, Endpoint, Native
from gateway.providers.anthropic_prompt import BUDGETS
from gateway.providers.chat import bearer
from gateway.providers.decoding import SseDecoder
from gateway.providers.embeddings import Vector, encode_vectors, texts_of
from gateway.providers.errors import UNREADABLE, error_message

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]

FINISH = {
    "COMPLETE": STOP,
    "STOP_SEQUENCE": STOP,
    "MAX_TOKENS": LENGTH,
    "TOOL_CALL": TOOL_CALLS,
}
_FAILURES = frozenset(("ERROR", "TIMEOUT"))


class Tokens(msgspec.Struct, gc=False):
    """Counts of tokens; Cohere sends some as floats."""

    input_tokens: float | None = None
    output_tokens: float | None = None


class WireUsage(msgspec.Struct, gc=False):
    """`usage`: `tokens` is what the model had, `billed_units` what is paid for."""

    tokens: Tokens | None = None
    billed_units: Tokens | None = None
    cached_tokens: float | None = None

    def counted(self) -> Usage | None:
        """Convert to the gateway's counts."""
        found = self.tokens or self.billed_units
        if found is None:
            return None
        cached = int(self.cached_tokens or 0)
        return Usage(int(found.input_tokens or 0), cached, 0, int(found.output_tokens or 0))


class Function(msgspec.Struct, gc=False):
    """What a call calls."""

    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct, gc=False):
    """A tool call."""

    id: str | None = None
    function: Function | None = None

    def arguments(self) -> str:
        """Return the arguments: some calls have none, in several ways."""
        text = (self.function.arguments if self.function else None) or ""
        return "" if text == "null" else text


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
    usage: WireUsage | None = None


class Delta(msgspec.Struct, gc=False):
    """What is new in an event."""

    message: WireMessage | None = None
    finish_reason: str | None = None
    usage: WireUsage | None = None
    error: str | None = None


class StreamEvent(msgspec.Struct, gc=False):
    """An event of any type."""

    type: str | None = None
    id: str | None = None
    index: int | None = None
    delta: Delta | None = None


_decode = msgspec.json.Decoder(Answer).decode
_decode_event = msgspec.json.Decoder(StreamEvent).decode


class CohereConversation:
    """The hub's prompts as Cohere's chat."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go."""
        return Endpoint(target.base_path + "/v2/chat", _headers(target))

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        body: Json = {"model": target.model, "messages": _messages(prompt, fit)}
        choice = prompt.tool_choice
        if prompt.tools:
            body["tools"] = [_tool(tool) for tool in prompt.tools]
            if any(tool.strict for tool in prompt.tools):
                body["strict_tools"] = True
            if choice is not None and choice.mode in ("required", "none"):
                body["tool_choice"] = choice.mode.upper()
            elif choice is not None and choice.mode == "tool":
                body["tool_choice"] = "REQUIRED"  # of the one tool that is left
                body["tools"] = [_tool(tool) for tool in prompt.tools if tool.name == choice.name]
        wanted: Json = {
            "max_tokens": prompt.max_output,
            "temperature": prompt.temperature,
            "p": prompt.top_p,
            "k": prompt.top_k,
            "stop_sequences": list(prompt.stop) or None,
            "seed": prompt.seed,
            "presence_penalty": prompt.presence_penalty,
            "frequency_penalty": prompt.frequency_penalty,
            "response_format": _format(prompt),
            "thinking": _thinking(prompt),
            "stream": True if prompt.stream else None,
        }
        _leave(prompt, fit)
        return _encode(body | {name: value for name, value in wanted.items() if value is not None})

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        try:
            answer = _decode(body)
        except UNREADABLE as error:
            raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
        message = answer.message
        if not isinstance(message, WireMessage) or answer.finish_reason in _FAILURES:
            raise UpstreamError(Failure.STREAM_ERROR, body.decode(errors="replace"))
        parts: list[Part] = [Thinking(message.tool_plan)] if message.tool_plan else []
        for part in message.parts():
            if part.thinking:
                parts.append(Thinking(part.thinking))
            if part.text:
                parts.append(Text(part.text))
        for call in message.calls():
            name = (call.function.name if call.function else None) or ""
            parts.append(ToolCall(call.id or "", name, call.arguments() or "{}"))
        return Reply(
            id=answer.id or "",
            model="",
            parts=tuple(parts),
            finish=FINISH.get(answer.finish_reason or "", STOP),
            usage=answer.usage.counted() if answer.usage is not None else None,
        )

    def decoder(self) -> "CohereDecoder":
        """Return a fresh stream decoder."""
        return CohereDecoder()


def _messages(prompt: Prompt, fit: Fit) -> list[Json]:
    found: list[Json] = []
    if prompt.system:
        text = "\n\n".join([part.text for part in prompt.system])
        found.append({"role": "system", "content": text})
    for message in prompt.messages:
        if message.role == ASSISTANT:
            found.append(_assistant(message))
        elif message.role == SYSTEM:
            said = [part.text for part in message.parts if isinstance(part, Text)]
            found.append({"role": "system", "content": "\n\n".join(said)})
        else:
            found += _user(message, fit)
    return found


def _assistant(message: Message) -> Json:
    found: Json = {"role": "assistant"}
    content: list[Json] = []
    calls = [part for part in message.parts if isinstance(part, ToolCall)]
    for part in message.parts:
        match part:
            case Thinking(text=text) if text and calls:
                found["tool_plan"] = found.get("tool_plan", "") + text
            case Thinking(text=text) if text:
                content.append({"type": "thinking", "thinking": text})
            case Text(text=text) | Refusal(text=text) if text:
                content.append({"type": "text", "text": text})
    if content:
        found["content"] = content
    if calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    elif not content:
        found["content"] = [{"type": "text", "text": " "}]
    return found


def _user(message: Message, fit: Fit) -> list[Json]:
    results: list[Json] = []
    content: list[Json] = []
    for part in message.parts:
        match part:
            case ToolResult(call_id=call_id, parts=parts, is_error=is_error):
                text = "\n".join([one.text for one in parts if isinstance(one, Text)])
                for one in parts:
                    if isinstance(one, Media) and one.kind == "image":
                        content.append(_image(one))  # results hold text alone: it follows
                    elif isinstance(one, Media):
                        fit.refuse(one.where, "documents and sound")
                text = f"Error: {text}" if is_error else text
                result = {"type": "document", "document": {"data": {"result": text}}}
                results.append({"role": "tool", "tool_call_id": call_id, "content": [result]})
            case Text(text=text) if text:
                content.append({"type": "text", "text": text})
            case Media(kind="image"):
                content.append(_image(part))
            case Media():
                fit.refuse(part.where, "documents and sound")
    if content:
        results.append({"role": "user", "content": content})
    return results


def _image(part: Media) -> Json:
    where = part.url or f"data:{part.media_type};base64,{part.data}"
    return {"type": "image_url", "image_url": {"url": where}}


def _tool(tool: Tool) -> Json:
    function: Json = {"name": tool.name, "parameters": tool.schema}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _format(prompt: Prompt) -> Json | None:
    if prompt.format is None:
        return None
    found: Json = {"type": "json_object"}
    if prompt.format.schema is not None:
        found["json_schema"] = prompt.format.schema
    return found


def _thinking(prompt: Prompt) -> Json | None:
    wanted = prompt.reasoning
    if wanted is None:
        return None
    if not wanted.enabled:
        return {"type": "disabled"}
    budget = wanted.budget or BUDGETS.get(wanted.effort)
    return {"type": "enabled"} | ({"token_budget": budget} if budget else {})


def _leave(prompt: Prompt, fit: Fit) -> None:
    """Note what has no place here."""
    if prompt.choices > 1:
        fit.refuse("choices")
    if prompt.logprobs is not None:
        fit.refuse("logprobs")
    if prompt.parallel is False and prompt.tools:
        fit.leave_out("parallel")  # a wish: whoever calls a tool can answer two calls, too
    for field in ("verbosity", "user", "metadata", "service_tier"):
        if getattr(prompt, field):
            fit.leave_out(field)
    for name in prompt.hints:
        fit.leave_out(name)
    for name in prompt.unknown:
        fit.refuse(name)


class CohereDecoder(SseDecoder):
    """Reads a stream of events."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, int] = {}

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
            if arguments := call.arguments():
                found.append(events.CallDelta(number, arguments))
        return found


def _content(message: WireMessage) -> list[Event]:
    found: list[Event] = []
    for part in message.parts():
        if part.thinking:
            found.append(events.ThinkingDelta(part.thinking))
        if part.text:
            found.append(events.TextDelta(part.text))
    return found


def _ended(delta: Delta) -> list[Event]:
    if delta.finish_reason in _FAILURES:
        said = delta.error or delta.finish_reason
        return [events.Failed(_encode({"error": {"message": said}}).decode())]
    found: list[Event] = []
    if delta.usage is not None and (used := delta.usage.counted()) is not None:
        found.append(events.Used(used))
    return [*found, events.Finished(FINISH.get(delta.finish_reason or "", STOP)), events.Ended()]


class _Floats(msgspec.Struct):
    float: list[Vector]


class _Meta(msgspec.Struct):
    billed_units: Tokens | None = None


class _Embeddings(msgspec.Struct):
    embeddings: _Floats
    meta: _Meta | None = None


class CohereEmbedding:
    """Embeddings."""

    def endpoint(self, target: Target) -> Endpoint:
        """Say where they go."""
        return Endpoint(target.base_path + "/v2/embed", _headers(target))

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Write a request. Raises ApiError.

        What is embedded is taken for a document; `input_type` among the client's fields says else.
        """
        fields = request.fields.copy()
        kind = fields.pop("input_type", Raw(b'"search_document"'))
        texts, dimensions = texts_of(msgspec.structs.replace(request, fields=fields), fit)
        body: Json = {
            "model": target.model,
            "texts": texts,
            "input_type": kind,
            "embedding_types": ["float"],
        }
        if dimensions is not None:
            body["output_dimension"] = dimensions
        return _encode(body)

    def parse(self, body: bytes, request: Request) -> tuple[bytes, Usage | None]:
        """Write the vectors as OpenAI does."""
        try:
            found = msgspec.json.decode(body, type=_Embeddings)
        except UNREADABLE as error:
            raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
        billed = found.meta.billed_units if found.meta is not None else None
        usage = Usage(int(billed.input_tokens or 0)) if billed is not None else None
        return encode_vectors(found.embeddings.float, request, usage), usage


class Cohere:
    """The adapter."""

    natives: dict[Operation, Native] = {}
    conversation: Conversation | None = CohereConversation()
    embedding: Embedding | None = CohereEmbedding()

    def listing(self, target: Target) -> Endpoint | None:
        """Say where a target lists its models."""
        return Endpoint(target.base_path + "/v1/models?page_size=1000", _headers(target))

    def parse_listing(self, body: bytes) -> list[str]:
        """Return the names under `models`."""
        try:
            found = msgspec.json.decode(body, type=_Models)
        except UNREADABLE:
            return []
        return [model.name for model in found.models]

    def parse_error(self, body: bytes) -> str | None:
        """Return `message`."""
        return error_message(body)


class _Model(msgspec.Struct):
    name: str


class _Models(msgspec.Struct):
    models: list[_Model]


def _headers(target: Target) -> tuple[tuple[str, str], ...]:
    return (("Content-Type", "application/json"), *bearer(target))


ADAPTER = Cohere()
