"""OpenAI's Responses, from the client: the request as a prompt of the hub. Stateless.

What names something that a provider has kept (an earlier response, a conversation, an item by its
id) cannot be translated, and is refused.
"""

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
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    of_responses,
)
from gateway.core.raw import NOTHING, given
from gateway.core.request import Request
from gateway.formats.fields import Unknown, arguments_schema, cache_ttl, convert, present
from gateway.formats.media import PDF, document, image

# The hub's name of a field -> the client's, where they differ.
NAMES = {
    "messages": "input",
    "user": "safety_identifier",
    "max_output": "max_output_tokens",
    "parallel": "parallel_tool_calls",
    "format": "text.format",
    "verbosity": "text.verbosity",
    "logprobs": "top_logprobs",
}

_ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT}


class InputPart(msgspec.Struct):
    """A part of an item's content, whatever its type."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None
    input_audio: Any = None
    cache_control: Any = None


class Summary(msgspec.Struct):
    """A part of a reasoning item."""

    text: str | None = None


class Item(msgspec.Struct):
    """An input item, whatever its type; a message may go without one."""

    type: str = "message"
    role: str | None = None
    content: str | list[InputPart] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[Summary] | None = None
    encrypted_content: str | None = None


class ToolEntry(msgspec.Struct):
    """An entry of `tools`; those that are not functions are OpenAI's own."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: Raw = NOTHING
    strict: bool | None = None


class Choice(msgspec.Struct):
    """A tool choice that names one."""

    type: str
    name: str | None = None


class ReasoningOptions(msgspec.Struct):
    """`reasoning`."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextFormat(msgspec.Struct):
    """`text.format`."""

    type: str
    name: str = "answer"
    schema: Raw = NOTHING
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct):
    """`text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesFields(msgspec.Struct):
    """The fields that the hub understands."""

    input: str | list[Item]
    instructions: str | None = None
    tools: list[ToolEntry] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: Raw = NOTHING
    service_tier: str | None = None


_READ = frozenset(ResponsesFields.__struct_fields__) | {"model", "stream", "max_output_tokens"}
_READ |= {"background"}  # which has been refused already where it is wanted
_HINTS = frozenset(
    (
        *("store", "prompt_cache_key", "prompt_cache_retention", "truncation", "stream_options"),
        *("client_metadata", "access_programs"),  # Codex's own
    )
)


def prompt(request: Request) -> Prompt:
    """Translate a request. Raises ApiError naming the field that is wrong."""
    fields = convert(request.fields, ResponsesFields)
    system = [Text(fields.instructions)] if fields.instructions else []
    names = present(request.fields)
    unknown = Unknown([name for name in names if name not in _READ and name not in _HINTS])
    turns = _Turns()
    if isinstance(fields.input, str):
        turns.add(USER, Text(fields.input))
    else:
        for number, item in enumerate(fields.input):
            system += unknown.keep(_take, turns, item, f"input[{number}]", unknown) or []
    tools = [unknown.keep(_tool, tool, i) for i, tool in enumerate(fields.tools or ())]
    choice = unknown.keep(_choice, fields.tool_choice)
    options = fields.text or TextOptions()
    wants_logprobs = "message.output_text.logprobs" in (fields.include or ())
    return Prompt(
        model=request.model,
        system=tuple(system),
        messages=turns.messages(),
        tools=tuple([tool for tool in tools if tool is not None]),
        tool_choice=choice,
        parallel=fields.parallel_tool_calls,
        max_output=request.max_output,
        temperature=fields.temperature,
        top_p=fields.top_p,
        logprobs=(fields.top_logprobs or 0) if wants_logprobs or fields.top_logprobs else None,
        format=_format(options.format),
        reasoning=_reasoning(fields.reasoning),
        verbosity=options.verbosity or "",
        user=fields.safety_identifier or fields.user or "",
        metadata=given(fields.metadata),
        service_tier=fields.service_tier or "",
        stream=request.stream,
        hints=tuple([name for name in names if name in _HINTS]),
        unknown=tuple(unknown.places),
    )


class _Turns:
    """Gathers items into turns: what one side says in a row is one message."""

    def __init__(self) -> None:
        self._turns: list[tuple[str, list[Part]]] = []

    def add(self, role: str, *parts: Part) -> None:
        """Add parts to the last turn, or to a new one."""
        if not self._turns or self._turns[-1][0] != role:
            self._turns.append((role, []))
        self._turns[-1][1].extend(parts)

    @property
    def empty(self) -> bool:
        """Tell whether nobody has said anything yet."""
        return not self._turns

    def messages(self) -> tuple[Message, ...]:
        """Return the turns that say something."""
        return tuple([Message(role, tuple(parts)) for role, parts in self._turns if parts])


def _take(turns: _Turns, item: Item, where: str, unknown: Unknown) -> list[Text]:
    """Add an item to the conversation; return it where it belongs to the system prompt."""
    match item:
        case Item(type="message", role=str(role)) if role in _ROLES:
            parts = _content(item.content, f"{where}.content", unknown)
            if _ROLES[role] == SYSTEM and turns.empty:
                return [part for part in parts if isinstance(part, Text)]
            turns.add(_ROLES[role], *parts)
        case Item(type="function_call", call_id=str(call_id), name=str(name)):
            turns.add(ASSISTANT, ToolCall(call_id, name, item.arguments or "{}"))
        case Item(type="function_call_output", call_id=str(call_id)):
            found = _content(item.output, f"{where}.output", unknown)
            results = tuple([part for part in found if isinstance(part, Text | Media)])
            turns.add(USER, ToolResult(call_id, results))
        case Item(type="reasoning"):
            text = "\n\n".join([part.text or "" for part in item.summary or ()])
            secrets = of_responses(item.encrypted_content or "", shown=bool(text))
            turns.add(ASSISTANT, Thinking(text, *secrets))
        case _:
            text = f"'{where}' is of type '{item.type}', which only its provider can read."
            raise ApiError("unsupported_parameter", text, param=where)
    return []


def _content(content: str | list[InputPart] | None, where: str, unknown: Unknown) -> list[Part]:
    if isinstance(content, str):
        return [Text(content)] if content else []
    found = [unknown.keep(_part, part, f"{where}[{i}]") for i, part in enumerate(content or ())]
    return [part for part in found if part is not None]


def _part(part: InputPart, where: str) -> Part:
    cache = cache_ttl(part.cache_control)
    match part:
        case InputPart(type="input_text" | "output_text" | "text", text=str(text)):
            return Text(text, cache)
        case InputPart(type="refusal", refusal=str(refusal)):
            return Refusal(refusal)
        case InputPart(type="input_image", image_url=str(url)):
            return image(url, where, part.detail or "", cache)
        case InputPart(type="input_file", file_data=str(data)):
            return document(data, where, part.filename or "", cache)
        case InputPart(type="input_file", file_url=str(url)):
            name = part.filename or ""
            return Media("document", PDF, url=url, name=name, where=where)
        case InputPart(type="input_audio", input_audio={"data": str(data), "format": str(kind)}):
            return Media("audio", f"audio/{kind}", data, cache=cache, where=where)
    text = f"'{where}' is of type '{part.type}', which cannot be translated for this provider."
    raise ApiError("unsupported_parameter", text, param=where)


def _tool(tool: ToolEntry, number: int) -> Tool:
    if tool.type != "function" or tool.name is None:
        where = f"tools[{number}]"
        text = f"'{where}' is of type '{tool.type}', which only some providers have."
        raise ApiError("unsupported_parameter", text, param=where)
    schema = arguments_schema(tool.parameters)
    return Tool(tool.name, tool.description or "", schema, tool.strict)


def _choice(choice: str | Choice | None) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case Choice(type="function", name=str(name)):
            return ToolChoice("tool", name)
    shown = choice if isinstance(choice, str) else choice.type
    text = f"The tool choice '{shown}' cannot be translated for this provider."
    raise ApiError("unsupported_parameter", text, param="tool_choice")


def _format(wanted: TextFormat | None) -> OutputFormat | None:
    if wanted is None or wanted.type == "text":
        return None
    schema = given(wanted.schema)
    if schema is None:
        return OutputFormat()
    return OutputFormat(schema, wanted.name, wanted.description or "", wanted.strict)


def _reasoning(options: ReasoningOptions | None) -> Reasoning | None:
    if options is None:
        return None
    shown = bool(options.summary or options.generate_summary)
    return Reasoning(options.effort != "none", options.effort or "", shown=shown)
