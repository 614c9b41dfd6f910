"""Turns of the assistant that other servers have no place for: what they said is said, or named."""

import json
from typing import Any

import pytest

from gateway.core.errors import ApiError
from gateway.core.messages import Fit, mark
from gateway.formats import DIALECTS
from gateway.formats.body import decode
from gateway.providers import PROVIDERS
from tests.unit.test_provider_rules import CHAT, at, put

Json = dict[str, Any]
HI = {"role": "user", "content": "hi"}
REFUSAL = {"role": "assistant", "content": None, "refusal": "I cannot"}
CALLED = {"id": "call12345", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("kind", ["openai", "azure", "groq", "mistral"])
@pytest.mark.parametrize("more", [{}, {"reasoning_content": "hm"}, {"tool_calls": [CALLED]}])
def test_a_refusal_is_said_beside_thoughts_and_calls(kind: str, more: Json) -> None:
    conversation = PROVIDERS[kind].adapter.conversation
    assert conversation is not None
    body = json.dumps({"model": "m", "messages": [HI, REFUSAL | more]}).encode()
    prompt = DIALECTS[CHAT].prompt(decode(CHAT, body))
    sent = json.loads(conversation.build(prompt, at(kind, "m"), Fit()))["messages"][1]
    assert "I cannot" in json.dumps(sent["content"])
    assert sent.get("tool_calls") == more.get("tool_calls")


def test_a_turn_that_only_its_provider_can_hear_is_refused_or_named() -> None:
    heard: Json = {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}
    body = {"messages": [HI, heard, HI]}
    with pytest.raises(ApiError) as refused:
        put("gemini", "gemini-2.5-pro", CHAT, body)
    assert (refused.value.status, refused.value.param) == (400, "messages[1].audio")
    _, dropped = put("gemini", "gemini-2.5-pro", CHAT, body, drop=True)
    assert dropped == ("messages[1].audio",)
    told = {"messages": [HI, heard | {"content": "hello"}, HI]}
    sent, dropped = put("gemini", "gemini-2.5-pro", CHAT, told)
    assert [len(turn["parts"]) for turn in sent["contents"]] == [1, 1, 1]
    assert dropped == ()


@pytest.mark.parametrize("secret", [mark("gemini", "x"), ""])
def test_mistral_hears_something_where_only_another_has_thought(secret: str) -> None:
    thought = {"type": "reasoning.encrypted", "data": secret or "RED=="}
    silent: Json = {"role": "assistant", "content": None, "reasoning_details": [thought]}
    sent, _ = put("mistral", "mistral-large-latest", CHAT, {"messages": [HI, silent, HI]})
    assert sent["messages"] == [HI, {"role": "assistant", "content": "."}, HI]
    called = silent | {"tool_calls": [CALLED]}
    sent, _ = put("mistral", "mistral-large-latest", CHAT, {"messages": [HI, called]})
    assert sent["messages"][1] == {"role": "assistant", "tool_calls": [CALLED]}
