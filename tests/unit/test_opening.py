"""Which events of a stream say nothing yet."""

import json
from typing import Any

import pytest

from gateway.core.operations import Operation
from gateway.formats.opening import only_opens


def data(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in events)


def chunk(delta: Any, finish: str | None = None, **more: Any) -> Any:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}


ROLE = chunk({"role": "assistant", "content": "", "refusal": None})
CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}
START = {"type": "message_start", "message": {"id": "m", "content": [], "usage": {}}}
TEXT = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
ITEM = {"type": "response.output_item.added", "item": {"type": "message", "content": []}}

OPENS: dict[Operation, list[Any]] = {
    Operation.CHAT: [
        ROLE,
        chunk({}),
        chunk({"content": None}),
        chunk({"role": "assistant", "tool_calls": []}),
        chunk({"role": "assistant"}, usage=None),
        {"id": "", "choices": [], "prompt_filter_results": [{}]},
    ],
    Operation.COMPLETIONS: [{"choices": [{"text": "", "index": 0, "finish_reason": None}]}],
    Operation.MESSAGES: [
        START,
        {"type": "ping"},
        TEXT,
        {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}},
    ],
    Operation.RESPONSES: [
        {"type": "response.created", "response": {"id": "r", "output": []}},
        {"type": "response.in_progress", "response": {}},
        ITEM,
        {"type": "response.output_item.added", "item": {"type": "reasoning"}},
        {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
    ],
}
SAYS: dict[Operation, list[Any]] = {
    Operation.CHAT: [
        chunk({"content": "a"}),
        chunk({"content": " "}),
        chunk({"reasoning_content": "a"}),
        chunk({"tool_calls": [CALL]}),
        chunk({"audio": {"data": "AA"}}),
        chunk({"anything": {}}),
        chunk({}, "stop"),
        {"choices": [], "usage": {"prompt_tokens": 1}},
        {"error": {"message": "no"}, "choices": []},
        {"no": "choices"},
    ],
    Operation.COMPLETIONS: [
        {"choices": [{"text": "a"}]},
        {"choices": [{"text": "", "finish_reason": "length"}]},
    ],
    Operation.MESSAGES: [
        {"type": "content_block_start", "content_block": USE},
        {"type": "content_block_start", "content_block": {"type": "text", "text": "a"}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "error", "error": {}},
        {"type": "news"},
        ["no event"],
    ],
    Operation.RESPONSES: [
        {"type": "response.output_text.delta", "delta": "a"},
        {"type": "response.output_item.added", "item": {"type": "function_call"}},
        {"type": "response.content_part.added", "part": {"text": "a"}},
        {"type": "response.completed", "response": {}},
    ],
    Operation.EMBEDDINGS: [chunk({})],
}


def pairs(table: dict[Operation, list[Any]]) -> list[Any]:
    return [
        pytest.param(operation, event, id=f"{operation.value}-{i}")
        for operation, events in table.items()
        for i, event in enumerate(events)
    ]


@pytest.mark.parametrize(("operation", "event"), pairs(OPENS))
def test_what_only_opens_is_told(operation: Operation, event: Any) -> None:
    for written in (data(event), data(event, event), b": hi\n\n" + data(event)):
        assert only_opens(operation, written)
        assert only_opens(operation, written.replace(b"\n", b"\r\n"))


@pytest.mark.parametrize(("operation", "event"), pairs(SAYS))
def test_what_says_something_is_told(operation: Operation, event: Any) -> None:
    assert not only_opens(operation, data(event))
    for opening in OPENS.get(operation, []):
        assert not only_opens(operation, data(opening, event))


@pytest.mark.parametrize("operation", list(OPENS))
def test_what_nobody_can_read_says_nothing(operation: Operation) -> None:
    for broken in (b"data: {\n\n", b"data: <html>\n\n", b'data: "\xff"\n\n', b"event: x\n\n"):
        assert only_opens(operation, broken)
