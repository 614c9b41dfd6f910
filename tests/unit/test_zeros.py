"""Zeros that say something: no output, no thoughts, a seed. None may turn into nothing said."""

import json
from typing import Any

import pytest

from gateway.core.errors import ApiError
from gateway.core.operations import Operation
from gateway.formats.body import decode
from tests.unit.test_provider_rules import put

Json = dict[str, Any]
CHAT, COMPLETIONS, MESSAGES = Operation.CHAT, Operation.COMPLETIONS, Operation.MESSAGES
HI: Json = {"role": "user", "content": "hi"}
CLAUDE_AT_BEDROCK = "anthropic.claude-haiku-4-5-20251001-v1:0"
SCORED: Json = {"prompt": "hello", "max_tokens": 0}


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("anthropic", "claude-haiku-4-5"),
        ("vertex", "claude-haiku-4-5"),
        ("bedrock", CLAUDE_AT_BEDROCK),
        ("bedrock", "amazon.nova-lite-v1:0"),
        ("gemini", "gemini-2.5-flash"),
        ("cohere", "command-a-03-2025"),
        ("mistral", "mistral-large-latest"),
    ],
)
def test_a_completion_of_nothing_is_the_least_that_a_model_that_chats_writes(
    kind: str, model: str
) -> None:
    sent, _ = put(kind, model, COMPLETIONS, SCORED)
    where = sent.get("inferenceConfig") or sent.get("generationConfig") or sent
    (most,) = [
        where[name] for name in ("max_tokens", "maxTokens", "maxOutputTokens") if name in where
    ]
    assert most == 1


@pytest.mark.parametrize("kind", ["openai", "vllm", "ollama", "openai-compatible"])
def test_a_completion_of_nothing_stays_one_where_there_are_completions(kind: str) -> None:
    sent, _ = put(kind, "m", COMPLETIONS, SCORED)
    assert sent["max_tokens"] == 0


def test_a_completion_of_nothing_is_reserved_for() -> None:
    request = decode(COMPLETIONS, json.dumps({"model": "m", **SCORED}).encode())
    assert request.max_output == 1


@pytest.mark.parametrize(
    ("kind", "model", "settings"),
    [
        ("anthropic", "claude-haiku-4-5", ()),
        ("bedrock", CLAUDE_AT_BEDROCK, ()),
        ("openai", "gpt-5-pro", (("api", "responses"),)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_of_nothing_is_a_seed(kind: str, model: str, settings: Any, seed: int) -> None:
    asked = {"messages": [HI], "seed": seed}
    with pytest.raises(ApiError) as refused:
        put(kind, model, CHAT, asked, settings)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "seed")
    assert put(kind, model, CHAT, asked, settings, drop=True)[1] == ("seed",)


NO_THOUGHTS: list[tuple[Operation, Json]] = [
    (CHAT, {"reasoning": {"max_tokens": 0}, "max_tokens": 40_000}),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 0}, "max_tokens": 40_000}),
]


@pytest.mark.parametrize(("operation", "asked"), NO_THOUGHTS)
def test_who_wants_no_tokens_of_thought_wants_none(operation: Operation, asked: Json) -> None:
    asked = {"messages": [HI], **asked}
    if operation is CHAT:
        sent, _ = put("anthropic", "claude-sonnet-4-5", operation, asked)
        assert "thinking" not in sent
    sent, _ = put("bedrock", CLAUDE_AT_BEDROCK, operation, asked)
    assert "additionalModelRequestFields" not in sent
    sent, _ = put("gemini", "gemini-2.5-flash", operation, asked)
    thinking = {"includeThoughts": False, "thinkingBudget": 0}
    assert sent["generationConfig"]["thinkingConfig"] == thinking
    sent, _ = put("cohere", "command-a-reasoning-08-2025", operation, asked)
    assert sent["thinking"] == {"type": "disabled"}
    sent, _ = put("openai", "gpt-5-pro", operation, asked, (("api", "responses"),))
    assert sent["reasoning"] == {"effort": "low"}
