"""The hub's prompts as chat completions, for OpenAI and every server that speaks it."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core import events
from gateway.core.errors import Failure, UpstreamError
from gateway.core.events import Event
from gateway.core.messages import (
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
    ToolChoice,
    ToolResult,
    mark,
    unmark,
)
from gateway.core.raw import given
from gateway.core.sse import SseReader, TooLarge
from gateway.core.target import Target
from gateway.providers.adapter import EVENT_STREAM, Endpoint
from gateway.providers.chat_wire import Choice, Chunk, decode_chunk
from gateway.providers.chat_wire import Message as WireMessage
from gateway.providers.chat_wire import ToolCall as WireCall
from gateway.providers.errors import UNREADABLE
from gateway.providers.quirks import HINTS, Quirks

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]
MAKER = "openai"

FINISH = {
    "stop": STOP,
    "eos": STOP,
    "length": LENGTH,
    "model_length": LENGTH,
    "tool_calls": TOOL_CALLS,
    "function_call": TOOL_CALLS,
    "content_filter": FILTERED,
}


class ChatCompletions:
    """Chat completions as a conversation of the hub."""

    def __init__(self, quirks: Quirks) -> None:
        self._quirks = quirks

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go."""
        path = target.base_path + "/chat/completions"
        return Endpoint(path, (("Content-Type", "application/json"), *bearer(target)))

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        quirks = self._quirks
        body: Json = {"model": target.model, "messages": self._messages(prompt, fit)}
        if prompt.tools:
            body["tools"] = [_tool(tool) for tool in prompt.tools]
        if prompt.tool_choice is not None and prompt.tools:
            body["tool_choice"] = self._choice(prompt.tool_choice)
        wanted: Json = {
            "parallel_tool_calls": prompt.parallel if prompt.tools else None,
            "max_completion_tokens": prompt.max_output,
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "presence_penalty": prompt.presence_penalty,
            "frequency_penalty": prompt.frequency_penalty,
            "stop": list(prompt.stop) or None,
            "seed": prompt.seed,
            "n": prompt.choices if prompt.choices > 1 else None,
            "logprobs": True if prompt.logprobs is not None else None,
            "top_logprobs": prompt.logprobs,
            "response_format": _format(prompt),
            "verbosity": prompt.verbosity or None,
            "user": prompt.user or None,
            "service_tier": prompt.service_tier or None,
            "reasoning_effort": effort(prompt),
            "top_k": prompt.top_k,
            "metadata": prompt.metadata,
        }
        for name, value in wanted.items():
            if value is None:
                continue
            if name in quirks.refuses or (name == "top_k" and not quirks.top_k):
                _note(fit, name)
            else:
                body[quirks.renames.get(name, name)] = value
        if prompt.stream:
            body["stream"] = True
            if quirks.usage_option:
                body["stream_options"] = {"include_usage": True}
        for name in prompt.unknown:
            fit.refuse(name)
        for name in prompt.hints:
            fit.leave_out(name)
        return _encode(body)

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        try:
            chunk: Chunk = decode_chunk(body)
        except UNREADABLE as error:
            raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
        if chunk.error is not None:
            raise UpstreamError(Failure.STREAM_ERROR, body.decode(errors="replace"))
        choice = chunk.choices[0] if chunk.choices else Choice()
        message = choice.message or choice.delta or WireMessage(content=choice.text)
        parts = _parts(message, choice)
        finish = FINISH.get(choice.finish_reason or "", STOP)
        if finish == STOP and any(isinstance(part, ToolCall) for part in parts):
            finish = TOOL_CALLS
        usage = chunk.usage.counted() if chunk.usage is not None else None
        return Reply(
            id=chunk.id or "", model=chunk.model or "", parts=parts, finish=finish, usage=usage
        )

    def decoder(self) -> "ChatDecoder":
        """Return a fresh stream decoder."""
        return ChatDecoder()

    def _messages(self, prompt: Prompt, fit: Fit) -> list[Json]:
        found: list[Json] = []
        if prompt.system:
            text = "\n\n".join([part.text for part in prompt.system])
            found.append({"role": "system", "content": text})
        for message in prompt.messages:
            if message.role == "assistant":
                found.append(self._assistant(message, fit))
            else:
                found += self._user(message, fit)
        return found

    def _assistant(self, message: Message, fit: Fit) -> Json:
        found: Json = {"role": "assistant"}
        text = "".join([part.text for part in message.parts if isinstance(part, Text)])
        refusal = "".join([part.text for part in message.parts if isinstance(part, Refusal)])
        calls = [part for part in message.parts if isinstance(part, ToolCall)]
        if text or not calls:
            found["content"] = text or refusal
        if calls:
            found["tool_calls"] = [self._call(call) for call in calls]
        thoughts = [part for part in message.parts if isinstance(part, Thinking)]
        thought = "".join([part.text for part in thoughts])
        if thought and self._quirks.thinking_parts:
            inner = [{"type": "text", "text": thought}]
            parts: list[Json] = [{"type": "thinking", "thinking": inner, "closed": True}]
            found["content"] = parts + ([{"type": "text", "text": text}] if text else [])
        elif thought and self._quirks.thoughts_back:
            found[self._quirks.thoughts_back] = thought
        elif calls and self._quirks.thoughts_needed:
            found[self._quirks.thoughts_back] = " "
        details = [unmark(MAKER, part.redacted or part.signature) for part in thoughts]
        if any(details):
            found["reasoning_details"] = [msgspec.Raw(one.encode()) for one in details if one]
        if any(isinstance(part, Media) for part in message.parts):
            fit.refuse("messages", "media in what the assistant said")
        return found

    def _call(self, call: ToolCall) -> Json:
        found: Json = {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        if signature := unmark(MAKER, call.signature):
            found["extra_content"] = msgspec.Raw(signature.encode())
        return found

    def _user(self, message: Message, fit: Fit) -> list[Json]:
        """Write a turn: each result of a tool is a message, and comes first."""
        found: list[Json] = []
        later: list[Json] = []
        for part in message.parts:
            if isinstance(part, ToolResult):
                text = "\n".join([one.text for one in part.parts if isinstance(one, Text)])
                if part.is_error and text:
                    text = f"Error: {text}"
                found.append({"role": "tool", "tool_call_id": part.call_id, "content": text})
                # Tool messages hold text alone: pictures follow as what the user shows.
                media = [one for one in part.parts if isinstance(one, Media)]
                later += [self._content(one, fit) for one in media]
            else:
                later.append(self._content(part, fit))
        content = [part for part in later if part]
        if content and all(part["type"] == "text" for part in content):
            text = "\n\n".join([part["text"] for part in content])
            found.append({"role": "user", "content": text})
        elif content:
            found.append({"role": "user", "content": content})
        return found

    def _content(self, part: Part, fit: Fit) -> Json:
        match part:
            case Text(text=text) | Refusal(text=text):
                return {"type": "text", "text": text}
            case Media(kind="image"):
                image: Json = {"url": part.url or f"data:{part.media_type};base64,{part.data}"}
                if part.detail:
                    image["detail"] = part.detail
                return {"type": "image_url", "image_url": image}
            case Media(kind="audio"):
                sound = {"data": part.data, "format": part.media_type.removeprefix("audio/")}
                return {"type": "input_audio", "input_audio": sound}
            case Media(kind="document") if part.media_type == "text/plain" and part.data:
                return {"type": "text", "text": _plain(part.data)}
            case Media(kind="document") if self._quirks.document_urls:
                where = part.url or f"data:{part.media_type};base64,{part.data}"
                named = {"document_name": part.name} if part.name else {}
                return {"type": "document_url", "document_url": where, **named}
            case Media(kind="document") if part.data:
                data = f"data:{part.media_type};base64,{part.data}"
                file = {"file_data": data, "filename": part.name or "document.pdf"}
                return {"type": "file", "file": file}
            case Media():
                fit.refuse(part.where, "a document by its URL")
        return {}

    def _choice(self, choice: ToolChoice) -> object:
        if choice.mode == "tool":
            return {"type": "function", "function": {"name": choice.name}}
        return self._quirks.tool_choices.get(choice.mode, choice.mode)


def bearer(target: Target) -> tuple[tuple[str, str], ...]:
    """Return a target's own headers, with the bearer key where there is one."""
    if target.api_key is None:
        return target.headers
    return (*target.headers, ("Authorization", f"Bearer {target.api_key}"))


def effort(prompt: Prompt) -> str | None:
    """Return how much a prompt wants thought about, in OpenAI's words."""
    wanted = prompt.reasoning
    if wanted is None:
        return None
    if not wanted.enabled:
        return "none"
    if wanted.effort or wanted.budget is None:
        return wanted.effort or None
    return "low" if wanted.budget <= 2048 else "medium" if wanted.budget <= 8192 else "high"


_HUB_NAMES = {
    "parallel_tool_calls": "parallel",
    "max_completion_tokens": "max_output",
    "n": "choices",
    "response_format": "format",
    "reasoning_effort": "reasoning",
    "top_logprobs": "logprobs",
}


def _note(fit: Fit, name: str) -> None:
    hub_name = _HUB_NAMES.get(name, name)
    if name in HINTS:
        fit.leave_out(hub_name)
    else:
        fit.refuse(hub_name)


def _plain(data: str) -> str:
    return msgspec.json.decode(f'"{data}"', type=bytes).decode(errors="replace")


def _tool(tool: Tool) -> Json:
    function: Json = {"name": tool.name, "parameters": tool.schema}
    if tool.description:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _format(prompt: Prompt) -> Json | None:
    wanted = prompt.format
    if wanted is None:
        return None
    if wanted.schema is None:
        return {"type": "json_object"}
    schema: Json = {"name": wanted.name, "schema": wanted.schema}
    if wanted.description:
        schema["description"] = wanted.description
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": schema}


def _parts(message: WireMessage, choice: Choice) -> tuple[Part, ...]:
    found: list[Part] = []
    thought, text = message.thought(), message.text()
    if thought or message.reasoning_details:
        secret = _details(message.reasoning_details)
        found.append(Thinking(thought, signature=secret))
    if text:
        logprobs = given(choice.logprobs.content) if choice.logprobs is not None else None
        found.append(Text(text, logprobs=logprobs))
    if message.refusal:
        found.append(Refusal(message.refusal))
    for call in message.tool_calls or ():
        function = call.function
        if function is not None:
            name, arguments = function.name or "", function.text() or "{}"
            found.append(ToolCall(call.id or "", name, arguments, _signature(call)))
    return tuple(found)


def _details(details: list[Raw] | None) -> str:
    """Keep OpenRouter's blocks of thought as they came: their signatures are checked."""
    if not details:
        return ""
    return mark(MAKER, ",".join([bytes(one).decode() for one in details]))


def _signature(call: WireCall) -> str:
    extra = given(call.extra_content)
    return mark(MAKER, bytes(extra).decode()) if extra is not None else ""


class ChatDecoder:
    """Reads a stream of chunks."""

    content_type = EVENT_STREAM

    def __init__(self) -> None:
        self._events = SseReader()
        self._begun = self._ended = False
        # A call's number on the wire, or its id where it has none -> its number here.
        self._calls: dict[int | str, int] = {}
        self._called = False
        self._details: list[Raw] = []

    def feed(self, data: bytes) -> list[Event]:
        """Take any split of the stream."""
        try:
            found = self._events.feed(data)
        except TooLarge:
            message = "an event of the stream is too large"
            raise UpstreamError(Failure.PROTOCOL, message) from None
        return [event for one in found for event in self._take(one.data)]

    def end(self) -> list[Event]:
        """Take an event whose empty line never came."""
        return [event for one in self._events.rest() for event in self._take(one.data)]

    def _take(self, data: bytes) -> list[Event]:
        if self._ended or not data.strip():
            return []
        if data.strip() == b"[DONE]":
            self._ended = True
            return [*self._signed(), events.Ended()]
        try:
            chunk: Chunk = decode_chunk(data)
        except UNREADABLE:
            return []  # not a shape we know, and no reason to end
        if chunk.error is not None:
            return [events.Failed(data.decode(errors="replace"))]
        found: list[Event] = []
        if not self._begun and (chunk.id or chunk.choices):
            self._begun = True
            found.append(events.Begun(chunk.id or "", chunk.model or ""))
        for choice in chunk.choices or ():
            if not choice.index:
                found += self._choice(choice)
        usage = chunk.usage or next((c.usage for c in chunk.choices or () if c.usage), None)
        if usage is not None:
            found.append(events.Used(usage.counted()))
        return found

    def _choice(self, choice: Choice) -> list[Event]:
        delta = choice.delta or choice.message or WireMessage(content=choice.text)
        found: list[Event] = []
        if thought := delta.thought():
            found.append(events.ThinkingDelta(thought))
        self._details += delta.reasoning_details or ()
        text = delta.text()
        logprobs = given(choice.logprobs.content) if choice.logprobs is not None else None
        if text or delta.tool_calls or delta.refusal or choice.finish_reason:
            found += self._signed()
        if text or logprobs is not None:
            found.append(events.TextDelta(text, logprobs))
        if delta.refusal:
            found.append(events.RefusalDelta(delta.refusal))
        for call in delta.tool_calls or ():
            found += self._call(call)
        if choice.finish_reason is not None:
            reason = FINISH.get(choice.finish_reason, STOP)
            if reason == STOP and self._called:
                reason = TOOL_CALLS
            found.append(events.Finished(reason))
        return found

    def _call(self, call: WireCall) -> list[Event]:
        function = call.function
        key: int | str = call.index if call.index is not None else call.id or len(self._calls)
        found: list[Event] = []
        number = self._calls.get(key)
        if number is None:
            number = self._calls[key] = len(self._calls)
            self._called = True
            name = (function.name if function is not None else None) or ""
            signature = _signature(call)
            found.append(events.CallBegun(number, call.id or f"call_{number}", name, signature))
        if function is not None and (arguments := function.text()):
            found.append(events.CallDelta(number, arguments))
        return found

    def _signed(self) -> list[Event]:
        details, self._details = self._details, []
        return [events.ThinkingSigned(_merged(details))] if details else []


def _merged(pieces: list[Raw]) -> str:
    """Put the pieces of OpenRouter's blocks together again: text grows, the rest is set once."""
    blocks: dict[tuple[Any, Any], Json] = {}
    for piece in pieces:
        try:
            found = msgspec.json.decode(piece, type=dict[str, Any])
        except msgspec.DecodeError:
            continue
        block = blocks.setdefault((found.get("index"), found.get("type")), {})
        for name, value in found.items():
            grows = name in ("text", "summary", "data") and isinstance(value, str)
            block[name] = (block.get(name) or "") + value if grows else value or block.get(name)
    return mark(MAKER, ",".join([_encode(block).decode() for block in blocks.values()]))
