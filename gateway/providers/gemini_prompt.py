"""The hub's prompts as Gemini's generateContent; Vertex AI takes the same."""

import re
from typing import Any

import msgspec

from gateway.core.messages import (
    ASSISTANT,
    Fit,
    Media,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    alternating,
    unmark,
    user_first,
)
from gateway.providers.anthropic_prompt import arguments_of
from gateway.providers.gemini_wire import MAKER

Json = dict[str, Any]

# Tokens to think with, by effort: Google's own mapping of OpenAI's words.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576}
# What the models of generation 2 take; the flash ones also none at all.
_RANGES = {"pro": (128, 32_768), "lite": (512, 24_576), "flash": (1, 24_576)}
_UNTHINKING = re.compile(r"gemini-(?:1|2\.0)")
_LEVELS = {"none": "MINIMAL", "max": "HIGH", "xhigh": "HIGH"}
_MODES = {"auto": "AUTO", "required": "ANY", "none": "NONE", "tool": "ANY"}
_GENERATION = re.compile(r"gemini-(\d+)")
# What Google tells to send for a call that it has not signed itself.
UNSIGNED = "skip_thought_signature_validator"


def write(prompt: Prompt, model: str, fit: Fit) -> Json:
    """Return a request's fields."""
    turns = alternating(user_first(prompt.messages))
    names: dict[str, str] = {}
    called: list[str] = []  # the ids of the last turn's calls
    generation = int(found[1]) if (found := _GENERATION.search(model)) else 0
    contents = []
    for message in turns:
        if message.role == ASSISTANT:
            calls = [part for part in message.parts if isinstance(part, ToolCall)]
            names |= {call.id: call.name for call in calls}
            called = [call.id for call in calls]
        parts = _parts(_in_order(message.parts, called), names, generation, fit)
        if parts:
            role = "model" if message.role == ASSISTANT else "user"
            contents.append({"role": role, "parts": parts})
    body: Json = {"contents": contents}
    if prompt.system:
        body["systemInstruction"] = {"parts": [{"text": part.text} for part in prompt.system]}
    if prompt.tools:
        body["tools"] = [{"functionDeclarations": [_tool(tool) for tool in prompt.tools]}]
        if prompt.tool_choice is not None:
            calling: Json = {"mode": _MODES[prompt.tool_choice.mode]}
            if prompt.tool_choice.mode == "tool":
                calling["allowedFunctionNames"] = [prompt.tool_choice.name]
            body["toolConfig"] = {"functionCallingConfig": calling}
    if config := _config(prompt, model, generation, fit):
        body["generationConfig"] = config
    _leave(prompt, fit)
    return body


def _tool(tool: Any) -> Json:
    found: Json = {"name": tool.name, "parametersJsonSchema": tool.schema}
    if tool.description:
        found["description"] = tool.description
    return found


def _config(prompt: Prompt, model: str, generation: int, fit: Fit) -> Json:
    wanted: Json = {
        "maxOutputTokens": prompt.max_output,
        "temperature": prompt.temperature,
        "topP": prompt.top_p,
        "topK": prompt.top_k,
        "presencePenalty": prompt.presence_penalty,
        "frequencyPenalty": prompt.frequency_penalty,
        "stopSequences": list(prompt.stop) or None,
        "seed": prompt.seed,
        "responseLogprobs": True if prompt.logprobs is not None else None,
        "logprobs": prompt.logprobs or None,
    }
    if prompt.format is not None:
        wanted["responseMimeType"] = "application/json"
        wanted["responseJsonSchema"] = prompt.format.schema
    if prompt.reasoning is not None and not _UNTHINKING.search(model):
        wanted["thinkingConfig"] = _thinking(prompt.reasoning, prompt.max_output, model, generation)
    elif prompt.reasoning is not None and prompt.reasoning.enabled:
        fit.leave_out("reasoning")
    return {name: value for name, value in wanted.items() if value is not None}


def _thinking(wanted: Reasoning, room: int | None, model: str, generation: int) -> Json:
    """Return `thinkingConfig`; `room`: what thoughts and answer may take together."""
    found: Json = {"includeThoughts": wanted.shown and wanted.enabled}
    effort = wanted.effort if wanted.enabled else "none"
    pro = "pro" in model  # which cannot do without
    if generation >= 3:
        if effort:
            level = _LEVELS.get(effort, effort.upper())
            found["thinkingLevel"] = "LOW" if pro and level == "MINIMAL" else level
        return found
    budget = wanted.budget if wanted.enabled else None
    if budget is None and effort:
        budget = _BUDGETS.get(effort, _BUDGETS["high"])
        if room is not None:  # an effort leaves some for the answer
            budget = min(budget, room * 3 // 4)
    if budget is not None:
        least, most = _RANGES["pro" if pro else "lite" if "lite" in model else "flash"]
        found["thinkingBudget"] = min(max(budget, least), most) if budget or pro else 0
    return found


def _leave(prompt: Prompt, fit: Fit) -> None:
    """Note what has no place here."""
    if prompt.choices > 1:
        fit.refuse("choices")
    if prompt.parallel is False:
        fit.leave_out("parallel")  # a wish: whoever calls a tool can answer two calls, too
    for field in ("verbosity", "user", "metadata", "service_tier"):
        if getattr(prompt, field):
            fit.leave_out(field)
    for name in prompt.hints:
        fit.leave_out(name)
    for name in prompt.unknown:
        fit.refuse(name)


def _in_order(parts: tuple[Part, ...], called: list[str]) -> list[Part]:
    """Return parts with results in the order of their calls: Gemini knows them by name alone."""
    places = {id: place for place, id in enumerate(called)}
    results = [part for part in parts if isinstance(part, ToolResult)]
    ordered = iter(sorted(results, key=lambda one: places.get(one.call_id, len(places))))
    return [next(ordered) if isinstance(part, ToolResult) else part for part in parts]


def _parts(parts: list[Part], names: dict[str, str], generation: int, fit: Fit) -> list[Json]:
    found: list[Json] = []
    media: list[Json] = []
    signature, called = "", False
    for part in parts:
        if isinstance(part, Thinking):
            # Thoughts themselves are not sent back, but their signature, on the part behind it.
            if secret := unmark(MAKER, part.redacted) or unmark(MAKER, part.signature):
                found += _alone(signature)
                signature = secret
            continue
        if isinstance(part, ToolResult):
            found.append(_result(part, names))
            inner = [one for one in part.parts if isinstance(one, Media)]
            media += [_media(one, fit) for one in inner]
            continue
        shown = _part(part, fit)
        if not shown:
            continue
        if isinstance(part, ToolCall):
            if own := unmark(MAKER, part.signature):
                found += _alone(signature)
                signature = own
            if generation >= 3 and not signature and not called:
                signature = UNSIGNED
            called = True
        if signature:
            shown["thoughtSignature"], signature = signature, ""
        found.append(shown)
    found += _alone(signature)
    return found + [one for one in media if one]


def _alone(signature: str) -> list[Json]:
    """Return a signature that has no part behind it, or another's."""
    return [{"text": "", "thoughtSignature": signature}] if signature else []


def _part(part: Part, fit: Fit) -> Json:
    match part:
        case Text(text=text) | Refusal(text=text):
            return {"text": text} if text else {}
        case Media():
            return _media(part, fit)
        case ToolCall(name=name, arguments=arguments):
            return {"functionCall": {"name": name, "args": arguments_of(arguments)}}
    return {}


def _media(part: Media, fit: Fit) -> Json:
    if part.data:
        return {"inlineData": {"mimeType": part.media_type, "data": part.data}}
    if part.kind == "image" and not part.media_type:
        fit.refuse(part.where, "an image whose type its URL does not tell")
        return {}
    return {"fileData": {"mimeType": part.media_type, "fileUri": part.url}}


def _result(part: ToolResult, names: dict[str, str]) -> Json:
    text = "\n".join([one.text for one in part.parts if isinstance(one, Text)])
    try:
        found = msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, RecursionError):
        found = None
    response: Any = found if isinstance(found, dict) else {"result": text}
    if part.is_error:
        response = {"error": text}
    return {
        "functionResponse": {"name": names.get(part.call_id, part.call_id), "response": response}
    }
