"""A full request in each dialect, put to each provider: valid by what the provider publishes.

What a provider cannot do is refused by name, or dropped by name where that is configured; all else
arrives. Nothing here compares with what the gateway wrote before.
"""

import json
from typing import Any, NamedTuple

import pytest

from gateway.core.errors import ApiError
from gateway.core.operations import Operation
from gateway.core.target import Deadlines, Origin, Target
from gateway.formats.body import decode
from gateway.pipeline.lanes import Built, lane
from gateway.providers import PROVIDERS
from gateway.providers.gemini_prompt import UNSIGNED
from tests.golden.asks import ASKS, MARKS
from tests.support.published import Unpublished, problems

OPERATIONS = {
    "chat": Operation.CHAT,
    "responses": Operation.RESPONSES,
    "messages": Operation.MESSAGES,
}


class Case(NamedTuple):
    """A provider's model, whose publication holds, and the features that it has no place for."""

    kind: str
    model: str
    api: str
    lost: frozenset[str] = frozenset()
    settings: tuple[tuple[str, str], ...] = ()
    extra: frozenset[str] = frozenset()  # fields beside what is published for OpenAI


NOT_OURS = frozenset(("thinking", "signature"))  # thoughts that another provider has signed
_GEMINI = NOT_OURS | {"user", "call", "parallel call"}  # calls have no ids there
_VERTEX = (("project", "p"), ("location", "l"))
CASES = {
    "openai": Case("openai", "gpt-5", "chat", NOT_OURS),
    "openai by Responses": Case(
        "openai", "gpt-5-pro", "responses", NOT_OURS | {"stop"}, (("api", "responses"),)
    ),
    "azure": Case("azure", "my-deployment", "chat", NOT_OURS),
    "anthropic": Case("anthropic", "claude-sonnet-4-5", "messages_2023_06_01"),
    "anthropic, adaptive": Case("anthropic", "claude-opus-4-7", "messages_2023_06_01"),
    "gemini 2": Case("gemini", "gemini-2.5-pro", "gemini", _GEMINI),
    "gemini 3": Case("gemini", "gemini-3-pro-preview", "gemini", _GEMINI),
    "vertex": Case("vertex", "gemini-2.5-flash", "gemini", _GEMINI, _VERTEX),
    "vertex's claude": Case("vertex", "claude-sonnet-4-5@20250929", "envelope", settings=_VERTEX),
    "bedrock": Case(
        "bedrock",
        "anthropic.claude-sonnet-4-5-20250929-v1:0",
        "converse",
        frozenset(("image by URL", "user")),
    ),
    "bedrock's nova": Case(
        "bedrock", "amazon.nova-pro-v1:0", "converse", frozenset(("image by URL", "user"))
    ),
    "mistral": Case(
        "mistral",
        "mistral-large-latest",
        "mistral",
        frozenset(("user", "signature", "call", "parallel call")),  # calls have ids of its own form
    ),
    "cohere": Case(
        "cohere",
        "command-a-03-2025",
        "cohere",
        frozenset(("document", "user", "signature")),
    ),
    **{
        kind: Case(
            kind,
            "m",
            "chat",
            frozenset(("signature", "thinking")),
            extra=frozenset(("top_k", "reasoning", "reasoning_content", "reasoning_details")),
        )
        for kind in PROVIDERS
        if kind
        not in ("openai", "azure", "anthropic", "gemini", "vertex", "bedrock", "mistral", "cohere")
    },
}


def target(case: Case) -> Target:
    return Target(
        provider=case.kind,
        kind=case.kind,
        model=case.model,
        origin=Origin("https", "api.example", 443),
        base_path="",
        api_key="sk-1",
        headers=(),
        deadlines=Deadlines(1, 1, 1, 1),
        settings=case.settings,
    )


def put(case: Case, dialect: str, *, drop: bool, **changes: Any) -> Built:
    """Build the request for a target, through the hub even where the provider needs none."""
    operation, to = OPERATIONS[dialect], target(case)
    body = json.dumps({**ASKS[dialect], **changes}).encode()
    way = lane(PROVIDERS[case.kind].adapter_for(to), operation, to, drop=drop)
    assert way is not None
    return way.build(decode(operation, body))


def native(case: Case, dialect: str) -> bool:
    """Whether the provider speaks the dialect itself."""
    return OPERATIONS[dialect] in PROVIDERS[case.kind].adapter_for(target(case)).natives


def published(case: Case, body: bytes, dialect: str = "chat") -> list[str]:
    """What the provider's own publication has against a body."""
    content = json.loads(body)
    api = case.api
    if native(case, dialect) and case.api in ("chat", "responses"):
        api = dialect
        for message in content.get("messages", ()):
            message.pop("reasoning_details", None)  # the client's own extension, as it came
    if api == "envelope":  # Vertex AI's: the model is in the path, the version in the body
        assert content.pop("anthropic_version") == "vertex-2023-10-16"
        content["model"], api = case.model, "messages_2023_06_01"
    for place in (content, *content.get("messages", ())):
        for name in case.extra:
            place.pop(name, None)
    for turn in content.get("contents", ()):
        for part in turn["parts"]:
            if part.get("thoughtSignature") == UNSIGNED:  # what Google's guide says to send
                del part["thoughtSignature"]
    try:
        return problems(api, json.dumps(content).encode())
    except Unpublished as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dialect", ASKS)
@pytest.mark.parametrize("name", CASES)
def test_a_full_request_is_what_the_provider_has_published(name: str, dialect: str) -> None:
    case = CASES[name]
    built = put(case, dialect, drop=True)
    assert published(case, built.body, dialect) == []


@pytest.mark.parametrize("dialect", ASKS)
@pytest.mark.parametrize("name", CASES)
def test_every_feature_that_the_provider_has_arrives(name: str, dialect: str) -> None:
    case = CASES[name]
    sent = put(case, dialect, drop=True).body.decode()
    given = json.dumps(ASKS[dialect])
    marks = {feature: mark for feature, mark in MARKS.items() if mark in given}
    missing = {feature for feature, mark in marks.items() if mark not in sent}
    # What passes as it came loses no more than what others have thought, or signed.
    assert missing <= (case.lost & NOT_OURS if native(case, dialect) else case.lost)


@pytest.mark.parametrize("dialect", ASKS)
@pytest.mark.parametrize("name", CASES)
def test_what_is_not_sent_is_named(name: str, dialect: str) -> None:
    """Each field of the request is sent, or named as dropped; refusing names one of those."""
    case = CASES[name]
    dropped = put(case, dialect, drop=True).dropped
    for field in dropped:
        top = field.partition(".")[0].partition("[")[0]
        assert top in ASKS[dialect], field
    error = refusal(case, dialect)
    if error is not None:
        assert (error.status, error.code) == (400, "unsupported_parameter")
        assert error.param in dropped
        assert f"'{error.param}'" in str(error)
        assert case.kind in str(error)


def refusal(case: Case, dialect: str) -> ApiError | None:
    try:
        put(case, dialect, drop=False)
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.api != "chat"])
@pytest.mark.parametrize(
    "choice",
    ["none", "required", {"type": "function", "function": {"name": "weather"}}],
    ids=["none", "required", "named"],
)
def test_every_tool_choice_is_what_the_provider_has_published(name: str, choice: Any) -> None:
    case = CASES[name]
    built = put(case, "chat", drop=True, tool_choice=choice, parallel_tool_calls=False)
    assert published(case, built.body) == []


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.api != "chat"])
@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh"])
def test_every_effort_is_what_the_provider_has_published(name: str, effort: str) -> None:
    case = CASES[name]
    built = put(case, "chat", drop=True, reasoning_effort=effort)
    assert published(case, built.body) == []


@pytest.mark.parametrize("name", CASES)
def test_little_is_asked_and_little_is_sent(name: str) -> None:
    case = CASES[name]
    to = target(case)
    body = json.dumps({"model": "asked", "messages": [{"role": "user", "content": "Hi"}]})
    way = lane(PROVIDERS[case.kind].adapter_for(to), Operation.CHAT, to, drop=False)
    assert way is not None
    built = way.build(decode(Operation.CHAT, body.encode()))
    assert built.dropped == ()
    assert published(case, built.body) == []
