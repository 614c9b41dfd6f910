"""Which paths of a provider's own API have tokens counted: that is free, and all else is not."""

import pytest

from gateway.pipeline.named_models import in_path, is_counting, segments_of


def counting(path: str) -> bool:
    segments = segments_of(path)
    return is_counting(segments, in_path(segments))


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/messages/count_tokens", "/v1/messages/count_tokens?beta=true"),
        *("/v1/responses/input_tokens", "/v1/tokenize", "/tokenize", "/detokenize"),
        *("/v1beta/models/g:countTokens", "/v1/p/x/models/g:computeTokens"),
        *("/model/anthropic.claude-3-haiku-20240307-v1:0/count-tokens", "/v1/tokenize-text"),
        "/v1/projects/p/publishers/anthropic/models/count-tokens:rawPredict",
        "/v1/tokenizers/estimate-token-count",
    ],
)
def test_counting_is_known_by_the_end_of_its_path(path: str) -> None:
    assert counting(path)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/responses", "/v1/chat/completions", "/v1/input_tokens/completions", "/v1/"),
        *("/v1beta/models/discount-2:generateContent", "/v1/models/countTokens:generateContent"),
        *("/v1/chat/completions%3Fcount", "/v1/chat/completions%3F:countTokens"),
        *("/v1/chat/completions%23count_tokens", "/v1/chat/completions%2Fcount_tokens"),
        *("/v1/chat/completions;count_tokens", "/v1/chat/completions?count_tokens"),
        *("/v1/chat/completions:countTokens", "/models/tokenize", "/engines/discount"),
        *("/model/count-tokens/converse", "/v1/count_tokens/", "/v1/models/g:tokenizeOrNot"),
    ],
)
def test_what_may_generate_is_not_free(path: str) -> None:
    assert not counting(path)
