"""All that a model writes counts as text, also what only its provider has a tool for."""

import json
from typing import Any

import pytest

from gateway.core.operations import Operation
from gateway.formats.body import decode
from gateway.providers import PROVIDERS
from gateway.providers.adapter import Native
from gateway.providers.chat_stream import ChatDecoder
from gateway.providers.decoding import Noted

Json = dict[str, Any]
ITEM = {"type": "response.output_item.added", "output_index": 1}
DONE = {"type": "response.output_item.done", "output_index": 1}
PATCH = {"type": "custom_tool_call", "id": "i", "call_id": "c", "name": "apply_patch"}


def native(operation: Operation) -> Native:
    kind = "anthropic" if operation is Operation.MESSAGES else "openai"
    return PROVIDERS[kind].adapter.natives[operation]


def framed(found: list[Json]) -> bytes:
    return b"".join([b"data: %b\n\n" % json.dumps(one).encode() for one in found])


def streamed(operation: Operation, found: list[Json]) -> str:
    """Return what a stream's text is counted by, which passes to the byte."""
    body = {"model": "m", "stream": True, "max_tokens": 5, "messages": [1], "input": "x"}
    decoder = native(operation).decoder(decode(operation, json.dumps(body).encode()))
    stream = framed(found)
    assert decoder.feed(stream) == stream
    text = decoder.take_text()
    assert decoder.text_bytes == len(text.encode())
    return text


def call(**custom: str) -> Json:
    calls = [{"index": 0, "id": "c", "type": "custom", "custom": custom}]
    return {"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]}


def delta(kind: str, text: str) -> Json:
    return {"type": f"response.{kind}.delta", "output_index": 1, "delta": text}


PIECES = [call(name="apply_patch", input=""), call(input="*** Begin"), call(input=" Patch")]


def test_custom_calls_of_chat_count() -> None:
    assert streamed(Operation.CHAT, PIECES) == "apply_patch*** Begin Patch"
    calls = [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "a b"}}]
    body = {"choices": [{"message": {"role": "assistant", "tool_calls": calls}}]}
    assert native(Operation.CHAT).parse_text(json.dumps(body).encode()) == "fa b"


def test_custom_calls_that_are_translated_count_and_begin_no_function() -> None:
    told = Noted()
    decoder = ChatDecoder()
    told.note(decoder.feed(framed(PIECES)))
    assert told.take_text() == "apply_patch*** Begin Patch"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            [
                {**ITEM, "item": {**PATCH, "input": ""}},
                delta("custom_tool_call_input", "*** Begin"),
                delta("custom_tool_call_input", " Patch"),
                {**DONE, "item": {**PATCH, "input": "*** Begin Patch"}},
            ],
            "apply_patch*** Begin Patch",
        ),
        ([{**ITEM, "item": PATCH}, {**DONE, "item": {**PATCH, "input": "x y"}}], "apply_patchx y"),
        (
            [
                {**ITEM, "item": {"type": "mcp_call", "name": "roll"}},
                delta("mcp_call_arguments", '{"dice":2}'),
                {**DONE, "item": {"type": "mcp_call", "name": "roll", "arguments": '{"dice":2}'}},
            ],
            'roll{"dice":2}',
        ),
        (
            [
                {**ITEM, "item": {"type": "code_interpreter_call", "code": None}},
                delta("code_interpreter_call_code", "1 + 1"),
                {**DONE, "item": {"type": "code_interpreter_call", "code": "1 + 1"}},
            ],
            "1 + 1",
        ),
        ([delta("audio.transcript", "Hello"), delta("audio", "UklGRg==")], "Hello"),
    ],
)
def test_calls_of_responses_that_only_some_providers_have_count(
    found: list[Json], text: str
) -> None:
    assert streamed(Operation.RESPONSES, found) == text


def test_whole_responses_count_the_same() -> None:
    output = [
        {**PATCH, "input": "*** Begin"},
        {"type": "mcp_call", "name": "roll", "arguments": '{"dice":2}', "output": "7"},
        {"type": "code_interpreter_call", "code": "1 + 1"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    ]
    found = native(Operation.RESPONSES).parse_text(json.dumps({"output": output}).encode())
    assert found == 'f{}apply_patch*** Beginroll{"dice":2}1 + 1'


def test_what_anthropics_own_tools_are_asked_counts() -> None:
    block = {"type": "server_tool_use", "id": "s", "name": "code_execution", "input": {}}
    piece = {"type": "input_json_delta", "partial_json": '{"code":'}
    found = [
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": piece},
    ]
    assert streamed(Operation.MESSAGES, found) == '{"code":'
