"""Results of tools, in the order and at the places that providers want."""

from typing import Any

import pytest

from tests.unit.test_provider_rules import CHAT, MESSAGES, put

Json = dict[str, Any]
ASKED = {"role": "user", "content": "?"}


def called(*ids: str, name: str = "f") -> Json:
    calls = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}} for id in ids
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(id: str, text: str = "r") -> Json:
    return {"role": "tool", "tool_call_id": id, "content": text}


# --- Who may speak after them --------------------------------------------------------------------

BETWEEN = ("assistant", ".")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([{"role": "user", "content": "go"}], [BETWEEN, ("user", "go")]),
        ([{"role": "system", "content": "mind"}], [BETWEEN, ("user", "mind")]),
        (
            [{"role": "system", "content": "mind"}, {"role": "user", "content": "go"}],
            [BETWEEN, ("user", "mind"), ("user", "go")],
        ),
        ([{"role": "assistant", "content": "so"}, ASKED], [("assistant", "so"), ("user", "?")]),
        ([], []),
    ],
)
def test_at_mistral_the_assistant_speaks_after_results(more: list[Json], expected: Any) -> None:
    begin = [{"role": "system", "content": "s"}, ASKED, called("a", "b"), result("a"), result("b")]
    sent, _ = put("mistral", "mistral-large-latest", CHAT, {"messages": [*begin, *more]})
    turns = [(turn["role"], turn.get("content")) for turn in sent["messages"]]
    assert turns[3:] == [("tool", "r"), ("tool", "r"), *expected]
    sent, _ = put("groq", "m", CHAT, {"messages": [*begin, *more]})
    assert sent["messages"] == [*begin, *more]


def test_at_mistral_what_a_result_shows_comes_after_the_assistant() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "aaaa"}
    inner = [{"type": "text", "text": "r"}, {"type": "image", "source": source}]
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    turns = [
        ASKED,
        {"role": "assistant", "content": [use]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "a", "content": inner}],
        },
    ]
    body = {"max_tokens": 9, "messages": turns}
    sent, _ = put("mistral", "mistral-large-latest", MESSAGES, body)
    roles = [turn["role"] for turn in sent["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
