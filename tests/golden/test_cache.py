"""Every recording through a gateway that keeps answers, with the official SDKs.

Whoever asks second, in whatever dialect, streamed or not, has what the first one had, and no
provider is asked. Answers that failed, were truncated, filtered or refused are kept for nobody.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.golden.recordings import NEEDS_RECORDINGS, RECORDINGS, Expected, Recording, read
from tests.golden.replay import Replay, model_of
from tests.golden.sdk import Reader, Seen
from tests.golden.test_sdk_readings import (
    CALLS,
    CONVERSATIONS,
    DIALECTS,
    MEANING,
    STOP,
    configuration,
    provider_of,
    tokens_of,
)
from tests.support.gateway import Gateway, running

pytestmark = NEEDS_RECORDINGS

ALSO_RESPOND = ("openai", "groq", "xai")
FORMS = [(dialect, stream) for dialect in DIALECTS for stream in (False, True)]


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with Replay() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(replay: Replay) -> Iterator[Gateway]:
    text = json.loads(configuration(replay.url))
    with running(json.dumps({**text, "cache": {"enabled": True, "requests": "all"}})) as started:
        yield started


@pytest.fixture(scope="module")
def reader(gateway: Gateway) -> Iterator[Reader]:
    clients = Reader(gateway.url, most=1024)
    yield clients
    clients.close()


def cases() -> list[Any]:
    recordings = [one for one in RECORDINGS if one.api in CONVERSATIONS]
    return [
        pytest.param(one, DIALECTS[i % len(DIALECTS)], id=f"{one.name}#{one.part}")
        for i, one in enumerate(recordings)
    ]


def may_be_kept(expected: Expected) -> bool:
    """By the recording itself: it ended as it should, and says something."""
    if expected.failed or MEANING.get(expected.finish or "") not in (STOP, CALLS):
        return False
    return bool(expected.text or expected.tool_calls)


@pytest.mark.parametrize(("recording", "first"), cases())
def test_the_second_has_what_the_first_had(
    replay: Replay, reader: Reader, recording: Recording, first: str
) -> None:
    expected, name = read(recording), provider_of(recording)
    if recording.api == "responses":
        name = "responses"
    elif recording.api == "chat" and name in ALSO_RESPOND:
        name = "plain"  # or the provider would be asked by its own Responses API
    model = f"{name}/{model_of(recording, 'whole')}"
    told = reader.read(first, model, stream=recording.stream)
    asked = len(replay.received)
    if not may_be_kept(expected):
        reader.read(first, model, stream=recording.stream)
        assert len(replay.received) > asked
        return
    assert told.error is None, told.error
    alike = [told.usage]
    if expected.own_usage is not None:  # who is not given the provider's own words has the sum
        alike.append(tokens_of(expected.usage))
    for dialect, stream in FORMS:
        seen = reader.read(dialect, model, stream=stream)
        assert content(seen) == content(told), (dialect, stream)
        if expected.usage is not None:
            assert seen.usage in alike
    assert len(replay.received) == asked


def content(seen: Seen) -> tuple[Any, ...]:
    return seen.text, seen.tool_calls, seen.error
