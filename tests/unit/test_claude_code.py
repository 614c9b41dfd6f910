"""What Claude Code sends, as it was seen on the wire, put to a provider of OpenAI's dialect."""

import json
from typing import Any

from gateway.core.operations import Operation
from gateway.core.target import Deadlines, Origin, Target
from gateway.formats.body import decode
from gateway.pipeline.lanes import lane
from gateway.providers import PROVIDERS

DEVICE = json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": "s" * 36})
BODY: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "max_tokens": 32000,
    "stream": True,
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "safeguards": [{"type": "dangerous_tool_use"}],
    "metadata": {"user_id": DEVICE},
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330.9c8;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [
        {"name": "Bash", "input_schema": {"type": "object"}, "defer_loading": True},
        {"name": "WebFetch", "input_schema": {"type": "object"}},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Fetch it."}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "ToolSearch", "input": {}}],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "tool_reference", "tool_name": "WebFetch"}],
                }
            ],
        },
        {"role": "system", "content": "A task has ended."},
    ],
}


def put(kind: str, model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    target = Target(
        provider=kind,
        kind=kind,
        model=model,
        origin=Origin("https", "api.example", 443),
        base_path="",
        api_key="sk-1",
        headers=(),
        deadlines=Deadlines(1, 1, 1, 1),
        settings=(("region", "r"), ("project", "p"), ("location", "l")),
    )
    way = lane(PROVIDERS[kind].adapter_for(target), Operation.MESSAGES, target, drop=False)
    assert way is not None
    built = way.build(decode(Operation.MESSAGES, json.dumps(BODY).encode()))
    return json.loads(built.body), built.dropped


def test_nothing_is_refused_by_any_provider() -> None:
    for kind in PROVIDERS:
        put(kind, "m")


def test_hints_are_left_out_and_named() -> None:
    _, dropped = put("openai", "gpt-4o-mini")
    assert {"context_management", "safeguards", "thinking"} <= set(dropped)


def test_a_model_that_does_not_reason_is_asked_for_no_effort() -> None:
    assert "reasoning_effort" not in put("openai", "gpt-4o-mini")[0]
    assert put("openai", "gpt-5-mini")[0]["reasoning_effort"] == "high"


def test_who_asks_fits_and_tells_no_device() -> None:
    body, _ = put("openai", "gpt-5-mini")
    assert len(body["user"]) == 64
    assert DEVICE not in json.dumps(body)


def test_what_the_system_says_later_keeps_its_place() -> None:
    messages = put("openai", "gpt-5-mini")[0]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "system"]
    assert messages[0]["content"] == "You are an agent."
    assert messages[3]["content"] == "Loaded: WebFetch"
    assert messages[4]["content"] == "A task has ended."
    turns = put("bedrock", "anthropic.claude-sonnet-4-5")[0]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert {"text": "A task has ended."} in turns[2]["content"]
