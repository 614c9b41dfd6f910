"""The adapter of OpenAI's wire format: request bodies out, usage, texts and errors in."""

import json

import pytest

from gateway.core.errors import UpstreamError
from gateway.core.messages import Fit
from gateway.core.operations import Operation
from gateway.core.target import Deadlines, Origin, Target
from gateway.core.usage import Usage
from gateway.formats.body import decode
from gateway.providers.openai import ADAPTER, OpenAI
from gateway.providers.quirks import OLD_MAX, Quirks

NATIVE = ADAPTER.natives[Operation.CHAT]


def target(model: str = "m", api_key: str | None = "sk-1") -> Target:
    return Target(
        provider="p",
        kind="openai",
        model=model,
        origin=Origin("https", "api.example", 443),
        base_path="/v1",
        api_key=api_key,
        headers=(("X-Org", "o"),),
        deadlines=Deadlines(1, 1, 1, 1),
    )


def built(body: bytes, model: str = "m", operation: Operation = Operation.CHAT) -> bytes:
    return ADAPTER.natives[operation].build(decode(operation, body), target(model), Fit())


# --- Requests ------------------------------------------------------------------------------------


def test_fields_go_on_as_the_client_wrote_them() -> None:
    body = (
        b'{"model":"m","messages":[ {"role" : "user","content":"\\u00e9\xc3\xa9 \\/ \\ud83d\\ude00"'
        b'} ],"temperature":0.10,"seed":123456789012345678901234567890,"x":1E+400,"\xc3\xa4":null}'
    )
    assert built(body) == body


def test_only_the_model_changes() -> None:
    body = b'{"n":1,"model":"smart","messages":[1]}'
    assert built(body, 'my "deployment"') == (
        b'{"n":1,"model":"my \\"deployment\\"","messages":[1]}'
    )


def test_a_field_given_twice_goes_on_once() -> None:
    body = b'{"model":"cheap","messages":[1],"model":"dear","max_tokens":1,"max_tokens":2}'
    assert built(body, "dear") == b'{"model":"dear","messages":[1],"max_tokens":2}'
    assert built(body, "other") == b'{"model":"other","messages":[1],"max_tokens":2}'


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, {"include_usage": True}),
        ("null", {"include_usage": True}),
        ("{}", {"include_usage": True}),
        ('{"include_usage":false}', {"include_usage": True}),
        ('{"include_usage":null,"x":[1]}', {"include_usage": True, "x": [1]}),
        (
            '{"include_usage":false,"include_obfuscation":false}',
            {"include_usage": True, "include_obfuscation": False},
        ),
    ],
)
def test_a_stream_is_made_to_report_its_usage(options: str | None, expected: object) -> None:
    rest = "" if options is None else f',"stream_options":{options}'
    body = ('{"model":"m","messages":[1],"stream":true' + rest + "}").encode()
    sent = json.loads(built(body))
    assert sent == {"model": "m", "messages": [1], "stream": True, "stream_options": expected}
    assert built(body).count(b"include_usage") == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[1],"stream":false,"stream_options":{"x":1}}',
        b'{"model":"m","messages":[1]}',
        b'{"model":"m","messages":[1],"stream":true,"stream_options":{ "include_usage":true}}',
    ],
)
def test_stream_options_are_left_alone_otherwise(body: bytes) -> None:
    assert built(body) == body


def test_building_leaves_the_request_as_it_was() -> None:
    request = decode(Operation.CHAT, b'{"model":"m","messages":[1],"stream":true}')
    first = NATIVE.build(request, target("a"), Fit())
    assert NATIVE.build(request, target("b"), Fit()) == first.replace(b'"a"', b'"b"')
    assert list(request.fields) == ["model", "messages", "stream"]


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_tokens": None, "max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": None}, 5),
        ({"max_tokens": 7, "max_completion_tokens": None}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 5}, 7),
        ({"max_tokens": None, "max_completion_tokens": None}, None),
    ],
)
def test_a_maximum_has_the_name_that_its_server_knows(
    asked: dict[str, int | None], sent: int | None
) -> None:
    body = json.dumps({"model": "m", "messages": [1], **asked}).encode()
    native = OpenAI(Quirks(renames=OLD_MAX)).natives[Operation.CHAT]
    fields = json.loads(native.build(decode(Operation.CHAT, body), target(), Fit()))
    assert fields == {"model": "m", "messages": [1], "max_tokens": sent}


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        (Operation.CHAT, "/v1/chat/completions"),
        (Operation.COMPLETIONS, "/v1/completions"),
        (Operation.EMBEDDINGS, "/v1/embeddings"),
    ],
)
def test_each_operation_has_its_path_and_the_key_its_header(
    operation: Operation, path: str
) -> None:
    native = ADAPTER.natives[operation]
    endpoint = native.endpoint(operation, target(), stream=False)
    assert endpoint.path == path
    assert endpoint.headers == (
        ("Content-Type", "application/json"),
        ("X-Org", "o"),
        ("Authorization", "Bearer sk-1"),
    )
    keyless = native.endpoint(operation, target(api_key=None), stream=False)
    assert dict(keyless.headers).keys() == {"Content-Type", "X-Org"}


# --- Replies -------------------------------------------------------------------------------------

USAGES = {
    "whole": (
        '{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12,"prompt_tokens_details":'
        '{"cached_tokens":3,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}}',
        Usage(7, 3, 0, 5, 2),
    ),
    "plain": ('{"prompt_tokens":7,"completion_tokens":5}', Usage(7, 0, 0, 5, 0)),
    "embeddings": ('{"prompt_tokens":7,"total_tokens":7}', Usage(7, 0, 0, 0, 0)),
    "nulls": (
        '{"prompt_tokens":7,"completion_tokens":5,"prompt_tokens_details":null,'
        '"completion_tokens_details":null,"prompt_cache_hit_tokens":null}',
        Usage(7, 0, 0, 5, 0),
    ),
    "nulls inside": (
        '{"prompt_tokens":7,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":null},'
        '"completion_tokens_details":{"reasoning_tokens":null}}',
        Usage(7, 0, 0, 5, 0),
    ),
    "DeepSeek": (
        '{"prompt_tokens":7,"completion_tokens":5,"prompt_cache_hit_tokens":4,'
        '"prompt_cache_miss_tokens":3}',
        Usage(7, 4, 0, 5, 0),
    ),
    "DeepSeek, both names": (
        '{"prompt_tokens":7,"completion_tokens":5,"prompt_cache_hit_tokens":4,'
        '"prompt_tokens_details":{"cached_tokens":4}}',
        Usage(7, 4, 0, 5, 0),
    ),
    "Moonshot": (
        '{"prompt_tokens":20,"completion_tokens":30,"total_tokens":50,"cached_tokens":10}',
        Usage(20, 10, 0, 30, 0),
    ),
    "xAI, reasoning beside the completion": (
        '{"prompt_tokens":12,"completion_tokens":2,"total_tokens":354,'
        '"completion_tokens_details":{"reasoning_tokens":340}}',
        Usage(12, 0, 0, 342, 340),
    ),
    "half": ('{"prompt_tokens":7,"completion_tokens":null}', None),
    "empty": ("{}", None),
}


@pytest.mark.parametrize(("usage", "expected"), USAGES.values(), ids=USAGES)
def test_usage_is_read_in_every_variant(usage: str, expected: Usage | None) -> None:
    assert NATIVE.parse_usage(f'{{"id":"x","usage":{usage},"choices":[]}}'.encode()) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"usage":null}',
        b'{"usage":"free"}',
        b'{"usage":{"prompt_tokens":"7"}}',
    ],
)
def test_no_usage_is_none(body: bytes) -> None:
    assert NATIVE.parse_usage(body) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b'{"usage":null', b'{"usage":{"prompt_tokens":7},"x":' + b"[" * 100_000],
    ids=["empty", "page", "cut", "deep"],
)
def test_what_is_no_json_is_no_reply(body: bytes) -> None:
    with pytest.raises(UpstreamError, match="cannot be read"):
        NATIVE.parse_usage(body)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            b'{"choices":[{"message":{"content":"Hi"}},{"message":{"content":" there"}}]}',
            "Hi there",
        ),
        (b'{"choices":[{"text":"Hi"}]}', "Hi"),
        (b'{"choices":[{"message":{"content":null,"refusal":"No"}}]}', "No"),
        (b'{"choices":[{"message":{"content":"b","reasoning_content":"a"}}]}', "ba"),
        (
            b'{"choices":[{"message":{"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}}]}',
            "f{}",
        ),
        (b'{"choices":[{"message":{"tool_calls":[{"type":"custom"}]}}]}', ""),
        (b'{"choices":null}', ""),
        (b"{}", ""),
        (b"not JSON", ""),
        (b"[" * 100_000, ""),
        (b'{"choices":[{"message":{"content":"\xff"}}]}', ""),
    ],
)
def test_the_text_of_a_reply(body: bytes, text: str) -> None:
    assert NATIVE.parse_text(body) == text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"slow down","type":"x"}}', "slow down"),
        (b'{"error":{"message":null}}', ""),
        (b'{"error":{}}', ""),
        (b'{"error":"slow down"}', "slow down"),
        (b'{"detail":"slow down"}', "slow down"),
        (b'{"detail":[{"loc":["body"],"msg":"no such field"}]}', "no such field"),
        (b'{"object":"error","message":"slow down","code":400}', "slow down"),
        (b'[{"error":{"code":400,"message":"slow down"}}]', "slow down"),
        (b'{"result":"fine"}', None),
        (b"<html>", None),
        (b'{"error":{"message":"\xff"}}', None),
        (b'{"error":' + b"[" * 100_000, None),
    ],
)
def test_the_message_of_an_error(body: bytes, message: str | None) -> None:
    assert ADAPTER.parse_error(body) == message


# --- What a reply came to ------------------------------------------------------------------------


def reply_with(usage: str) -> bytes:
    message = '{"role":"assistant","content":"one two three four five"}'
    return f'{{"choices":[{{"index":0,"message":{message}}}],"usage":{usage}}}'.encode()


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ('{"prompt_tokens":5.0,"completion_tokens":7.0}', (5, 7)),
        ('{"prompt_tokens":"5","completion_tokens":"7"}', (5, 7)),
        ('{"prompt_tokens":5,"completion_tokens":null,"total_tokens":12}', (5, 7)),
        ('{"prompt_tokens":5,"total_tokens":5}', (5, 0)),
        ('{"total_tokens":5}', None),
        ('{"completion_tokens":7}', None),
        ('{"completion_tokens":7,"total_tokens":12}', (5, 7)),
        ('{"prompt_tokens":5,"completion_tokens":null}', None),
        ('{"prompt_tokens":5,"completion_tokens":7.5}', None),
        ('{"prompt_tokens":5,"completion_tokens":7,"completion_tokens_details":"x"}', None),
        ('"none"', None),
    ],
)
def test_odd_usage_is_understood_or_the_text_counts(
    usage: str, counted: tuple[int, int] | None
) -> None:
    body = reply_with(usage)
    found = NATIVE.parse_usage(body)
    assert (found and (found.prompt_tokens, found.completion_tokens)) == counted
    assert NATIVE.parse_text(body) == "one two three four five"


@pytest.mark.parametrize("total", ["5", "5.0", '"5"'])
def test_embeddings_may_tell_their_total_alone(total: str) -> None:
    found = NATIVE.parse_usage(f'{{"data":[],"usage":{{"total_tokens":{total}}}}}'.encode())
    assert found == Usage(5)


def test_the_older_way_to_call_a_function_counts_as_text() -> None:
    call = {"name": "f", "arguments": '{"a":1}'}
    body = json.dumps({"choices": [{"message": {"content": None, "function_call": call}}]})
    assert NATIVE.parse_text(body.encode()) == 'f{"a":1}'
    decoder = NATIVE.decoder(decode(Operation.CHAT, b'{"model":"m","messages":[1],"stream":true}'))
    for part in ('{"a', '":1}'):
        delta = {"function_call": {"arguments": part}}
        decoder.feed(f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode())
    assert decoder.text_bytes == len('{"a":1}')
    assert decoder.take_text() == '{"a":1}'
