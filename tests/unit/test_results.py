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


# --- Which call they answer ----------------------------------------------------------------------


def answered(messages: list[Json]) -> list[list[tuple[str, str]]]:
    """The names and texts of results that Gemini is sent, turn by turn."""
    sent, _ = put("gemini", "gemini-2.5-pro", CHAT, {"messages": messages})
    turns = [[part.get("functionResponse") for part in turn["parts"]] for turn in sent["contents"]]
    found = [[(one["name"], one["response"]["result"]) for one in turn if one] for turn in turns]
    return [turn for turn in found if turn]


def test_gemini_has_results_in_the_order_of_their_calls() -> None:
    """It knows them by name alone."""
    turn = [ASKED, called("a", "b", "c")]
    results = [result("c", "3"), result("a", "1"), result("b", "2")]
    said = {"role": "user", "content": "go"}
    assert answered([*turn, *results, said]) == [[("f", "1"), ("f", "2"), ("f", "3")]]
    other = [called("b", "a", name="g"), result("a", "5"), result("x", "6"), result("b", "4")]
    again = [[("g", "4"), ("g", "5"), ("x", "6")]]
    assert answered([*turn, *results, *other])[1:] == again


def test_an_id_that_comes_again_does_not_rename_what_was_before() -> None:
    first, second = [called("a"), result("a", "1")], [called("a", name="g"), result("a", "2")]
    assert answered([ASKED, *first, *second]) == [[("f", "1")], [("g", "2")]]


# --- What of them is cached ----------------------------------------------------------------------

SHORT: Json = {"cache_control": {"type": "ephemeral"}}
LONG: Json = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
POINT = {"cachePoint": {"type": "default"}}
LONG_POINT = {"cachePoint": {"type": "default", "ttl": "1h"}}


def tool_result(id: str, *inner: Json, **marks: Any) -> Json:
    content = [{"type": "text", "text": "r", **one} for one in inner]
    return {"type": "tool_result", "tool_use_id": id, "content": content, **marks}


@pytest.mark.parametrize(
    ("said", "points"),
    [
        ([tool_result("a", SHORT), tool_result("b", {})], ["a", POINT, "b"]),
        (
            [tool_result("a", {}, **SHORT), tool_result("b", {}, **LONG)],
            ["a", POINT, "b", LONG_POINT],
        ),
        (
            [tool_result("a", SHORT, LONG), tool_result("b", SHORT, **LONG)],
            ["a", LONG_POINT, "b", LONG_POINT],
        ),
        (
            [{"type": "text", "text": "go", **LONG}, tool_result("a", {}, **SHORT)],
            ["a", POINT, "go", LONG_POINT],
        ),
    ],
)
def test_bedrock_has_marks_behind_the_results_that_bear_them(said: Any, points: Any) -> None:
    uses: list[Json] = [
        {"type": "tool_use", "id": id, "name": "f", "input": {}} for id in ("a", "b")
    ]
    turns = [ASKED, {"role": "assistant", "content": uses}, {"role": "user", "content": said}]
    model = "anthropic.claude-sonnet-4-5-20250929-v1:0"
    sent, _ = put("bedrock", model, MESSAGES, {"max_tokens": 9, "messages": turns})
    shown = []
    for block in sent["messages"][-1]["content"]:
        outcome = block.get("toolResult")
        if outcome is not None:
            assert {"text": "r"} in outcome["content"]
            assert not [one for one in outcome["content"] if "cachePoint" in one]
        shown.append(outcome["toolUseId"] if outcome else block.get("text", block))
    assert shown == points
