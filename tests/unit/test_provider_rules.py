"""What providers refuse though their published schemas allow it, and what is made of it."""

import itertools
import json
import re
from typing import Any

import pytest

from gateway.core.errors import ApiError
from gateway.core.events import CallBegun
from gateway.core.messages import UNSIGNED, ToolCall, mark
from gateway.core.operations import Operation
from gateway.core.target import Deadlines, Origin, Target
from gateway.formats.body import decode
from gateway.pipeline.lanes import lane
from gateway.providers import PROVIDERS
from gateway.providers.anthropic_prompt import version_of
from gateway.providers.chat import ChatCompletions
from gateway.providers.quirks import NONE

CHAT, MESSAGES, RESPONSES = Operation.CHAT, Operation.MESSAGES, Operation.RESPONSES
Json = dict[str, Any]
SETTINGS = (("project", "p"), ("location", "l"), ("region", "r"))


def at(
    kind: str,
    model: str,
    settings: tuple[tuple[str, str], ...] = (),
    host: str = "provider.test",
) -> Target:
    return Target(
        provider=kind,
        kind=kind,
        model=model,
        origin=Origin("https", host, 443),
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
    host: str = "provider.test",
) -> tuple[Json, Any]:
    """Return what a provider is sent, and what is named as left out. Raises ApiError."""
    target = at(kind, model, settings, host)
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


CLEARING = {"type": "clear_thinking_20251015", "keep": "all"}
USES = {"type": "clear_tool_uses_20250919"}


@pytest.mark.parametrize(
    ("blocks", "edits", "kept", "named"),
    [
        (FOREIGN, [CLEARING], None, ("thinking", "context_management")),
        (FOREIGN, [CLEARING, USES], {"edits": [USES]}, ("thinking", "context_management")),
        (FOREIGN, [USES], {"edits": [USES]}, ("thinking",)),
        (FOREIGN, "all", {"edits": "all"}, ("thinking",)),
        ([OWN], [CLEARING], {"edits": [CLEARING]}, ()),
    ],
)
@pytest.mark.parametrize("kind", ["anthropic", "vertex"])
def test_who_does_not_think_is_not_told_to_clear_thoughts(
    kind: str, blocks: Any, edits: Any, kept: Any, named: Any
) -> None:
    body = turns(*blocks, CALL) | {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    body["context_management"] = {"edits": edits}
    sent, dropped = put(kind, "claude-sonnet-4-5", MESSAGES, body)
    assert sent.get("context_management") == kept
    assert dropped == named


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (OWN, {"reasoningText": {"text": "hm", "signature": "EqQB"}}),
        (OWN | {"thinking": ""}, {"reasoningText": {"text": "", "signature": "EqQB"}}),
        (
            {"type": "redacted_thinking", "data": mark("bedrock", "UkVE")},
            {"redactedContent": "UkVE"},
        ),
        ({"type": "redacted_thinking", "data": "RED=="}, None),
        (FOREIGN[0], None),
    ],
)
def test_bedrock_thinks_on_with_the_thoughts_it_is_given_back(block: Json, said: Any) -> None:
    body = turns(block, CALL) | {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    for model in ("anthropic.claude-sonnet-4-5-v1:0", "anthropic.claude-opus-4-7-v1:0"):
        sent, dropped = put("bedrock", model, MESSAGES, body)
        content = sent["messages"][1]["content"]
        assert [one["reasoningContent"] for one in content[:-1]] == ([said] if said else [])
        assert ("thinking" in sent.get("additionalModelRequestFields", {})) is (said is not None)
        assert dropped == (() if said else ("thinking",))


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


DETAILS = [
    {"type": "reasoning.text", "text": "hm", "signature": "SIG=="},
    {"type": "reasoning.encrypted", "data": "RED=="},
    {"type": "reasoning.text", "text": "so"},
    {"type": "reasoning.encrypted", "data": "own", "format": "openai-responses-v1"},
]


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("openai", []),
        ("xai", []),
        ("azure", []),
        ("groq", []),
        ("openai-compatible", DETAILS[2:]),
        ("openrouter", DETAILS),
    ],
)
def test_who_does_not_know_thoughts_in_details_is_sent_none(kind: str, kept: list[Json]) -> None:
    """Of no format they are Anthropic's, which go through chat clients without a mark."""
    turn = {"role": "assistant", "content": "hello", "reasoning_details": DETAILS}
    sent, _ = put(kind, "m", CHAT, {"messages": [turn]})
    assert sent["messages"][0].get("reasoning_details", []) == kept
    assert kept or "reasoning_details" not in sent["messages"][0]


@pytest.mark.parametrize(
    ("kind", "host", "kept"),
    [
        ("openai", "api.openai.com", False),
        ("openai", "eu.api.openai.com", False),
        ("openai", "x.openai.azure.com", False),
        ("groq", "api.groq.com", False),
        # What serves there may have written it: Gemini, for one.
        ("openai", "generativelanguage.googleapis.com", True),
        ("vllm", "127.0.0.1", True),
        ("openai-compatible", "provider.test", True),
        ("openrouter", "openrouter.ai", True),
    ],
)
@pytest.mark.parametrize("extra", [{"google": {"thought_signature": "SIG"}}, {"x": 1}])
def test_who_refuses_what_stands_beside_calls_is_sent_none(
    kind: str, host: str, extra: Json, *, kept: bool
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call | {"extra_content": extra}]}
    sent, _ = put(kind, "m", CHAT, {"messages": [turn]}, host=host)
    assert sent["messages"] == [turn if kept else turn | {"tool_calls": [call]}]


@pytest.mark.parametrize("kind", ["moonshot", "deepseek"])
@pytest.mark.parametrize("thought", ["hm", "", None])
def test_a_call_has_a_thought_where_one_must_be(kind: str, thought: str | None) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    if thought is not None:
        turn["reasoning_content"] = thought
    said = {"role": "assistant", "content": "so"}
    sent, _ = put(kind, "m", CHAT, {"messages": [said, turn]})
    assert sent["messages"] == [said, turn | {"reasoning_content": thought or " "}]
    sent, _ = put("openai", "m", CHAT, {"messages": [said, turn]})
    assert sent["messages"] == [said, turn]


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
        ("anthropic.claude-v2:1", (2, 1)),
        ("claude-instant-v1", (1, 0)),
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
        assert fields["max_tokens"] == 32_000  # what Opus 4 can write at the most
        assert fields["thinking"]["budget_tokens"] <= 24_000
    asked = HELLO | {"reasoning_effort": effort, "max_tokens": 4000}
    for fields, _ in on_both("claude-sonnet-4-5", asked):
        assert fields["max_tokens"] == 4000
        assert fields["thinking"]["budget_tokens"] <= 3000


def test_models_that_do_not_think_are_not_told_to() -> None:
    asked = HELLO | {"reasoning_effort": "medium"}
    sent, dropped = put("anthropic", "claude-3-haiku-20240307", CHAT, asked)
    assert ("thinking" in sent, sent["max_tokens"], dropped) == (False, 4096, ("reasoning_effort",))


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


def test_an_unset_maximum_and_a_set_one_are_told_apart_at_vertex() -> None:
    sent, _ = put("vertex", "claude-opus-4-7", CHAT, HELLO | {"temperature": 0.3})
    assert (sent["max_tokens"], "temperature" in sent) == (32_000, False)


# --- Calls and their ids --------------------------------------------------------------------------


def called(call_id: str) -> Json:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {
        "messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": "done"},
        ]
    }


def ids_of(kind: str, sent: Json) -> list[str]:
    if kind == "mistral":
        _, turn, result = sent["messages"]
        return [turn["tool_calls"][0]["id"], result["tool_call_id"]]
    blocks = [block for turn in sent["messages"][1:] for block in turn["content"]]
    if kind == "bedrock":
        return [next(iter(block.values()))["toolUseId"] for block in blocks]
    return [blocks[0]["id"], blocks[1]["tool_use_id"]]


@pytest.mark.parametrize("call_id", ["functions.f:0", "call_" + "x" * 90, "abc123XYZ", "überall"])
@pytest.mark.parametrize(
    ("kind", "model", "form"),
    [
        ("anthropic", "claude-sonnet-4-5", r"[A-Za-z0-9_-]{1,64}"),
        ("bedrock", "anthropic.claude-sonnet-4-5-20250929-v1:0", r"[A-Za-z0-9_-]{1,64}"),
        ("mistral", "mistral-large-latest", r"[A-Za-z0-9]{9}"),
    ],
)
def test_a_calls_id_has_the_form_that_a_provider_wants(
    kind: str, model: str, form: str, call_id: str
) -> None:
    sent, _ = put(kind, model, CHAT, called(call_id))
    of_call, of_result = ids_of(kind, sent)
    assert of_call == of_result
    assert re.fullmatch(form, of_call)
    if re.fullmatch(form, call_id):
        assert of_call == call_id
    other, _ = put(kind, model, CHAT, called(call_id + "1"))
    assert ids_of(kind, other)[0] != of_call


SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"
F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def unnamed_chat(head: Json) -> tuple[bytes, bytes]:
    """A reply with two calls that have no ids, whole and as a stream."""
    function = {"name": "f", "arguments": "{}"}
    calls = [{"index": i, "id": "", "type": "function", "function": function} for i in range(2)]
    said = {"role": "assistant", "content": None, "tool_calls": calls}
    whole = {"index": 0, "message": said, "finish_reason": "tool_calls"}
    choices = [{"index": 0, "delta": {"tool_calls": [call]}} for call in calls]
    events = [json.dumps({**head, "choices": [choice]}) for choice in choices]
    stream = "".join([f"data: {event}\n\n" for event in events])
    return json.dumps({**head, "choices": [whole]}).encode(), stream.encode()


def unnamed_gemini(head: Json) -> tuple[bytes, bytes]:
    parts = [{"functionCall": {"name": "f", "args": {}}}] * 2
    told = json.dumps({"candidates": [{"content": {"parts": parts}}], **head}).encode()
    return told, b"data: %b\n\n" % told


def test_calls_without_ids_have_names_of_their_own_in_all_a_conversation() -> None:
    seen: list[str] = []
    for reply_id in ("chatcmpl-a1", "chatcmpl-b2"):
        whole, stream = unnamed_chat({"id": reply_id})
        parts = ChatCompletions(NONE).parse(whole).parts
        found = [part.id for part in parts if isinstance(part, ToolCall)]
        told = ChatCompletions(NONE).decoder().feed(stream)
        assert [one.id for one in told if isinstance(one, CallBegun)] == found
        seen += found
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    ("kind", "unnamed"), [("openai", unnamed_chat), ("gemini", unnamed_gemini)]
)
def test_so_have_calls_of_replies_without_ids(kind: str, unnamed: Any) -> None:
    conversation = PROVIDERS[kind].adapter.conversation
    assert conversation is not None
    seen: list[str] = []
    for _ in range(2):
        whole, stream = unnamed({})
        seen += [part.id for part in conversation.parse(whole).parts if isinstance(part, ToolCall)]
        told = conversation.decoder().feed(stream)
        seen += [one.id for one in told if isinstance(one, CallBegun)]
    assert len(set(seen)) == 8


def test_bedrock_is_shown_tools_wherever_one_was_called() -> None:
    sent, _ = put("bedrock", SONNET, CHAT, called("c1"))
    (stub,) = sent["toolConfig"]["tools"]
    assert stub["toolSpec"]["name"] == "f"
    forbidden = called("c1") | {"tools": [F], "tool_choice": "none"}
    sent, dropped = put("bedrock", SONNET, CHAT, forbidden)
    assert [tool["toolSpec"]["name"] for tool in sent["toolConfig"]["tools"]] == ["f"]
    assert "toolChoice" not in sent["toolConfig"]
    assert dropped == ("tool_choice",)
    for unused in (HELLO, HELLO | {"tools": [F], "tool_choice": "none"}):
        assert "toolConfig" not in put("bedrock", SONNET, CHAT, unused)[0]


@pytest.mark.parametrize(("kind", "model"), [("bedrock", SONNET), ("anthropic", "claude-opus-4-7")])
@pytest.mark.parametrize(
    "said",
    [
        [{"role": "assistant", "content": "Hello, how can I help?"}],
        [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "hi"}],
        [{"role": "system", "content": "Say hello."}],
    ],
)
def test_the_user_speaks_first(kind: str, model: str, said: list[Json]) -> None:
    sent, _ = put(kind, model, CHAT, {"messages": said})
    roles = [turn["role"] for turn in sent["messages"]]
    assert roles[0] == "user"
    assert all(one != other for one, other in itertools.pairwise(roles))


# --- Small shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        ({}, {"type": "object", "properties": {}}),
        ({"type": "object"}, {"type": "object", "properties": {}}),
        ({"type": "object", "$ref": "#/x"}, {"type": "object", "$ref": "#/x"}),
        ({"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
    ],
)
def test_a_tool_without_arguments_has_a_schema_that_all_take(schema: Json, sent: Json) -> None:
    tools = [{"name": "f", "input_schema": schema}]
    body = HELLO | {"max_tokens": 9, "tools": tools}
    found, _ = put("openai", "gpt-5", MESSAGES, body)
    assert found["tools"][0]["function"]["parameters"] == sent
    function = {"type": "function", "function": {"name": "f", "parameters": schema}}
    found, _ = put("anthropic", "claude-opus-4-7", CHAT, HELLO | {"tools": [function]})
    assert found["tools"][0]["input_schema"] == sent


def test_media_and_blanks_as_anthropic_takes_them() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/jpg;base64,AAAA"}}
    notes = {"type": "file", "file": {"file_data": "data:text/markdown;base64,IyBhCg=="}}
    said = [
        {"role": "user", "content": [picture, notes]},
        {"role": "assistant", "content": "\n\n"},
        {"role": "user", "content": "go on"},
    ]
    sent, _ = put("anthropic", "claude-opus-4-7", CHAT, {"messages": said})
    (turn,) = sent["messages"]
    image, document, text = turn["content"]
    assert image["source"]["media_type"] == "image/jpeg"
    assert document["source"] == {"type": "text", "media_type": "text/plain", "data": "# a\n"}
    assert text["text"] == "go on"


def test_citations_that_are_asked_for_are_refused_or_named() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "grass is green"}
    document: Json = {"type": "document", "source": source, "citations": {"enabled": True}}
    inner = RESULT | {"content": [document]}
    for content, where in (
        ([document], "messages[0].content[0].citations"),
        ([inner], "messages[0].content[0].content[0].citations"),
    ):
        body = {"max_tokens": 9, "messages": [{"role": "user", "content": content}]}
        with pytest.raises(ApiError, match=re.escape(where)):
            put("openai", "gpt-5", MESSAGES, body)
        sent, dropped = put("openai", "gpt-5", MESSAGES, body, drop=True)
        assert dropped == (where,)
        assert "grass is green" in json.dumps(sent)
    for citations in ({"enabled": False}, None):
        body = turns() | {"messages": [{"role": "user", "content": [document]}]}
        document["citations"] = citations
        assert put("openai", "gpt-5", MESSAGES, body)[1] == ()
    said = {"type": "text", "text": "green", "citations": [{"type": "char_location"}]}
    assert put("openai", "gpt-5", MESSAGES, turns(said))[1] == ()


def test_several_answers_are_not_asked_for_where_one_comes_back() -> None:
    with pytest.raises(ApiError, match="'n' cannot be used"):
        put("mistral", "mistral-large-latest", CHAT, HELLO | {"n": 3})
    sent, dropped = put("mistral", "mistral-large-latest", CHAT, HELLO | {"n": 3}, drop=True)
    assert ("n" in sent, dropped) == (False, ("n",))


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
        {"type": "custom", "custom": {"name": "f"}},
    ],
)
def test_a_choice_of_tools_that_only_openai_has_is_refused_or_named(choice: Json) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    asked = HELLO | {"tools": tools, "tool_choice": choice}
    with pytest.raises(ApiError) as refused:
        put("anthropic", "claude-haiku-4-5", CHAT, asked)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tool_choice")
    sent, dropped = put("anthropic", "claude-haiku-4-5", CHAT, asked, drop=True)
    assert ("tool_choice" in sent, dropped) == (False, ("tool_choice",))
    for wrong in ("any", {"type": "function"}):
        with pytest.raises(ApiError) as refused:
            put("anthropic", "claude-haiku-4-5", CHAT, asked | {"tool_choice": wrong}, drop=True)
        assert (refused.value.code, refused.value.param) == ("invalid_value", "tool_choice")


def test_what_codex_says_besides_is_left_out_and_defaults_say_nothing() -> None:
    codex = {"input": "hello", "client_metadata": {"x": "y"}, "background": False}
    _, dropped = put("anthropic", "claude-opus-4-7", RESPONSES, codex)
    assert dropped == ("client_metadata",)
    plain = HELLO | {"logit_bias": {}, "modalities": ["text"]}
    assert put("anthropic", "claude-opus-4-7", CHAT, plain)[1] == ()
    with pytest.raises(ApiError, match="logit_bias"):
        put("anthropic", "claude-opus-4-7", CHAT, plain | {"logit_bias": {"1": 2}})


def test_a_failed_call_is_told_as_such_in_responses() -> None:
    blocks = [RESULT | {"is_error": True, "content": "no such file"}]
    said = [*turns(CALL)["messages"][:2], {"role": "user", "content": blocks}]
    body = {"max_tokens": 9, "messages": said}
    sent, _ = put("openai", "gpt-5", MESSAGES, body, (("api", "responses"),))
    (output,) = [one for one in sent["input"] if one["type"] == "function_call_output"]
    assert [part["text"] for part in output["output"]] == ["Error:", "no such file"]


# --- Gemini ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "asked", "sent"),
    [
        ("gemini-2.5-flash", {"budget_tokens": 31_999}, {"thinkingBudget": 24_576}),
        ("gemini-2.5-flash-lite", {"budget_tokens": 1024}, {"thinkingBudget": 1024}),
        ("gemini-2.5-pro", {"budget_tokens": 31_999}, {"thinkingBudget": 31_999}),
        ("gemini-2.5-pro", None, {"thinkingBudget": 128}),
        ("gemini-2.5-flash", None, {"thinkingBudget": 0}),
        ("gemini-3-pro-preview", None, {"thinkingLevel": "LOW"}),
        ("gemini-3-flash", None, {"thinkingLevel": "MINIMAL"}),
        ("gemini-2.0-flash", {"budget_tokens": 1024}, None),
    ],
)
def test_gemini_thinks_within_its_models_range(
    model: str, asked: Json | None, sent: Json | None
) -> None:
    thinking = {"type": "enabled", **asked} if asked else {"type": "disabled"}
    body = HELLO | {"max_tokens": 40_000, "thinking": thinking}
    found, dropped = put("gemini", model, MESSAGES, body)
    config = found.get("generationConfig", {}).get("thinkingConfig")
    assert (config and {k: v for k, v in config.items() if k != "includeThoughts"}) == sent
    assert dropped == (("thinking",) if sent is None else ())


@pytest.mark.parametrize(
    ("provider", "model", "effort", "most", "budget"),
    [
        ("gemini", "gemini-2.5-flash", "high", 2000, 1500),
        ("gemini", "gemini-2.5-flash", "low", 2000, 1024),
        ("gemini", "gemini-2.5-flash", "high", None, 24_576),
        ("gemini", "gemini-2.5-pro", "high", 100, 128),
        ("cohere", "command-a-reasoning-08-2025", "high", 2000, 1500),
        ("cohere", "command-a-reasoning-08-2025", "low", 20_000, 2048),
    ],
)
def test_an_effort_leaves_room_for_the_answer(
    provider: str, model: str, effort: str, most: int | None, budget: int
) -> None:
    asked = {"reasoning_effort": effort} | ({} if most is None else {"max_tokens": most})
    body = {"messages": [{"role": "user", "content": "Hello"}], **asked}
    sent, _ = put(provider, model, CHAT, body)
    if provider == "gemini":
        assert sent["generationConfig"]["thinkingConfig"]["thinkingBudget"] == budget
    else:
        assert sent["thinking"]["token_budget"] == budget


def test_gemini_is_asked_something_where_there_is_only_a_system_prompt() -> None:
    found, _ = put(
        "gemini", "gemini-3-flash", CHAT, {"messages": [{"role": "system", "content": "x"}]}
    )
    assert [turn["role"] for turn in found["contents"]] == ["user"]


def test_gemini_is_given_back_signatures_that_follow_each_other() -> None:
    secrets = [{"type": "redacted_thinking", "data": mark("gemini", one)} for one in "ab"]
    alone = {"text": "", "thoughtSignature": "a"}
    called_by = {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "b"}
    sent, _ = put("gemini", "gemini-3-pro-preview", MESSAGES, turns(*secrets, CALL))
    assert sent["contents"][1]["parts"] == [alone, called_by]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    call["extra_content"] = {"google": {"thought_signature": mark("gemini", "b")}}
    detail = {"type": "reasoning.encrypted", "data": mark("gemini", "a")}
    turn = {"role": "assistant", "reasoning_details": [detail], "tool_calls": [call]}
    asked = {"messages": [{"role": "user", "content": "hi"}, turn]}
    sent, _ = put("gemini", "gemini-3-pro-preview", CHAT, asked)
    assert sent["contents"][1]["parts"] == [alone, called_by]
