"""Reads recorded replies of Bedrock's Converse and of Cohere's chat (version 2).

A stream is first put together to the whole reply that it tells, then read as such.
"""

from typing import Any

from gateway.core.usage import Usage
from tests.golden.rec_expected import Expected, arguments, joined

Json = dict[str, Any]


# --- Converse ------------------------------------------------------------------------------------


def converse(bodies: list[Json]) -> Expected:
    """A whole reply: the one key of a block, beside its optional type, tells its kind."""
    body = bodies[0]
    blocks = body["output"]["message"]["content"]
    thought = [b["reasoningContent"] for b in blocks if "reasoningContent" in b]
    shown = [one["reasoningText"] for one in thought if "reasoningText" in one]
    called = [block["toolUse"] for block in blocks if "toolUse" in block]
    known = {"type", "text", "reasoningContent", "toolUse"}
    return Expected(
        text=joined([block.get("text") for block in blocks]),
        reasoning=joined([one.get("text") for one in shown]),
        signatures=[one["signature"] for one in shown if one.get("signature")],
        tool_calls=[(one["name"], one["input"]) for one in called],
        server_blocks=[key for block in blocks for key in block if key not in known],
        finish=body["stopReason"],
        usage=converse_counted(body["usage"]) if "usage" in body else None,
    )


def converse_stream(events: list[Json]) -> Expected:
    """A streamed reply; a text has no start event of its own, and not every block a stop."""
    blocks: dict[int, Json] = {}
    body: Json = {}
    for kind, event in [item for one in events for item in one.items()]:
        if kind == "contentBlockStart":
            blocks[event["contentBlockIndex"]] = {
                key: {**value, "input": ""} for key, value in event["start"].items()
            }
        elif kind == "contentBlockDelta":
            grow(blocks.setdefault(event["contentBlockIndex"], {}), event["delta"])
        elif kind in ("messageStop", "metadata"):
            body |= event
    for block in blocks.values():
        if "toolUse" in block:
            block["toolUse"]["input"] = arguments(block["toolUse"]["input"])
    content = [block for _, block in sorted(blocks.items())]
    return converse([{**body, "output": {"message": {"content": content}}}])


def grow(block: Json, delta: Json) -> None:
    """Add a delta to its block."""
    if "text" in delta:
        block["text"] = block.get("text", "") + delta["text"]
    elif "toolUse" in delta:
        block["toolUse"]["input"] += delta["toolUse"]["input"]
    else:
        thought = block.setdefault("reasoningContent", {"reasoningText": {}})["reasoningText"]
        for key, value in delta["reasoningContent"].items():
            thought[key] = thought.get(key, "") + value


def converse_counted(usage: Json) -> Usage:
    """Bedrock counts as Anthropic does: cached tokens beside the input."""
    cached = usage.get("cacheReadInputTokens", 0)
    written = usage.get("cacheWriteInputTokens", 0)
    prompt = usage["inputTokens"] + cached + written
    return Usage(prompt, cached, written, usage["outputTokens"])


# --- Cohere --------------------------------------------------------------------------------------


def cohere(bodies: list[Json]) -> Expected:
    """A whole reply; the plan that precedes tool calls is reasoning, not an answer."""
    body = bodies[0]
    message = body["message"]
    content = message.get("content") or []
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return Expected(
        text=joined([part.get("text") for part in content]),
        reasoning=(message.get("tool_plan") or "")
        + joined([part.get("thinking") for part in content]),
        tool_calls=[(one["name"], arguments(one["arguments"])) for one in functions],
        finish=body["finish_reason"],
        usage=cohere_counted(body["usage"]),
    )


def cohere_stream(events: list[Json]) -> Expected:
    """A streamed reply: events of one part, plan or call follow each other."""
    message: Json = {"content": [], "tool_plan": "", "tool_calls": []}
    end: Json = {}
    for event in events:
        told = event.get("delta", {}).get("message", {})
        match event["type"]:
            case "content-start" | "content-delta":
                message["content"].append(told["content"])
            case "tool-plan-delta":
                message["tool_plan"] += told["tool_plan"]
            case "tool-call-start":
                message["tool_calls"].append({"function": {**told["tool_calls"]["function"]}})
            case "tool-call-delta":
                function = message["tool_calls"][-1]["function"]
                function["arguments"] += told["tool_calls"]["function"]["arguments"]
            case "message-end":
                end = event["delta"]
    return cohere([{**end, "message": message}])


def cohere_counted(usage: Json) -> Usage:
    """Cohere bills less (`billed_units`) than the model reads and writes (`tokens`).

    What is billed counts: the prices are of that, and genai-prices reads it. The rest, which is
    where `cached_tokens` are, is Cohere's own preamble, and nobody pays for it.
    """
    billed = usage["billed_units"]
    return Usage(billed["input_tokens"], 0, 0, billed["output_tokens"])
