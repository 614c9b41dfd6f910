"""A stream that is cut within a thought and goes on elsewhere: each thought keeps its own maker."""

import json
from typing import Any

import pytest

from gateway.core.messages import UNSIGNED, Text, Thinking
from gateway.core.operations import Operation
from gateway.core.usage import Usage
from gateway.formats import DIALECTS, Meta
from gateway.pipeline.replay import readable
from gateway.pipeline.translation import Translation
from gateway.providers.anthropic_wire import MessagesDecoder

CLIENTS = [Operation.CHAT, Operation.MESSAGES, Operation.RESPONSES]


def event(kind: str, **fields: Any) -> bytes:
    return f"data: {json.dumps({'type': kind, **fields})}\n\n".encode()


def thinking(text: str, signature: str = "") -> bytes:
    block = {"type": "thinking", "thinking": text, "signature": signature}
    return event("content_block_start", index=0, content_block=block)


def said(text: str) -> bytes:
    block = {"type": "text", "text": text}
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})
    return event("content_block_start", index=1, content_block=block) + end + event("message_stop")


@pytest.mark.parametrize("client", CLIENTS, ids=lambda one: one.value)
def test_thoughts_of_two_models_are_not_one(client: Operation) -> None:
    writer = DIALECTS[client].writer(Meta("req_1", "m", 1))
    stream = Translation(MessagesDecoder(), writer, keeps=True)
    told = stream.feed(thinking("first"))
    for rest in (thinking("second"), thinking("third", "SIG") + said("Hi")):
        stream.cut(Usage(5, completion_tokens=3))
        stream.go_on(MessagesDecoder())
        told += stream.feed(rest)
    reply = readable(client, streamed=True, data=told + stream.close() + stream.finish())
    assert reply is not None
    *before, signed, text = reply.parts
    assert (signed, text) == (Thinking("third", "SIG"), Text("Hi"))
    unsigned = [part for part in before if isinstance(part, Thinking)]
    assert all(part.signature in ("", UNSIGNED) for part in unsigned)
    assert "".join([part.text for part in unsigned]) == "firstsecond"
