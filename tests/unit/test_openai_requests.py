"""Requests of OpenAI's API: what is understood, what is kept raw, and what is refused and how."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import ApiError
from gateway.core.operations import Operation
from gateway.formats.body import (
    INLINE_DATA_TOKENS,
    MOST_MARKS,
    SHORTEST_FILE_BYTES,
    _begins,
    decode,
    estimate_prompt,
)
from gateway.formats.openai import error_body, error_event

FIXTURES = Path(
    os.environ.get("SLUICE_FIXTURES")
    or Path(__file__).resolve().parents[2].parent / "shared" / "fixtures"
)
JSON_SUITE = sorted((FIXTURES / "json-parsing" / "test_parsing").glob("*.json"))
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]'
RESPONSE = b'{"model":"m","input":"hi"'


def chat(rest: bytes = b"") -> bytes:
    return CHAT + rest + b"}"


def refused(operation: Operation, body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode(operation, body)
    assert caught.value.status == 400
    return caught.value


# --- Understood ----------------------------------------------------------------------------------


def test_a_chat_is_decoded_and_every_field_kept_as_written() -> None:
    body = chat(b', "n" : 2,"max_tokens":9,"unheard_of": {"a" : 1.50e400 ,"b":"\\u00e9"}')
    request = decode(Operation.CHAT, body)
    assert (request.model, request.stream, request.wants_usage) == ("m", False, False)
    assert (request.max_output, request.choices) == (9, 2)
    assert {name: bytes(raw).strip() for name, raw in request.fields.items()} == {
        "model": b'"m"',
        "messages": b'[{"role":"user","content":"hi"}]',
        "n": b"2",
        "max_tokens": b"9",
        "unheard_of": b'{"a" : 1.50e400 ,"b":"\\u00e9"}',
    }


@pytest.mark.parametrize(
    ("rest", "stream", "wants_usage"),
    [
        (b"", False, False),
        (b',"stream":null,"stream_options":null', False, False),
        (b',"stream":true', True, False),
        (b',"stream":true,"stream_options":{}', True, False),
        (b',"stream":true,"stream_options":{"include_usage":null}', True, False),
        (b',"stream":true,"stream_options":{"include_usage":false}', True, False),
        (b',"stream":true,"stream_options":{"include_usage":true,"x":1}', True, True),
    ],
)
def test_streams_and_whether_they_want_usage(rest: bytes, stream: bool, wants_usage: bool) -> None:
    request = decode(Operation.CHAT, chat(rest))
    assert (request.stream, request.wants_usage) == (stream, wants_usage)


@pytest.mark.parametrize(
    ("rest", "max_output"),
    [
        (b"", None),
        (b',"max_tokens":5', 5),
        (b',"max_completion_tokens":6', 6),
        (b',"max_tokens":5,"max_completion_tokens":6', 6),
        (b',"max_tokens":5,"max_completion_tokens":null', 5),
    ],
)
def test_the_maximum_of_output_tokens(rest: bytes, max_output: int | None) -> None:
    assert decode(Operation.CHAT, chat(rest)).max_output == max_output


@pytest.mark.parametrize("prompt", [b'"hi"', b'["a","b"]', b"[1,2]", b"[[1],[2]]"])
def test_completions_take_every_form_of_prompt(prompt: bytes) -> None:
    body = b'{"model":"m","max_tokens":3,"prompt":' + prompt + b"}"
    request = decode(Operation.COMPLETIONS, body)
    assert (request.operation, request.max_output) == (Operation.COMPLETIONS, 3)
    assert bytes(request.fields["prompt"]) == prompt


def test_embeddings_generate_nothing_and_never_stream() -> None:
    request = decode(Operation.EMBEDDINGS, b'{"model":"e","input":["a"],"stream":true,"n":7}')
    assert (request.stream, request.max_output, request.choices) == (False, 0, 1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","messages":[1],"model":"b"}',
        b'{"model":"a","messages":[1],"mod\\u0065l":"b"}',
    ],
)
def test_a_field_given_twice_is_one_field_with_the_value_that_was_judged(body: bytes) -> None:
    request = decode(Operation.CHAT, body)
    assert request.model == "b"
    assert list(request.fields) == ["model", "messages"]
    assert bytes(request.fields["model"]) == b'"b"'


def test_naughty_strings_come_back_byte_for_byte() -> None:
    path = FIXTURES / "naughty-strings" / "blns.json"
    if not path.is_file():
        pytest.skip(f"no strings at {path} (set SLUICE_FIXTURES)")
    for text in json.loads(path.read_bytes()):
        for ascii_only in (True, False):
            raw = json.dumps(text, ensure_ascii=ascii_only).encode()
            request = decode(Operation.CHAT, chat(b',"x":' + raw))
            assert bytes(request.fields["x"]) == raw


# --- Refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "model"),
        (b'{"messages":[1]}', "model"),
        (b'{"model":"m"}', "messages"),
    ],
)
def test_a_missing_field_is_named(body: bytes, param: str) -> None:
    error = refused(Operation.CHAT, body)
    assert (error.code, error.param) == ("missing_required_parameter", param)
    assert error.message == f"Missing required parameter: '{param}'."


@pytest.mark.parametrize(
    ("operation", "body", "param"),
    [
        (Operation.CHAT, b'{"model":5,"messages":[1]}', "model"),
        (Operation.CHAT, b'{"model":null,"messages":[1]}', "model"),
        (Operation.CHAT, b'{"model":"","messages":[1]}', "model"),
        (Operation.CHAT, b'{"model":"' + b"m" * 257 + b'","messages":[1]}', "model"),
        (Operation.CHAT, b'{"model":"m","messages":[]}', "messages"),
        (Operation.CHAT, b'{"model":"m","messages":"hi"}', "messages"),
        (Operation.CHAT, chat(b',"stream":"yes"'), "stream"),
        (Operation.CHAT, chat(b',"stream_options":[]'), "stream_options"),
        (
            Operation.CHAT,
            chat(b',"stream_options":{"include_usage":1}'),
            "stream_options.include_usage",
        ),
        (Operation.CHAT, chat(b',"max_tokens":-1'), "max_tokens"),
        (Operation.CHAT, chat(b',"max_tokens":0'), "max_tokens"),
        (
            Operation.CHAT,
            chat(b',"max_tokens":5,"max_completion_tokens":0'),
            "max_completion_tokens",
        ),
        (
            Operation.RESPONSES,
            b'{"model":"m","input":"x","max_output_tokens":0}',
            "max_output_tokens",
        ),
        (Operation.MESSAGES, b'{"model":"m","messages":[1],"max_tokens":0}', "max_tokens"),
        (Operation.COMPLETIONS, b'{"model":"m","prompt":"x","max_tokens":-1}', "max_tokens"),
        (Operation.CHAT, chat(b',"max_tokens":1.5'), "max_tokens"),
        (Operation.CHAT, chat(b',"max_tokens":99999999999999999999999'), "max_tokens"),
        (Operation.CHAT, chat(b',"max_completion_tokens":"9"'), "max_completion_tokens"),
        (Operation.CHAT, chat(b',"n":0'), "n"),
        (Operation.CHAT, chat(b',"n":129'), "n"),
        (Operation.COMPLETIONS, b'{"model":"m","prompt":5}', "prompt"),
        (Operation.EMBEDDINGS, b'{"model":"m","input":{}}', "input"),
        (Operation.CHAT, b"[]", None),
        (Operation.CHAT, b'"hi"', None),
        (Operation.CHAT, b"null", None),
    ],
)
def test_a_wrong_field_is_named(operation: Operation, body: bytes, param: str | None) -> None:
    error = refused(operation, body)
    assert (error.code, error.param) == ("invalid_value", param)
    assert f"'{param or 'the body'}'" in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"hello",
        chat() + b"x",
        chat(b",}"),
        b"\xef\xbb\xbf" + chat(),
        chat(b',"x":"\xff"'),
        chat(b',"x":"\xed\xa0\x80"'),
        chat(b',"\xff":1'),
        chat(b',"x":' + b"[" * 100_000 + b"]" * 100_000),
        chat().decode().encode("utf-16"),
        b"\0" * 100,
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    error = refused(Operation.CHAT, body)
    assert (error.code, error.param) == ("invalid_json", None)


@pytest.mark.skipif(not JSON_SUITE, reason=f"no JSONTestSuite at {FIXTURES} (set SLUICE_FIXTURES)")
@pytest.mark.parametrize("path", JSON_SUITE, ids=lambda path: path.stem)
def test_json_inside_a_field_that_is_not_looked_at(path: Path) -> None:
    content = path.read_bytes()
    body = chat(b',"x":' + content)
    if path.name.startswith("y_"):
        assert bytes(decode(Operation.CHAT, body).fields["x"]).strip() == content.strip()
    elif path.name.startswith("n_"):
        refused(Operation.CHAT, body)
    else:
        with contextlib.suppress(ApiError):  # either way, but nothing else
            decode(Operation.CHAT, body)


# --- Estimates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3, 4, 400, 4001])
def test_a_prompt_is_estimated_by_its_length(size: int) -> None:
    assert estimate_prompt(b"a" * size) == size // 4 + 1


def test_files_inside_a_prompt_count_flat_whatever_their_size() -> None:
    def body(size: int) -> bytes:
        image = b'{"url":"data:image/png;base64,' + b"A" * size + b'"}'
        return b"[" + image + b",{}," + image + b"]"

    assert estimate_prompt(body(4_000_000)) == estimate_prompt(body(4000))
    assert 2000 < estimate_prompt(body(4000)) < 2050
    assert estimate_prompt(b'"data:x;base64,","data:y;base64,AAAA') == 1000 + 36 // 4 + 1


@pytest.mark.parametrize("mark", [b";base64,", b'"data"', b'"data":"'])
def test_what_is_nothing_but_marks_is_not_looked_at_for_ever(
    monkeypatch: pytest.MonkeyPatch, mark: bytes
) -> None:
    looked = []

    def counted(*where: Any) -> int:
        looked.append(where)
        return _begins(*where)

    monkeypatch.setattr("gateway.formats.body._begins", counted)
    text = b"A" * SHORTEST_FILE_BYTES + mark * 100_000
    assert estimate_prompt(text) == len(text) // 4 + 1
    assert len(looked) <= 2 * MOST_MARKS


@given(st.integers(0, 3000), st.integers(0, 100), st.sampled_from(["data", "bytes", "result"]))
def test_a_file_is_found_wherever_it_stands(before: int, longer: int, name: str) -> None:
    words = b'"text":"' + (b"and so on " * 300)[:before] + b'",'
    file = b'"%b":"' % name.encode() + b"A" * (SHORTEST_FILE_BYTES + longer) + b'"'
    body = b"{" + words + file + b"}"
    assert estimate_prompt(body) >= INLINE_DATA_TOKENS + before // 4
    assert estimate_prompt(body) < INLINE_DATA_TOKENS + before // 4 + 20


def test_a_file_with_two_marks_is_one_file_and_what_stands_beside_it_counts() -> None:
    file = b'"bytes":"data:x;base64,' + b"A" * 600_000 + b'"'
    words = b'"text":"' + b"and so on " * 1000 + b'"'
    assert 3500 < estimate_prompt(b"{" + file + b"," + words + b"}") < 3550
    assert 4500 < estimate_prompt(b"[{" + file + b"}," + words + b",{" + file + b"}]") < 4550


@pytest.mark.parametrize("words", ["and so on ", "\u4f60\u597d", "line\\n\\n- "])
@pytest.mark.parametrize("times", [1000, 100_000])
@pytest.mark.parametrize(
    "mark",
    [
        *('"content":"data:text/plain;base64,', '"data":"', '";base64,'),
        *('"bytes":"', '"result": "', '"file_data":"', '"b64_json":"', '"bytesBase64Encoded":"'),
    ],
)
def test_text_that_looks_like_a_file_is_text(mark: str, times: int, words: str) -> None:
    body = f'{{{mark}{words * times}"}}'.encode()
    if mark != '";base64,' and "\\n" in words:
        body = body.replace(b"- ", b" ")  # a blank alone is enough
    assert estimate_prompt(body) >= len(words.encode()) * times // 5


def test_a_client_cannot_choose_what_is_reserved_for_it() -> None:
    chosen = decode(Operation.CHAT, chat(b',"max_tokens":1000,"max_completion_tokens":1'))
    assert chosen.max_output == 1000
    best = b'{"model":"m","prompt":"x","max_tokens":50,"best_of":20,"n":2}'
    assert decode(Operation.COMPLETIONS, best).texts == 20
    many = b'{"model":"m","prompt":["x","y","z"],"max_tokens":50,"n":2}'
    assert decode(Operation.COMPLETIONS, many).texts == 6
    tokens = b'{"model":"m","prompt":[1,2,3,4],"max_tokens":50}'
    assert decode(Operation.COMPLETIONS, tokens).texts == 1


def test_the_estimate_of_a_request_is_that_of_its_body() -> None:
    body = chat(b',"x":"' + b"a" * 4000 + b'"')
    assert decode(Operation.CHAT, body).prompt_estimate == estimate_prompt(body) > 1000


# --- Errors as the API writes them ---------------------------------------------------------------


def test_errors_have_openais_shape() -> None:
    error = ApiError("model_not_found", 'no "x"', param="model")
    expected: dict[str, Any] = {
        "error": {
            "message": 'no "x"',
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert json.loads(error_body(error)) == expected
    assert error_event(error) == b"data: " + error_body(error) + b"\n\n"
    assert json.loads(error_body(ApiError("overloaded", "later")))["error"]["param"] is None


@pytest.mark.parametrize("spaced", [False, True])
def test_a_file_in_any_dialect_counts_at_a_flat_figure(spaced: bool) -> None:
    data = "A" * 600_000
    colon = '": "' if spaced else '":"'
    bodies = [
        '{"source":{"type":"base64","media_type":"image/png","data' + colon + data + '"}}',
        '{"input_audio":{"data' + colon + data + '","format":"wav"}}',
        '{"image_url":{"url' + colon + "data:image/png;base64," + data + '"}}',
        '{"image":{"format":"png","source":{"bytes' + colon + data + '"}}}',
        '{"type":"image_generation_call","result' + colon + data + '"}',
        '{"type":"file","file":{"file_data' + colon + data + '"}}',
        '{"type":"file","file":{"file_data' + colon + "data:a/b;base64," + data + '"}}',
        '{"instances":[{"image":{"bytesBase64Encoded' + colon + data + '"}}]}',
        '{"data":[{"b64_json' + colon + data + '"}]}',
    ]
    for body in bodies:
        assert 1000 <= estimate_prompt(body.encode()) < 1100
    assert estimate_prompt(b'{"data":"short","data":' + b"[1]" * 1000) > 700
    assert estimate_prompt(b'{"data":"' + b"never ends" * 1000) > 2000


@pytest.mark.parametrize("size", [4000, 400_000, 4_000_000])
@pytest.mark.parametrize("url", ["data:;base64,", "data:audio/wav;base64,", "DATA:x;base64,"])
def test_a_file_that_is_a_url_under_data_is_one_file(size: int, url: str) -> None:
    body = b'{"input_audio":{"data":"%b%b"}}' % (url.encode(), b"A" * size)
    assert 1000 < estimate_prompt(body) < 1050


@pytest.mark.parametrize("text", [";base64,", "data:;base64,", '"data":"'])
def test_marks_by_the_thousand_cost_no_more_than_reading_them(text: str) -> None:
    """Counted in looks at the body, as time is not asserted."""

    class Watched(bytes):
        looked = 0

        def find(self, *place: Any) -> int:
            found = bytes.find(self, *place)
            start, end = [*place[1:], 0, len(self)][:2] if len(place) > 1 else (0, len(self))
            Watched.looked += (found if found >= 0 else min(end, len(self))) - start
            return found

    body = json.dumps({"content": text * 20_000}).encode()
    assert estimate_prompt(Watched(body)) > 0
    assert Watched.looked < 8 * len(body)


def test_a_data_url_is_one_however_it_is_written() -> None:
    for head in ("DATA:image/png;base64,", f"data:image/png;name={'x' * 150};base64,"):
        assert estimate_prompt(f'{{"url":"{head}{"A" * 40_000}"}}'.encode()) < 1100
