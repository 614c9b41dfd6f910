"""Usage found by its shape in answers nobody understands: whole, in every split, byte by byte."""

import base64
import json
import random
import tracemalloc
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.usage import Usage
from gateway.providers.foreign_usage import MAX_SEEN_BYTES, ForeignUsage
from tests.golden.recordings import NEEDS_RECORDINGS, RECORDINGS, Recording, read
from tests.golden.replay import event_stream_message, frames
from tests.support.readings import cut, sse
from tests.support.upstream import completion, delta, usage

MEBIBYTE = 1024 * 1024
SEEN = ("messages", "chat", "completions", "responses", "gemini", "converse", "cohere")
# A reply that failed is read up to there; the client has all of it, and the provider its figures.
READ = [one for one in RECORDINGS if one.api in SEEN and not read(one).failed]


def counted(*pieces: bytes) -> Usage | None:
    """What is found in an answer that comes in these pieces."""
    seen = ForeignUsage()
    for piece in pieces:
        seen.feed(piece)
    return seen.result()


def whole(content: Any) -> bytes:
    """A body, as most servers write it."""
    return json.dumps(content).encode()


# -- what providers sent ---------------------------------------------------------------------------


@cache
def expected(recording: Recording) -> tuple[bytes, Usage | None]:
    """A recording's bytes, and what an independent reading finds in it."""
    return b"".join(frames(recording)), read(recording).usage


@NEEDS_RECORDINGS
@pytest.mark.parametrize("recording", READ, ids=lambda one: one.name)
def test_a_recording_by_events_and_whole(recording: Recording) -> None:
    data, used = expected(recording)
    assert counted(data) == used
    assert counted(*frames(recording)) == used


@NEEDS_RECORDINGS
@pytest.mark.parametrize("api", sorted(SEEN))
def test_a_recording_byte_by_byte(api: str) -> None:
    found = [one for one in READ if one.api == api]
    for recording in (min(found, key=size), min((r for r in found if r.stream), key=size)):
        data, used = expected(recording)
        assert used is not None
        assert counted(*(data[i : i + 1] for i in range(len(data)))) == used, recording.name


def size(recording: Recording) -> int:
    """How much there is of a recording that has usage."""
    data, used = expected(recording)
    return len(data) if used is not None else MAX_SEEN_BYTES


@NEEDS_RECORDINGS
@settings(deadline=None)
@given(st.data())
def test_any_split_of_any_recording(data: st.DataObject) -> None:
    recording = data.draw(st.sampled_from(READ))
    content, used = expected(recording)
    places = data.draw(st.lists(st.integers(0, len(content)), max_size=12))
    assert counted(*cut(content, *places)) == used


@NEEDS_RECORDINGS
def test_a_spliced_stream_counts_what_the_provider_said_last() -> None:
    (spliced,) = [r for r in RECORDINGS if "spliced-message-start" in r.name]
    assert counted(*frames(spliced)) == Usage(prompt_tokens=17, completion_tokens=65)


# -- shapes ----------------------------------------------------------------------------------------

IMAGES = {
    "created": 1,
    "data": [{"b64_json": "AAAA"}],
    "usage": {
        "input_tokens": 50,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        "output_tokens": 4160,
        "total_tokens": 4210,
    },
}
PICTURED = Usage(50, completion_tokens=4160, image_prompt_tokens=40)
TRANSCRIPT = {
    "text": "hello",
    "usage": {
        "type": "tokens",
        "input_tokens": 14,
        "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
        "output_tokens": 45,
        "total_tokens": 59,
    },
}
GOOGLE = {
    "candidates": [],
    "usageMetadata": {
        "promptTokenCount": 9,
        "candidatesTokenCount": 4,
        "thoughtsTokenCount": 2,
        "cachedContentTokenCount": 3,
    },
}
ANTHROPIC = {
    "type": "message",
    "usage": {
        "input_tokens": 5,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 3,
        "output_tokens": 4,
    },
}
EMBEDDED = {"object": "list", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
AWS = {"output": {}, "usage": {"inputTokens": 30, "outputTokens": 6, "totalTokens": 36}}
SHAPES = [
    (completion("hello", usage(7, 5, cached=3, reasoning=2)), Usage(7, 3, 0, 5, 2)),
    (EMBEDDED, Usage(8)),
    (IMAGES, PICTURED),
    (TRANSCRIPT, Usage(14, completion_tokens=45)),
    (ANTHROPIC, Usage(10, 3, 2, 4)),
    (GOOGLE, Usage(9, 3, 0, 6, 2)),
    (AWS, Usage(30, completion_tokens=6)),
]


SEARCHED = {
    "object": "response",
    "output": [
        {"type": "web_search_call", "action": {"type": "search", "query": "x"}},
        {"type": "web_search_call", "action": {"type": "open_page", "url": "http://x"}},
        {"type": "web_search_call"},
        {"type": "message", "content": []},
        "odd",
    ],
    "usage": {"input_tokens": 9, "output_tokens": 4},
}
LASTING = {
    "usage": {
        "input_tokens": 5,
        "cache_creation_input_tokens": 6,
        "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 4},
        "server_tool_use": {"web_search_requests": 3},
        "output_tokens": 1,
    }
}
DRAWN = {
    "output": [{"type": "image_generation_call", "result": "AAAA"}],
    "tool_usage": {
        "image_gen": {
            "input_tokens": 50,
            "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
            "output_tokens": 4160,
            "output_tokens_details": {"image_tokens": 4160, "text_tokens": 0},
        },
        "web_search": {"num_requests": 0},
    },
    "usage": {"input_tokens": 9, "output_tokens": 4},
}
DRAWN_USED = Usage(59, 0, 0, 4164, image_prompt_tokens=40, image_completion_tokens=4160)
ITERATED = {
    "usage": {
        "input_tokens": 0,
        "output_tokens": 0,
        "iterations": [
            {"type": "compaction", "input_tokens": 180, "output_tokens": 35},
            {"type": "message", "input_tokens": 2, "output_tokens": 3},
            {
                "type": "advisor_message",
                "input_tokens": 7,
                "output_tokens": 8,
                "cache_read_input_tokens": 9,
            },
        ],
    }
}
AWS_LASTING = {
    "usage": {
        "inputTokens": 5,
        "cacheWriteInputTokens": 6,
        "outputTokens": 1,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 4}, {"ttl": "5m", "inputTokens": 2}],
    }
}
CHARGED = [
    (SEARCHED, Usage(9, completion_tokens=4, web_searches=2)),
    ({"type": "response.completed", "response": SEARCHED}, Usage(9, 0, 0, 4, web_searches=2)),
    (LASTING, Usage(11, 0, 6, 1, cache_write_1h_tokens=4, web_searches=3)),
    (DRAWN, DRAWN_USED),
    ({"type": "response.completed", "response": DRAWN}, DRAWN_USED),
    (ITERATED, Usage(196, 9, 0, 43, beside_prompt_tokens=196)),
    (AWS_LASTING, Usage(11, 0, 6, 1, cache_write_1h_tokens=4)),
]


@pytest.mark.parametrize(("content", "used"), CHARGED)
def test_what_is_charged_beside_tokens(content: Any, used: Usage) -> None:
    assert counted(sse(content)) == used
    assert counted(whole(content)) == used


@pytest.mark.parametrize(("content", "used"), SHAPES)
def test_a_body(content: Any, used: Usage) -> None:
    assert counted(whole(content)) == used
    assert counted(b" \r\n\t", json.dumps(content, indent=4).encode(), b"\n") == used
    assert counted(b"\xef\xbb", b"\xbf" + whole(content)) == used
    assert counted(sse(content)) == used


def test_a_stream_of_googles_that_is_no_event_stream() -> None:
    parts = [
        {**GOOGLE, "usageMetadata": {"promptTokenCount": 9}},
        {**GOOGLE, "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4}},
    ]
    assert counted(json.dumps(parts, indent=2).encode()) == Usage(9, completion_tokens=4)


USED = {**delta(None), "choices": [], "usage": usage(7, 5)}
FIRST = [b": a comment\n\n", b"id: 1\n", b"retry: 3000\n\n", b"event: x\n", b"\n\n", b"\r\n", b" "]


@pytest.mark.parametrize("first", [*FIRST, b"\xef\xbb\xbf"])
def test_a_stream_begins_in_many_ways(first: bytes) -> None:
    data = first.strip(b" ") + sse(delta("one")) + sse(USED) + sse("[DONE]")
    assert counted(data) == Usage(7, completion_tokens=5)
    assert counted(*(data[i : i + 1] for i in range(len(data)))) == Usage(7, completion_tokens=5)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_a_last_event_without_its_empty_line(end: bytes) -> None:
    assert counted(sse(delta("one")), sse(USED).rstrip(b"\n") + end) == Usage(7, 0, 0, 5)


def test_the_last_figure_of_each_kind_counts() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}
    end = {"type": "message_delta", "usage": {"input_tokens": None, "output_tokens": 7}}
    assert counted(sse(start), sse(end)) == Usage(9, completion_tokens=7)
    assert counted(sse(start)) == Usage(9, completion_tokens=1)


SILENT = [
    b"",
    b" ",
    b"null",
    b"[]",
    b"[1, 2]",
    b"{",
    b'{"usage": null}',
    b'{"usage": 7}',
    b'{"usage": {}}',
    b'{"usage": []}',
    b'{"usage": {"type": "duration", "seconds": 3}}',
    b'{"usage": {"prompt_tokens": "many"}}',
    b'{"usage": {"prompt_tokens": {}}}',
    b'{"usage": {"prompt_tokens": 1.5}}',
    b'{"usage": {"input_tokens": 1, "input_tokens_details": 7}}',
    b'{"usage": {"prompt_tokens": 1}} {"usage": {"prompt_tokens": 2}}',
    b'{"usage": {"prompt_tokens": 1}',
    b'{"usage": {"\xff": 1}}',
    b'{"usage": ' + b"[" * 100_000,
    b'data: {"usage": {"prompt_tokens": []}}\n\n',
    b"data: \xff\xfe usage\n\n",
    b'{"message": "usage", "response": [], "usageMetadata": 3}',
    b'{"choices": [{"text": "\\"usage\\": {\\"prompt_tokens\\": 5}"}]}',
    b'{"data": [{"usage": {"prompt_tokens": 5}}]}',
    b"ID3\x04 usage",
    b"dear usage,\n\nhow are you",
    b"\x00\x00\x00\x18ftypmp42",
    b"\x00" * 100,
]


@pytest.mark.parametrize("data", SILENT)
def test_an_answer_that_does_not_say_is_no_error(data: bytes) -> None:
    assert counted(data) is None
    assert counted(*(data[i : i + 1] for i in range(min(len(data), 1000)))) is None


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_nothing_that_a_provider_sends_fails_a_settlement(pieces: list[bytes]) -> None:
    counted(*pieces)
    counted(b"data: ", *pieces)
    counted(b'{"usage": ', *pieces)


Figures = st.dictionaries(
    st.sampled_from(
        [
            *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens"),
            *("output_tokens", "cache_read_input_tokens", "inputTokens", "outputTokens"),
            *("promptTokenCount", "prompt_tokens_details", "input_tokens_details", "tokens"),
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    ),
)


@settings(deadline=None)
@given(Figures)
def test_no_figures_fail_a_settlement(figures: dict[str, Any]) -> None:
    counted(whole({"usage": figures}))
    counted(sse({"message": {"usage": figures}}), sse({"usage": figures}))


UNTOLD = [
    completion("Hej", usage(1, 1)),
    {"candidates": [{"content": {"parts": [{"text": "Hej"}], "role": "model"}}]},
    {"type": "message", "content": [{"type": "text", "text": "Hej"}]},
    {"output": [{"type": "message", "content": [{"type": "output_text", "text": "Hej"}]}]},
    {"generation": "Hej", "stop_reason": "stop"},
    {"text": "Hej", "generation_id": "x"},
]


@pytest.mark.parametrize("content", UNTOLD)
def test_a_whole_answer_that_tells_no_figures_has_its_text(content: Any) -> None:
    content = {name: value for name, value in content.items() if name != "usage"}
    assert written(whole(content)) == "Hej"
    assert counted(whole(content)) is None
    told = {**content, "usage": {"prompt_tokens": 7, "completion_tokens": 5}}
    assert written(whole(told)) == ""


HALVES: list[tuple[Any, Any, Usage | None]] = [
    (delta("Hej"), {"choices": [], "usage": {"prompt_tokens": 7}}, None),
    (
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hej"}},
        {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 7}},
        None,
    ),
    (
        {"type": "content-delta", "delta": {"message": {"content": {"text": "Hej"}}}},
        {"type": "message-end", "delta": {"usage": {"billed_units": {"input_tokens": 7}}}},
        None,
    ),
    (
        {"contentBlockIndex": 1, "delta": {"text": "Hej"}},
        {"metrics": {}, "usage": {"inputTokens": 7}},
        None,
    ),
    (
        {"event_type": "content.delta", "delta": {"text": "Hej"}},
        {"interaction": {"usage": {"total_input_tokens": 7}}},
        None,
    ),
    (
        {"candidates": [{"content": {"parts": [{"text": "Hej"}]}}]},
        {"candidates": [], "usageMetadata": {"promptTokenCount": 7, "totalTokenCount": 7}},
        Usage(7),
    ),
]


@pytest.mark.parametrize(("said", "half", "used"), HALVES)
def test_figures_of_the_prompt_alone_leave_the_text_to_be_counted(
    said: Any, half: Any, used: Usage | None
) -> None:
    seen = ForeignUsage()
    seen.feed(sse(said) + sse(half))
    assert (seen.result(), seen.text(), seen.outdated) == (used, "Hej", used is not None)
    assert counted(sse(half)) == Usage(7)  # as embeddings tell it


@pytest.mark.parametrize(
    ("content", "used"),
    [
        (completion("Hej", {"prompt_tokens": 7}), None),
        ({**UNTOLD[1], "usageMetadata": {"promptTokenCount": 7}}, Usage(7)),
        ([{**UNTOLD[1], "usageMetadata": {"promptTokenCount": 7}}], Usage(7)),
        ({**UNTOLD[2], "usage": {"input_tokens": 7}}, None),
        ({**UNTOLD[5], "meta": {"billed_units": {"input_tokens": 7}}}, None),
    ],
)
def test_a_whole_answer_that_tells_half_its_figures_has_its_text(
    content: Any, used: Usage | None
) -> None:
    assert counted(whole(content)) == used
    assert written(whole(content)) == "Hej"


def test_what_is_billed_in_other_units_than_tokens_has_no_text_to_be_counted() -> None:
    found: Any = {"results": [{"index": 0, "document": {"text": "Hej"}}]}
    found["meta"] = {"billed_units": {"search_units": 1}}
    assert (counted(whole(found)), written(whole(found))) == (Usage(), "")


TOLD = [
    ({"meta": {"billed_units": {"input_tokens": 5}}, "embeddings": []}, Usage(5)),
    ({"meta": {"tokens": {"input_tokens": 5, "output_tokens": 2}}}, Usage(5, completion_tokens=2)),
    (
        {
            "usage": {
                "billed_units": {"input_tokens": 5, "output_tokens": 2},
                "tokens": {"input_tokens": 500, "output_tokens": 4},
                "cached_tokens": 480,
            }
        },
        Usage(5, completion_tokens=2),
    ),
    ({"generation": "x", "prompt_token_count": 9, "generation_token_count": 4}, Usage(9, 0, 0, 4)),
    ({"inputTextTokenCount": 9, "results": [{"tokenCount": 4}]}, Usage(9, completion_tokens=4)),
    (
        {
            "object": "interaction",
            "usage": {
                "total_input_tokens": 10,
                "total_output_tokens": 33,
                "total_thought_tokens": 311,
            },
        },
        Usage(10, completion_tokens=344, reasoning_tokens=311),
    ),
    ({"choices": [{"usage": {"prompt_tokens": 9, "completion_tokens": 4}}]}, Usage(9, 0, 0, 4)),
]


@pytest.mark.parametrize(("content", "used"), TOLD)
def test_figures_of_other_apis(content: Any, used: Usage) -> None:
    assert counted(whole(content)) == used


def test_figures_of_an_interaction_as_a_stream() -> None:
    figures = {"total_input_tokens": 7, "total_output_tokens": 26, "total_thought_tokens": 115}
    last = {"event_type": "interaction.completed", "interaction": {"usage": figures}}
    assert counted(sse({"delta": {"text": "Hej"}}), sse(last)) == Usage(7, 0, 0, 141, 115)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_list_that_breaks_off_has_what_came(cut: int) -> None:
    part = {"candidates": [{"content": {"parts": [{"text": "Hej "}]}}]}
    whole_list = json.dumps([*[part] * 5, GOOGLE], indent=1).encode()
    assert written(whole_list[:-cut]).startswith("Hej Hej ")
    assert (counted(whole_list[:-cut]) is not None) == (cut == 1)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("piece", [1000, 65536, 10**9])
def test_figures_behind_a_picture_that_is_too_large_for_an_event(piece: int, nested: bool) -> None:
    picture = {"type": "done", "b64_json": "A" * (MAX_SEEN_BYTES + 10**6), "usage": usage(50, 4160)}
    data = sse({"type": "x"}) + sse({"response": picture} if nested else picture) + sse("[DONE]")
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    assert counted(*pieces) == Usage(50, completion_tokens=4160)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_tool_drew_is_found_behind_a_picture_that_is_too_large(streamed: bool) -> None:
    drawn = [{"type": "image_generation_call", "result": "A" * (MAX_SEEN_BYTES + 10**6)}]
    response = {**DRAWN, "output": drawn}
    if streamed:
        data = sse({"type": "response.created"}) + sse({"response": response})
        assert counted(data[: 10**6], data[10**6 :]) == DRAWN_USED
    else:
        assert counted(whole(response)) == DRAWN_USED


def test_figures_at_the_end_of_a_list_that_is_too_large() -> None:
    picture = {"candidates": [{"content": {"parts": [{"inlineData": "A" * (MAX_SEEN_BYTES * 2)}]}}]}
    assert counted(whole([picture, GOOGLE])) == Usage(9, 3, 0, 6, 2)


COHERE_V1 = [
    {"is_finished": False, "event_type": "stream-start", "generation_id": "x"},
    {"is_finished": False, "event_type": "text-generation", "text": "He"},
    {"is_finished": False, "event_type": "text-generation", "text": "j"},
    {
        "is_finished": True,
        "event_type": "stream-end",
        "response": {
            "text": "Hej",
            "meta": {
                "billed_units": {"input_tokens": 7, "output_tokens": 2},
                "tokens": {"input_tokens": 70, "output_tokens": 4},
            },
        },
    },
]


@pytest.mark.parametrize("lines", [False, True])
def test_a_chat_stream_of_coheres_first_version(lines: bool) -> None:
    parts = [whole(one) + b"\n" if lines else sse(one) for one in COHERE_V1]
    for piece in (parts, [b"".join(parts)]):
        assert (counted(*piece), written(*piece)) == (Usage(7, completion_tokens=2), "Hej")
    assert (counted(*parts[:-1]), written(*parts[:-1])) == (None, "Hej")
    called = {"response": {"meta": {"billed_units": {"input_tokens": 7, "output_tokens": 2}}}}
    assert counted(*parts[:1], sse(called) if not lines else whole(called)) == Usage(7, 0, 0, 2)


# -- Bedrock's invocations of a model's own API ----------------------------------------------------


def packed(content: Any) -> bytes:
    """A message of InvokeModelWithResponseStream."""
    inner = base64.b64encode(json.dumps(content).encode()).decode()
    return event_stream_message(json.dumps({"chunk": {"bytes": inner, "p": "abcdefgh"}}))


METRICS = {
    "inputTokenCount": 7,
    "outputTokenCount": 126,
    "invocationLatency": 4069,
    "firstByteLatency": 1117,
    "cacheReadInputTokenCount": 14,
    "cacheWriteInputTokenCount": 22,
}
INVOKED = {"amazon-bedrock-invocationMetrics": METRICS}


def test_an_invocation_of_claude() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hej"}}
    end = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 126}}
    parts = [packed(one) for one in (start, text, end, {"type": "message_stop", **INVOKED})]
    assert counted(*parts) == Usage(7, completion_tokens=126)
    assert counted(b"".join(parts)) == Usage(7, completion_tokens=126)
    assert written(*parts) == "Hej"
    assert written(*parts[:2]) == "Hej"


@pytest.mark.parametrize(
    "piece",
    [
        {"generation": "Hej", "prompt_token_count": None},  # Llama's
        {"outputText": "Hej", "index": 0},  # Titan's
        {"outputs": [{"text": "Hej", "stop_reason": None}]},  # Mistral's
    ],
)
def test_an_invocation_of_another_model(piece: dict[str, Any]) -> None:
    assert written(packed(piece), packed({**piece, **INVOKED})) == "HejHej"
    assert counted(packed(piece), packed({**piece, **INVOKED})) == Usage(43, 14, 22, 126)


def test_an_invocation_whose_figures_are_in_its_head() -> None:
    seen = ForeignUsage()
    seen.head(
        {
            b"x-amzn-bedrock-input-token-count": b"9",
            b"x-amzn-bedrock-output-token-count": b"4",
            b"x-amzn-bedrock-cache-read-input-token-count": b"x",
        }
    )
    seen.feed(b'{"generation": "Hej", "generation_token_count": 4}')
    assert seen.result() == Usage(9, completion_tokens=4)


@pytest.mark.parametrize("inner", ["no base64 ~", "", "e30=", "bnVsbA==", 7, None, "w6k="])
def test_a_packed_event_that_is_none(inner: Any) -> None:
    message = event_stream_message(json.dumps({"chunk": {"bytes": inner}}))
    assert counted(message, packed(INVOKED)) == Usage(43, 14, 22, 126)


def test_a_call_in_a_converse_stream_is_written_too() -> None:
    delta = {"contentBlockIndex": 1, "delta": {"toolUse": {"input": '{"city": '}}}
    assert written(event_stream_message(json.dumps({"contentBlockDelta": delta}))) == '{"city": '


# -- text, for a stream that does not say ----------------------------------------------------------


def written(*pieces: bytes) -> str:
    """What is seen to be written in an answer that comes in these pieces."""
    seen = ForeignUsage()
    for piece in pieces:
        seen.feed(piece)
    seen.result()
    return seen.text()


CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a":'}}
TEXTS: list[tuple[Any, str]] = [
    (delta("one"), "one"),
    (delta(None, "stop"), ""),
    (USED, ""),
    ({"choices": [{"index": 0, "text": "one", "finish_reason": None}]}, "one"),
    ({"choices": [{"delta": {"reasoning_content": "hm", "content": None}}]}, "hm"),
    ({"choices": [{"delta": {"tool_calls": [CALL]}}]}, '{"a":'),
    ({"choices": [{"delta": {"content": [{"type": "text", "text": "one"}]}}]}, "one"),
    ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "one"}}, "one"),
    ({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}}, "hm"),
    ({"type": "content_block_delta", "delta": {"partial_json": '{"a"'}}, '{"a"'),
    ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, ""),
    ({"type": "response.output_text.delta", "delta": "one"}, "one"),
    ({"type": "response.output_text.done", "text": "one"}, ""),
    ({"type": "response.completed", "response": {"output": [{"text": "delta"}]}}, ""),
    ({"candidates": [{"content": {"role": "model", "parts": [{"text": "one"}]}}]}, "one"),
    ({"type": "content-delta", "delta": {"message": {"content": {"text": "one"}}}}, "one"),
    ({"choices": "delta", "candidates": [7, None, ["text"]], "delta": 1.5}, ""),
]


@pytest.mark.parametrize(("content", "text"), TEXTS)
def test_what_an_event_adds_to_the_text(content: Any, text: str) -> None:
    assert written(sse(content)) == text


@NEEDS_RECORDINGS
@pytest.mark.parametrize(
    "recording", [one for one in READ if one.stream and one.api != "converse"], ids=lambda x: x.name
)
def test_what_a_recording_writes(recording: Recording) -> None:
    said = read(recording)
    assert len(written(*frames(recording))) >= len(said.text + said.reasoning)


def test_no_depth_of_nesting_fails_a_settlement() -> None:
    for depth in (*range(600, 1100), 100_000):  # somewhere there Python has enough
        for name in (b"choices", b"usage"):
            nested = b'{"%b": %b1%b, "x": "delta"}' % (name, b"[" * depth, b"]" * depth)
            assert counted(b"data: " + nested + b"\n\n") is None
            assert counted(nested) is None


def test_text_is_bounded() -> None:
    event = sse(delta("x" * 100_000))
    text = written(*[event] * 30)
    assert 900_000 < len(text) <= MEBIBYTE


# -- bounds ----------------------------------------------------------------------------------------


def peak(pieces: list[bytes], times: int, last: bytes = b"") -> tuple[Usage | None, int]:
    """What is found in an answer of many pieces, and the most memory that it took."""
    seen = ForeignUsage()
    tracemalloc.start()
    try:
        for _ in range(times):
            for piece in pieces:
                seen.feed(piece)
        seen.feed(last)
        return seen.result(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


PICTURE = b"A" * (64 * 1024)


def test_a_body_of_50_megabytes_is_not_held_and_its_usage_found_at_the_end() -> None:
    ending = b'"}], "usage": ' + whole(IMAGES["usage"]) + b', "size": "1024x1024"}\n'
    seen = ForeignUsage()
    seen.feed(b'{"created": 1, "data": [{"b64_json": "')
    tracemalloc.start()
    try:
        for _ in range(800):
            seen.feed(PICTURE)
        for i in range(0, len(ending), 7):
            seen.feed(ending[i : i + 7])
        assert seen.result() == PICTURED
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_SEEN_BYTES
    finally:
        tracemalloc.stop()


HUGE = b'{"data": "' + b"x" * (MAX_SEEN_BYTES + 10)
NOT_AT_ITS_TOP = [
    b'", "inner": {"usage": {"prompt_tokens": 5}}}',
    b'"}, {"usage": {"prompt_tokens": 5}}]',
    b'", "list": [{"usage": {"prompt_tokens": 5}}]}',
    b'", "usage": {"prompt_tokens": 5}',
    b'", "usage": {"prompt_tokens": 5}} trailing',
    b'\\"usage\\": {\\"prompt_tokens\\": 5}"}',
    b'"}',
]


@pytest.mark.parametrize("ending", NOT_AT_ITS_TOP)
def test_in_a_huge_body_only_the_answers_own_usage_counts(ending: bytes) -> None:
    assert counted(HUGE, ending) is None


def test_what_is_left_out_of_a_huge_body_makes_no_other_body_of_the_rest() -> None:
    large = b"x" * (MAX_SEEN_BYTES + 10)
    parts = [
        b'{"text": "',
        large + b'", "inner": {"text": "',
        b'", "usage": {"prompt_tokens": 5}',
        b', "text": "' + large + b'"}',
        b"}",
    ]
    assert json.loads(b"".join(parts))["inner"]["usage"] == {"prompt_tokens": 5}
    assert counted(*parts) is None


def test_a_download_is_not_held() -> None:
    content = [random.Random(1).randbytes(64 * 1024)]
    for first in (b"\x89PNG", b"%PDF", b"ID3", b"\xff\xf3", b"PK", b"\x00\x00\x00\x18ftyp"):
        found, most = peak([first, *content], 100)
        assert found is None
        assert most < MEBIBYTE, first


def test_an_event_that_never_ends_is_not_held() -> None:
    found, most = peak([b"data: ", PICTURE], 800)
    assert found is None
    assert most < 4 * MAX_SEEN_BYTES


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("over", [-100, -8, 0, 1, 65_536])
def test_an_event_that_is_too_large_does_not_hide_the_next(over: int, end: bytes) -> None:
    """It is an image, mostly: the usage stands in the event behind it."""
    image = b"data: " + b"A" * (MAX_SEEN_BYTES + over) + end
    last = sse({"type": "image_generation.completed", "usage": IMAGES["usage"]})
    data = image + last.replace(b"\n\n", end)
    for step in (65_536, 100_003):
        pieces = [data[i : i + step] for i in range(0, len(data), step)]
        assert counted(*pieces) == PICTURED


@pytest.mark.parametrize("over", range(-8, 4))
def test_an_event_that_is_too_large_by_a_little_and_never_ends(over: int) -> None:
    assert counted(b"data: ", b"A" * (MAX_SEEN_BYTES + over)) is None


# -- servers' own streams --------------------------------------------------------------------------

NDJSON = {b"content-type": b"application/x-ndjson"}
SSE = {b"content-type": b"text/event-stream"}


def lines(*found: Any) -> list[bytes]:
    return [json.dumps(one).encode() + b"\n" for one in found]


def llama(n: int, text: str, **fields: Any) -> Any:
    return {"index": 0, "content": text, "stop": False, "id_slot": 0, **fields}


def tgi(text: str, whole_text: str | None = None, details: Any = None) -> Any:
    token = {"id": 1, "text": text, "logprob": -0.1, "special": False}
    return {"index": 1, "token": token, "generated_text": whole_text, "details": details}


OLLAMA_END = {"done": True, "prompt_eval_count": 7, "eval_count": 9}
SERVERS: dict[str, tuple[dict[bytes, bytes], list[bytes], Usage]] = {
    "llama.cpp": (
        SSE,
        [
            *[sse(llama(n, f" w{n}")) for n in range(3)],
            sse(llama(3, "", stop=True, tokens_predicted=9, tokens_evaluated=7)),
        ],
        Usage(7, completion_tokens=9),
    ),
    "TGI": (
        SSE,
        [
            *[sse(tgi(f" w{n}")) for n in range(2)],
            sse(tgi(" w2", " w0 w1 w2", {"generated_tokens": 9, "input_length": 7})),
        ],
        Usage(7, completion_tokens=9),
    ),
    "Ollama's chats": (
        NDJSON,
        lines(
            *[{"message": {"role": "assistant", "content": f" w{n}"}} for n in range(3)],
            {"message": {"role": "assistant", "content": ""}, **OLLAMA_END},
        ),
        Usage(7, completion_tokens=9),
    ),
    "Ollama's texts": (
        NDJSON,
        lines(*[{"response": f" w{n}"} for n in range(3)], {"response": "", **OLLAMA_END}),
        Usage(7, completion_tokens=9),
    ),
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_servers_own_stream(server: str, size: int) -> None:
    head, pieces, used = SERVERS[server]
    seen, data = ForeignUsage(), b"".join(pieces)
    seen.head(head)
    for at in range(0, len(data), size):
        seen.feed(data[at : at + size])
    assert seen.framing
    assert (seen.result(), seen.text()) == (used, " w0 w1 w2")


@pytest.mark.parametrize("server", SERVERS)
def test_one_that_breaks_off_has_its_text(server: str) -> None:
    head, pieces, _ = SERVERS[server]
    seen = ForeignUsage()
    seen.head(head)
    for piece in pieces[:2]:
        seen.feed(piece)
    assert (seen.result(), seen.text()) == (None, " w0 w1")


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "hi", "tokens_predicted": 9, "tokens_evaluated": 7},
        {"response": "hi", **OLLAMA_END},
        {"message": {"content": "hi"}, **OLLAMA_END},
        {"generated_text": "hi", "details": {"generated_tokens": 9, "input_length": 7}},
    ],
)
def test_a_servers_own_whole_answer(answer: Any) -> None:
    assert counted(whole(answer)) == Usage(7, completion_tokens=9)


def test_a_transcript_is_text_and_sound_is_nothing_to_read() -> None:
    text, sound = ForeignUsage(), ForeignUsage()
    text.head({b"content-type": b"text/plain; charset=utf-8"})
    text.feed(b"  \n entirely what was said")
    sound.head({b"content-type": b"audio/mpeg"})
    sound.feed(b"\xff\xfb\0\0")
    assert (text.text(), text.opaque) == ("entirely what was said", False)
    assert (sound.text(), sound.opaque) == ("", True)


def test_a_line_without_end_is_not_kept() -> None:
    seen = ForeignUsage()
    seen.head(NDJSON)
    for _ in range(80):
        seen.feed(b"{" + b" " * 100_000)
    assert seen.unfinished() <= MAX_SEEN_BYTES
