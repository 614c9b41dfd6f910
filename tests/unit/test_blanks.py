"""Texts of nothing but blanks, which Anthropic and Bedrock refuse: no trace of them is left."""

from typing import Any

import pytest

from tests.unit.test_provider_rules import BEDROCK_IDS, CHAT, MESSAGES, put

CLAUDE = "claude-sonnet-4-5"
BOTH = pytest.mark.parametrize(
    ("kind", "model"), [("anthropic", CLAUDE), ("bedrock", BEDROCK_IDS[CLAUDE])]
)
OPUS = pytest.mark.parametrize(
    ("kind", "model"),
    [("anthropic", "claude-opus-4-7"), ("bedrock", BEDROCK_IDS["claude-opus-4-7"])],
)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def turns(*said: str, first: str = "user") -> list[dict[str, Any]]:
    """Turns that alternate."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def sent_turns(kind: str, model: str, messages: Any) -> list[tuple[str, list[str]]]:
    sent, dropped = put(kind, model, CHAT, {"messages": messages})
    assert dropped == ()
    return [(t["role"], [block["text"] for block in t["content"]]) for t in sent["messages"]]


@BOTH
@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0"])
def test_turns_alternate_without_blanks_and_the_user_begins(
    kind: str, model: str, blank: str
) -> None:
    expected = [("user", ["."]), ("assistant", ["hi"]), ("user", ["x"])]
    assert sent_turns(kind, model, turns(blank, "hi", "x")) == expected
    expected = [("user", ["a"]), ("assistant", ["b", "c"]), ("user", ["d"])]
    assert sent_turns(kind, model, turns("a", "b", blank, "c", "d")) == expected
    assert sent_turns(kind, model, turns("a", blank, "b")) == [("user", ["a", "b"])]


@BOTH
def test_a_turn_of_anothers_thoughts_leaves_no_gap(kind: str, model: str) -> None:
    detail = {"type": "reasoning.encrypted", "data": "x", "format": "openai-responses-v1"}
    thought = {"role": "assistant", "content": None, "reasoning_details": [detail]}
    messages = [*turns("a"), thought, *turns("b")]
    assert sent_turns(kind, model, messages) == [("user", ["a", "b"])]


@BOTH
def test_a_system_prompt_of_blanks_is_none(kind: str, model: str) -> None:
    system = {"role": "system", "content": " \n"}
    sent, _ = put(kind, model, CHAT, {"messages": [system, *turns("x")]})
    assert "system" not in sent
    sent, _ = put(kind, model, CHAT, {"messages": [system, system | {"content": "s"}, *turns("x")]})
    assert [block["text"] for block in sent["system"]] == ["s"]


@OPUS
@pytest.mark.parametrize("top_k", [1, 3])
def test_a_top_k_that_a_model_does_not_take_is_named(kind: str, model: str, top_k: int) -> None:
    body = {"messages": turns("x"), "temperature": 1, "top_p": 1, "top_k": top_k}
    sent, dropped = put(kind, model, CHAT, body)
    assert dropped == ("top_k",)
    assert "top_k" not in str(sent)


def test_a_tool_choice_that_nobody_made_is_not_left_out() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c", "content": "ok"}
    body: dict[str, Any] = {"messages": [*turns("x"), called, result]}
    sent, dropped = put("bedrock", BEDROCK_IDS[CLAUDE], CHAT, body)
    assert [tool["toolSpec"]["name"] for tool in sent["toolConfig"]["tools"]] == ["f"]
    assert dropped == ()
    for more in ({"tool_choice": "none"}, {"tool_choice": "none", "tools": [TOOL]}):
        sent, dropped = put("bedrock", BEDROCK_IDS[CLAUDE], CHAT, body | more)
        assert "toolChoice" not in sent["toolConfig"]
        assert dropped == ("tool_choice",)


def test_blanks_of_messages_go_to_bedrock_alike() -> None:
    body = {"max_tokens": 9, "system": " ", "messages": turns("a", "b", " ", "c", "d")}
    sent, _ = put("bedrock", BEDROCK_IDS[CLAUDE], MESSAGES, body)
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user"]
    assert "system" not in sent
