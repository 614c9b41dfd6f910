"""OpenAI's Responses API: passed on as it comes, or spoken to on behalf of other dialects."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.errors import Failure, UpstreamError
from gateway.core.events import Event
from gateway.core.messages import (
    ASSISTANT,
    FILTERED,
    LENGTH,
    STOP,
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
    mark,
    unmark,
    written,
)
from gateway.core.operations import Operation
from gateway.core.raw import NOTHING, given
from gateway.core.request import Request
from gateway.core.sse import SseEvent
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers.adapter import Endpoint
from gateway.providers.chat import bearer, effort, end_user
from gateway.providers.decoding import NativeStream, SseDecoder, inner_json
from gateway.providers.errors import UNREADABLE

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]
MAKER = "responses"
_INCOMPLETE = {"max_output_tokens": LENGTH, "content_filter": FILTERED}


class InputDetails(msgspec.Struct, gc=False):
    """`usage.input_tokens_details`."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class OutputDetails(msgspec.Struct, gc=False):
    """`usage.output_tokens_details`."""

    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct, gc=False):
    """`usage`."""

    input_tokens: int | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None

    def counted(self) -> Usage:
        """Convert to the gateway's counts."""
        given = self.input_tokens_details or InputDetails()
        made = self.output_tokens_details or OutputDetails()
        return Usage(
            self.input_tokens or 0,
            given.cached_tokens or 0,
            given.cache_write_tokens or 0,
            self.output_tokens or 0,
            made.reasoning_tokens or 0,
        )


class ContentPart(msgspec.Struct, gc=False):
    """A part of a message or of a summary."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    logprobs: Raw = NOTHING


class Item(msgspec.Struct, gc=False):
    """An output item."""

    type: str | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Raw = NOTHING  # text; some servers send an object
    content: list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    encrypted_content: str | None = None


class Incomplete(msgspec.Struct, gc=False):
    """Why a response is not complete."""

    reason: str | None = None


class Head(msgspec.Struct, gc=False):
    """What a stream's first and last events are read for."""

    id: str | None = None
    model: str | None = None
    incomplete_details: Incomplete | None = None
    usage: WireUsage | None = None


class Response(Head, gc=False):
    """A whole response."""

    status: str | None = None
    output: list[Item] | None = None
    error: Any = None


class StreamEvent(msgspec.Struct, gc=False):
    """An event of any type."""

    type: str | None = None
    output_index: int | None = None
    delta: Any = None
    item: Item | None = None
    response: Head | None = None
    logprobs: Raw = NOTHING


_decode_response = msgspec.json.Decoder(Response).decode
_decode_event = msgspec.json.Decoder(StreamEvent).decode


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
        return _encode(fields)

    def parse_usage(self, body: bytes) -> Usage | None:
        """Read `usage`."""
        try:
            usage = _decode_response(body).usage
        except UNREADABLE:
            return None
        return None if usage is None else usage.counted()

    def parse_text(self, body: bytes) -> str:
        """Return what was written in all items."""
        try:
            return written(_parts(_decode_response(body)))
        except UNREADABLE:
            return ""

    def decoder(self, request: Request) -> NativeStream:
        """Return a fresh stream decoder."""
        return NativeStream(ResponsesDecoder(), b"")


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
        for name in ("top_k", "presence_penalty", "frequency_penalty", "stop", "seed"):
            if getattr(prompt, name):
                fit.refuse(name)
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
        called = any(isinstance(part, ToolCall) for part in parts)
        return Reply(
            id=response.id or "",
            model=response.model or "",
            parts=parts,
            finish=_finish(response, called),
            usage=response.usage.counted() if response.usage is not None else None,
        )

    def decoder(self) -> "ResponsesDecoder":
        """Return a fresh stream decoder."""
        return ResponsesDecoder()


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
                output = {"call_id": id, "output": [one for one in inner if one]}
                found.append({"type": "function_call_output", **output})
            case Thinking(text=text, signature=signature, redacted=redacted):
                flush()
                secret = _own_secret(redacted) or _own_secret(signature)
                if secret:
                    summary = [{"type": "summary_text", "text": text}] if text else []
                    item = {"type": "reasoning", "summary": summary, "encrypted_content": secret}
                    found.append(item)
            case _:
                if shown := _content(part, message.role, fit):
                    content.append(shown)
    flush()
    return found


def _own_secret(secret: str) -> str:
    """Return what was encrypted here: marked for another dialect, or as this one's client has it.

    Anthropic's signatures look alike but stand beside a text; those are not encrypted thought.
    """
    return unmark(MAKER, secret)


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
                        found.append(Text(part.text, logprobs=_logprobs(part.logprobs)))
            case "reasoning":
                text = "".join([one.text or "" for one in item.summary or item.content or ()])
                secret = mark(MAKER, item.encrypted_content or "")
                found.append(
                    Thinking(
                        text, signature=secret if text else "", redacted="" if text else secret
                    )
                )
            case "function_call":
                call_id = item.call_id or item.id or ""
                found.append(ToolCall(call_id, item.name or "", inner_json(item.arguments) or "{}"))
    return tuple(found)


def _logprobs(raw: Raw) -> Raw | None:
    return None if bytes(raw) == b"[]" else given(raw)


def _finish(response: Head, called: bool) -> str:
    details = response.incomplete_details
    if details is not None and details.reason in _INCOMPLETE:
        return _INCOMPLETE[details.reason]
    return TOOL_CALLS if called else STOP


class ResponsesDecoder(SseDecoder):
    """Reads a stream of events. Items are told by their place: some servers change their ids."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, int] = {}
        self._shown: set[int] = set()  # items of which there were deltas
        self._begun = False

    def read(self, event: SseEvent) -> list[Event]:
        """Return what an event says."""
        found = _decode_event(event.data)
        place = found.output_index or 0
        match found.type:
            case "response.output_text.delta" if isinstance(found.delta, str):
                self._shown.add(place)
                return [events.TextDelta(found.delta, _logprobs(found.logprobs))]
            case "response.refusal.delta" if isinstance(found.delta, str):
                self._shown.add(place)
                return [events.RefusalDelta(found.delta)]
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                self._shown.add(place)
                text = found.delta if isinstance(found.delta, str) else ""
                return [events.ThinkingDelta(text, place)]
            case "response.function_call_arguments.delta" if place in self._calls:
                self._shown.add(place)
                text = found.delta if isinstance(found.delta, str) else ""
                return [events.CallDelta(self._calls[place], text)]
            case "response.output_item.added" if found.item is not None:
                return self._added(place, found.item)
            case "response.output_item.done" if found.item is not None:
                return self._done(place, found.item)
            case "response.created" if found.response is not None and not self._begun:
                self._begun = True
                return [events.Begun(found.response.id or "", found.response.model or "")]
            case "response.completed" | "response.incomplete" if found.response is not None:
                return self._ended(found.response)
            case "response.failed" | "error":
                return [events.Failed(event.data.decode(errors="replace"))]
        return []

    def _added(self, place: int, item: Item) -> list[Event]:
        if item.type != "function_call" or place in self._calls:
            return []
        number = self._calls[place] = len(self._calls)
        return [events.CallBegun(number, item.call_id or item.id or "", item.name or "")]

    def _done(self, place: int, item: Item) -> list[Event]:
        """Take what only the whole item says: a secret, or what no delta said before."""
        if item.type == "reasoning" and item.encrypted_content:
            secret = mark(MAKER, item.encrypted_content)
            if place in self._shown:
                return [events.ThinkingSigned(secret, block=place)]
            return [events.ThinkingSigned(redacted=secret, block=place)]
        if place in self._shown:
            return []
        if item.type == "function_call":
            found = self._added(place, item)  # where nobody said so before
            if arguments := inner_json(item.arguments):
                self._shown.add(place)
                found.append(events.CallDelta(self._calls[place], arguments))
            return found
        if item.type == "message":
            return [events.TextDelta(part.text) for part in item.content or () if part.text]
        return []

    def _ended(self, response: Head) -> list[Event]:
        found: list[Event] = []
        if response.usage is not None:
            found.append(events.Used(response.usage.counted()))
        return [*found, events.Finished(_finish(response, bool(self._calls))), events.Ended()]
