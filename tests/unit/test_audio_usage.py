"""Sound and pictures cost other than text: their tokens are read, billed and passed on."""

import json
from typing import Any

import msgspec
import pytest

from gateway.core.usage import Usage
from gateway.formats import chat_reply, responses_reply
from gateway.pipeline.settle import MOST, _is_sane
from gateway.providers import gemini_wire, openai_wire, responses_wire
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
    assert gemini_wire.parse(reply).usage == HEARD
    assert openai_wire.parse_usage(json.dumps({"usage": OPENAI}).encode()) == HEARD


@pytest.mark.parametrize(
    ("more", "heard"),
    [
        ({"prompt_audio_seconds": 203}, 2625),
        ({"prompt_tokens_details": {"audio_tokens": 2625}}, 2625),
        ({"prompt_audio_seconds": {}}, None),  # and so says who has heard nothing
    ],
)
def test_sound_that_mistral_counts_beside_the_prompt_is_heard(
    more: dict[str, Any], heard: int | None
) -> None:
    told = {"prompt_tokens": 4, "completion_tokens": 635, "total_tokens": 3264, **more}
    used = openai_wire.usage_of(told)
    if heard is None:
        assert used == Usage(4, 0, 0, 3260, 2625)
    else:
        assert used == Usage(4 + heard, 0, 0, 635, audio_prompt_tokens=heard)


@pytest.mark.parametrize("odd", [None, [], [{}], [{"modality": "AUDIO", "tokenCount": None}]])
def test_details_may_be_missing(odd: Any) -> None:
    reply = json.dumps({"usageMetadata": {**GEMINI, "promptTokensDetails": odd}}).encode()
    used = gemini_wire.parse(reply).usage
    assert used is not None
    assert (used.audio_prompt_tokens, used.audio_completion_tokens) == (0, 30)


KEPT = {
    **GEMINI,
    "cachedContentTokenCount": 90,
    "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 90}],
}
DRAWN = {
    "promptTokenCount": 300,
    "candidatesTokenCount": 1300,
    "cachedContentTokenCount": 20,
    "promptTokensDetails": [
        {"modality": "IMAGE", "tokenCount": 258},
        {"modality": "TEXT", "tokenCount": 42},
    ],
    "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1290}],
    "cacheTokensDetails": [{"modality": "IMAGE", "tokenCount": 8}, {"modality": "TEXT"}],
}
INTERACTION = {
    "total_input_tokens": 300,
    "total_cached_tokens": 20,
    "total_output_tokens": 1300,
    "input_tokens_by_modality": [{"modality": "image", "tokens": 258}],
    "output_tokens_by_modality": [{"modality": "image", "tokens": 1290}],
    "cached_tokens_by_modality": [{"modality": "image", "tokens": 8}],
}
IMAGES = {
    "input_tokens": 300,
    "output_tokens": 1300,
    "input_tokens_details": {
        "text_tokens": 42,
        "image_tokens": 258,
        "cached_tokens": 20,
        "cached_tokens_details": {"image_tokens": 8},
    },
    "output_tokens_details": {"image_tokens": 1290, "text_tokens": 10},
}
CHATTED = {
    "prompt_tokens": 300,
    "completion_tokens": 1300,
    "prompt_tokens_details": {"cached_tokens": 20, "image_tokens": 250},
    "completion_tokens_details": {"image_tokens": 1290},
}
PICTURED = Usage(300, 20, 0, 1300, image_prompt_tokens=250, image_completion_tokens=1290)


@pytest.mark.parametrize(
    ("body", "used"),
    [
        ({"usageMetadata": KEPT}, Usage(120, 90, 0, 45, 5, 10, 30)),
        ({"usageMetadata": DRAWN}, PICTURED),
        ({"usage": INTERACTION}, PICTURED),
        ({"usage": IMAGES}, PICTURED),
        ({"usage": CHATTED}, PICTURED),
    ],
)
def test_sound_and_pictures_that_no_cache_had_are_counted(
    body: dict[str, Any], used: Usage
) -> None:
    seen = ForeignUsage()
    seen.feed(json.dumps(body).encode())
    assert seen.result() == used


def test_pictures_are_told_to_clients() -> None:
    written = chat_reply.usage(PICTURED)
    assert msgspec.convert(written, openai_wire.WireUsage).counted() == PICTURED
    written = responses_reply.usage(PICTURED)
    assert msgspec.convert(written, responses_wire.WireUsage).counted() == PICTURED


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
    kinds = len(msgspec.structs.fields(Usage))
    for number in range(kinds):
        for figure in (-1, MOST, 10**30):
            figures = [1] * kinds
            figures[number] = figure
            assert not _is_sane(Usage(*figures))
