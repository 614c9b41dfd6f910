"""What providers refuse though their published schemas allow it, and what is made of it."""

import json
from typing import Any

import pytest

from gateway.core.messages import UNSIGNED, mark
from gateway.core.operations import Operation
from gateway.core.target import Deadlines, Origin, Target
from gateway.formats.body import decode
from gateway.pipeline.lanes import lane
from gateway.providers import PROVIDERS
from gateway.providers.anthropic_prompt import version_of

CHAT, MESSAGES, RESPONSES = Operation.CHAT, Operation.MESSAGES, Operation.RESPONSES
Json = dict[str, Any]
SETTINGS = (("project", "p"), ("location", "l"), ("region", "r"))


def at(kind: str, model: str, settings: tuple[tuple[str, str], ...] = ()) -> Target:
    return Target(
        provider=kind,
        kind=kind,
        model=model,
        origin=Origin("https", "provider.test", 443),
        base_path="/v1",
        api_key="k",
        headers=(),
        deadlines=Deadlines(1, 1, 1, 1),
        settings=(*SETTINGS, *settings),
    )


def put(
    kind: str,
    model: str,
    operation: Operation,
    body: Json,
    settings: Any = (),
    *,
    drop: bool = False,
) -> tuple[Json, Any]:
    """Return what a provider is sent, and what is named as left out. Raises ApiError."""
    target = at(kind, model, settings)
    way = lane(PROVIDERS[kind].adapter_for(target), operation, target, drop=drop)
    assert way is not None
    built = way.build(decode(operation, json.dumps({"model": "m", **body}).encode()))
    return json.loads(built.body), built.dropped


# --- What another provider has signed ------------------------------------------------------------

CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "ok"}
FOREIGN = [
    {"type": "thinking", "thinking": "let me think", "signature": UNSIGNED},
    {"type": "redacted_thinking", "data": mark("gemini", "x")},
]
OWN = {"type": "thinking", "thinking": "hm", "signature": "EqQB"}


def turns(*blocks: Json) -> Json:
    asked = {"role": "user", "content": "sluice:usage is a key"}
    return {
        "max_tokens": 4000,
        "messages": [
            asked,
            {"role": "assistant", "content": [*blocks]},
            {"role": "user", "content": [RESULT]},
        ],
    }


@pytest.mark.parametrize("kind", ["anthropic", "vertex"])
def test_thoughts_of_others_do_not_reach_anthropic(kind: str) -> None:
    body = turns(OWN, *FOREIGN, {"type": "text", "text": "sluice:"}, CALL)
    sent, dropped = put(kind, "claude-sonnet-4-5", MESSAGES, body)
    assert sent["messages"] == turns(OWN, {"type": "text", "text": "sluice:"}, CALL)["messages"]
    assert dropped == ()


def test_a_turn_of_nothing_but_foreign_thoughts_goes() -> None:
    sent, _ = put("anthropic", "claude-sonnet-4-5", MESSAGES, turns(*FOREIGN))
    assert [turn["role"] for turn in sent["messages"]] == ["user", "user"]


@pytest.mark.parametrize(
    ("blocks", "thinks"), [((*FOREIGN, CALL), False), ((OWN, *FOREIGN, CALL), True)]
)
def test_a_call_without_its_thoughts_forbids_thinking(blocks: Any, thinks: bool) -> None:
    body = turns(*blocks) | {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    sent, dropped = put("anthropic", "claude-sonnet-4-5", MESSAGES, body)
    assert ("thinking" in sent) is thinks
    assert dropped == (() if thinks else ("thinking",))


def test_a_conversation_without_marks_passes_to_the_byte() -> None:
    raw = b'{"model":"c","max_tokens":9,"messages":[ {"role":"user",  "content":"\\u0061"} ]}'
    way = lane(PROVIDERS["anthropic"].adapter, MESSAGES, at("anthropic", "c"), drop=False)
    assert way is not None
    assert b'[ {"role":"user",  "content":"\\u0061"} ]' in way.build(decode(MESSAGES, raw)).body


def test_reasoning_of_others_does_not_reach_openais_responses() -> None:
    def reasoning(secret: str) -> Json:
        return {"type": "reasoning", "summary": [], "encrypted_content": secret}

    said = {"type": "message", "role": "user", "content": "sluice:"}
    others = [reasoning(UNSIGNED), reasoning(mark("gemini", "x"))]
    body = {"input": [said, *others, reasoning(mark("responses", "own")), reasoning("theirs")]}
    sent, _ = put("openai", "gpt-5", RESPONSES, body)
    assert sent["input"] == [said, reasoning("own"), reasoning("theirs")]


def test_secrets_of_others_do_not_reach_chat_completions() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    google = {"google": {"thought_signature": mark("gemini", "x")}}
    turn = {
        "role": "assistant",
        "content": "sluice: hello",
        "reasoning_content": "thought",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "thought", "signature": UNSIGNED},
            {"type": "reasoning.text", "text": "thought", "signature": "own"},
        ],
        "tool_calls": [call | {"extra_content": google}],
    }
    sent, _ = put("openrouter", "m", CHAT, {"messages": [turn]})
    kept = turn | {"reasoning_details": turn["reasoning_details"][1:], "tool_calls": [call]}
    assert sent["messages"] == [kept]
    # Groq has another name for thoughts, and refuses those it does not know.
    sent, _ = put("groq", "m", CHAT, {"messages": [turn]})
    said = {"role": "assistant", "content": "sluice: hello", "tool_calls": [call]}
    assert sent["messages"] == [said | {"reasoning": "thought"}]


# --- Claude ---------------------------------------------------------------------------------------

HELLO: Json = {"messages": [{"role": "user", "content": "hello"}]}
BEDROCK_IDS = {
    "claude-sonnet-4-5": "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "claude-opus-4-6": "anthropic.claude-opus-4-6-v1",
    "claude-opus-4-7": "us.anthropic.claude-opus-4-7",
    "claude-fable-5": "us.anthropic.claude-fable-5",
}


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("claude-opus-4-7", (4, 7)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-sonnet-4-5@20250929", (4, 5)),
        ("claude-3-7-sonnet-20250219", (3, 7)),
        ("claude-3-opus-20240229", (3, 0)),
        ("anthropic.claude-3-5-sonnet-20241022-v2:0", (3, 5)),
        ("claude-fable-5", (5, 0)),
        ("us.anthropic.claude-mythos-5-1", (5, 1)),
        ("anthropic/claude-4.7-opus", (4, 7)),
        ("claude-mythos-preview", (99, 0)),
        ("kimi-k2", (0, 0)),
    ],
)
def test_a_claudes_version_is_in_its_name(model: str, version: tuple[int, int]) -> None:
    assert version_of(model) == version


def on_both(model: str, body: Json) -> list[tuple[Json, tuple[str, ...]]]:
    """What Anthropic and Bedrock are sent, by the names that Anthropic has."""
    sent, dropped = put("anthropic", model, CHAT, body)
    converse, other = put("bedrock", BEDROCK_IDS[model], CHAT, body)
    given = converse.get("inferenceConfig", {})
    names = {"maxTokens": "max_tokens", "topP": "top_p", "temperature": "temperature"}
    fields = {names[name]: value for name, value in given.items()}
    return [(sent, dropped), (fields | converse.get("additionalModelRequestFields", {}), other)]


@pytest.mark.parametrize(
    ("model", "asked", "sent", "dropped"),
    [
        ("claude-sonnet-4-5", {"temperature": 0.7, "top_p": 1}, {"temperature": 0.7}, ()),
        ("claude-sonnet-4-5", {"temperature": 1, "top_p": 0.8}, {"top_p": 0.8}, ()),
        ("claude-sonnet-4-5", {"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.7}, ("top_p",)),
        ("claude-opus-4-7", {"temperature": 0.7, "top_k": 3}, {}, ("temperature", "top_k")),
        ("claude-opus-4-7", {"temperature": 1, "top_p": 1}, {}, ()),
        (
            "claude-sonnet-4-5",
            {"top_p": 0.8, "reasoning_effort": "high", "max_tokens": 32_000},
            {},
            ("top_p",),
        ),
        (
            "claude-sonnet-4-5",
            {"top_p": 0.97, "temperature": 0.2, "reasoning_effort": "high", "max_tokens": 32_000},
            {"top_p": 0.97},
            ("temperature",),
        ),
    ],
)
def test_a_claude_gets_the_sampling_that_it_takes(
    model: str, asked: Json, sent: Json, dropped: tuple[str, ...]
) -> None:
    for fields, left_out in on_both(model, HELLO | asked):
        taken = {n: v for n, v in fields.items() if n in ("temperature", "top_p", "top_k")}
        assert (taken, left_out) == (sent, dropped)


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_thoughts_leave_room_for_an_answer(effort: str) -> None:
    for fields, _ in on_both("claude-sonnet-4-5", HELLO | {"reasoning_effort": effort}):
        assert fields["max_tokens"] == fields["thinking"]["budget_tokens"] + 32_000
    asked = HELLO | {"reasoning_effort": effort, "max_tokens": 4000}
    for fields, _ in on_both("claude-sonnet-4-5", asked):
        assert fields["max_tokens"] == 4000
        assert fields["thinking"]["budget_tokens"] <= 3000


def test_a_model_says_as_much_as_it_can_where_nobody_says_how_much() -> None:
    most = {"claude-3-haiku-20240307": 4096, "claude-3-5-haiku-latest": 8192, "kimi-k2": 4096}
    for model, figure in (most | {"claude-opus-4-1": 32_000, "claude-fable-5": 32_000}).items():
        assert put("anthropic", model, CHAT, HELLO)[0]["max_tokens"] == figure


@pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-opus-4-7", "claude-fable-5"])
def test_newer_models_think_as_they_see_fit_and_show_it_if_asked(model: str) -> None:
    for fields, _ in on_both(model, HELLO | {"reasoning_effort": "minimal"}):
        shown = {} if model == "claude-opus-4-6" else {"display": "summarized"}
        assert fields["thinking"] == {"type": "adaptive", **shown}
        assert fields["output_config"] == {"effort": "low"}
    hidden = {"input": "hello", "reasoning": {"effort": "high"}}
    fields, _ = put("anthropic", model, RESPONSES, hidden)
    assert fields["thinking"].get("display") == (None if not shown else "omitted")
