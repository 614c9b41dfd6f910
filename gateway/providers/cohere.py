"""Cohere's API, version 2: chat and embeddings."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.errors import Failure, UpstreamError
from gateway.core.messages import (
    ASSISTANT,
    STOP,
    SYSTEM,
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
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers.adapter import Conversation, Embedding, Endpoint, Native
from gateway.providers.anthropic_prompt import BUDGETS
from gateway.providers.chat import bearer
from gateway.providers.cohere_wire import (
    FAILURES,
    FINISH,
    NO_ARGUMENTS,
    Answer,
    CohereDecoder,
    Tokens,
    WireMessage,
    usage_of,
)
from gateway.providers.embeddings import Vector, encode_vectors, texts_of
from gateway.providers.errors import UNREADABLE, error_message
from gateway.providers.figures import figures

_encode = msgspec.json.Encoder().encode


Json = dict[str, Any]


_decode = msgspec.json.Decoder(Answer).decode


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
        if not isinstance(message, WireMessage) or answer.finish_reason in FAILURES:
            raise UpstreamError(Failure.STREAM_ERROR, body.decode(errors="replace"))
        parts: list[Part] = [Thinking(message.tool_plan)] if message.tool_plan else []
        for part in message.parts():
            if part.thinking:
                parts.append(Thinking(part.thinking))
            if part.text:
                parts.append(Text(part.text))
        for call in message.calls():
            name = (call.function.name if call.function else None) or ""
            arguments = call.arguments()
            if arguments in ("", NO_ARGUMENTS):
                arguments = "{}"
            parts.append(ToolCall(call.id or "", name, arguments))
        return Reply(
            id=answer.id or "",
            model="",
            parts=tuple(parts),
            finish=FINISH.get(answer.finish_reason or "", STOP),
            odd=answer.finish_reason not in FINISH,
            usage=usage_of(answer.usage),
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
    budget = BUDGETS.get(wanted.effort) if wanted.budget is None else wanted.budget
    if wanted.budget is None and budget is not None and prompt.max_output is not None:
        budget = min(budget, prompt.max_output * 3 // 4)  # an effort leaves room for the answer
    return {"type": "enabled"} | ({} if budget is None else {"token_budget": budget})


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


class _Floats(msgspec.Struct):
    float: list[Vector]


class _Meta(msgspec.Struct):
    billed_units: Any = None


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
        billed = figures(found.meta.billed_units, Tokens) if found.meta is not None else None
        told = billed.input_tokens if billed is not None else None
        usage = Usage(int(told)) if told is not None else None
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
