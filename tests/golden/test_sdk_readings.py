"""Every recording of a provider, read through the gateway with the official SDKs.

In each dialect a client sees what the recording holds: text, thoughts, calls, why it ended, usage.
The recordings are served as their provider frames them: whole, event by event, byte by byte.
"""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway.core.usage import Usage
from tests.golden.recordings import NEEDS_RECORDINGS, RECORDINGS, Expected, Recording, read
from tests.golden.replay import Delivery, Replay, model_of
from tests.golden.sdk import Reader, Seen
from tests.support.gateway import Gateway, running

pytestmark = NEEDS_RECORDINGS

DIALECTS = ("chat", "responses", "messages")
CONVERSATIONS = ("chat", "responses", "messages", "gemini", "converse", "cohere")

# The recordings' folders -> the kind of provider, where it is another name.
KINDS = {"moonshotai": "moonshot", "openai-compatible": "openai-compatible"}
BY_API = {
    "responses": "openai",
    "messages": "anthropic",
    "gemini": "gemini",
    "converse": "bedrock",
    "cohere": "cohere",
}
# Which dialect a provider speaks itself, by the API of its recordings.
NATIVE = {"chat": "chat", "responses": "responses", "messages": "messages"}

STOP, LENGTH, CALLS, FILTER = "stop", "length", "tool_calls", "content_filter"
MEANING = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "pause_turn", "completed"), STOP),
    **dict.fromkeys(("STOP", "COMPLETE"), STOP),
    **dict.fromkeys(("length", "max_tokens", "MAX_TOKENS", "max_output_tokens"), LENGTH),
    **dict.fromkeys(("tool_calls", "tool_use", "TOOL_CALL"), CALLS),
    **dict.fromkeys(("content_filter", "refusal", "SAFETY"), FILTER),
}
WORDS = {
    "chat": {STOP: "stop", LENGTH: "length", CALLS: "tool_calls", FILTER: "content_filter"},
    "messages": {STOP: "end_turn", LENGTH: "max_tokens", CALLS: "tool_use", FILTER: "refusal"},
    "responses": {
        STOP: "completed",
        LENGTH: "max_output_tokens",
        CALLS: "completed",
        FILTER: "content_filter",
    },
}


def provider_of(recording: Recording) -> str:
    """The name under which the gateway of these tests knows the recording's provider."""
    return BY_API.get(recording.api) or recording.provider


def configuration(url: str) -> str:
    providers: dict[str, dict[str, object]] = {}
    for recording in RECORDINGS:
        name = provider_of(recording)
        providers[name] = {
            "kind": KINDS.get(name, name),
            "base_url": f"{url}/v1",
            "api_key": "sk-upstream",
        }
    providers.pop("google-vertex", None)
    providers.pop("google", None)
    providers["responses"] = {**providers["openai"], "api": "responses"}
    providers["plain"] = {**providers["openai"], "kind": "openai-compatible"}
    return json.dumps({"providers": providers, "log": {"requests": False}})


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with Replay() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(replay: Replay) -> Iterator[Gateway]:
    with running(configuration(replay.url)) as started:
        yield started


@pytest.fixture(scope="module")
def reader(gateway: Gateway) -> Iterator[Reader]:
    clients = Reader(gateway.url)
    yield clients
    clients.close()


def cases() -> list[Any]:
    found = []
    for recording in RECORDINGS:
        if recording.api in CONVERSATIONS:
            for dialect in DIALECTS:
                name = f"{dialect}-{recording.name}#{recording.part}"
                found.append(pytest.param(recording, dialect, id=name))
    return found


def model(recording: Recording, dialect: str, how: Delivery) -> str:
    name = provider_of(recording)
    if recording.api == "responses" and dialect != "responses":
        name = "responses"  # these models have no other API
    if recording.api == "chat" and dialect == "responses":
        name = "plain"  # or the provider would be asked by its own Responses API
    return f"{name}/{model_of(recording, how)}"


@pytest.mark.parametrize(("recording", "dialect"), cases())
def test_a_client_sees_what_was_recorded(
    reader: Reader, recording: Recording, dialect: str
) -> None:
    expected = read(recording)
    deliveries: tuple[Delivery, ...] = ("whole", "events", "bytes")
    for how in deliveries if recording.stream else deliveries[::2]:
        seen = reader.read(dialect, model(recording, dialect, how), stream=recording.stream)
        check(seen, expected, recording, dialect)


def check(seen: Seen, expected: Expected, recording: Recording, dialect: str) -> None:
    if expected.failed:
        assert seen.error, seen
        return
    assert seen.error is None, seen.error
    assert seen.text == expected.text
    assert seen.reasoning == expected.reasoning
    assert seen.tool_calls == expected.tool_calls
    assert seen.finish == finish(expected, recording, dialect)
    used = expected.usage
    if NATIVE.get(recording.api) == dialect:
        used = expected.own_usage or used
    if used is not None or dialect != "messages":  # which never goes without
        assert seen.usage == tokens_of(used)


def tokens_of(usage: Usage | None) -> Usage | None:
    """What every dialect has a place for; what else is charged, only some clients are told."""
    if usage is None:
        return None
    return msgspec.structs.replace(
        usage, cache_write_1h_tokens=0, web_searches=0, beside_prompt_tokens=0
    )


def finish(expected: Expected, recording: Recording, dialect: str) -> str | None:
    if NATIVE.get(recording.api) == dialect or expected.finish is None:
        return expected.finish
    meaning = MEANING[expected.finish]
    implied = recording.api not in ("messages", "converse", "cohere")
    if meaning == STOP and expected.tool_calls and implied:
        meaning = CALLS
    return WORDS[dialect][meaning]
