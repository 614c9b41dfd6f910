"""OpenAI's Responses API: passed on as it comes, or spoken to on behalf of other dialects."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.messages import (
    ASSISTANT,
    RESPONSES,
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
    of_responses,
    unmark,
    written,
)
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers.adapter import Endpoint
from gateway.providers.chat import bearer, effort, end_user
from gateway.providers.decoding import NativeStream, inner_json
from gateway.providers.errors import UNREADABLE, has_field
from gateway.providers.foreign import own_items
from gateway.providers.responses_wire import (
    HUB_ITEMS,
    Response,
    ResponsesDecoder,
    error_event,
    finish_of,
    logprobs_of,
    other_text,
    searched,
    thought,
    usage_of,
)

_encode = msgspec.json.Encoder().encode


Json = dict[str, Any]


_decode_response = msgspec.json.Decoder(Response).decode


class NativeResponsesStream(NativeStream):
    """A stream whose events are numbered, also the one that says that it failed."""

    def __init__(self) -> None:
        self._responses = ResponsesDecoder()
        super().__init__(self._responses, b"")

    def fail(self, error: ApiError) -> bytes:
        """Return what ends a stream that failed."""
        return error_event(error, self._responses.next_number)


class NativeResponses:
    """Responses as the client wrote them, under the target's name for the model."""

    def endpoint(self, operation: Operation, target: Target, *, stream: bool) -> Endpoint:
        """Say where to send them."""
        headers = (("Content-Type", "application/json"), *bearer(target))
        return Endpoint(target.base_path + "/responses", headers)

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Return the client's fields."""
        fields = request.fields.copy()
        if request.model != target.model:
            fields["model"] = Raw(_encode(target.model))
        own_items(fields, RESPONSES)
        return _encode(fields)

    def parse_usage(self, body: bytes) -> Usage | None:
        """Read `usage`."""
        try:
            return _usage(_decode_response(body))
        except UNREADABLE:
            return None

    def parse_text(self, body: bytes) -> str:
        """Return what was written in all items."""
        try:
            response = _decode_response(body)
            return written(_parts(response)) + _others(response)
        except UNREADABLE:
            return ""

    def decoder(self, request: Request) -> NativeStream:
        """Return a fresh stream decoder."""
        return NativeResponsesStream()


class ResponsesConversation:
    """The hub's prompts as requests of the Responses API, which keeps nothing of them."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go."""
        headers = (("Content-Type", "application/json"), *bearer(target))
        return Endpoint(target.base_path + "/responses", headers)

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        items = [item for m in prompt.messages for item in _items(m, fit)]
        body: Json = {"model": target.model, "input": items, "store": False}
        text: Json = {"verbosity": prompt.verbosity} if prompt.verbosity else {}
        if prompt.format is not None:
            text["format"] = _format(prompt)
        reasoning: Json = {}
        if (wanted := effort(prompt)) is not None:
            reasoning["effort"] = wanted
        if prompt.reasoning is not None and prompt.reasoning.shown and prompt.reasoning.enabled:
            reasoning["summary"] = "auto"
        fields: Json = {
            "instructions": "\n\n".join([part.text for part in prompt.system]) or None,
            "tools": [_tool(tool) for tool in prompt.tools] or None,
            "tool_choice": _choice(prompt),
            "parallel_tool_calls": prompt.parallel if prompt.tools else None,
            "max_output_tokens": prompt.max_output,
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "top_logprobs": prompt.logprobs,
            "text": text or None,
            "reasoning": reasoning or None,
            "safety_identifier": end_user(prompt),
            "metadata": prompt.metadata,
            "service_tier": prompt.service_tier or None,
            "stream": True if prompt.stream else None,
        }
        include = ["reasoning.encrypted_content"] if reasoning else []
        if prompt.logprobs is not None:
            include.append("message.output_text.logprobs")
        if include:
            fields["include"] = include
        for name in ("top_k", "presence_penalty", "frequency_penalty", "stop"):
            if getattr(prompt, name):
                fit.refuse(name)
        if prompt.seed is not None:  # a 0, too, says something
            fit.refuse("seed")
        if prompt.choices > 1:
            fit.refuse("choices")
        for name in prompt.hints:
            fit.leave_out(name)
        for name in prompt.unknown:
            fit.refuse(name)
        return _encode(body | {name: value for name, value in fields.items() if value is not None})

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        try:
            response = _decode_response(body)
            parts = _parts(response)
        except UNREADABLE as error:
            raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
        if response.status == "failed" or response.error is not None:
            raise UpstreamError(Failure.STREAM_ERROR, body.decode(errors="replace"))
        if response.output is None and not has_field(body, "output"):
            raise UpstreamError(Failure.PROTOCOL, "the reply is no response")
        called = any(isinstance(part, ToolCall) for part in parts)
        completed = response.status == "completed"
        finish, odd = finish_of(response, called=called, completed=completed)
        return Reply(
            id=response.id or "",
            model=response.model or "",
            parts=parts,
            finish=finish,
            usage=_usage(response),
            odd=odd,
        )

    def decoder(self) -> "ResponsesDecoder":
        """Return a fresh stream decoder."""
        return ResponsesDecoder()


def _others(response: Response) -> str:
    """Return what the model wrote for tools that only its provider has."""
    items = [item for item in response.output or () if item.type not in HUB_ITEMS]
    return "".join([(item.name or "") + other_text(item) for item in items])


def _usage(response: Response) -> Usage | None:
    items = response.output or ()
    return usage_of(response, sum([searched(item.type, item.action) for item in items]))


def _items(message: Message, fit: Fit) -> list[Json]:
    found: list[Json] = []
    content: list[Json] = []

    def flush() -> None:
        if content:
            said: Any = content.copy()
            if message.role == ASSISTANT:  # what was said goes back as plain text
                said = "".join([one["text"] for one in said])
            found.append({"type": "message", "role": message.role, "content": said})
            content.clear()

    for part in message.parts:
        match part:
            case ToolCall(id=id, name=name, arguments=arguments):
                flush()
                call = {"call_id": id, "name": name, "arguments": arguments}
                found.append({"type": "function_call", **call})
            case ToolResult(call_id=id, parts=parts):
                flush()
                inner = [_content(one, message.role, fit) for one in parts]
                said = [one for one in inner if one]
                if part.is_error:  # there is no other word for it
                    said = [{"type": "input_text", "text": "Error:"}, *said]
                output = {"call_id": id, "output": said}
                found.append({"type": "function_call_output", **output})
            case Thinking(text=text, signature=signature, redacted=redacted):
                flush()
                secret = unmark(RESPONSES, redacted) or unmark(RESPONSES, signature)
                if secret:
                    summary = [{"type": "summary_text", "text": text}] if text else []
                    item = {"type": "reasoning", "summary": summary, "encrypted_content": secret}
                    found.append(item)
            case _:
                if shown := _content(part, message.role, fit):
                    content.append(shown)
    flush()
    return found


def _content(part: Part, role: str, fit: Fit) -> Json:
    match part:
        case Text(text=text) | Refusal(text=text):
            return {"type": "input_text", "text": text}
        case Media() if role == ASSISTANT:
            fit.refuse(part.where, "media in what the assistant said")
            return {}
        case Media(kind="image"):
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            return {"type": "input_image", "image_url": url, "detail": part.detail or "auto"}
        case Media(kind="document", url=url) if url:
            return {"type": "input_file", "file_url": url}
        case Media(kind="document"):
            data = f"data:{part.media_type};base64,{part.data}"
            return {
                "type": "input_file",
                "file_data": data,
                "filename": part.name or "document.pdf",
            }
        case Media():
            fit.refuse(part.where, "sound")
    return {}


def _tool(tool: Tool) -> Json:
    found: Json = {"type": "function", "name": tool.name, "parameters": tool.schema}
    found["strict"] = bool(tool.strict)
    if tool.description:
        found["description"] = tool.description
    return found


def _choice(prompt: Prompt) -> Any:
    choice = prompt.tool_choice
    if choice is None or not prompt.tools:
        return None
    return {"type": "function", "name": choice.name} if choice.mode == "tool" else choice.mode


def _format(prompt: Prompt) -> Json:
    wanted = prompt.format
    assert wanted is not None
    if wanted.schema is None:
        return {"type": "json_object"}
    found: Json = {"type": "json_schema", "name": wanted.name, "schema": wanted.schema}
    if wanted.description:
        found["description"] = wanted.description
    if wanted.strict is not None:
        found["strict"] = wanted.strict
    return found


def _parts(response: Response) -> tuple[Part, ...]:
    found: list[Part] = []
    for item in response.output or ():
        match item.type:
            case "message":
                for part in item.content or ():
                    if part.type == "refusal":
                        found.append(Refusal(part.refusal or ""))
                    elif part.text is not None:
                        found.append(Text(part.text, logprobs=logprobs_of(part.logprobs)))
            case "reasoning":
                text = thought(item)
                secrets = of_responses(item.encrypted_content or "", shown=bool(text))
                found.append(Thinking(text, *secrets))
            case "function_call":
                call_id = item.call_id or item.id or ""
                found.append(ToolCall(call_id, item.name or "", inner_json(item.arguments) or "{}"))
    return tuple(found)
