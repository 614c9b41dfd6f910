"""Chat completions, from the client: the request as a prompt of the hub."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.errors import ApiError
from gateway.core.messages import (
    ASSISTANT,
    SYSTEM,
    USER,
    Media,
    Message,
    OutputFormat,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.core.raw import NOTHING, given
from gateway.core.request import Request
from gateway.formats.fields import Unknown, arguments_schema, cache_ttl, convert, present
from gateway.formats.media import document, image
from gateway.providers.chat_thoughts import ReasoningDetail, google_signature, thoughts

# The hub's name of a field -> the client's, where they differ.
NAMES = {
    "max_output": "max_completion_tokens",
    "choices": "n",
    "parallel": "parallel_tool_calls",
    "format": "response_format",
    "reasoning": "reasoning_effort",
}

_ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT}


class ImageUrl(msgspec.Struct):
    """Where an image is."""

    url: str
    detail: str | None = None


class InputAudio(msgspec.Struct):
    """A sound."""

    data: str
    format: str


class File(msgspec.Struct):
    """A document; by `file_id` it is known to one provider only."""

    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


class ContentPart(msgspec.Struct):
    """A part of a message, whatever its type."""

    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None
    input_audio: InputAudio | None = None
    file: File | None = None
    refusal: str | None = None
    cache_control: Any = None


class Function(msgspec.Struct):
    """What a call calls."""

    name: str
    arguments: str = "{}"


class Call(msgspec.Struct):
    """A tool call. `extra_content` is where Google puts its signature."""

    id: str
    function: Function | None = None
    type: str = "function"
    extra_content: Any = None


class ChatMessage(msgspec.Struct):
    """A message of any role."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    audio: Any = None
    cache_control: Any = None


class FunctionTool(msgspec.Struct):
    """A function that the client offers."""

    name: str
    description: str | None = None
    parameters: Raw = NOTHING
    strict: bool | None = None


class ChatTool(msgspec.Struct):
    """An entry of `tools`."""

    type: str
    function: FunctionTool | None = None
    cache_control: Any = None


class NamedFunction(msgspec.Struct):
    """The function of a tool choice."""

    name: str


class NamedTool(msgspec.Struct):
    """A tool choice that names one."""

    type: str
    function: NamedFunction | None = None


class JsonSchema(msgspec.Struct):
    """The schema of a structured answer."""

    name: str = "answer"
    schema: Raw = NOTHING
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """What the answer must look like."""

    type: str
    json_schema: JsonSchema | None = None


class ReasoningOptions(msgspec.Struct):
    """`reasoning` as OpenRouter has it."""

    effort: str | None = None
    max_tokens: int | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class ChatFields(msgspec.Struct):
    """The fields that the hub understands."""

    messages: list[ChatMessage]
    tools: list[ChatTool] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningOptions | None = None
    verbosity: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: Raw = NOTHING
    service_tier: str | None = None


_READ = frozenset(ChatFields.__struct_fields__) | {"model", "stream", "stream_options"}
_HINTS = frozenset(
    ("store", "prompt_cache_key", "prompt_cache_retention", "prediction", "include_reasoning")
)


# What these mean where they are at their defaults is what everybody does.
_PLAIN = {"logit_bias": b"{}", "modalities": b'["text"]'}


def prompt(request: Request) -> Prompt:
    """Translate a request. Raises ApiError naming the field that is wrong."""
    fields = convert(request.fields, ChatFields)
    names = present(request.fields)
    said = [n for n in names if bytes(request.fields[n]).replace(b" ", b"") != _PLAIN.get(n)]
    unknown = Unknown([name for name in said if name not in _READ and name not in _HINTS])
    system: list[Text] = []
    turns: list[tuple[str, list[Part]]] = []
    for number, message in enumerate(fields.messages):
        where = f"messages[{number}]"
        if message.role in ("tool", "function"):
            _add_result(turns, message, where, unknown)
            continue
        role = _ROLES.get(message.role)
        if role is None:
            text = f"Invalid value for '{where}.role': '{message.role}'."
            raise ApiError("invalid_value", text, param=f"{where}.role")
        parts = _parts(message, where, unknown)
        if role == SYSTEM and not turns:
            system += [part for part in parts if isinstance(part, Text)]
        elif parts:
            turns.append((role, parts))
    tools = [unknown.keep(_tool, tool, i) for i, tool in enumerate(fields.tools or ())]
    choice = unknown.keep(_choice, fields.tool_choice)
    most = fields.max_completion_tokens
    return Prompt(
        model=request.model,
        system=tuple(system),
        messages=tuple([Message(role, tuple(parts)) for role, parts in turns]),
        tools=tuple([tool for tool in tools if tool is not None]),
        tool_choice=choice,
        parallel=fields.parallel_tool_calls,
        max_output=most if most is not None else fields.max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        stop=(fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ()),
        seed=fields.seed,
        choices=request.choices,
        logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        format=_format(fields.response_format),
        reasoning=_reasoning(fields),
        verbosity=fields.verbosity or "",
        user=fields.safety_identifier or fields.user or "",
        metadata=given(fields.metadata),
        service_tier=fields.service_tier or "",
        stream=request.stream,
        hints=tuple([name for name in names if name in _HINTS]),
        unknown=tuple(unknown.places),
    )


def _parts(message: ChatMessage, where: str, unknown: Unknown) -> list[Part]:
    said = message.reasoning_content or message.reasoning
    found: list[Part] = [*thoughts(message.reasoning_details, said)]
    cache = cache_ttl(message.cache_control)
    if isinstance(message.content, str):
        if message.content:
            found.append(Text(message.content, cache))
    else:
        content = [
            unknown.keep(_part, part, f"{where}.content[{i}]")
            for i, part in enumerate(message.content or ())
        ]
        found += [part for part in content if part is not None]
    if message.refusal:
        found.append(Refusal(message.refusal))
    for i, call in enumerate(message.tool_calls or ()):
        if call.function is None:
            unknown.places.append(f"{where}.tool_calls[{i}]")
            continue
        signature = google_signature(call.extra_content)
        function = call.function
        found.append(ToolCall(call.id, function.name, function.arguments or "{}", signature))
    if message.audio is not None and not found:  # a name that only its provider knows
        unknown.places.append(f"{where}.audio")
    return found


def _part(part: ContentPart, where: str) -> Part:
    cache = cache_ttl(part.cache_control)
    match part.type:
        case "text" if part.text is not None:
            return Text(part.text, cache)
        case "refusal" if part.refusal is not None:
            return Refusal(part.refusal)
        case "image_url" if part.image_url is not None:
            found = part.image_url
            if isinstance(found, str):
                return image(found, where, cache=cache)
            return image(found.url, where, found.detail or "", cache)
        case "input_audio" if part.input_audio is not None:
            sound = part.input_audio
            return Media("audio", f"audio/{sound.format}", sound.data, cache=cache, where=where)
        case "file" if part.file is not None and part.file.file_data is not None:
            return document(part.file.file_data, where, part.file.filename or "", cache)
    text = f"'{where}' is of type '{part.type}', which cannot be translated for this provider."
    raise ApiError("unsupported_parameter", text, param=where)


def _add_result(
    turns: list[tuple[str, list[Part]]], message: ChatMessage, where: str, unknown: Unknown
) -> None:
    """Add a tool's result; those of one turn stand together in one message."""
    if message.tool_call_id is None:
        text = f"Missing required parameter: '{where}.tool_call_id'."
        raise ApiError("missing_required_parameter", text, param=f"{where}.tool_call_id")
    parts: list[Text | Media] = []
    if isinstance(message.content, str):
        parts.append(Text(message.content))
    else:
        for i, one in enumerate(message.content or ()):
            part = unknown.keep(_part, one, f"{where}.content[{i}]")
            if isinstance(part, Text | Media):
                parts.append(part)
    result = ToolResult(message.tool_call_id, tuple(parts), cache=cache_ttl(message.cache_control))
    if turns and isinstance(turns[-1][1][-1], ToolResult):
        turns[-1][1].append(result)
    else:
        turns.append((USER, [result]))


def _tool(tool: ChatTool, number: int) -> Tool:
    function = tool.function
    if function is None:
        where = f"tools[{number}]"
        text = f"'{where}' is of type '{tool.type}', which only some providers have."
        raise ApiError("unsupported_parameter", text, param=where)
    cache = cache_ttl(tool.cache_control)
    schema = arguments_schema(function.parameters)
    return Tool(function.name, function.description or "", schema, function.strict, cache)


def _choice(choice: str | NamedTool | None) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case NamedTool(function=NamedFunction(name=name)):
            return ToolChoice("tool", name)
    shown = choice if isinstance(choice, str) else choice.type
    if isinstance(choice, str) or shown == "function":
        text = f"Invalid value for 'tool_choice': '{shown}'."
        raise ApiError("invalid_value", text, param="tool_choice")
    text = f"The tool choice '{shown}' cannot be translated for this provider."
    raise ApiError("unsupported_parameter", text, param="tool_choice")


def _format(wanted: ResponseFormat | None) -> OutputFormat | None:
    if wanted is None or wanted.type == "text":
        return None
    schema = wanted.json_schema
    if schema is None:
        return OutputFormat()
    return OutputFormat(given(schema.schema), schema.name, schema.description or "", schema.strict)


def _reasoning(fields: ChatFields) -> Reasoning | None:
    options = fields.reasoning
    if options is not None:
        enabled = options.enabled is not False and options.effort != "none"
        enabled = enabled and options.max_tokens != 0
        shown = not options.exclude
        return Reasoning(enabled, options.effort or "", options.max_tokens, shown)
    if fields.reasoning_effort is None:
        return None
    return Reasoning(fields.reasoning_effort != "none", fields.reasoning_effort)
