"""The hub's prompts as chat completions, for OpenAI and every server that speaks it."""

import hashlib
import re
from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.call_ids import named, short
from gateway.core.errors import Failure, UpstreamError
from gateway.core.messages import (
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
)
from gateway.core.raw import given
from gateway.core.target import Target
from gateway.providers.adapter import Endpoint
from gateway.providers.chat_stream import FINISH, ChatDecoder, signature_of
from gateway.providers.chat_thoughts import MAKER, at_calls, details_of, extra_of
from gateway.providers.chat_wire import Choice, Chunk, decode_chunk
from gateway.providers.chat_wire import Message as WireMessage
from gateway.providers.chat_wire import ToolCall as WireCall
from gateway.providers.decoding import raw_text
from gateway.providers.errors import UNREADABLE, has_field
from gateway.providers.openai_wire import usage_of
from gateway.providers.plain import plain_text
from gateway.providers.quirks import HINTS, Quirks

_encode = msgspec.json.Encoder().encode


Json = dict[str, Any]


MAX_USER_CHARS = 64


_REASONS = re.compile(
    r"\bo\d|gpt-[5-9]|gpt-oss|codex|deepseek|grok|magistral|qwen3|kimi|glm-|minimax|reason|think"
    r"|sonar|gemini|claude|nova-2|mistral-(?:small|medium|large)"
)


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
            "logprobs": True if prompt.logprobs is not None else None,
            "top_logprobs": prompt.logprobs,
            "response_format": _format(prompt),
            "verbosity": prompt.verbosity or None,
            "user": end_user(prompt),
            "service_tier": prompt.service_tier or None,
            "reasoning_effort": effort(prompt) if reasons(target.model) else None,
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
        if effort(prompt) is not None and not reasons(target.model):
            fit.leave_out("reasoning")
        if prompt.stream:
            body["stream"] = True
            if quirks.usage_option:
                body["stream_options"] = {"include_usage": True}
        if prompt.choices > 1:
            fit.refuse("choices")  # a reply of the hub is one
        for name in prompt.unknown:
            fit.refuse(name)
        for name in prompt.hints:
            fit.leave_out(name)
        return _encode(body)

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        try:
            chunk: Chunk = decode_chunk(body)
            choice = chunk.choices[0] if chunk.choices else Choice()
            parts = self._parts(choice, chunk.id)
        except UNREADABLE as error:
            raise UpstreamError(Failure.PROTOCOL, f"the reply cannot be read: {error}") from None
        if chunk.error is not None:
            raise UpstreamError(Failure.STREAM_ERROR, body.decode(errors="replace"))
        if chunk.choices is None and not has_field(body, "choices"):
            raise UpstreamError(Failure.PROTOCOL, "the reply is no chat completion")
        finish = FINISH.get(choice.finish_reason or "", STOP)
        if finish == STOP and any(isinstance(part, ToolCall) for part in parts):
            finish = TOOL_CALLS
        return Reply(
            id=chunk.id or "",
            model=chunk.model or "",
            parts=parts,
            finish=finish,
            usage=usage_of(chunk.usage),
            odd=choice.finish_reason not in FINISH,
        )

    def decoder(self) -> "ChatDecoder":
        """Return a fresh stream decoder."""
        return ChatDecoder()

    def thoughts(self, message: WireMessage) -> list[Thinking]:
        """Return what the model thought."""
        secret = _details(message.reasoning_details)
        thought = message.thought()
        return [Thinking(thought, secret)] if thought or message.reasoning_details else []

    def signature(self, call: WireCall) -> str:
        """Return a call's signature."""
        return signature_of(call)

    def _parts(self, choice: Choice, reply_id: str | None) -> tuple[Part, ...]:
        message = choice.message or choice.delta or WireMessage(content=choice.text)
        found: list[Part] = [*self.thoughts(message)]
        if text := message.text():
            logprobs = given(choice.logprobs.content) if choice.logprobs is not None else None
            found.append(Text(text, logprobs=logprobs))
        if message.refusal:
            found.append(Refusal(message.refusal))
        ids: set[str] = set()
        for call in message.tool_calls or ():
            function = call.function
            if function is not None:
                own = call.id if call.id not in ids else None  # some give all the same
                call_id = own or named(reply_id, len(ids))
                ids.add(call_id)
                name, arguments = function.name or "", function.text() or "{}"
                found.append(ToolCall(call_id, name, arguments, self.signature(call)))
        return tuple(found)

    def _messages(self, prompt: Prompt, fit: Fit) -> list[Json]:
        found: list[Json] = []
        if prompt.system:
            text = "\n\n".join([part.text for part in prompt.system])
            found.append({"role": "system", "content": text})
        for message in prompt.messages:
            if message.role == "assistant":
                found.append(self._assistant(message, fit))
            elif message.role == "system":
                said = [part.text for part in message.parts if isinstance(part, Text)]
                found.append({"role": "system", "content": "\n\n".join(said)})
            else:
                found += self._user(message, fit)
        return _answered(found) if self._quirks.results_answered else found

    def _assistant(self, message: Message, fit: Fit) -> Json:
        found: Json = {"role": "assistant"}
        said = at_calls(message.parts)
        text = "".join([part.text for part in said if isinstance(part, Text | Refusal)])
        calls = [part for part in said if isinstance(part, ToolCall)]
        if text or not calls:
            found["content"] = text
        if calls:
            found["tool_calls"] = [self._call(call) for call in calls]
        thoughts = [part for part in said if isinstance(part, Thinking)]
        thought = "".join([part.text for part in thoughts])
        if thought and self._quirks.thinking_parts:
            inner = [{"type": "text", "text": thought}]
            parts: list[Json] = [{"type": "thinking", "thinking": inner, "closed": True}]
            found["content"] = parts + ([{"type": "text", "text": text}] if text else [])
        elif thought and self._quirks.thoughts_back:
            found[self._quirks.thoughts_back] = thought
        elif calls and self._quirks.thoughts_needed:
            found[self._quirks.thoughts_back] = " "
        if details := details_of(thoughts, self._quirks.details):
            found["reasoning_details"] = details
        if any(isinstance(part, Media) for part in message.parts):
            fit.refuse("messages", "media in what the assistant said")
        return found

    def _call(self, call: ToolCall) -> Json:
        found: Json = {
            "id": self._id(call.id),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        if extra := extra_of(call.signature, self._quirks.details):
            found["extra_content"] = extra
        return found

    def _id(self, call_id: str) -> str:
        return short(call_id) if self._quirks.short_ids else call_id

    def _user(self, message: Message, fit: Fit) -> list[Json]:
        """Write a turn: each result of a tool is a message, and comes first."""
        found: list[Json] = []
        later: list[Json] = []
        for part in message.parts:
            if isinstance(part, ToolResult):
                text = "\n".join([one.text for one in part.parts if isinstance(one, Text)])
                if part.is_error and text:
                    text = f"Error: {text}"
                found.append(
                    {"role": "tool", "tool_call_id": self._id(part.call_id), "content": text}
                )
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
                return {"type": "text", "text": plain_text(part)}
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


def _answered(messages: list[Json]) -> list[Json]:
    """Let the assistant speak after results of tools, and no system but before or after the user.

    As Mistral checks it (`mistral_common`, `_validate_message_order`; error 3230), which takes no
    assistant that says nothing, either, as one of whose turn only foreign thoughts are left.
    """
    found: list[Json] = []
    for message in messages:
        before = found[-1]["role"] if found else "system"
        if message["role"] == "assistant" and not (
            message.get("content") or "tool_calls" in message
        ):
            message["content"] = "."
        if message["role"] in ("user", "system") and before == "tool":
            found.append({"role": "assistant", "content": "."})
            before = "assistant"
        if message["role"] == "system" and before == "assistant":
            message["role"] = "user"
        found.append(message)
    return found


def bearer(target: Target) -> tuple[tuple[str, str], ...]:
    """Return a target's own headers, with the bearer key where there is one."""
    if target.api_key is None:
        return target.headers
    return (*target.headers, ("Authorization", f"Bearer {target.api_key}"))


def end_user(prompt: Prompt) -> str | None:
    """Return who asks, within the 64 characters that OpenAI takes; longer ones as a digest."""
    user = prompt.user
    return hashlib.sha256(user.encode()).hexdigest() if len(user) > MAX_USER_CHARS else user or None


def reasons(model: str) -> bool:
    """Tell whether a model takes an effort: others of OpenAI's answer it with an error."""
    return _REASONS.search(model.lower()) is not None


def effort(prompt: Prompt) -> str | None:
    """Return how much a prompt wants thought about, in OpenAI's words."""
    wanted = prompt.reasoning
    if wanted is None or wanted.effort or wanted.budget is None:
        return wanted.effort or None if wanted is not None else None
    if not wanted.enabled or wanted.budget <= 2048:
        return "low"  # the least that all of them take
    return "medium" if wanted.budget <= 8192 else "high"


_HUB_NAMES = {
    "parallel_tool_calls": "parallel",
    "max_completion_tokens": "max_output",
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


def _details(details: list[Raw] | None) -> str:
    """Keep OpenRouter's blocks of thought as they came: their signatures are checked."""
    if not details:
        return ""
    return mark(MAKER, ",".join([text for one in details if (text := raw_text(one))]))
