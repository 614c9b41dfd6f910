"""Parts of a response's summary: each has a heading, so a blank line stands between them."""

import json
from typing import Any

import pytest

from gateway.core import events
from gateway.core.messages import Thinking
from gateway.core.operations import Operation
from gateway.formats import DIALECTS, Meta
from gateway.providers.responses import ResponsesConversation

Json = dict[str, Any]
RESPONSES = ResponsesConversation()


def delta(text: str, item: int, part: int) -> Json:
    kind = "response.reasoning_summary_text.delta"
    return {"type": kind, "output_index": item, "summary_index": part, "delta": text}


def streamed(found: list[Json]) -> list[events.Event]:
    told = b"".join([b"data: %b\n\n" % json.dumps(one).encode() for one in found])
    return list(RESPONSES.decoder().feed(told))


@pytest.mark.parametrize("texts", [["**A**", "**B**"], ["**A**", "", "**B**"]])
def test_parts_of_a_whole_summary(texts: list[str]) -> None:
    summary = [{"type": "summary_text", "text": text} for text in texts]
    item = {"type": "reasoning", "summary": summary}
    reply = RESPONSES.parse(json.dumps({"output": [item, item]}).encode())
    assert reply.parts == (Thinking("**A**\n\n**B**"),) * 2


def test_a_thought_without_a_summary_is_as_it_is() -> None:
    content = [{"type": "reasoning_text", "text": "a "}, {"type": "reasoning_text", "text": "b"}]
    item = {"type": "reasoning", "summary": [], "content": content}
    reply = RESPONSES.parse(json.dumps({"output": [item]}).encode())
    assert reply.parts == (Thinking("a b"),)


def test_parts_of_a_streamed_summary() -> None:
    told = [
        *(delta("**A", 0, 0), delta("**", 0, 0)),
        *(delta("", 0, 1), delta("**B", 0, 1), delta("**", 0, 1)),
        *(delta("**C**", 1, 0), delta("**D**", 1, 2)),
    ]
    found = streamed(told)
    by_block: dict[int, str] = {}
    for one in found:
        assert isinstance(one, events.ThinkingDelta)
        by_block[one.block] = by_block.get(one.block, "") + one.text
    assert by_block == {0: "**A**\n\n**B**", 1: "**C**\n\n**D**"}
    writer = DIALECTS[Operation.CHAT].writer(Meta("x", "m", 1))
    assert b"\\n\\n**B" in writer.write(found)
