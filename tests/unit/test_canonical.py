"""One form for all requests that mean the same, and another for each that does not."""

import json
from typing import Any

import pytest

from gateway.core.operations import Operation
from gateway.formats.body import decode
from gateway.formats.canonical import canonical

CHAT, MESSAGES, RESPONSES = Operation.CHAT, Operation.MESSAGES, Operation.RESPONSES
SAID = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "number"}}}
PNG = "iVBORw0KGgo="


def form(operation: Operation, **fields: Any) -> bytes | None:
    """The form of a request, written as JSON with these fields."""
    found = canonical(decode(operation, json.dumps({"model": "m", **fields}).encode()))
    return None if found is None else found.form


def chat(**fields: Any) -> bytes | None:
    return form(CHAT, **{"messages": SAID, "max_tokens": 9, **fields})


def messages(**fields: Any) -> bytes | None:
    return form(MESSAGES, **{"messages": SAID, "max_tokens": 9, **fields})


def responses(**fields: Any) -> bytes | None:
    return form(RESPONSES, **{"input": "hello", "max_output_tokens": 9, **fields})


def tool(schema: Any) -> list[Any]:
    return [{"type": "function", "function": {"name": "f", "parameters": schema}}]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"b":1, "a":2}'}}
ASKED: list[Any] = [
    *SAID,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "done"},
]
SAME_ASKED: list[Any] = [
    *SAID,
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 2, "b": 1}}],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "c", "content": "done"}],
    },
]


SIGNED = {
    "role": "assistant",
    "content": "a",
    "tool_calls": [CALL | {"extra_content": {"google": {"thought_signature": ""}}}],
}
SAME_SIGNED = [
    *SAID,
    {"role": "assistant", "content": [{"type": "text", "text": "a"}, *SAME_ASKED[1]["content"]]},
    SAME_ASKED[2],
]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(), messages()),
        (chat(), responses()),
        (chat(), chat(stream=True, stream_options={"include_usage": True}, user="u")),
        (chat(), chat(metadata={"a": "b"}, store=False, prompt_cache_key="k", service_tier="auto")),
        (chat(max_tokens=None, max_completion_tokens=9), chat()),
        (chat(temperature=0), chat(temperature=0.0)),
        (chat(temperature=None), chat()),
        (chat(messages=[{"content": "hello", "role": "user"}]), chat()),
        (chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}]), chat()),
        (
            messages(
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "text",
                                "text": "hello",
                                "cache_control": {"type": "ephemeral"},
                            }
                        ],
                    }
                ]
            ),
            chat(),
        ),
        (chat(messages=[{"role": "system", "content": "s"}, *SAID]), messages(system="s")),
        (
            chat(messages=[{"role": "developer", "content": "s"}, *SAID]),
            responses(instructions="s"),
        ),
        (
            chat(tools=tool(SCHEMA)),
            messages(tools=[{"name": "f", "input_schema": dict(reversed(SCHEMA.items()))}]),
        ),
        (chat(messages=ASKED), messages(messages=SAME_ASKED)),
        (chat(messages=[*SAID, SIGNED, ASKED[2]]), messages(messages=SAME_SIGNED)),
        (chat(stop="x"), messages(stop_sequences=["x"])),
        (chat(stop=["x"]), chat(stop="x")),
        (chat(tool_choice="required"), messages(tool_choice={"type": "any"})),
        (
            chat(
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image_url",
                                "image_url": {"url": f"data:image/png;base64,{PNG}"},
                            }
                        ],
                    }
                ]
            ),
            messages(
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image",
                                "source": {
                                    "type": "base64",
                                    "media_type": "image/png",
                                    "data": PNG,
                                },
                            }
                        ],
                    }
                ]
            ),
        ),
    ],
)
def test_what_means_the_same_has_one_form(one: bytes, other: bytes) -> None:
    assert one == other


A_PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def formatted(names: tuple[str, ...]) -> dict[str, Any]:
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


def thought(**fields: Any) -> dict[str, Any]:
    details = [{"type": "reasoning.text", "text": "t"}]
    return {"role": "assistant", "content": "a", "reasoning_details": details, **fields}


def heard(**sound: Any) -> list[Any]:
    return [*SAID, {"role": "assistant", "content": "a", **sound}, *SAID]


def beside(extra: Any) -> list[Any]:
    return [*SAID, {**ASKED[1], "tool_calls": [{**CALL, "extra_content": extra}]}, ASKED[2]]


def part(**more: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "hello", **more}]}]


def item_part(**more: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "input_text", "text": "hello", **more}]}]


DIFFERENT = [
    chat(),
    chat(messages=heard()),
    chat(messages=heard(audio={"id": "audio_1"})),
    chat(messages=heard(audio={"id": "audio_2"})),
    chat(messages=heard(reasoning_content="x", reasoning="y")),
    chat(messages=heard(reasoning_content="x", reasoning="z")),
    chat(messages=heard(tool_call_id="c")),
    chat(messages=beside({"x": 1})),
    chat(messages=beside({"x": 2})),
    chat(messages=beside({"google": {"thought_signature": "s", "x": 1}})),
    chat(messages=beside({"google": {"thought_signature": "s"}})),
    chat(messages=part(image_url=A_PICTURE["image_url"])),
    chat(messages=part(refusal="x")),
    chat(max_completion_tokens=8),
    chat(top_logprobs=2),
    responses(reasoning={"generate_summary": "concise"}),
    responses(reasoning={"generate_summary": "detailed"}),
    responses(input=item_part(image_url="https://example.com/a.png")),
    messages(messages=part(thinking="x")),
    messages(thinking={"type": "enabled", "budget_tokens": 1024, "display": "summarized"}),
    chat(temperature=0),
    chat(temperature=1),
    chat(seed=1),
    chat(max_tokens=8),
    chat(top_p=0.5),
    chat(messages=[{"role": "user", "content": "hello "}]),
    chat(messages=[{"role": "user", "content": "Hello"}]),
    chat(messages=[{"role": "system", "content": "hello"}]),
    chat(messages=[{"role": "user", "content": "hel"}, {"role": "user", "content": "lo"}]),
    chat(messages=[{"role": "user", "name": "bob", "content": "hello"}]),
    chat(messages=[{"role": "user", "name": "eve", "content": "hello"}]),
    chat(tools=tool(SCHEMA)),
    chat(tools=tool({})),
    chat(tools=tool(SCHEMA), tool_choice="none"),
    chat(tools=tool(SCHEMA), parallel_tool_calls=False),
    chat(logit_bias={"1": 1}),
    chat(logit_bias={"1": 2}),
    chat(response_format={"type": "json_object"}),
    chat(logprobs=True),
    chat(logprobs=True, top_logprobs=2),
    chat(reasoning_effort="low"),
    chat(reasoning_effort="high"),
    chat(web_search_options={}),
    chat(messages=ASKED),
    responses(include=["web_search_call.results"]),
    responses(truncation="auto"),
    responses(previous_response_id="resp_1"),
    responses(tools=[{"type": "web_search"}]),
    messages(thinking={"type": "enabled", "budget_tokens": 1024}),
    messages(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
    messages(container="c"),
    chat(
        messages=[{"role": "system", "content": [{"type": "text", "text": "s"}, A_PICTURE]}, *SAID]
    ),
    chat(messages=[{"role": "system", "content": [{"type": "text", "text": "s"}]}, *SAID]),
    chat(reasoning={"enabled": True}, reasoning_effort="low"),
    chat(reasoning={"enabled": True}, reasoning_effort="high"),
    chat(messages=[*SAID, {"role": "assistant", "content": ""}, *SAID]),
    chat(messages=[*SAID, *SAID]),
    chat(response_format={"type": "python"}),
    chat(response_format=formatted(("a", "b"))),
    chat(response_format=formatted(("b", "a"))),
    chat(messages=[*SAID, thought(reasoning_content="x"), *SAID]),
    chat(messages=[*SAID, thought(reasoning_content="y"), *SAID]),
    responses(input=[{"type": "reasoning", "id": "rs_1", "summary": []}, *SAID]),
    responses(input=[{"type": "reasoning", "id": "rs_2", "summary": []}, *SAID]),
    responses(reasoning={"summary": "concise"}),
    responses(reasoning={"summary": "detailed"}),
    responses(input=[*SAID, *SAID]),
    messages(messages=[{"role": "user", "content": [{"type": "text", "text": "Loaded: t"}]}]),
    messages(
        messages=[{"role": "user", "content": [{"type": "tool_reference", "tool_name": "t"}]}]
    ),
    messages(thinking={"type": "adaptive"}),
    messages(thinking={"type": "enabled"}),
    form(Operation.COMPLETIONS, prompt="hello", max_tokens=9),
    form(Operation.EMBEDDINGS, input="hello"),
    form(Operation.EMBEDDINGS, input=["hello"]),
    form(Operation.EMBEDDINGS, input="hello", dimensions=9),
]


def test_what_means_something_else_has_another_form() -> None:
    assert None not in DIFFERENT
    assert len(set(DIFFERENT)) == len(DIFFERENT)


def test_order_and_space_do_not_matter_where_the_hub_does_not_read_either() -> None:
    one = b'{"model":"m","messages":[{"role":"user","content":"a"}],"logit_bias":{"1":1,"2":2}}'
    other = (
        b'{ "logit_bias": {"2": 2, "1": 1}, "messages": [{"content": "a", "role": "user"}],\n'
        b'"model": "m", "stream": true, "tools": null}'
    )
    found = [canonical(decode(CHAT, body)) for body in (one, other)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].form == found[1].form


def test_several_choices_have_none() -> None:
    assert chat(n=2) is None
    assert chat(n=1) == chat()


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (CHAT, b'"x":1e999'),
        (CHAT, b'"temperature":1e999'),
        (CHAT, b'"seed":1' + b"0" * 400),
        (CHAT, b'"tools":[{"type":"function","function":{"name":"f","parameters":{"a":1e999}}}]'),
        (MESSAGES, b'"max_tokens":9,"tools":[{"name":"f","input_schema":{"maximum":1e999}}]'),
        (RESPONSES, b'"input":"hello","temperature":1e999'),
        (Operation.EMBEDDINGS, b'"input":"hello","x":1e999'),
    ],
)
def test_what_only_its_provider_may_read_has_none(operation: Operation, fields: bytes) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"a"}],%b}' % fields
    assert canonical(decode(operation, body)) is None
