"""Sound costs other than text: its tokens are read, billed and passed on in every dialect."""

import json
from typing import Any

import msgspec
import pytest

from gateway.core.usage import Usage
from gateway.formats import chat_reply
from gateway.pipeline.settle import MOST, _is_sane
from gateway.providers import gemini_wire, openai_wire
from gateway.providers.foreign_usage import ForeignUsage

GEMINI = {
    "promptTokenCount": 120,
    "candidatesTokenCount": 40,
    "thoughtsTokenCount": 5,
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 20},
        {"modality": "AUDIO", "tokenCount": 100},
    ],
    "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 30}, {"modality": "TEXT"}],
}
OPENAI = {
    "prompt_tokens": 120,
    "completion_tokens": 45,
    "total_tokens": 165,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 100},
    "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 30},
}
HEARD = Usage(120, 0, 0, 45, 5, 100, 30)


def test_both_makers_figures_are_read() -> None:
    reply = json.dumps({"candidates": [{"content": {}}], "usageMetadata": GEMINI}).encode()
    assert gemini_wire.parse_usage(reply) == HEARD
    assert openai_wire.parse_usage(json.dumps({"usage": OPENAI}).encode()) == HEARD


@pytest.mark.parametrize("odd", [None, [], [{}], [{"modality": "AUDIO", "tokenCount": None}]])
def test_details_may_be_missing(odd: Any) -> None:
    reply = json.dumps({"usageMetadata": {**GEMINI, "promptTokensDetails": odd}}).encode()
    used = gemini_wire.parse_usage(reply)
    assert used is not None
    assert (used.audio_prompt_tokens, used.audio_completion_tokens) == (0, 30)


def test_a_chat_client_sees_them() -> None:
    written = chat_reply.usage(HEARD)
    assert written["prompt_tokens_details"]["audio_tokens"] == 100
    assert written["completion_tokens_details"]["audio_tokens"] == 30
    assert msgspec.convert(written, openai_wire.WireUsage).counted() == HEARD


@pytest.mark.parametrize("body", [{"usage": OPENAI}, {"usageMetadata": GEMINI}])
def test_they_are_found_in_what_passes_through(body: dict[str, Any]) -> None:
    seen = ForeignUsage()
    seen.feed(json.dumps(body).encode())
    assert seen.result() == HEARD


def test_impossible_figures_do_not_spoil_a_sum() -> None:
    assert _is_sane(Usage(0, 2, 3, MOST - 1, 5))
    for number in range(7):
        for figure in (-1, MOST, 10**30):
            figures = [1] * 7
            figures[number] = figure
            assert not _is_sane(Usage(*figures))
