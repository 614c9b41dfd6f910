"""AWS Bedrock by its Converse API. Requests are signed when they are sent (`upstream.credentials`).

A model is a model id, the id of an inference profile, or an ARN.
"""

import re
from typing import Any

import msgspec

from gateway.core.call_ids import plain
from gateway.core.messages import (
    ASSISTANT,
    Fit,
    Media,
    Message,
    Part,
    Prompt,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    alternating,
    is_blank,
    telling,
    unmark,
    unmarked,
    user_first,
)
from gateway.core.messages import Reply as HubReply
from gateway.core.operations import Operation
from gateway.core.target import Target
from gateway.providers import converse_wire
from gateway.providers.adapter import Conversation, Embedding, Endpoint, Native
from gateway.providers.anthropic_prompt import (
    arguments_of,
    default_max_tokens,
    sampling,
    thinking,
)
from gateway.providers.converse_wire import MAKER, ConverseDecoder
from gateway.providers.errors import error_message
from gateway.providers.paths import segment

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]
_FORMATS = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
    "application/pdf": "pdf",
    "text/csv": "csv",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
}
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9\s\-()\[\]]")
_MODES = {"auto": "auto", "required": "any"}


class ConverseConversation:
    """The hub's prompts as Converse."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go: the model is in the path."""
        method = "converse-stream" if stream else "converse"
        path = f"{target.base_path}/model/{segment(target.model)}/{method}"
        return Endpoint(path, _headers(target))

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        inference: Json = {
            "maxTokens": target.max_output if prompt.max_output is None else prompt.max_output,
            "stopSequences": list(prompt.stop) or None,
        }
        inference = {name: value for name, value in inference.items() if value is not None}
        documents = _Documents()
        body: Json = {
            "messages": [
                {"role": message.role, "content": content}
                for message in alternating(user_first(telling(prompt.messages, _tells)))
                if (content := _blocks(message, documents, fit))
            ]
        }
        if system := [block for part in prompt.system for block in _cached(part)]:
            body["system"] = system
        if tools := _tools(prompt, fit):
            body["toolConfig"] = tools
        more = _more(prompt, target, inference, fit)
        if inference:
            body["inferenceConfig"] = inference
        if more:
            body["additionalModelRequestFields"] = more
        if prompt.format is not None:
            _format(body, prompt, fit)
        if prompt.service_tier in ("priority", "flex", "default"):
            body["serviceTier"] = {"type": prompt.service_tier}
        _leave(prompt, fit)
        return _encode(body)

    def parse(self, body: bytes) -> HubReply:
        """Read a whole reply."""
        return converse_wire.parse(body)

    def decoder(self) -> ConverseDecoder:
        """Return a fresh stream decoder."""
        return ConverseDecoder()


class _Documents:
    """Names documents: each needs one, unlike the others."""

    def __init__(self) -> None:
        self._count = 0

    def name(self, wanted: str) -> str:
        self._count += 1
        plain = re.sub(r"\s+", " ", _UNNAMEABLE.sub(" ", wanted.rpartition(".")[0] or wanted))
        return f"{plain.strip() or 'document'} {self._count}"[:200]


def _leave(prompt: Prompt, fit: Fit) -> None:
    """Note what has no place here."""
    for field in ("presence_penalty", "frequency_penalty"):
        if getattr(prompt, field):
            fit.refuse(field)
    for field in ("seed", "logprobs"):  # whose 0 says something
        if getattr(prompt, field) is not None:
            fit.refuse(field)
    if prompt.choices > 1:
        fit.refuse("choices")
    if prompt.parallel is False and prompt.tools:
        fit.leave_out("parallel")  # a wish: whoever calls a tool can answer two calls, too
    if prompt.temperature is not None and prompt.temperature > 1:
        fit.refuse("temperature", "it is at most 1 here")
    for field in ("verbosity", "user", "metadata"):
        if getattr(prompt, field):
            fit.leave_out(field)
    for name in prompt.hints:
        fit.leave_out(name)
    for name in prompt.unknown:
        fit.refuse(name)


def _tools(prompt: Prompt, fit: Fit) -> Json | None:
    """Return the tools: whoever has called one in this conversation must be shown some."""
    choice = prompt.tool_choice
    called = dict.fromkeys(
        part.name for turn in prompt.messages for part in turn.parts if isinstance(part, ToolCall)
    )
    offered = prompt.tools or tuple([Tool(name) for name in called])
    unwanted = not prompt.tools or (choice is not None and choice.mode == "none")
    if not offered or (unwanted and not called):
        return None
    found: Json = {"tools": [block for tool in offered for block in _tool(tool)]}
    if unwanted and choice is not None:
        fit.leave_out("tool_choice")  # there is no word for it
    elif choice is not None:
        found["toolChoice"] = (
            {"tool": {"name": choice.name}} if choice.mode == "tool" else {_MODES[choice.mode]: {}}
        )
    return found


def _tool(tool: Tool) -> list[Json]:
    found: Json = {"name": tool.name, "inputSchema": {"json": tool.schema}}
    if tool.description:
        found["description"] = tool.description
    if tool.strict:
        found["strict"] = True
    point = [_point(tool.cache)] if tool.cache else []
    return [{"toolSpec": found}, *point]


def _more(prompt: Prompt, target: Target, inference: Json, fit: Fit) -> Json:
    """Return what only some models know: thinking and top_k of Anthropic's. Adds what all know."""
    model, wanted = target.model, prompt.reasoning
    found: Json = {}
    if "anthropic" in model or "claude" in model:
        most = inference.get("maxTokens", default_max_tokens(model))
        thoughts, effort = thinking(prompt, model, most, fit, _signed)
        if thoughts is not None:
            found["thinking"] = thoughts
            inference["maxTokens"] = most
        if effort:
            found["output_config"] = {"effort": effort}
        taken = sampling(prompt, model, fit, thinks=thoughts is not None)
        if "top_k" in taken:
            found["top_k"] = taken["top_k"]
    else:
        told = {"temperature": prompt.temperature, "top_p": prompt.top_p}
        taken = {name: value for name, value in told.items() if value is not None}
        if prompt.top_k is not None:
            fit.refuse("top_k")
        if wanted is not None and wanted.enabled:
            if wanted.effort and "gpt-oss" in model:
                found["reasoning_effort"] = wanted.effort
            else:
                fit.leave_out("reasoning")
    names = {"temperature": "temperature", "top_p": "topP"}
    inference |= {names[k]: v for k, v in taken.items() if k in names}
    return found


def _format(body: Json, prompt: Prompt, fit: Fit) -> None:
    wanted = prompt.format
    assert wanted is not None
    if wanted.schema is None:
        fit.refuse("format", "it needs a schema here")
        return
    schema: Json = {"schema": bytes(wanted.schema).decode(), "name": wanted.name}
    if wanted.description:
        schema["description"] = wanted.description
    structure = {"jsonSchema": schema}
    body["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": structure}}


def _signed(part: Part) -> bool:
    """Tell whether a part is a thought that is proven here; Anthropic's redacted ones are not."""
    return isinstance(part, Thinking) and bool(
        unmark(MAKER, part.redacted) or unmarked(part.signature)
    )


def _tells(part: Part) -> bool:
    """Tell whether a part says something here: no blanks, nor what is proven to others alone."""
    return _signed(part) if isinstance(part, Thinking) else not is_blank(part)


def _blocks(message: Message, documents: _Documents, fit: Fit) -> list[Json]:
    parts = list(message.parts)
    if message.role != ASSISTANT:
        parts.sort(key=lambda part: not isinstance(part, ToolResult))  # which come first
    found = [block for part in parts for block in _block(part, documents, fit)]
    if any("document" in one for one in found) and not any("text" in one for one in found):
        found.append({"text": "."})  # a document needs a text beside it
    return found


def _block(part: Part, documents: _Documents, fit: Fit) -> list[Json]:
    match part:
        case Text():
            return _cached(part)
        case Refusal(text=text):
            return [{"text": text}]
        case Media():
            return _media(part, documents, fit)
        case ToolCall(id=id, name=name, arguments=arguments, cache=cache):
            use = {"toolUseId": plain(id), "name": name, "input": arguments_of(arguments)}
            return [{"toolUse": use}, *([_point(cache)] if cache else [])]
        case ToolResult():
            return _result(part, documents, fit)
        case Thinking(redacted=redacted) if secret := unmark(MAKER, redacted):
            return [{"reasoningContent": {"redactedContent": secret}}]
        case Thinking(text=text, signature=signature) if unmarked(signature):
            thought = {"text": text, "signature": signature}
            return [{"reasoningContent": {"reasoningText": thought}}]
    return []  # another provider's thoughts


def _result(part: ToolResult, documents: _Documents, fit: Fit) -> list[Json]:
    """Write a result; what is marked inside of it is marked behind it: there is no place for it."""
    inner = [one for p in part.parts for one in _block(p, documents, fit)]
    content = [one for one in inner if "cachePoint" not in one] or [{"text": " "}]
    result: Json = {"toolUseId": plain(part.call_id), "content": content}
    if part.is_error:
        result["status"] = "error"
    cache = part.cache or next((one.cache for one in reversed(part.parts) if one.cache), "")
    return [{"toolResult": result}, *([_point(cache)] if cache else [])]


def _media(part: Media, documents: _Documents, fit: Fit) -> list[Json]:
    kind = _FORMATS.get(part.media_type)
    if kind is None or not part.data or part.kind == "audio":
        fit.refuse(part.where, "media by URL, or of this type")
        return []
    medium: Json = {"format": kind, "source": {"bytes": part.data}}
    if part.kind == "document":
        medium["name"] = documents.name(part.name)
    return [{part.kind: medium}, *([_point(part.cache)] if part.cache else [])]


def _cached(part: Text) -> list[Json]:
    if is_blank(part):
        return []
    return [{"text": part.text}, *([_point(part.cache)] if part.cache else [])]


def _point(ttl: str) -> Json:
    found: Json = {"type": "default"}
    if ttl != "5m":
        found["ttl"] = ttl
    return {"cachePoint": found}


class Bedrock:
    """The adapter."""

    natives: dict[Operation, Native] = {}
    conversation: Conversation | None = ConverseConversation()
    embedding: Embedding | None = None

    def listing(self, target: Target) -> Endpoint | None:
        """Return None: models are listed by another service than the one that runs them."""
        return None

    def parse_listing(self, body: bytes) -> list[str]:
        """Return none."""
        return []

    def parse_error(self, body: bytes) -> str | None:
        """Return `message`."""
        return error_message(body)


def _headers(target: Target) -> tuple[tuple[str, str], ...]:
    found = (("Content-Type", "application/json"), *target.headers)
    if target.api_key is None:
        return found  # signed instead
    return (*found, ("Authorization", f"Bearer {target.api_key}"))


ADAPTER = Bedrock()
