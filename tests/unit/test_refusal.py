"""What providers say where a prompt is too long for a model, or against a policy, or just wrong."""

import json
from typing import Any

import pytest

from gateway.core.errors import Failure, UpstreamError
from gateway.policy.refusal import CONTENT_POLICY, CONTEXT_WINDOW, refusal_of, request_fault

TOO_LONG = {
    "openai": "This model's maximum context length is 128000 tokens. However, your messages "
    "resulted in 140000 tokens. Please reduce the length of the messages.",
    "openai-code": '{"error": {"code": "context_length_exceeded", "message": "Too much"}}',
    "anthropic": "prompt is too long: 208310 tokens > 200000 maximum",
    "anthropic-both": "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
    "gemini": "The input token count (1200000) exceeds the maximum number of tokens allowed (1).",
    "bedrock": "Input is too long for requested model.",
    "mistral": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 "
    "maximum context length",
    "cohere": "too many tokens: total number of tokens in the prompt cannot exceed 4081",
    "vllm": "This model's maximum context length is 4096 tokens. However, you requested 5000",
    "llama.cpp": '{"error":{"type":"exceed_context_size_error","message":"the request exceeds the '
    'available context size"}}',
    "groq": "Please reduce the length of the messages or completion.",
    "together": "`inputs` tokens + `max_new_tokens` must be <= 8193.",
    "xai": "This model's maximum prompt length is 131072 but the request contains 140000 tokens.",
}
UNWANTED = {
    "openai": '{"error": {"code": "content_policy_violation", "message": "rejected"}}',
    "azure": "The response was filtered due to the prompt triggering Azure OpenAI's content "
    "management policy.",
    "azure-code": '{"error": {"code": "content_filter", "innererror": {"code": '
    '"ResponsibleAIPolicyViolation"}}}',
    "anthropic": "Output blocked by content filtering policy",
    "openai-reasoning": "Invalid prompt: your prompt was flagged as potentially violating our "
    "usage policy.",
    "images": "Your request was rejected as a result of our safety system.",
}
NEITHER = [
    "Invalid value for 'temperature': expected at most 2.",
    "The model `gpt-9` does not exist",
    "max_tokens is too large: 99999. This model supports at most 16384 completion tokens",
    "messages: at least one message is required",
    "Missing required parameter: 'messages[0].content'.",
]


def refused(text: str, status: int = 400) -> UpstreamError:
    body = text.encode() if text.startswith("{") else b""
    return UpstreamError(Failure.STATUS, "no" if body else text, status=status, body=body)


@pytest.mark.parametrize("who", TOO_LONG)
def test_a_prompt_that_is_too_long_is_told_by_every_providers_words(who: str) -> None:
    assert refusal_of(refused(TOO_LONG[who])) == CONTEXT_WINDOW
    assert refusal_of(refused(TOO_LONG[who], 413)) == CONTEXT_WINDOW


@pytest.mark.parametrize("who", UNWANTED)
def test_a_prompt_that_is_unwanted_is_told_by_every_providers_words(who: str) -> None:
    assert refusal_of(refused(UNWANTED[who])) == CONTENT_POLICY


@pytest.mark.parametrize("text", NEITHER)
def test_other_refusals_are_neither(text: str) -> None:
    assert refusal_of(refused(text)) is None


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_what_is_not_the_prompts_fault_is_no_refusal(status: int) -> None:
    assert refusal_of(refused(TOO_LONG["openai"], status)) is None
    assert refusal_of(UpstreamError(Failure.CONNECT, TOO_LONG["openai"])) is None


INVALID = {"type": "invalid_request_error", "message": "no"}
FAULTS: list[tuple[Any, int]] = [
    ({"type": "response.failed", "response": {"error": {"code": "invalid_prompt"}}}, 400),
    ({"type": "response.failed", "response": {"error": {"code": "image_too_large"}}}, 400),
    ({"type": "error", "code": "context_length_exceeded", "message": "no"}, 400),
    ({"type": "error", "error": {**INVALID, "code": None}}, 400),
    ({"type": "error", "error": {"type": "request_too_large"}}, 400),
    ({"error": {"code": "content_filter", "status": 400}}, 400),
    ({"error": {"code": 413, "message": "no", "type": "BadRequestError"}}, 413),
    ({"error": {"code": "422", "message": "no"}}, 422),
    ({"error": {"code": 400, "status": "INVALID_ARGUMENT"}}, 400),
    ({"error": {"type": "validationException", "message": "no"}}, 400),
]
TROUBLES: list[Any] = [
    {
        "type": "error",
        "sequence_number": 2,
        "error": {"type": "insufficient_quota", "code": "insufficient_quota", "message": "Quota"},
    },
    {"type": "response.failed", "response": {"error": {"code": "rate_limit_exceeded"}}},
    {"type": "response.failed", "response": {"error": {"code": "server_error"}}},
    {"type": "response.failed", "response": {"error": None, "status": "failed"}},
    {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    {"error": {**INVALID, "code": "invalid_api_key"}},
    {"error": {**INVALID, "code": "rate_limit_exceeded"}},
    {"error": {**INVALID, "code": 500}},
    {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}},
    {"error": {"code": 401}},
    {"error": {"code": 10**30}},
    {"error": {"code": "4" * 5000}},
    {"error": {"code": True}},
    {"error": {"message": "context_length_exceeded"}},
    {"error": "out of memory"},
    ["no"],
    "no",
]


@pytest.mark.parametrize(("event", "status"), FAULTS)
def test_a_fault_of_the_request_is_told_by_its_code(event: Any, status: int) -> None:
    fault = request_fault(json.dumps(event).encode())
    assert fault is not None
    assert fault[0] == status


@pytest.mark.parametrize("event", TROUBLES, ids=lambda one: str(one)[:60])
def test_trouble_of_the_provider_is_none(event: Any) -> None:
    assert request_fault(json.dumps(event).encode()) is None
    assert request_fault(json.dumps(event).encode()[:-1]) is None
