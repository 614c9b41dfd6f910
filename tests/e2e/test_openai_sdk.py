"""The real `openai` SDK, sync and async, against the gateway: what it sends and expects works.

Each test runs once with `OpenAI` and once with `AsyncOpenAI`. A call through the gateway is
compared with the same call made straight to the provider.
"""

import asyncio
import base64
import contextlib
import inspect
import json
import re
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from tests.support.config import KEY, PRICED_MODEL, config, digest
from tests.support.gateway import Gateway, running
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, completion, delta, usage

HELLO = [{"role": "user", "content": "hello"}]
WORDS = "one two three four five"
NARROW_KEY, SLOW_KEY, SMALL_KEY, METERED_KEY = (
    "sk-narrow-1",
    "sk-slow-1",
    "sk-small-1",
    "sk-meter-1",
)
BRISK_KEY = "sk-brisk-1"
KEYS: list[dict[str, Any]] = [
    {"name": "k", "sha256": digest(KEY)},
    {"name": "narrow", "sha256": digest(NARROW_KEY), "models": ["other"]},
    {"name": "slow", "sha256": digest(SLOW_KEY), "rpm": 1},
    {"name": "small", "sha256": digest(SMALL_KEY), "tpm": 100},
    {"name": "metered", "sha256": digest(METERED_KEY), "rpm": 600, "tpm": 100_000},
    {"name": "brisk", "sha256": digest(BRISK_KEY), "rpm": 300, "burst": 1},
]


@pytest.fixture(scope="module")
def demo() -> Iterator[Gateway]:
    """A gateway without configuration and without any key: the demo provider answers."""
    with running() as gateway:
        yield gateway


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamThread]:
    """The upstream behind the configured gateway."""
    with UpstreamThread() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def configured(provider: UpstreamThread) -> Iterator[Gateway]:
    """A gateway with keys; `m` and `other` are served by the upstream."""
    target = {"provider": "p0", "model": PRICED_MODEL}
    models = {name: {"targets": [target]} for name in ("m", "other")}
    with running(config(provider.url, auth={"keys": KEYS}, models=models)) as gateway:
        yield gateway


@pytest_asyncio.fixture(params=["sync", "async"])
async def sdk(
    request: pytest.FixtureRequest, configured: Gateway, provider: UpstreamThread
) -> AsyncIterator[Any]:
    """A client of the configured gateway that never tries again by itself."""
    provider.reset()
    async with client_of(request.param, configured.url + "/v1", KEY) as client:
        yield client


@pytest_asyncio.fixture(params=["sync", "async"])
async def straight(
    request: pytest.FixtureRequest, configured: Gateway, provider: UpstreamThread
) -> AsyncIterator[tuple[Any, Any]]:
    """Two clients: one through the gateway, one straight to the provider."""
    provider.reset()
    async with (
        client_of(request.param, configured.url + "/v1", KEY) as through,
        client_of(request.param, provider.url, "sk-upstream-0") as direct,
    ):
        yield through, direct


@pytest_asyncio.fixture(params=["sync", "async"])
async def newcomer(request: pytest.FixtureRequest, demo: Gateway) -> AsyncIterator[Any]:
    """A client of the gateway without configuration; the SDK insists on some key."""
    async with client_of(request.param, demo.url + "/v1", "anything") as client:
        yield client


@contextlib.asynccontextmanager
async def client_of(flavour: str, url: str, key: str) -> AsyncIterator[Any]:
    """An SDK client of a flavour for the length of a block."""
    kind: Any = openai.OpenAI if flavour == "sync" else openai.AsyncOpenAI
    client = kind(base_url=url, api_key=key, max_retries=0, timeout=20)
    yield client
    await done(client.close())


async def done(result: Any) -> Any:
    """What a call of either flavour returns."""
    return await result if inspect.isawaitable(result) else result


async def every(stream: Any) -> list[Any]:
    """Every item of a stream of either flavour."""
    stream = await done(stream)
    if hasattr(stream, "__aiter__"):
        return [item async for item in stream]
    return list(stream)


async def recorded(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    """The newest request record with these values, once it is there."""
    async with asyncio.timeout(10):
        while True:
            found = [r for r in gateway.records() if fields.items() <= r.items()]
            if found:
                return found[-1]
            await asyncio.sleep(0.05)


def text_of(chunks: list[Any]) -> str:
    """The text of a chat stream."""
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


# -- without any configuration ---------------------------------------------------------------------


async def test_a_newcomer_gets_a_chat_answer(newcomer: Any) -> None:
    reply = await done(newcomer.chat.completions.create(model="demo", messages=HELLO))
    assert isinstance(reply, ChatCompletion)
    choice = reply.choices[0]
    assert "You said: 'hello'." in str(choice.message.content)
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 1
    assert reply.usage.completion_tokens == len(str(choice.message.content).split())


async def test_a_newcomer_gets_a_stream_of_the_same_words(newcomer: Any) -> None:
    whole = await done(newcomer.chat.completions.create(model="demo", messages=HELLO))
    chunks = await every(
        newcomer.chat.completions.create(model="demo", messages=HELLO, stream=True)
    )
    assert text_of(chunks) == whole.choices[0].message.content
    assert len(chunks) > 10
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_newcomers_stream_tells_its_usage_when_asked(newcomer: Any) -> None:
    chunks = await every(
        newcomer.chat.completions.create(
            model="demo",
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
            max_completion_tokens=4,
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-2].choices[0].finish_reason == "length"


async def test_a_newcomer_gets_a_completion_whole_and_streamed(newcomer: Any) -> None:
    ask = {"model": "demo", "prompt": "Say it", "max_tokens": 6}
    whole = await done(newcomer.completions.create(**ask))
    chunks = await every(newcomer.completions.create(**ask, stream=True))
    assert whole.object == "text_completion"
    assert whole.choices[0].text.startswith("Hello! I am")
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_a_newcomer_gets_embeddings(newcomer: Any) -> None:
    ask = {"model": "demo-embedding", "input": ["one", "two", "one"], "dimensions": 8}
    # Without an encoding the SDK asks for base64 and decodes it; with `float` it takes the list.
    packed = (await done(newcomer.embeddings.create(**ask))).data
    plain = (await done(newcomer.embeddings.create(**ask, encoding_format="float"))).data
    assert [len(entry.embedding) for entry in packed] == [8, 8, 8]
    assert packed[0].embedding == packed[2].embedding != packed[1].embedding
    for a, b in zip(packed, plain, strict=True):
        assert a.embedding == pytest.approx(b.embedding, abs=1e-6)


async def test_a_newcomer_lists_and_retrieves_models(newcomer: Any) -> None:
    page = await done(newcomer.models.list())
    assert [model.id for model in page.data] == ["demo", "demo-embedding"]
    assert (await done(newcomer.models.retrieve("demo"))) == page.data[0]
    with pytest.raises(openai.NotFoundError):
        await done(newcomer.models.retrieve("gpt-4o"))


# -- the same as a call straight to the provider ---------------------------------------------------

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Größe, "quotes", \\ and \u2028 survive',
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "enum": ["Zürich", "京都"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
}
RICH_ASK: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": "weather in 京都?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "17.0", "tool_call_id": "call_0"},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "response_format": SCHEMA,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "top_logprobs": 2,
    "metadata": {"ticket": "42"},
    "seed": 7,
    "stop": ["\n\n"],
    "temperature": 0.0,
    "user": "u-1",
    "extra_body": {"not_yet_invented": {"deep": [1, 2.50, None, "ü"]}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
ARGUMENTS = ('{"town"', ': "京', '都"}')


async def calls_a_tool(exchange: Exchange) -> None:
    """Answer with a tool call and with fields that no SDK knows, whole or streamed."""
    reply = completion("", usage(9, 4))
    reply |= {"system_fingerprint": "fp_1", "service_tier": "default", "not_yet_known": [1.50]}
    if not exchange.request.json.get("stream"):
        call = {**CALL, "function": {"name": "weather", "arguments": "".join(ARGUMENTS)}}
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}
        await exchange.reply({**reply, "choices": [choice]})
        return
    await exchange.start_stream()
    for i, arguments in enumerate(("", *ARGUMENTS)):
        named = CALL if i == 0 else {"function": {"arguments": arguments}}
        chunk = delta(None)
        chunk["choices"][0]["delta"] = {"tool_calls": [{"index": 0, **named}]}
        await exchange.event({**chunk, "obfuscation": "x" * i})
    await exchange.event(delta(None, "tool_calls"))
    if (exchange.request.json.get("stream_options") or {}).get("include_usage"):
        await exchange.event({**delta(None), "choices": [], "usage": usage(9, 4)})
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def test_tools_and_schemas_pass_whole_in_both_directions(
    straight: tuple[Any, Any], provider: UpstreamThread
) -> None:
    through, direct = straight
    provider.reset(calls_a_tool)
    got = await done(through.chat.completions.create(**RICH_ASK))
    wanted = await done(direct.chat.completions.create(**RICH_ASK))
    sent, expected = (json.loads(request.body) for request in provider.received)
    assert sent == {**expected, "model": PRICED_MODEL}
    assert got.to_dict() == wanted.to_dict()
    assert got.not_yet_known == [1.5]
    assert got.choices[0].message.tool_calls[0].function.arguments == '{"town": "京都"}'


async def test_streamed_tool_calls_pass_whole(
    straight: tuple[Any, Any], provider: UpstreamThread
) -> None:
    through, direct = straight
    provider.reset(calls_a_tool)
    got = await every(through.chat.completions.create(**RICH_ASK, stream=True))
    wanted = await every(direct.chat.completions.create(**RICH_ASK, stream=True))
    assert [chunk.to_dict() for chunk in got] == [chunk.to_dict() for chunk in wanted]
    parts = [c.choices[0].delta.tool_calls for c in got if c.choices[0].delta.tool_calls]
    assert "".join(part[0].function.arguments for part in parts) == '{"town": "京都"}'
    sent, expected = (json.loads(request.body) for request in provider.received)
    asked = {"stream_options": {"include_usage": True}, "model": PRICED_MODEL}
    assert sent == {**expected, **asked}


async def test_usage_in_a_stream_comes_when_asked_for(straight: tuple[Any, Any]) -> None:
    through, direct = straight
    ask = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    got = await every(through.chat.completions.create(model="m", **ask))
    wanted = await every(direct.chat.completions.create(model="m", **ask))
    assert [chunk.to_dict() for chunk in got] == [chunk.to_dict() for chunk in wanted]
    assert got[-1].usage.prompt_tokens_details.cached_tokens == 3


async def test_a_parsed_answer_arrives_as_its_type(sdk: Any, provider: UpstreamThread) -> None:
    class Town(BaseModel):
        name: str
        people: int

    async def in_json(exchange: Exchange) -> None:
        await exchange.reply(completion('{"name": "Bern", "people": 134506}', usage(1, 1)))

    provider.reset(in_json)
    ask = {"model": "m", "messages": HELLO, "response_format": Town}
    reply = await done(sdk.chat.completions.parse(**ask))
    assert reply.choices[0].message.parsed == Town(name="Bern", people=134506)
    schema = provider.received[0].json["response_format"]["json_schema"]
    assert set(schema["schema"]["properties"]) == {"name", "people"}


async def completes(exchange: Exchange) -> None:
    """Answer a legacy completion, whole or streamed."""
    choice = {"index": 0, "text": WORDS, "finish_reason": "stop", "logprobs": None}
    reply = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": PRICED_MODEL}
    if not exchange.request.json.get("stream"):
        await exchange.reply({**reply, "choices": [choice], "usage": usage(2, 5)})
        return
    await exchange.start_stream()
    for word in re.findall(r"\s*\S+", WORDS):
        await exchange.event({**reply, "choices": [{**choice, "text": word}]})
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def test_completions_whole_and_streamed(
    straight: tuple[Any, Any], provider: UpstreamThread
) -> None:
    through, direct = straight
    provider.reset(completes)
    ask = {"model": "m", "prompt": ["count", [1, 2]], "suffix": ".", "echo": False}
    got = await done(through.completions.create(**ask))
    wanted = await done(direct.completions.create(**ask))
    assert got.to_dict() == wanted.to_dict()
    chunks = await every(through.completions.create(**ask, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == WORDS
    assert [r.path for r in provider.received] == ["/v1/completions"] * 3
    assert provider.received[0].json == {**ask, "model": PRICED_MODEL}


async def embeds(exchange: Exchange) -> None:
    """Answer embeddings in base64, which the SDK asks for."""
    assert exchange.request.json["encoding_format"] == "base64"
    packed = base64.b64encode(struct.pack("<3f", 0.25, -0.5, 1.0)).decode()
    entry = {"object": "embedding", "index": 0, "embedding": packed}
    spent = {"prompt_tokens": 2, "total_tokens": 2}
    await exchange.reply({"object": "list", "data": [entry], "model": "e", "usage": spent})


async def test_embeddings_come_in_base64(sdk: Any, provider: UpstreamThread) -> None:
    provider.reset(embeds)
    reply = await done(sdk.embeddings.create(model="m", input="hello", dimensions=3))
    assert reply.data[0].embedding == [0.25, -0.5, 1.0]
    sent = provider.received[0]
    assert sent.path == "/v1/embeddings"
    assert sent.json["input"] == "hello"
    assert sent.headers["authorization"] == "Bearer sk-upstream-0"


async def test_models_are_listed_and_retrieved(sdk: Any) -> None:
    listed = {model.id for model in (await done(sdk.models.list())).data}
    assert {"m", "other"} <= listed
    assert (await done(sdk.models.retrieve("m"))).owned_by == "p0"
    # The SDK percent-encodes the slash.
    assert (await done(sdk.models.retrieve("p0/some-model"))).id == "p0/some-model"
    narrow = sdk.with_options(api_key=NARROW_KEY)
    assert [model.id for model in (await done(narrow.models.list())).data] == ["other"]


# -- headers ---------------------------------------------------------------------------------------


async def test_a_reply_says_who_served_it_at_what_cost(sdk: Any) -> None:
    raw = await done(
        sdk.chat.completions.with_raw_response.create(model="m", messages=HELLO, max_tokens=100)
    )
    assert raw.headers["x-sluice-provider"] == "p0"
    assert raw.headers["x-sluice-model"] == PRICED_MODEL
    assert raw.headers["x-sluice-attempts"] == "1"
    assert raw.headers["x-sluice-cost-usd"] == "0.000004"
    assert re.fullmatch(r"req_[0-9a-f]{24}", raw.headers["x-request-id"])
    assert (await done(raw.parse())).choices[0].message.content == WORDS
    assert not [name for name in raw.headers if name.startswith("x-ratelimit")], "no limit is set"


async def test_each_reply_has_an_id_of_its_own_that_the_log_knows(
    sdk: Any, configured: Gateway
) -> None:
    replies = [await done(sdk.chat.completions.create(model="m", messages=HELLO)) for _ in range(2)]
    first, second = [await recorded(configured, id=reply._request_id) for reply in replies]
    assert first["id"] != second["id"]


async def test_a_reply_says_where_the_limits_stand(sdk: Any) -> None:
    metered = sdk.with_options(api_key=METERED_KEY).chat.completions.with_raw_response
    ask = {"model": "m", "messages": HELLO, "max_tokens": 400}
    for stream in (False, True):
        raw = await done(metered.create(**ask, stream=stream))
        assert raw.headers["x-ratelimit-limit-requests"] == "600"
        assert 590 <= int(raw.headers["x-ratelimit-remaining-requests"]) < 600
        assert re.fullmatch(r"\d+ms", raw.headers["x-ratelimit-reset-requests"])
        assert raw.headers["x-ratelimit-limit-tokens"] == "100000"
        # What is reserved while it runs: the prompt's estimate and 400 tokens for the answer.
        assert 99_000 < int(raw.headers["x-ratelimit-remaining-tokens"]) < 99_600
        assert raw.headers["x-sluice-provider"] == "p0"
        if stream:
            assert text_of(await every(raw.parse())) == WORDS


# -- errors ----------------------------------------------------------------------------------------


async def test_no_key(sdk: Any) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        await done(
            sdk.chat.completions.create(
                model="m", messages=HELLO, extra_headers={"Authorization": openai.omit}
            )
        )
    assert (caught.value.status_code, caught.value.code) == (401, "missing_api_key")
    assert str(caught.value.request_id).startswith("req_")


@pytest.mark.parametrize("key", ["sk-wrong", digest(KEY), KEY + "x", KEY[:-1]])
async def test_a_wrong_key(sdk: Any, provider: UpstreamThread, key: str) -> None:
    wrong = sdk.with_options(api_key=key)
    calls: list[Callable[[], Any]] = [
        lambda: wrong.chat.completions.create(model="m", messages=HELLO),
        lambda: wrong.chat.completions.create(model="m", messages=HELLO, stream=True),
        lambda: wrong.embeddings.create(model="m", input="x"),
        lambda: wrong.models.list(),
        lambda: wrong.models.retrieve("m"),
    ]
    for call in calls:
        with pytest.raises(openai.AuthenticationError) as caught:
            await done(call())
        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        assert caught.value.type == "authentication_error"
    assert provider.received == []


async def test_a_model_the_key_may_not_use(sdk: Any, provider: UpstreamThread) -> None:
    narrow = sdk.with_options(api_key=NARROW_KEY)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await done(narrow.chat.completions.create(model="m", messages=HELLO))
    assert (caught.value.status_code, caught.value.code) == (403, "model_not_allowed")
    assert caught.value.param == "model"
    assert provider.received == []
    assert (await done(narrow.chat.completions.create(model="other", messages=HELLO))).choices


async def test_a_model_that_does_not_exist(sdk: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await done(sdk.chat.completions.create(model="nope", messages=HELLO))
    assert (caught.value.status_code, caught.value.code) == (404, "model_not_found")
    assert caught.value.param == "model"
    assert "'nope'" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": HELLO, "max_tokens": -1}, "max_tokens"),
        ({"messages": HELLO, "n": "two"}, "n"),
        (
            {"messages": HELLO, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
    ],
)
async def test_a_bad_field_is_named(sdk: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await done(sdk.chat.completions.create(model="m", **fields))
    assert caught.value.status_code == 400
    assert (caught.value.code, caught.value.param) == ("invalid_value", param)
    assert caught.value.type == "invalid_request_error"


async def test_the_providers_own_refusal_comes_in_its_words(
    straight: tuple[Any, Any], provider: UpstreamThread
) -> None:
    told = {"message": "no", "type": "invalid_request_error", "param": "seed", "code": "odd"}

    async def refuses(exchange: Exchange) -> None:
        await exchange.reply({"error": told}, status=400)

    provider.reset(refuses)
    for client in straight:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                await done(client.chat.completions.create(model="m", messages=HELLO, stream=stream))
            assert caught.value.body == told
            assert caught.value.param == "seed"


async def test_a_limit_says_when_to_come_back(sdk: Any, provider: UpstreamThread) -> None:
    slow = sdk.with_options(api_key=SLOW_KEY)
    with contextlib.suppress(openai.RateLimitError):  # the other flavour has used the minute's one
        await done(slow.chat.completions.create(model="m", messages=HELLO))
    with pytest.raises(openai.RateLimitError) as caught:
        await done(slow.chat.completions.create(model="m", messages=HELLO))
    assert len(provider.received) <= 1
    assert (caught.value.status_code, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.type == "rate_limit_error"
    headers = caught.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 60
    milliseconds = int(headers["retry-after-ms"])
    assert int(headers["retry-after"]) * 1000 - 1000 <= milliseconds <= 60_000
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert re.fullmatch(r"[\d.]+m?s|1m0s", headers["x-ratelimit-reset-requests"])
    assert headers["x-request-id"].startswith("req_")


async def test_the_sdk_waits_as_told_and_succeeds(sdk: Any, configured: Gateway) -> None:
    # Five a second, one at once: of two requests the second waits 200 ms and is then admitted.
    brisk = sdk.with_options(api_key=BRISK_KEY, max_retries=3)
    for _ in range(2):
        reply = await done(brisk.chat.completions.create(model="m", messages=HELLO))
        assert reply.choices[0].message.content == WORDS
    assert await recorded(configured, key="brisk", status=429)


async def test_what_can_never_fit_is_not_tried_again(sdk: Any, configured: Gateway) -> None:
    small = sdk.with_options(api_key=SMALL_KEY, max_retries=2)
    with pytest.raises(openai.RateLimitError) as caught:
        await done(small.chat.completions.create(model="m", messages=HELLO, max_tokens=5000))
    headers = caught.value.response.headers
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers
    assert headers["x-ratelimit-limit-tokens"] == "100"
    assert headers["x-ratelimit-remaining-tokens"] == "100"
    record = await recorded(configured, id=caught.value.request_id)
    assert record["outcome"] == "refused"


async def test_a_failing_provider_is_a_server_error(sdk: Any, provider: UpstreamThread) -> None:
    async def fails(exchange: Exchange) -> None:
        await exchange.reply({"error": {"message": "I am down"}}, status=500)

    provider.reset(fails)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            await done(sdk.chat.completions.create(model="m", messages=HELLO, stream=stream))
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_failed")


@pytest.mark.parametrize("broken", ["cut", "error event"])
async def test_a_broken_stream_raises(sdk: Any, provider: UpstreamThread, broken: str) -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("one"))
        if broken == "cut":
            exchange.abort()
        else:
            await exchange.event({"error": {"message": "out of luck", "type": "server_error"}})
            await exchange.end_stream()

    provider.reset(breaks)
    stream = await done(sdk.chat.completions.create(model="m", messages=HELLO, stream=True))
    with pytest.raises(openai.APIError) as caught:
        await every(stream)
    assert caught.value.code == "stream_interrupted"
    assert ("out of luck" in caught.value.message) == (broken == "error event")


async def test_a_stream_left_early_ends_at_the_provider_too(
    sdk: Any, provider: UpstreamThread, configured: Gateway
) -> None:
    ended: list[str] = []

    async def never_ends(exchange: Exchange) -> None:
        await exchange.start_stream()
        try:
            while True:
                await exchange.event(delta(" word"))
        finally:
            ended.append("provider")

    provider.reset(never_ends)
    stream = await done(sdk.chat.completions.create(model="m", messages=HELLO, stream=True))
    first = await anext(aiter(stream)) if hasattr(stream, "__aiter__") else next(iter(stream))
    assert first.choices[0].delta.content == " word"
    await done(stream.close())
    async with asyncio.timeout(5):
        while not ended:
            await asyncio.sleep(0.02)
    record = await recorded(configured, id=stream.response.headers["x-request-id"])
    assert record["outcome"] == "disconnected"
    assert record["usage"]["completion_tokens"] > 0
