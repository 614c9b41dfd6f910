"""Whole replies told as streams, where only their own dialect has a word for something."""

import json

import pytest

from gateway.core.operations import Operation
from gateway.formats import Meta
from gateway.formats.body import decode
from gateway.pipeline.lanes import Answer
from gateway.pipeline.retold import retold

META = Meta("req_1", "m", 1, True, 5, {})
ASKED = {"model": "m", "stream": True, "max_tokens": 4, "messages": [{"role": "user"}]}


@pytest.mark.parametrize(
    "reason", ["end_turn", "pause_turn", "model_context_window_exceeded", "refusal", "unheard_of"]
)
def test_why_a_message_stops_is_told_in_its_providers_words(reason: str) -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "searching"}],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 2},
    }
    answer = Answer(json.dumps(message).encode(), None, lambda: "")
    request = decode(Operation.MESSAGES, json.dumps(ASKED).encode())
    lines = retold(answer, request, META).body.decode().split("\n")
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    (end,) = [event for event in told if event["type"] == "message_delta"]
    assert end["delta"] == {"stop_reason": reason, "stop_sequence": None}
