"""Anthropic's Messages, from the client: the request as a prompt of the hub."""

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
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.core.raw import NOTHING, given
from gateway.core.request import Request
from gateway.formats.fields import Unknown, arguments_schema, cache_ttl, convert, present
from gateway.formats.media import PDF, image

# The hub's name of a field -> the client's, where they differ.
NAMES = {
    "max_output": "max_tokens",
    "stop": "stop_sequences",
    "parallel": "tool_choice.disable_parallel_tool_use",
    "format": "output_config.format",
    "reasoning": "thinking",
    "user": "metadata.user_id",
}


class Source(msgspec.Struct):
    """Where a medium is."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class Block(msgspec.Struct, rename={"cited": "citations"}):
    """A content block, whatever its type.

    `citations` has no name of its own here: the hub does not read it, and the cache goes by names.
    """

    type: str
    text: str | None = None
    source: Source | str | None = None  # text in a search result
    title: str | None = None
    id: str | None = None
    name: str | None = None
    tool_name: str | None = None
    input: Raw = NOTHING
    tool_use_id: str | None = None
    content: "str | list[Block] | Block | None" = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    cited: Any = None
    cache_control: Any = None


class Turn(msgspec.Struct):
    """A message."""

    role: str
    content: str | list[Block]


class ToolEntry(msgspec.Struct):
    """An entry of `tools`; those with a type other than `custom` are Anthropic's own."""

    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: Raw = NOTHING
    strict: bool | None = None
    cache_control: Any = None


class Choice(msgspec.Struct):
    """`tool_choice`."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(msgspec.Struct):
    """`thinking`."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None


class Format(msgspec.Struct):
    """`output_config.format`."""

    type: str
    schema: Raw = NOTHING


class OutputConfig(msgspec.Struct):
    """`output_config`."""

    effort: str | None = None
    format: Format | None = None


class Metadata(msgspec.Struct):
    """`metadata`."""

    user_id: str | None = None


class MessagesFields(msgspec.Struct):
    """The fields that the hub understands."""

    messages: list[Turn]
    system: str | list[Block] | None = None
    tools: list[ToolEntry] | None = None
    tool_choice: Choice | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None


_READ = frozenset(MessagesFields.__struct_fields__) | {"model", "stream", "max_tokens"}
_HINTS = frozenset(
    (
        *("cache_control", "context_management", "speed", "inference_geo", "diagnostics"),
        *("container", "safeguards"),
    )
)
# A line for Anthropic's own accounts, which differs by conversation: it would defeat all caching.
BILLING = "x-anthropic-billing-header:"
_MODES = {"auto": "auto", "any": "required", "none": "none"}
# Service tiers mean other things elsewhere: `auto` is what everybody does by default.
_PLAIN_TIERS = ("auto", "standard_only")


def prompt(request: Request) -> Prompt:
    """Translate a request. Raises ApiError naming the field that is wrong."""
    fields = convert(request.fields, MessagesFields)
    names = present(request.fields)
    unknown = Unknown([name for name in names if name not in _READ and name not in _HINTS])
    system = list(_texts(fields.system, "system", unknown))
    messages: list[Message] = []
    for number, turn in enumerate(fields.messages):
        where = f"messages[{number}]"
        if turn.role == SYSTEM and not messages:
            system += _texts(turn.content, f"{where}.content", unknown)
            continue
        if turn.role not in (USER, ASSISTANT, SYSTEM):
            text = f"Invalid value for '{where}.role': '{turn.role}'."
            raise ApiError("invalid_value", text, param=f"{where}.role")
        parts = _parts(turn.content, f"{where}.content", unknown)
        if parts:
            messages.append(Message(turn.role, parts))
    tools = [unknown.keep(_tool, tool, i) for i, tool in enumerate(fields.tools or ())]
    choice, config = fields.tool_choice, fields.output_config or OutputConfig()
    parallel = None
    if choice is not None and choice.disable_parallel_tool_use is not None:
        parallel = not choice.disable_parallel_tool_use
    tier = fields.service_tier or ""
    return Prompt(
        model=request.model,
        system=tuple(system),
        messages=tuple(messages),
        tools=tuple([tool for tool in tools if tool is not None]),
        tool_choice=_choice(choice),
        parallel=parallel,
        max_output=request.max_output,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        stop=tuple(fields.stop_sequences or ()),
        format=_format(config.format or fields.output_format),
        reasoning=_reasoning(fields.thinking, config.effort),
        user=(fields.metadata.user_id if fields.metadata else "") or "",
        service_tier="" if tier in _PLAIN_TIERS else tier,
        stream=request.stream,
        hints=tuple([name for name in names if name in _HINTS]),
        unknown=tuple(unknown.places),
    )


def _texts(content: str | list[Block] | None, where: str, unknown: Unknown) -> tuple[Text, ...]:
    if isinstance(content, str):
        return (Text(content),) if content else ()
    found = []
    for i, block in enumerate(content or ()):
        if block.type != "text" or block.text is None:
            unknown.places.append(f"{where}[{i}]")
        elif block.text and not block.text.startswith(BILLING):
            found.append(Text(block.text, cache_ttl(block.cache_control)))
    return tuple(found)


def _parts(content: str | list[Block], where: str, unknown: Unknown) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),) if content else ()
    found = [
        unknown.keep(_part, block, f"{where}[{i}]", unknown) for i, block in enumerate(content)
    ]
    return tuple(
        [
            part
            for part in found
            if part is not None and not (isinstance(part, Text) and not part.text)
        ]
    )


def _part(block: Block, where: str, unknown: Unknown) -> Part:
    cache = cache_ttl(block.cache_control)
    match block.type:
        case "text" if block.text is not None:
            return Text(block.text, cache)
        case "image" | "document" if isinstance(block.source, Source):
            if isinstance(block.cited, dict) and block.cited.get("enabled"):
                unknown.places.append(f"{where}.citations")
            return _media(block, block.source, where, cache)
        case "tool_reference" if block.tool_name is not None:
            return Text(f"Loaded: {block.tool_name}")  # it stands among the tools
        case "thinking":
            return Thinking(block.thinking or "", block.signature or "")
        case "redacted_thinking" if block.data is not None:
            return Thinking(redacted=block.data)
        case "tool_use" if block.id is not None and block.name is not None:
            arguments = bytes(given(block.input) or b"{}").decode()
            return ToolCall(block.id, block.name, arguments, cache=cache)
        case "tool_result" if block.tool_use_id is not None:
            content = [block.content] if isinstance(block.content, Block) else block.content
            inner = _parts(content or "", f"{where}.content", unknown)
            parts = tuple([part for part in inner if isinstance(part, Text | Media)])
            return ToolResult(block.tool_use_id, parts, bool(block.is_error), cache)
    raise _untranslatable(block, where)


def _media(block: Block, source: Source, where: str, cache: str) -> Media:
    kind: Any = block.type
    name = block.title or ""
    match source:
        case Source(type="base64", media_type=str(media_type), data=str(data)):
            return Media(kind, media_type, data, name=name, cache=cache, where=where)
        case Source(type="url", url=str(url)) if kind == "image":
            return image(url, where, cache=cache)
        case Source(type="url", url=str(url)):
            return Media(kind, PDF, url=url, name=name, cache=cache, where=where)
        case Source(type="text", data=str(data)):
            encoded = msgspec.json.encode(data.encode()).decode().strip('"')  # base64
            return Media("document", "text/plain", encoded, name=name, cache=cache, where=where)
    raise _untranslatable(block, f"{where}.source")


def _untranslatable(block: Block, where: str) -> ApiError:
    text = f"'{where}' is of type '{block.type}', which cannot be translated for this provider."
    return ApiError("unsupported_parameter", text, param=where)


def _tool(tool: ToolEntry, number: int) -> Tool:
    where = f"tools[{number}]"
    if tool.type not in (None, "custom") or tool.name is None:
        text = f"'{where}' is of type '{tool.type}', which only Anthropic has."
        raise ApiError("unsupported_parameter", text, param=where)
    schema = given(tool.input_schema)
    if schema is None:
        path = f"{where}.input_schema"
        text = f"Missing required parameter: '{path}'."
        raise ApiError("missing_required_parameter", text, param=path)
    cache = cache_ttl(tool.cache_control)
    schema = arguments_schema(schema)
    return Tool(tool.name, tool.description or "", schema, tool.strict, cache)


def _choice(choice: Choice | None) -> ToolChoice | None:
    if choice is None:
        return None
    if choice.type == "tool" and choice.name:
        return ToolChoice("tool", choice.name)
    mode: Any = _MODES.get(choice.type)
    if mode is None:
        text = f"Invalid value for 'tool_choice.type': '{choice.type}'."
        raise ApiError("invalid_value", text, param="tool_choice.type")
    return ToolChoice(mode)


def _format(wanted: Format | None) -> OutputFormat | None:
    return None if wanted is None else OutputFormat(given(wanted.schema), strict=True)


def _reasoning(thinking: ThinkingConfig | None, effort: str | None) -> Reasoning | None:
    if thinking is None:
        return Reasoning(effort=effort, shown=False) if effort else None
    shown = thinking.display != "omitted"
    enabled = thinking.type != "disabled" and thinking.budget_tokens != 0
    return Reasoning(enabled, effort or "", thinking.budget_tokens, shown and enabled)
