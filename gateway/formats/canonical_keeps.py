"""Whether the hub keeps all of a request whose names it knows: each dialect has its own losses.

A name that is known at its place may still say nothing there: an image in a part that is text, a
sound in what the assistant said. What is not listed here for its kind is not read.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.operations import Operation

Json = dict[str, Any]
Kinds = dict[str, frozenset[str]]

_decode = msgspec.json.Decoder().decode


def _kinds(**names: str) -> Kinds:
    return {kind: frozenset(said.split()) for kind, said in names.items()}


# What says which kind it is, what changes no answer, and what the hub reads of each kind.
_ALWAYS = frozenset(("type", "role", "cache_control"))
_CHAT_TURNS = _kinds(
    system="content",
    developer="content",
    user="content",
    assistant="content tool_calls refusal reasoning_content reasoning",
    tool="content tool_call_id",
    function="content tool_call_id",
)
_CHAT_PARTS = _kinds(
    text="text", refusal="refusal", image_url="image_url", input_audio="input_audio", file="file"
)
_ITEMS = _kinds(
    message="content id",
    function_call="call_id name arguments id",
    function_call_output="call_id output id",
)
_ITEM_PARTS = _kinds(
    input_text="text",
    output_text="text",
    text="text",
    refusal="refusal",
    input_image="image_url detail",
    input_file="file_data file_url filename",
)
_BLOCKS = _kinds(
    text="text",
    image="source",
    document="source title",
    thinking="thinking signature",
    redacted_thinking="data",
    tool_use="id name input",
    tool_result="tool_use_id content is_error",
)
_SOURCES = _kinds(base64="media_type data", url="url", text="media_type data")


def _is_read(value: Any, kinds: Kinds, kind: Any) -> bool:
    """Tell whether the hub reads all that an object of a kind says."""
    if not isinstance(value, dict) or kind not in kinds:
        return False
    known = kinds[kind]
    return all(found is None or name in known or name in _ALWAYS for name, found in value.items())


def _are_read(content: Any, kinds: Kinds, *but: str) -> bool:
    """Tell that of all parts of a content, which may be a text; `but`: kinds that get lost here."""
    if not isinstance(content, list):
        return True
    return all(
        isinstance(part, dict)
        and part.get("type") not in but
        and _is_read(part, kinds, part.get("type"))
        for part in content
    )


def _list(raw: Raw | None) -> list[Json]:
    found = _decode(raw) if raw is not None else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _dict(raw: Raw | None) -> Json:
    found = _decode(raw) if raw is not None else None
    return found if isinstance(found, dict) else {}


def _both(fields: dict[str, Any], one: str, other: str) -> bool:
    """Tell whether two names say something of which the hub takes one."""
    return all(bytes(fields.get(name, b"null")) != b"null" for name in (one, other))


def _all_text(content: Any, kinds: tuple[str, ...]) -> bool:
    if not isinstance(content, list):
        return True
    return all(isinstance(part, dict) and part.get("type") in kinds for part in content)


def _chat_keeps(fields: dict[str, Raw]) -> bool:
    if not all(_chat_turn_keeps(one) for one in _list(fields.get("messages"))):
        return False
    if _both(fields, "reasoning", "reasoning_effort"):
        return False
    if _both(fields, "max_tokens", "max_completion_tokens"):
        return False
    if "top_logprobs" in fields and bytes(fields.get("logprobs", b"")) != b"true":
        return False
    chosen = [*_list(fields.get("tools")), _dict(fields.get("tool_choice"))]
    if any(one.get("type", "function") != "function" for one in chosen):
        return False
    wanted = _dict(fields.get("response_format"))
    return _is_known_format(wanted, "json_schema" in wanted)


def _chat_turn_keeps(turn: Json) -> bool:
    role, said = turn.get("role"), turn.get("content")
    calls = turn.get("tool_calls") or ()
    if not said and not calls:
        return False  # an empty turn is left out
    if role in ("system", "developer") and not _all_text(said, ("text",)):
        return False
    lost = ("refusal",) if role in ("tool", "function") else ()
    if not _is_read(turn, _CHAT_TURNS, role) or not _are_read(said, _CHAT_PARTS, *lost):
        return False
    files = [part.get("file") for part in said] if isinstance(said, list) else ()
    if any(isinstance(file, dict) and file.get("file_id") is not None for file in files):
        return False
    if any(isinstance(call, dict) and call.get("type", "function") != "function" for call in calls):
        return False
    return turn.get("reasoning") is None or turn.get("reasoning_content") is None


def _responses_keep(fields: dict[str, Raw]) -> bool:
    before = None
    for item in _list(fields.get("input")):
        kind, role = item.get("type", "message"), item.get("role")
        if kind == "message" and role == before:
            return False  # turns of one side are joined
        said, output = item.get("content"), item.get("output")
        if role in ("system", "developer") and not _all_text(said, ("input_text", "text")):
            return False
        parts = [part for one in (said, output) if isinstance(one, list) for part in one]
        if any("file_data" in part and "file_url" in part for part in parts):
            return False
        if not _is_read(item, _ITEMS, kind) or not _are_read(said, _ITEM_PARTS):
            return False  # a thought is more than its summary
        if not _are_read(output, _ITEM_PARTS, "refusal"):
            return False
        before = role if kind == "message" else None
    if not {"summary", "generate_summary"}.isdisjoint(_dict(fields.get("reasoning"))):
        return False  # of which there are several kinds
    wanted = _dict(fields.get("text")).get("format") or {}
    return isinstance(wanted, dict) and _is_known_format(wanted, "schema" in wanted)


def _messages_keep(fields: dict[str, Raw]) -> bool:
    said = [turn.get("content") for turn in _list(fields.get("messages"))]
    if not all(_blocks_keep(one) for one in (*said, _list(fields.get("system")))):
        return False
    if _both(fields, "output_format", "output_config"):
        return False
    choice, thinking = _dict(fields.get("tool_choice")), _dict(fields.get("thinking"))
    if choice.get("type") != "tool" and choice.get("name") is not None:
        return False
    if thinking.get("display") is not None:  # what is shown by default is the model's to say
        return False
    return thinking.get("type", "disabled") in ("enabled", "disabled")


def _blocks_keep(blocks: Any) -> bool:
    if not _are_read(blocks, _BLOCKS):
        return False
    return all(_block_keeps(block) for block in (blocks if isinstance(blocks, list) else ()))


def _block_keeps(block: Json) -> bool:
    source, inner = block.get("source"), block.get("content")
    if source is not None:
        kind = source.get("type") if isinstance(source, dict) else None
        if not _is_read(source, _SOURCES, kind):
            return False
    inner = [inner] if isinstance(inner, dict) else inner
    return _all_text(inner, ("text", "image", "document")) and _blocks_keep(inner)


def _is_known_format(wanted: Json, has_schema: bool) -> bool:
    return wanted.get("type", "text") in (
        ("json_schema",) if has_schema else ("text", "json_object")
    )


KEEPS: dict[Operation, Callable[[dict[str, Raw]], bool]] = {
    Operation.CHAT: _chat_keeps,
    Operation.RESPONSES: _responses_keep,
    Operation.MESSAGES: _messages_keep,
}
