"""The recordings that other tests replay: all are known, all are read, all are served as is."""

import ast
import http.client
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.usage import Usage
from tests.golden import rec_gemini, rec_openai
from tests.golden.rec_wire import chunks, unpacked
from tests.golden.recordings import (
    FILES,
    LEFT_OUT,
    NEEDS_RECORDINGS,
    RECORDINGS,
    WHY_LEFT_OUT,
    Api,
    Expected,
    Recording,
    name_of,
    read,
)
from tests.golden.replay import (
    DELIVERIES,
    DONE,
    Delivery,
    Replay,
    content_type,
    frames,
    model_of,
    status,
    writes,
)

pytestmark = NEEDS_RECORDINGS

NAMED = {recording.name: recording for recording in RECORDINGS}
STREAMS = [recording for recording in RECORDINGS if recording.stream]
CONVERSE = [recording for recording in STREAMS if recording.api == "converse"]


def name(recording: Recording) -> str:
    return recording.name


EVERY = pytest.mark.parametrize("recording", RECORDINGS, ids=name)

# How many replies there are of each provider and API; more may come.
COUNTS: dict[tuple[str, Api], int] = {
    ("amazon-bedrock", "converse"): 23,
    ("anthropic", "messages"): 82,
    ("azure", "chat"): 2,
    ("azure", "responses"): 19,
    ("cohere", "cohere"): 10,
    ("cohere", "embeddings"): 1,
    ("deepseek", "chat"): 7,
    ("google", "error"): 1,
    ("google", "gemini"): 14,
    ("google-vertex", "embeddings"): 1,
    ("groq", "chat"): 6,
    ("mistral", "chat"): 7,
    ("moonshotai", "chat"): 4,
    ("openai", "chat"): 3,
    ("openai", "completions"): 2,
    ("openai", "embeddings"): 1,
    ("openai", "error"): 4,
    ("openai", "responses"): 62,
    ("openai-compatible", "chat"): 4,
    ("perplexity", "chat"): 4,
    ("xai", "chat"): 4,
    ("xai", "responses"): 11,
}
# Anthropic's refusals say nothing but that.
SAY_NOTHING = {
    "anthropic/anthropic-refusal-no-details.json",
    "anthropic/anthropic-refusal.chunks.txt",
    "anthropic/anthropic-refusal.json",
}
# Bedrock's last event, with the usage, was not recorded.
WITHOUT_USAGE = {
    "amazon-bedrock/amazon-bedrock-json-tool.1.chunks.txt",
    "amazon-bedrock/amazon-bedrock-json-tool.2.chunks.txt",
    "amazon-bedrock/amazon-bedrock-json-tool.3.chunks.txt",
    "amazon-bedrock/amazon-bedrock-json-with-tool.1.chunks.txt",
    "amazon-bedrock/amazon-bedrock-json-with-tools.1.chunks.txt",
    "openai/responses/openai-error.1.chunks.txt",
}
# Most deltas were taken out of these; the events that repeat the text were not.
SHORTENED = {
    "openai/responses/openai-phase.1.chunks.txt",
    "openai/responses/openai-shell-container.1.chunks.txt",
}


# --- The inventory -------------------------------------------------------------------------------


def test_every_file_is_replayed_or_left_out_for_a_reason() -> None:
    replayed = {name_of(recording.path) for recording in RECORDINGS}
    assert replayed.isdisjoint(LEFT_OUT)
    assert replayed | set(LEFT_OUT) == {name_of(path) for path in FILES}
    assert set(LEFT_OUT.values()) == set(WHY_LEFT_OUT.values())


def test_names_tell_the_recordings_apart() -> None:
    assert len(NAMED) == len(RECORDINGS)


def test_there_are_as_many_as_there_were() -> None:
    found = Counter((recording.provider, recording.api) for recording in RECORDINGS)
    assert {key: found[key] for key in COUNTS if found[key] < COUNTS[key]} == {}
    assert set(found) >= set(COUNTS)


def test_no_event_of_a_files_several_replies_is_lost() -> None:
    for path in {recording.path for recording in STREAMS}:
        parts = [recording.lines for recording in STREAMS if recording.path == path]
        recorded = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        assert [line for part in parts for line in part] == recorded


# --- What they say -------------------------------------------------------------------------------


@EVERY
def test_a_recording_says_something(recording: Recording) -> None:
    found = read(recording)
    said = (found.text, found.reasoning, found.tool_calls, found.server_blocks, found.vectors)
    assert any(said) or found.failed or (recording.name in SAY_NOTHING and found.finish)


@EVERY
def test_a_recording_ends_and_is_counted(recording: Recording) -> None:
    found = read(recording)
    assert found.finish or found.failed or found.vectors
    assert (found.usage is None) == (recording.name in WITHOUT_USAGE or recording.api == "error")
    if usage := found.usage:
        assert usage.cached_tokens + usage.cache_write_tokens <= usage.prompt_tokens
        assert usage.reasoning_tokens <= usage.completion_tokens


def test_the_reading_takes_nothing_from_the_gateway_but_its_terms() -> None:
    for path in Path(__file__).parent.glob("rec*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        modules = {node.module or "" for node in tree if isinstance(node, ast.ImportFrom)}
        assert {x for x in modules if x.startswith("gateway")} <= {"gateway.core.usage"}, path


@pytest.mark.parametrize(
    "recording",
    [x for x in STREAMS if x.api == "responses" and x.name not in SHORTENED],
    ids=name,
)
def test_a_responses_deltas_say_what_its_last_event_does(recording: Recording) -> None:
    told, whole = read(recording), last_event(recording)
    assert (told.text, told.reasoning) == (whole.text, whole.reasoning)
    assert (told.tool_calls, told.server_blocks) == (whole.tool_calls, whole.server_blocks)


def last_event(recording: Recording) -> Expected:
    return rec_openai.response([recording.objects[-1]["response"]])


def test_a_message_spliced_into_another_ends_it() -> None:
    found = read(NAMED["anthropic/spliced-message-start.chunks.txt"])
    assert found.failed
    assert (found.reasoning, found.signatures) == ("I will call the tool.", ["sig-first"])
    assert (found.tool_calls, found.finish) == ([], None)


def test_a_message_start_told_twice_means_nothing() -> None:
    found = read(NAMED["anthropic/duplicate-message-start.chunks.txt"])
    assert (found.text, found.finish) == ("Hello, World!", "end_turn")
    assert found.usage == Usage(17, 0, 0, 227, 0)


def test_a_message_can_be_whole_in_its_first_event() -> None:
    found = read(NAMED["anthropic/anthropic-programmatic-tool-calling.1.chunks.txt#2"])
    assert found.tool_calls == [("rollDie", {"player": "player2"})]
    assert found.finish == "tool_use"


def test_the_end_of_a_message_corrects_the_counts_of_its_start() -> None:
    found = read(NAMED["anthropic/anthropic-message-delta-input-tokens.chunks.txt"])
    assert found.usage == Usage(61, 0, 0, 2, 0)
    found = read(NAMED["anthropic/anthropic-code-execution-20260120-prompt-cache.1.chunks.txt"])
    assert found.usage == Usage(6 + 3337 + 6289, 6289, 3337, 198, 0)


def test_arguments_come_in_pieces() -> None:
    found = read(NAMED["google/google-stream-no-args-tool-call.chunks.txt"])
    assert found.tool_calls == [
        ("read_theme", {}),
        *(("read_screen", {"id": screen}) for screen in "ABC"),
    ]
    found = read(
        NAMED[
            "google/google-stream-tool-call-array-arguments-missing-terminal-function-call"
            ".chunks.txt"
        ]
    )
    items = found.tool_calls[0][1]["operations"]
    assert [item["price"] for item in items] == [0.5, 0.3]
    found = read(NAMED["google/google-vertex-stream-tool-call-arguments-nested.1.chunks.txt"])
    recipe = found.tool_calls[0][1]["recipe"]
    assert recipe["ingredients"][7] == {"amount": "2 cloves", "name": "Garlic"}
    assert recipe["steps"][4] == "In a 9x13 baking dish, spread a thin layer of meat sauce."


def test_paths_make_what_they_lead_through() -> None:
    root: dict[str, Any] = {}
    for path, value in (("$.a[0].b", "x"), ("$.a[0].b", "y"), ("$.a[1]", True), ("$.c", 2.5)):
        rec_gemini.put(root, path, value)
    assert root == {"a": [{"b": "xy"}, True], "c": 2.5}


# --- On the wire ---------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", STREAMS, ids=name)
def test_a_streams_frames_carry_its_events(recording: Recording) -> None:
    found = frames(recording)
    if recording.api == "converse":
        told = [{kind: payload} for frame in found for kind, payload in [unpacked(frame)]]
    else:
        ends = found[-1] == DONE
        assert ends == (recording.api in ("chat", "completions", "cohere"))
        lines = [line for frame in found[: len(found) - ends] for line in frame.split(b"\n")]
        told = [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
    assert told == recording.objects


def test_botocore_reads_the_event_stream_encoding() -> None:
    buffer = pytest.importorskip("botocore.eventstream").EventStreamBuffer()
    for recording in CONVERSE:
        buffer.add_data(b"".join(frames(recording)))
        told = [{m.headers[":event-type"]: json.loads(m.payload)} for m in buffer]
        assert told == recording.objects


def test_an_error_has_the_status_it_implies() -> None:
    found = {x.name.split("/")[-1]: status(x) for x in RECORDINGS if status(x) != 200}
    assert found == {
        "google-429-retry-info.json": 429,
        "gpt-image-response-format-error.json": 400,
        "openai-error.1.json": 429,
        "reasoning-model-legacy-parameter-error.json": 400,
        "reasoning-model-temperature-error.json": 400,
    }


# --- Served --------------------------------------------------------------------------------------

# A chunk a byte takes Python long to read: the short ones show it, and there are some of each API.
SHORT_BYTES = 10_000
SHORT = [x for x in RECORDINGS if sum(map(len, frames(x))) <= SHORT_BYTES]
SHORT_STREAMS = [x for x in SHORT if x.stream]


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with Replay() as server:
        yield server


@pytest.fixture
def client(replay: Replay) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", replay.port, timeout=10)
    yield connection
    connection.close()


def ask(client: http.client.HTTPConnection, model: str) -> tuple[int, dict[str, str], bytes]:
    client.request("POST", "/v1/chat/completions", json.dumps({"model": model}))
    reply = client.getresponse()
    return reply.status, dict(reply.getheaders()), reply.read()


@pytest.mark.parametrize("how", DELIVERIES)
def test_every_recording_is_served_as_it_is(
    client: http.client.HTTPConnection, how: Delivery
) -> None:
    for recording in SHORT if how == "bytes" else RECORDINGS:
        whole = b"".join(frames(recording))
        found, headers, body = ask(client, model_of(recording, how))
        assert (found, body) == (status(recording), whole), recording.name
        assert headers.pop("Content-Type") == content_type(recording)
        expected = {"Transfer-Encoding": "chunked"}
        assert headers == (expected if recording.stream else {"Content-Length": str(len(whole))}), (
            recording.name
        )


@pytest.mark.parametrize("recording", SHORT_STREAMS, ids=name)
def test_deliveries_differ_in_their_chunks_only(recording: Recording) -> None:
    pieces = frames(recording)
    counts = {"whole": 1, "events": len(pieces), "bytes": len(b"".join(pieces))}
    for how, count in counts.items():
        head, _, body = b"".join(writes(recording, how)).partition(b"\r\n\r\n")
        assert b"chunked" in head
        assert Counter(chunks(body))[b""] == 1
        assert len(chunks(body)) == count + 1
        assert b"".join(chunks(body)) == b"".join(pieces)


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/models/MODEL:streamGenerateContent?alt=sse",
        "/v1/projects/p/locations/l/publishers/google/models/MODEL:generateContent",
        "/model/MODEL/converse-stream",
        "/openai/deployments/MODEL/chat/completions?api-version=2024-10-21",
    ],
)
@pytest.mark.parametrize("how", DELIVERIES)
def test_the_model_can_stand_in_the_path(
    replay: Replay, client: http.client.HTTPConnection, path: str, how: Delivery
) -> None:
    recording = CONVERSE[0]
    model = model_of(recording, how)
    client.request("POST", path.replace("MODEL", model), b"{}", {"X-Asked": "so"})
    assert client.getresponse().read() == b"".join(frames(recording))
    asked = replay.requests[model]
    assert (asked.path, asked.headers["x-asked"]) == (path.replace("MODEL", model), "so")
    assert asked.json == {}


def test_short_streams_are_of_every_api() -> None:
    assert {x.api for x in SHORT_STREAMS} == {x.api for x in STREAMS}


def test_an_unknown_model_is_refused(client: http.client.HTTPConnection) -> None:
    for model in ("gpt-4o", "rec-99999", "rec-1-slowly", ""):
        assert ask(client, model)[0] == 404
