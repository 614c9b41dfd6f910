"""What is reserved for a request in a provider's own API: however its maximum is written."""

import json
from typing import Any

import pytest

from gateway.core.errors import ApiError
from gateway.pipeline.foreign_request import MAX_CHOICES, MAX_TOKENS, asked_in, request_of


def asked(**fields: Any) -> tuple[int, int]:
    found = asked_in(json.dumps(fields).encode(), "POST")
    return found.most, found.texts


@pytest.mark.parametrize("written", [3000, 3000.0, "3000", "3000.0", " 3000 "])
@pytest.mark.parametrize(
    "name",
    [
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample"),
        *("max_gen_len", "n_predict", "maxTokens"),
        *("generationConfig.maxOutputTokens", "generation_config.max_output_tokens"),
        *("generationConfig.max_output_tokens", "inferenceConfig.maxTokens"),
        *("inferenceConfig.max_new_tokens", "textGenerationConfig.maxTokenCount"),
        *("parameters.max_new_tokens", "options.num_predict"),
    ],
)
def test_a_maximum_counts_by_any_name(name: str, written: Any) -> None:
    outer, _, inner = name.partition(".")
    assert asked(**{outer: {inner: written} if inner else written}) == (3000, 1)


def test_the_largest_of_several_counts() -> None:
    assert asked(max_tokens=1, options={"num_predict": 50}, generation_config={"maxTokens": 7}) == (
        50,
        1,
    )


@pytest.mark.parametrize(
    "wrong", [None, True, -1, "-1", 0, "many", "nan", "", [5], {"a": 5}, float("-0.0")]
)
def test_what_makes_no_sense_is_no_maximum(wrong: Any) -> None:
    assert asked(max_tokens=wrong, generationConfig=wrong) == (0, 1)


@pytest.mark.parametrize("huge", [10**30, "1e400", "inf", 1e300])
def test_what_is_out_of_reason_is_bounded(huge: Any) -> None:
    assert asked(max_tokens=huge, n=huge) == (MAX_TOKENS, MAX_CHOICES)


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"n": 4.0}, 4),
        ({"n": 2, "best_of": "5"}, 5),
        ({"generation_config": {"candidate_count": 8}}, 8),
        ({"generationConfig": {"candidateCount": 3}}, 3),
        ({"n": 2, "prompt": ["a", "b", "c"]}, 6),
        ({"prompt": [1, 2, 3]}, 1),
    ],
)
def test_texts_are_counted(fields: dict[str, Any], texts: int) -> None:
    assert asked(**fields)[1] == texts


@pytest.mark.parametrize("value", [True, "true", 1, {}])
def test_whatever_may_mean_the_background_does(value: Any) -> None:
    assert asked_in(json.dumps({"background": value}).encode(), "POST").background


def test_what_is_spoken_is_reserved_for() -> None:
    """Ten thousand letters are some eleven minutes, of 20 tokens a second."""
    body = json.dumps({"model": "tts", "input": "hello " * 2000, "voice": "v"}).encode()
    found = request_of(asked_in(body, "POST"), "tts", body, generates=True, speaks=True)
    assert 15_000 < (found.max_output or 0) < 20_000


@pytest.mark.parametrize("body", [b"[1]", b"null", b"7"])
def test_what_is_no_object_asks_for_nothing(body: bytes) -> None:
    assert asked_in(body, "POST").most == 0


@pytest.mark.parametrize("body", [b'{"max_tokens":', b'{"a":"\xff"}', b'{"n":1e999}'])
def test_what_nobody_can_read_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="not valid"):
        asked_in(body, "POST")
