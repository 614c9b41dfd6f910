"""The hub's prompts as Anthropic's Messages; also inside Vertex AI's and Bedrock's envelopes."""

import re
from collections.abc import Callable
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
    unmarked,
    user_first,
)
from gateway.providers.plain import plain_text

Json = dict[str, Any]

# Output where nobody says how much: what every model from a version on can do.
DEFAULT_MAX_TOKENS = (((4, 0), 32_000), ((3, 5), 8192), ((0, 1), 4096))
MIN_BUDGET_TOKENS = 1024
# Tokens to think with, by effort, for models that want a figure.
BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384}
LARGEST_BUDGET = 32_768
# From these versions on: a model decides itself how much to think, within an effort; it takes one
# of temperature and top_p, or neither and no top_k; it shows its thoughts only if it is told to.
THINKING_SINCE = (3, 7)
ADAPTIVE_SINCE, ONE_SAMPLING_SINCE, NO_SAMPLING_SINCE = (4, 6), (4, 1), (4, 7)
LEAST_TOP_P_THINKING = 0.95
_VERSION = re.compile(
    r"(?:opus|sonnet|haiku|claude-[a-z]+|claude)-v?(\d{1,2})(?:[-.:](\d{1,2}))?(?!\d)"
)
_NEWEST = (99, 0)
_EFFORTS = {"minimal": "low", "none": "low"}
_UNASKED = {"temperature": 1, "top_p": 1}  # what a model does where nobody says
_MODES = {"auto": "auto", "required": "any", "none": "none"}


def write(prompt: Prompt, model: str, most: int | None, fit: Fit) -> Json:
    """Return a request's fields but for the model's name. `most`: output where nobody says."""
    said = most if prompt.max_output is None else prompt.max_output
    if said is None:
        said = default_max_tokens(model)
    thoughts, effort = thinking(prompt, model, said, fit, _signed)
    body: Json = {
        "max_tokens": said,
        "messages": [
            {"role": message.role, "content": blocks}
            for message in alternating(user_first(telling(prompt.messages, _tells)))
            if (blocks := _blocks(message, fit))
        ],
    }
    if system := [_text(part) for part in prompt.system if not is_blank(part)]:
        body["system"] = system
    if prompt.tools:
        body["tools"] = [_tool(tool) for tool in prompt.tools]
    _choose(body, prompt)
    if prompt.temperature is not None and prompt.temperature > 1:
        fit.refuse("temperature", "it is at most 1 here")
    wanted = {
        "stop_sequences": list(prompt.stop) or None,
        "metadata": {"user_id": prompt.user} if prompt.user else None,
    }
    body |= {name: value for name, value in wanted.items() if value is not None}
    body |= sampling(prompt, model, fit, thinks=thoughts is not None)
    if thoughts is not None:
        body["thinking"] = thoughts
    if effort:
        body["output_config"] = {"effort": effort}
    if prompt.format is not None:
        if prompt.format.schema is None:
            fit.refuse("format", "it needs a schema here")
        else:
            schema = {"type": "json_schema", "schema": prompt.format.schema}
            body.setdefault("output_config", {})["format"] = schema
    _leave(prompt, fit)
    if prompt.stream:
        body["stream"] = True
    return body


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
    for field in ("verbosity", "service_tier", "metadata"):
        if getattr(prompt, field):
            fit.leave_out(field)
    for name in prompt.hints:
        fit.leave_out(name)
    for name in prompt.unknown:
        fit.refuse(name)


def _choose(body: Json, prompt: Prompt) -> None:
    choice = prompt.tool_choice
    if not prompt.tools:
        return
    found: Json = {}
    if choice is not None and choice.mode == "tool":
        found = {"type": "tool", "name": choice.name}
    elif choice is not None:
        found = {"type": _MODES[choice.mode]}
    if prompt.parallel is not None and found.get("type") != "none":
        found.setdefault("type", "auto")
        found["disable_parallel_tool_use"] = not prompt.parallel
    if found:
        body["tool_choice"] = found


def version_of(model: str) -> tuple[int, int]:
    """Return a Claude's version: the newest where its name does not tell, (0, 0) for no Claude."""
    found = _VERSION.search(model)
    if found is not None:
        return (int(found[1]), int(found[2] or 0))
    return _NEWEST if "claude" in model else (0, 0)


def default_max_tokens(model: str) -> int:
    """Return how much a model may write where nobody says: a model of theirs must be told."""
    version = version_of(model)
    return next((most for since, most in DEFAULT_MAX_TOKENS if version >= since), 4096)


def sampling(prompt: Prompt, model: str, fit: Fit, *, thinks: bool) -> dict[str, float]:
    """Return temperature, top_p and top_k as far as a model takes them beside each other."""
    version = version_of(model)
    names = ("temperature", "top_p", "top_k")
    wanted = {name: value for name in names if (value := getattr(prompt, name)) is not None}

    def leave(name: str) -> None:
        if name in wanted and wanted.pop(name) != _UNASKED.get(name):
            fit.leave_out(name)

    if version >= NO_SAMPLING_SINCE:
        for name in names:
            leave(name)
    if thinks:
        leave("temperature")
        leave("top_k")
        if wanted.get("top_p", 1) < LEAST_TOP_P_THINKING:
            leave("top_p")
    elif version >= ONE_SAMPLING_SINCE and {"temperature", "top_p"} <= wanted.keys():
        leave("top_p" if wanted["temperature"] != 1 else "temperature")
    return wanted


def thinking(
    prompt: Prompt, model: str, most: int, fit: Fit, signed: Callable[[Part], bool]
) -> tuple[Json | None, str]:
    """Return `thinking` and an effort. `most`: what thoughts and answer may take together.

    `signed`: whether a part is a thought that is sent back with its proof.
    """
    wanted = prompt.reasoning
    if wanted is None or not wanted.enabled:
        return None, ""
    version = version_of(model)
    adaptive = version >= ADAPTIVE_SINCE
    effort = _EFFORTS.get(wanted.effort, wanted.effort) if adaptive else ""
    if not wanted.shown and wanted.budget is None and not adaptive:
        if wanted.effort:
            fit.leave_out("reasoning")
        return None, ""
    if wanted.budget is None:  # an effort leaves room for the answer
        budget = min(BUDGETS.get(wanted.effort, LARGEST_BUDGET), most * 3 // 4)
    else:
        budget = min(wanted.budget, most - 1)
    if (0, 0) < version < THINKING_SINCE:
        budget = 0
    choice = prompt.tool_choice if prompt.tools else None
    forced = choice is not None and choice.mode in ("required", "tool")
    if forced or unsigned_loop(prompt, signed) or (budget < MIN_BUDGET_TOKENS and not adaptive):
        fit.leave_out("reasoning")
        return None, effort
    if not adaptive:
        return {"type": "enabled", "budget_tokens": budget}, ""
    shown = {"display": "summarized" if wanted.shown else "omitted"}
    return {"type": "adaptive", **(shown if version >= NO_SAMPLING_SINCE else {})}, effort


def unsigned_loop(prompt: Prompt, signed: Callable[[Part], bool]) -> bool:
    """Tell whether the last calls came without their thoughts: then thinking is not allowed."""
    for message in reversed(prompt.messages):
        if message.role == ASSISTANT:
            called = any(isinstance(part, ToolCall) for part in message.parts)
            return called and not any(signed(part) for part in message.parts)
    return False


def _signed(part: Part) -> bool:
    return isinstance(part, Thinking) and bool(unmarked(part.signature) or unmarked(part.redacted))


def _tells(part: Part) -> bool:
    """Tell whether a part says something here: no blanks, nor what is proven to others alone."""
    return _signed(part) if isinstance(part, Thinking) else not is_blank(part)


def _blocks(message: Message, fit: Fit) -> list[Json]:
    found = [block for part in message.parts for block in _block(part, fit)]
    if message.role == ASSISTANT and found:
        return found
    # Results of tools come first in their turn.
    return sorted(found, key=lambda block: block["type"] != "tool_result")


def _block(part: Part, fit: Fit) -> list[Json]:
    match part:
        case Text():
            return [] if is_blank(part) else [_text(part)]
        case Refusal(text=text):
            return [{"type": "text", "text": text}]
        case Media():
            return _media(part, fit)
        case Thinking() if not _signed(part):
            return []  # another provider's thoughts, or none that can be proven
        case Thinking(redacted=data) if data:
            return [{"type": "redacted_thinking", "data": data}]
        case Thinking(text=text, signature=signature):
            return [{"type": "thinking", "thinking": text, "signature": signature}]
        case ToolCall(id=id, name=name, arguments=arguments, cache=cache):
            use = {
                "type": "tool_use",
                "id": plain(id),
                "name": name,
                "input": arguments_of(arguments),
            }
            return [_cached(use, cache)]
        case ToolResult():
            return [_result(part, fit)]


def arguments_of(arguments: str) -> Any:
    """Return a call's arguments as a JSON object; what is none is wrapped."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {"raw": arguments}
    return msgspec.Raw(arguments.encode() or b"{}") if isinstance(found, dict) else {"value": found}


def _result(part: ToolResult, fit: Fit) -> Json:
    content = [block for inner in part.parts for block in _block(inner, fit)]
    found: Json = {"type": "tool_result", "tool_use_id": plain(part.call_id)}
    if content:
        found["content"] = content
    if part.is_error:
        found["is_error"] = True
    return _cached(found, part.cache)


def _media(part: Media, fit: Fit) -> list[Json]:
    if part.kind == "audio":
        fit.refuse(part.where, "sound")
        return []
    source: Json = {"type": "url", "url": part.url}
    if part.data:
        source = {"type": "base64", "media_type": part.media_type, "data": part.data}
        if part.media_type.startswith("text/"):
            source = {"type": "text", "media_type": "text/plain", "data": plain_text(part)}
    found: Json = {"type": part.kind, "source": source}
    if part.name and part.kind == "document":
        found["title"] = part.name
    return [_cached(found, part.cache)]


def _text(part: Text) -> Json:
    return _cached({"type": "text", "text": part.text}, part.cache)


def _tool(tool: Tool) -> Json:
    found: Json = {"name": tool.name, "input_schema": tool.schema}
    if tool.description:
        found["description"] = tool.description
    if tool.strict:
        found["strict"] = True
    return _cached(found, tool.cache)


def _cached(block: Json, ttl: str) -> Json:
    if ttl:
        block["cache_control"] = {"type": "ephemeral"} | ({"ttl": ttl} if ttl != "5m" else {})
    return block
