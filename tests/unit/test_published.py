"""The checks against published schemas: whole requests pass, and each wrong field is named."""

import copy
import json
import re
from typing import Any

import pytest

from tests.support import published
from tests.support.published import APIS, Source, Unpublished, problems
from tests.support.published.examples import SCHEMA, WHOLE
from tests.support.published.hints import Reader
from tests.support.published.services import Service
from tests.support.published.shapes import Constant, Field, ListOf, OneOf, Record, Text

ABSENT = object()
# Of each API: wrong types and values, unknown fields, missing fields.
BROKEN: list[tuple[str, str, object]] = [
    ("chat", "model", ABSENT),
    ("chat", "max_tokens", "100"),
    ("chat", "max_output_tokens", 100),
    ("chat", "temperature", True),
    ("chat", "messages[1].content[0].type", "input_text"),
    ("chat", "messages[1].content[1].image_url", "https://x.test/a.png"),
    ("chat", "messages[2].tool_calls[0].function.arguments", {"city": "Oslo"}),
    ("chat", "messages[3].tool_call_id", ABSENT),
    ("chat", "messages[0].role", "model"),
    ("chat", "messages[0].role", ABSENT),
    ("chat", "tools[0].function.name", ABSENT),
    ("chat", "tool_choice", "any"),
    ("chat", "stream", "true"),
    ("completions", "prompt", {}),
    ("completions", "messages", []),
    ("embeddings", "input", ABSENT),
    ("embeddings", "encoding_format", "int8"),
    ("responses", "messages", []),
    ("responses", "input[0].content[0].type", "text"),
    ("responses", "input[2].call_id", ABSENT),
    ("responses", "input[3].type", "tool_output"),
    ("responses", "tools[0].function", {"name": "weather"}),
    ("responses", "reasoning.effort", "some"),
    ("messages", "max_tokens", ABSENT),
    ("messages", "temperature", 0.5),
    ("messages", "user_profile_id", "u"),
    ("messages", "messages[0].role", "developer"),
    ("messages", "messages[0].content[1].source.media_type", "image/tiff"),
    ("messages", "messages[0].content[1].source.url", "https://x.test"),
    ("messages", "messages[1].content[0].signature", ABSENT),
    ("messages", "messages[1].content[2].input", "{}"),
    ("messages", "messages[2].content[0].tool_use_id", ABSENT),
    ("messages", "tools[0].parameters", SCHEMA),
    ("messages", "tool_choice.type", "required"),
    ("messages", "thinking.budget_tokens", 1024.5),
    ("messages_2023_06_01", "temperature", 1.5),
    ("gemini", "contents", ABSENT),
    ("gemini", "model", "gemini-2.5-flash"),
    ("gemini", "contents[0].role", "assistant"),
    ("gemini", "contents[0].parts[1].inlineData.data", "not base64"),
    ("gemini", "contents[0].parts[1].inlineData.mime_type", "image/png"),
    ("gemini", "contents[1].parts[1].functionCall.partialArgs", []),
    ("gemini", "contents[2].parts[0].functionResponse.response", ABSENT),
    ("gemini", "contents[2].parts[0].functionResponse.response", "rain"),
    ("gemini", "tools[0].functionDeclarations[1].parameters.type", "object"),
    ("gemini", "tools[0].functionDeclarations[1].parameters.$schema", "x"),
    ("gemini", "generationConfig.maxTokens", 100),
    ("gemini", "generationConfig.thinkingConfig.thinkingLevel", "low"),
    ("gemini", "toolConfig.functionCallingConfig.mode", "any"),
    ("converse", "modelId", "m"),
    ("converse", "messages[0].role", "tool"),
    ("converse", "messages[0].content[1].image.format", "jpg"),
    ("converse", "messages[0].content[1].image.source.bytes", "not base64"),
    ("converse", "messages[1].content[1].toolUse.input", ABSENT),
    ("converse", "messages[2].content[0].toolResult.toolUseId", "a b"),
    ("converse", "toolConfig.tools", []),
    ("converse", "toolConfig.toolChoice.none", {}),
    ("converse", "toolConfig.tools[0].toolSpec.description", ""),
    ("converse", "inferenceConfig.temperature", 1.5),
    ("converse", "inferenceConfig.topK", 40),
    ("converse", "guardrailConfig.streamProcessingMode", "sync"),
    ("converse_stream", "guardrailConfig.streamProcessingMode", "later"),
    ("mistral", "seed", 7),
    ("mistral", "stream_options", {"include_usage": True}),
    ("mistral", "max_completion_tokens", 100),
    ("mistral", "messages[0].role", "developer"),
    ("mistral", "messages[1].content[0].text", 5),
    ("mistral", "messages[2].content[0].thinking", "hm"),
    ("mistral", "tools[0].function.parameters", ABSENT),
    ("mistral", "response_format.json_schema.schema", ABSENT),
    ("cohere", "top_p", 0.9),
    ("cohere", "messages[0].role", "developer"),
    ("cohere", "messages[3].tool_call_id", ABSENT),
    ("cohere", "messages[3].content[0].document.data", "rain"),
    ("cohere", "tool_choice", "required"),
    ("cohere", "response_format.type", "json_schema"),
    ("cohere", "thinking.budget_tokens", 100),
    ("cohere", "stop_sequences", "END"),
]


def found(api: str, body: Any) -> list[str]:
    try:
        return problems(api, json.dumps(body).encode())
    except Unpublished as absent:
        pytest.skip(str(absent))


def changed(body: Any, path: str, value: object) -> Any:
    """The body with one field set, or taken out."""
    new = copy.deepcopy(body)
    *way, last = [int(x) if x.isdigit() else x for x in re.findall(r"[\w$]+", path)]
    inner = new
    for step in way:
        inner = inner[step]
    if value is ABSENT:
        del inner[last]
    else:
        inner[last] = value
    return new


# --- What is published ---------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_a_whole_request_has_no_problems(api: str) -> None:
    assert found(api, WHOLE[api]) == []


@pytest.mark.parametrize("api", APIS)
def test_a_field_nobody_published_is_named(api: str) -> None:
    body = {**WHOLE[api], "unheard_of": 1}
    assert [one.partition(": ")[0] for one in found(api, body)] == ["unheard_of"]


@pytest.mark.parametrize(
    ("api", "path", "value"), BROKEN, ids=[f"{api}-{path}" for api, path, _ in BROKEN]
)
def test_a_wrong_field_is_named_and_no_other(api: str, path: str, value: object) -> None:
    said = found(api, changed(WHOLE[api], path, value))
    assert {one.partition(": ")[0] for one in said} == {path}, said


@pytest.mark.parametrize("part", [{}, {"thought": True}, {"text": "a", "functionCall": {}}])
def test_a_part_has_one_kind_of_data(part: dict[str, Any]) -> None:
    (problem,) = found("gemini", {"contents": [{"parts": [part]}]})
    assert problem.startswith("contents[0].parts[0]: has ")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "body: Expecting property name"),
        (b"\xff", "body: "),
        (b'{"model":"a","model":"b"}', "body: given twice: ['model']"),
        (b'{"top_p":NaN}', "body: NaN is not JSON"),
        (b"[]", "body: [] is not an object"),
    ],
)
def test_what_is_not_a_json_object_has_one_problem(body: bytes, problem: str) -> None:
    try:
        (said,) = problems("chat", body)
    except Unpublished as absent:
        pytest.skip(str(absent))
    assert said.startswith(problem)


def test_an_api_whose_package_is_absent_can_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(APIS, "absent", Source("sluice-no-such-package", published.sources.chat))
    with pytest.raises(Unpublished, match="absent is published by sluice-no-such-package"):
        problems("absent", b"{}")


# --- How it is read ------------------------------------------------------------------------------


def test_of_several_shapes_the_one_with_the_right_tag_is_judged() -> None:
    text = Record("T", lambda: {"type": Field(Constant(("t",)), True), "a": Field(Text(), True)})
    link = Record("L", lambda: {"type": Field(Constant(("l",)), True), "b": Field(Text(), True)})
    either = OneOf((Text(), ListOf(text), text, link))
    assert list(either.problems({"type": "l", "b": "x"}, "at")) == []
    assert list(either.problems({"type": "t", "b": "x"}, "at")) == [
        "at.a: missing",
        "at.b: not a field of T",
    ]
    assert list(either.problems({"type": "x", "b": "x"}, "at")) == [
        'at.type: "x" is not "t" or "l"'
    ]
    assert list(either.problems({"b": "x"}, "at")) == ["at.type: missing"]
    assert list(either.problems(5, "at")) == ["at: 5 is not a string or an array or an object"]


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, 1, 1.0),
        (int, 1, True),
        (float, 1, "1"),
        (bool, False, 0),
        (str | None, None, 1),
        (list[str], ["a"], "a"),
        (dict[str, int], {"a": 1}, {"a": "1"}),
        (bytes, "AAAA", "AAA"),
    ],
)
def test_hints_are_meant_as_json_means_them(hint: Any, good: object, bad: object) -> None:
    shape = Reader().read(hint)
    assert list(shape.problems(good, "at")) == []
    assert len(list(shape.problems(bad, "at"))) == 1


def test_a_hint_that_no_json_has_is_refused() -> None:
    with pytest.raises(TypeError, match="nothing in JSON is"):
        Reader().read(re.Pattern)


def test_a_service_says_how_much_of_what_goes_in_the_body() -> None:
    members = {"id": {"shape": "Id", "location": "uri"}, "at": {"shape": "Ids"}}
    service = Service(
        {
            "operations": {"Get": {"input": {"shape": "In"}}},
            "shapes": {
                "In": {"type": "structure", "required": ["id", "at"], "members": members},
                "Ids": {"type": "list", "min": 1, "max": 2, "member": {"shape": "Id"}},
                "Id": {"type": "string", "max": 3, "pattern": "[a-z]+"},
            },
        }
    )
    body = service.body("Get")
    assert list(body.problems({"at": ["a", "abc"]}, "")) == []
    assert list(body.problems({"id": "a"}, "")) == ["at: missing", "id: not a field of In"]
    assert list(body.problems({"at": []}, "")) == ["at: length 0 is below 1"]
    assert list(body.problems({"at": ["abcd", "A", "b"]}, "")) == [
        "at: length 3 is above 2",
        "at[0]: length 4 is above 3",
        'at[1]: "A" is not of the pattern [a-z]+',
    ]
