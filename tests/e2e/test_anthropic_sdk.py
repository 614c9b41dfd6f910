"""The real `anthropic` SDK, sync and async, against the gateway: what it sends and expects works.

Each test runs once with `Anthropic` and once with `AsyncAnthropic`. The model `claude` is served by
a provider that speaks Anthropic's API, and what passes is compared with a call straight to it; the
model `gpt` by one that speaks OpenAI's, and is translated.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from pydantic import BaseModel

from tests.e2e.test_openai_sdk import calls_a_tool as openai_calls_a_tool
from tests.e2e.test_openai_sdk import done, every, recorded
from tests.support.config import KEY, PRICED_MODEL, config, digest
from tests.support.gateway import Gateway, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, completion, delta, usage

SERVED = "claude-sonnet-4-5"
WORDS = "one two three four five"  # of either provider
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
MAX_BODY_BYTES = 100_000
NARROW_KEY, SLOW_KEY, SMALL_KEY, BRISK_KEY = (
    "sk-narrow-1",
    "sk-slow-1",
    "sk-small-1",
    "sk-brisk-1",
)
KEYS: list[dict[str, Any]] = [
    {"name": "k", "sha256": digest(KEY)},
    {"name": "narrow", "sha256": digest(NARROW_KEY), "models": ["other"]},
    {"name": "slow", "sha256": digest(SLOW_KEY), "rpm": 1},
    {"name": "small", "sha256": digest(SMALL_KEY), "tpm": 100},
    {"name": "brisk", "sha256": digest(BRISK_KEY), "rpm": 300, "burst": 1},
]
BOTH = pytest.mark.parametrize("model", ["claude", "gpt"])

# -- a provider that speaks Anthropic's API --------------------------------------------------------


def told(block: dict[str, Any], reason: str = "end_turn") -> dict[str, Any]:
    """A whole message of one block: 7 prompt tokens, 3 of them cached; 5 for the answer."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": SERVED,
        "content": [block],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 5,
        },
        "not_yet_known": [1.50],
    }


def events(block: dict[str, Any], *deltas: dict[str, Any], reason: str) -> Iterator[dict[str, Any]]:
    """The same as a stream."""
    message = told(block, reason)
    begun = {**message, "content": [], "stop_reason": None}
    begun["usage"] = {**message["usage"], "output_tokens": 1}
    yield {"type": "message_start", "message": begun}
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    yield {"type": "ping"}
    for one in deltas:
        yield {"type": "content_block_delta", "index": 0, "delta": one}
    yield {"type": "content_block_stop", "index": 0}
    end = {"stop_reason": reason, "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": 5}}
    yield {"type": "message_stop"}


async def send_events(exchange: Exchange, *found: dict[str, Any]) -> None:
    """Write events under their names, each in a chunk of its own."""
    for event in found:
        await exchange.chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


async def answer(
    exchange: Exchange, block: dict[str, Any], *deltas: dict[str, Any], reason: str = "end_turn"
) -> None:
    """Answer with a block: whole, or empty and then its deltas."""
    if not exchange.request.json.get("stream"):
        await exchange.reply(told(block, reason), headers={"request-id": "req_upstream"})
        return
    await exchange.start_stream()
    empty = {name: {} if name == "input" else value for name, value in block.items()}
    empty |= {"text": ""} if "text" in block else {}
    await send_events(exchange, *events(empty, *deltas, reason=reason))
    await exchange.end_stream()


async def like_anthropic(exchange: Exchange) -> None:
    """Answer every operation properly."""
    if exchange.request.method == "GET":
        await exchange.reply({"data": [{"type": "model", "id": SERVED}], "has_more": False})
        return
    if exchange.request.path.endswith("/count_tokens"):
        await exchange.reply({"input_tokens": 42})
        return
    parts = WORDS.replace(" ", "| ").split("|")
    deltas = [{"type": "text_delta", "text": part} for part in parts]
    await answer(exchange, {"type": "text", "text": WORDS}, *deltas)


ARGUMENTS = ('{"town"', ': "京', '都"}')


async def calls_a_tool(exchange: Exchange) -> None:
    """Answer with a tool call."""
    block = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"town": "京都"}}
    deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", *ARGUMENTS)]
    await answer(exchange, block, *deltas, reason="tool_use")


async def refuses(exchange: Exchange) -> None:
    """Refuse in the words of either API, by where it was asked."""
    told: dict[str, Any] = {"type": "invalid_request_error", "message": "top_k: not today"}
    if exchange.request.path.endswith("/messages"):
        body = {"type": "error", "error": told, "request_id": "req_upstream"}
    else:
        body = {"error": {**told, "param": "top_k", "code": None}}
    await exchange.reply(body, status=400)


# -- gateway and clients ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claude() -> Iterator[UpstreamThread]:
    """The provider of `claude`."""
    with UpstreamThread(behaviour=like_anthropic) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gpt() -> Iterator[UpstreamThread]:
    """The provider of `gpt`."""
    with UpstreamThread() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(claude: UpstreamThread, gpt: UpstreamThread) -> Iterator[Gateway]:
    """A gateway in front of both."""
    providers = {
        "anthropic": {"kind": "anthropic", "api_key": "sk-upstream-0", "base_url": claude.url},
        "other": {"kind": "openai-compatible", "api_key": "sk-upstream-1", "base_url": gpt.url},
    }
    models = {
        "claude": {"targets": [{"provider": "anthropic", "model": SERVED}]},
        "gpt": {"targets": [{"provider": "other", "model": PRICED_MODEL}]},
        "other": {"targets": [{"provider": "anthropic", "model": SERVED}]},
    }
    with untroubled(
        config(
            auth={"keys": KEYS},
            providers=providers,
            models=models,
            server={"max_request_size": MAX_BODY_BYTES},
        )
    ) as found:
        yield found


@pytest_asyncio.fixture(params=["sync", "async"])
async def sdk(
    request: pytest.FixtureRequest, gateway: Gateway, claude: UpstreamThread, gpt: UpstreamThread
) -> AsyncIterator[Any]:
    """A client of the gateway that never tries again by itself."""
    claude.reset(like_anthropic)
    gpt.reset()
    async with client_of(request.param, gateway.url, KEY) as client:
        yield client


@pytest_asyncio.fixture(params=["sync", "async"])
async def straight(
    request: pytest.FixtureRequest, gateway: Gateway, claude: UpstreamThread
) -> AsyncIterator[tuple[Any, Any]]:
    """Two clients: one through the gateway, one straight to the provider of `claude`."""
    claude.reset(like_anthropic)
    async with (
        client_of(request.param, gateway.url, KEY) as through,
        client_of(request.param, claude.url.removesuffix("/v1"), "sk-upstream-0") as direct,
    ):
        yield through, direct


@contextlib.asynccontextmanager
async def client_of(flavour: str, url: str, key: str) -> AsyncIterator[Any]:
    """An SDK client of a flavour for the length of a block."""
    plain = flavour == "sync"
    kind: Any = anthropic.Anthropic if plain else anthropic.AsyncAnthropic
    http: Any = anthropic.DefaultHttpxClient if plain else anthropic.DefaultAsyncHttpxClient
    # To read all certificate authorities, which nothing here needs, takes longer than most tests.
    client = kind(
        base_url=url, api_key=key, max_retries=0, timeout=20, http_client=http(verify=False)
    )
    yield client
    await done(client.close())


async def helped(manager: Any) -> tuple[list[Any], Any]:
    """Every event of the SDK's streaming helper, and the message it puts together."""
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            return [event async for event in stream], await stream.get_final_message()
    with manager as stream:
        return list(stream), stream.get_final_message()


def behave(model: str, claude: UpstreamThread, gpt: UpstreamThread, behaviour: Any) -> None:
    """Let a model's provider behave so from now on."""
    (claude if model == "claude" else gpt).reset(behaviour)


# -- answers ---------------------------------------------------------------------------------------


@BOTH
async def test_a_message(sdk: Any, gateway: Gateway, model: str) -> None:
    message = await done(sdk.messages.create(model=model, **ASK))
    assert [(block.type, block.text) for block in message.content] == [("text", WORDS)]
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
    used = message.usage
    assert (used.input_tokens, used.cache_read_input_tokens, used.output_tokens) == (4, 3, 5)
    record = await recorded(gateway, id=message._request_id)
    assert (record["operation"], record["model"], record["status"]) == ("messages", model, 200)
    assert record["usage"]["prompt_tokens"] == 7
    assert record["usage"]["cached_tokens"] == 3
    assert record["usage"]["completion_tokens"] == 5


@BOTH
async def test_a_message_streamed_by_the_helper(sdk: Any, gateway: Gateway, model: str) -> None:
    found, message = await helped(sdk.messages.stream(model=model, **ASK))
    assert "".join([event.text for event in found if event.type == "text"]) == WORDS
    assert len([event for event in found if event.type == "text"]) == 5
    assert [block.text for block in message.content] == [WORDS]
    assert message.stop_reason == "end_turn"
    used = message.usage
    assert (used.input_tokens, used.cache_read_input_tokens, used.output_tokens) == (4, 3, 5)
    record = await recorded(gateway, model=model, stream=True)
    assert record["usage"]["completion_tokens"] == 5


@BOTH
async def test_a_message_streamed_plainly(sdk: Any, model: str) -> None:
    found = await every(sdk.messages.create(model=model, **ASK, stream=True))
    kinds = [event.type for event in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[2:-3] == ["content_block_delta"] * 5
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert found[0].message.content == []


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called(
    sdk: Any, claude: UpstreamThread, gpt: UpstreamThread, model: str, stream: bool
) -> None:
    behave(model, claude, gpt, calls_a_tool if model == "claude" else openai_calls_a_tool)
    schema = {"type": "object", "properties": {"town": {"type": "string"}}}
    tool = {"name": "weather", "description": "Größe", "input_schema": schema}
    asked = {**ASK, "tools": [tool], "tool_choice": {"type": "any"}}
    if stream:
        _, message = await helped(sdk.messages.stream(model=model, **asked))
    else:
        message = await done(sdk.messages.create(model=model, **asked))
    (call,) = message.content
    assert (call.type, call.name, call.input) == ("tool_use", "weather", {"town": "京都"})
    assert message.stop_reason == "tool_use"
    sent = (claude if model == "claude" else gpt).received[0].json
    if model == "claude":
        assert sent["tools"] == [tool]
        return
    assert sent["tools"][0]["function"]["parameters"] == schema
    assert sent["tool_choice"] == "required"


@BOTH
async def test_a_parsed_answer_arrives_as_its_type(
    sdk: Any, claude: UpstreamThread, gpt: UpstreamThread, model: str
) -> None:
    class Town(BaseModel):
        name: str
        people: int

    text = '{"name": "Bern", "people": 134506}'

    async def in_json(exchange: Exchange) -> None:
        if model == "claude":
            await answer(exchange, {"type": "text", "text": text})
        else:
            await exchange.reply(completion(text, usage(1, 1)))

    behave(model, claude, gpt, in_json)
    message = await done(sdk.messages.parse(model=model, **ASK, output_format=Town))
    assert message.parsed_output == Town(name="Bern", people=134506)
    sent = (claude if model == "claude" else gpt).received[0].json
    if model == "claude":
        schema = sent["output_config"]["format"]["schema"]
    else:
        schema = sent["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == {"name", "people"}


async def test_tokens_are_counted_by_the_provider_that_can(
    sdk: Any, claude: UpstreamThread
) -> None:
    asked = {"messages": ASK["messages"], "system": "be brief"}
    counted = await done(sdk.messages.count_tokens(model="claude", **asked))
    assert counted.input_tokens == 42
    (request,) = claude.received
    assert request.path == "/v1/messages/count_tokens"
    assert request.json == {**asked, "model": SERVED}


async def test_tokens_are_counted_here_where_the_provider_cannot(
    sdk: Any, gpt: UpstreamThread
) -> None:
    asked = [{"role": "user", "content": "hello " * 100}]
    counted = await done(sdk.messages.count_tokens(model="gpt", messages=asked))
    assert 100 <= counted.input_tokens <= 150
    assert gpt.received == []


async def test_models_are_listed(sdk: Any) -> None:
    names = {model.id for model in (await done(sdk.models.list())).data}
    assert {"claude", "gpt", "other", SERVED} <= names
    narrow = sdk.with_options(api_key=NARROW_KEY)
    assert [model.id for model in (await done(narrow.models.list())).data] == ["other"]
    assert (await done(sdk.models.retrieve("claude"))).id == "claude"


# -- the same as a call straight to the provider ---------------------------------------------------

RICH_ASK: dict[str, Any] = {
    "model": "claude",
    "max_tokens": 2000,
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": 'weather in 京都? "quotes" \\'}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "tool_use", "id": "toolu_0", "name": "weather", "input": {"deep": [1.50]}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_0", "content": "17.0"}],
        },
    ],
    "tools": [
        {"name": "weather", "input_schema": {"type": "object", "properties": {}}},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
    ],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "metadata": {"user_id": "u-1"},
    "stop_sequences": ["\n\n"],
    "extra_body": {"not_yet_invented": {"deep": [1, 2.50, None, "ü"]}},
}


async def test_a_full_request_passes_whole_in_both_directions(
    straight: tuple[Any, Any], claude: UpstreamThread
) -> None:
    through, direct = straight
    claude.reset(calls_a_tool)
    got = await done(through.messages.create(**RICH_ASK))
    wanted = await done(direct.messages.create(**RICH_ASK))
    assert got.to_dict() == wanted.to_dict()
    assert got.not_yet_known == [1.5]
    mine, other = claude.received
    assert mine.json == {**other.json, "model": SERVED}
    assert mine.path == other.path == "/v1/messages"
    assert mine.headers["anthropic-version"] == other.headers["anthropic-version"]
    assert mine.headers["x-api-key"] == "sk-upstream-0"
    assert KEY not in str(mine.headers)


async def test_a_full_stream_passes_whole(
    straight: tuple[Any, Any], claude: UpstreamThread
) -> None:
    through, direct = straight
    claude.reset(calls_a_tool)
    got = await every(through.messages.create(**RICH_ASK, stream=True))
    wanted = await every(direct.messages.create(**RICH_ASK, stream=True))
    assert [event.to_dict() for event in got] == [event.to_dict() for event in wanted]
    mine, other = claude.received
    assert mine.json == {**other.json, "model": SERVED}


async def test_a_conversation_is_translated(sdk: Any, gpt: UpstreamThread) -> None:
    image = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    asked = {
        "system": "be brief",
        "messages": [
            {"role": "user", "content": [{"type": "image", "source": image}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t0", "name": "weather", "input": {"a": 1}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t0", "content": "17.0"}],
            },
        ],
        "max_tokens": 50,
        "stop_sequences": ["\n\n"],
        "extra_body": {"temperature": 0.5},
    }
    await done(sdk.messages.create(model="gpt", **asked))
    (request,) = gpt.received
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer sk-upstream-1"
    assert "anthropic-version" not in request.headers
    sent = request.json
    assert [message["role"] for message in sent["messages"]] == [
        *("system", "user", "assistant", "tool")
    ]
    assert sent["messages"][1]["content"][0]["image_url"]["url"] == "data:image/png;base64,aGk="
    assert json.loads(sent["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert sent["messages"][3]["tool_call_id"] == "t0"
    assert sent["model"] == PRICED_MODEL
    assert (sent["stop"], sent["temperature"]) == (["\n\n"], 0.5)
    assert 50 in (sent.get("max_tokens"), sent.get("max_completion_tokens"))


# -- headers ---------------------------------------------------------------------------------------


@BOTH
async def test_a_reply_says_who_served_it(sdk: Any, gateway: Gateway, model: str) -> None:
    raw = await done(sdk.messages.with_raw_response.create(model=model, **ASK))
    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    assert raw.headers["x-sluice-provider"] == ("anthropic" if model == "claude" else "other")
    assert raw.headers["x-sluice-model"] == (SERVED if model == "claude" else PRICED_MODEL)
    assert raw.headers["x-sluice-attempts"] == "1"
    assert await recorded(gateway, id=raw.headers["request-id"])
    if model == "claude":  # 4 x 3 + 3 x 0.30 + 5 x 15 micro-dollars
        assert raw.headers["x-sluice-cost-usd"] == "0.000088"


async def test_betas_reach_the_provider_that_knows_them(
    sdk: Any, claude: UpstreamThread, gpt: UpstreamThread
) -> None:
    betas = ["one-2025-01-01", "two-2025-02-02"]
    for model in ("claude", "gpt"):
        message = await done(sdk.beta.messages.create(model=model, **ASK, betas=betas))
        assert message.content[0].text == WORDS
    found, _ = await helped(sdk.beta.messages.stream(model="claude", **ASK, betas=betas))
    assert found
    for request in claude.received:
        assert request.headers["anthropic-beta"] == ",".join(betas)
    assert len(claude.received) == 2
    assert "anthropic-beta" not in gpt.received[0].headers


async def test_a_key_may_come_in_either_header(sdk: Any, claude: UpstreamThread) -> None:
    # This SDK sends `Authorization`; those before version 2 sent `x-api-key`.
    bare = {"Authorization": anthropic.omit}
    older = {**bare, "x-api-key": KEY}
    assert (await done(sdk.messages.create(model="claude", **ASK, extra_headers=older))).content
    with pytest.raises(anthropic.AuthenticationError, match="missing_api_key"):
        await done(sdk.messages.create(model="claude", **ASK, extra_headers=bare))
    (request,) = claude.received
    assert request.headers["x-api-key"] == "sk-upstream-0"


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sk-wrong", digest(KEY), KEY + "x", KEY[:-1]])
async def test_a_wrong_key(sdk: Any, claude: UpstreamThread, key: str) -> None:
    wrong = sdk.with_options(api_key=key)
    calls: list[Callable[[], Any]] = [
        lambda: wrong.messages.create(model="claude", **ASK),
        lambda: wrong.messages.create(model="claude", **ASK, stream=True),
        lambda: wrong.messages.count_tokens(model="claude", messages=ASK["messages"]),
        lambda: wrong.models.list(),
    ]
    for call in calls:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await done(call())
        assert caught.value.status_code == 401
        assert caught.value.type == "authentication_error"
    assert claude.received == []


@BOTH
async def test_a_model_the_key_may_not_use(sdk: Any, model: str) -> None:
    narrow = sdk.with_options(api_key=NARROW_KEY)
    with pytest.raises(anthropic.PermissionDeniedError) as caught:
        await done(narrow.messages.create(model=model, **ASK))
    assert caught.value.type == "permission_error"
    assert (await done(narrow.messages.create(model="other", **ASK))).content


async def test_a_model_that_does_not_exist(sdk: Any, gateway: Gateway) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: sdk.messages.create(model="nope", **ASK),
        lambda: sdk.messages.create(model="nope", **ASK, stream=True),
        lambda: sdk.messages.count_tokens(model="nope", messages=ASK["messages"]),
    ]
    for call in calls:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await done(call())
        assert caught.value.type == "not_found_error"
        assert "'nope'" in str(caught.value.api_message)
        body: Any = caught.value.body
        assert body["request_id"] == caught.value.request_id
    assert await recorded(gateway, id=caught.value.request_id)


@pytest.mark.parametrize(
    ("model", "fields", "named"),
    [
        ("claude", {"messages": []}, "messages"),
        ("claude", {"max_tokens": 0}, "max_tokens"),
        ("claude", {"max_tokens": anthropic.omit}, "max_tokens"),
        ("claude", {"extra_body": {"stream": "yes"}}, "stream"),
        ("gpt", {"messages": []}, "messages"),
        ("gpt", {"extra_body": {"temperature": "hot"}}, "temperature"),
        ("gpt", {"messages": [{"role": "judge", "content": "x"}]}, "messages[0].role"),
        ("gpt", {"tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ("gpt", {"tools": [{"name": "weather"}]}, "tools[0].input_schema"),
        ("gpt", {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
    ],
)
async def test_a_bad_field_is_named(
    sdk: Any, model: str, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await done(sdk.messages.create(**{"model": model, **ASK, **fields}))
    assert caught.value.status_code == 400
    assert caught.value.type == "invalid_request_error"
    assert f"'{named}'" in str(caught.value.api_message)
    body: Any = caught.value.body
    assert body["error"]["param"] == named


async def test_a_request_that_is_too_large(sdk: Any, claude: UpstreamThread) -> None:
    large = [{"role": "user", "content": "x" * MAX_BODY_BYTES}]
    asked = {**ASK, "messages": large}
    for stream in (False, True):
        with pytest.raises(anthropic.ContentTooLargeError) as caught:
            await done(sdk.messages.create(model="claude", **asked, stream=stream))
        assert (caught.value.status_code, caught.value.type) == (413, "request_too_large")
        assert str(caught.value.request_id).startswith("req_")
    assert claude.received == []


async def test_a_limit_says_when_to_come_back(sdk: Any) -> None:
    slow = sdk.with_options(api_key=SLOW_KEY)
    with contextlib.suppress(anthropic.RateLimitError):  # the other flavour has used the one
        await done(slow.messages.create(model="claude", **ASK))
    with pytest.raises(anthropic.RateLimitError) as caught:
        await done(slow.messages.create(model="claude", **ASK))
    assert (caught.value.status_code, caught.value.type) == (429, "rate_limit_error")
    headers = caught.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 60
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["request-id"] == caught.value.request_id


async def test_the_sdk_waits_as_told_and_succeeds(sdk: Any, gateway: Gateway) -> None:
    # Five a second, one at once: of two requests the second waits 200 ms and is then admitted.
    brisk = sdk.with_options(api_key=BRISK_KEY, max_retries=3)
    for _ in range(2):
        message = await done(brisk.messages.create(model="claude", **ASK))
        assert message.content[0].text == WORDS
    assert await recorded(gateway, key="brisk", status=429)


async def test_what_can_never_fit_is_not_tried_again(sdk: Any) -> None:
    small = sdk.with_options(api_key=SMALL_KEY, max_retries=2)
    with pytest.raises(anthropic.RateLimitError) as caught:
        await done(small.messages.create(model="claude", **{**ASK, "max_tokens": 5000}))
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_the_providers_own_refusal_comes_in_its_words(
    sdk: Any, claude: UpstreamThread, gpt: UpstreamThread, model: str, stream: bool
) -> None:
    behave(model, claude, gpt, refuses)
    with pytest.raises(anthropic.BadRequestError) as caught:
        await done(sdk.messages.create(model=model, **ASK, stream=stream))
    assert caught.value.type == "invalid_request_error"
    assert caught.value.api_message == "top_k: not today"


@BOTH
@pytest.mark.parametrize(
    ("status", "kind", "name"),
    [
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "api_error"),
        (401, anthropic.InternalServerError, "api_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
    ],
)
async def test_a_failing_provider(
    sdk: Any,
    claude: UpstreamThread,
    gpt: UpstreamThread,
    model: str,
    status: int,
    kind: type[anthropic.APIStatusError],
    name: str,
) -> None:
    async def fails(exchange: Exchange) -> None:
        body = {"type": "error", "error": {"type": "some_error", "message": "I am down"}}
        await exchange.reply(body, status=status, headers={"retry-after": "7"})

    behave(model, claude, gpt, fails)
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            await done(sdk.messages.create(model=model, **ASK, stream=stream))
        assert caught.value.type == name
        assert caught.value.status_code == (429 if status == 429 else 502)
        if status == 429:
            assert caught.value.response.headers["retry-after"] == "7"


@BOTH
@pytest.mark.parametrize("broken", ["cut", "error event"])
async def test_a_broken_stream_raises(
    sdk: Any, claude: UpstreamThread, gpt: UpstreamThread, model: str, broken: str
) -> None:
    out_of_luck = {"type": "overloaded_error", "message": "out of luck"}

    async def breaks(exchange: Exchange) -> None:
        await exchange.start_stream()
        if model == "claude":
            text = {"type": "text", "text": ""}
            begun = list(events(text, {"type": "text_delta", "text": "one"}, reason=""))[:4]
            await send_events(exchange, *begun)
        else:
            await exchange.event(delta("one"))
        if broken == "cut":
            exchange.abort()
            return
        if model == "claude":
            await send_events(exchange, {"type": "error", "error": out_of_luck})
        else:
            await exchange.event({"error": out_of_luck})
        await exchange.end_stream()

    behave(model, claude, gpt, breaks)
    stream = await done(sdk.messages.create(model=model, **ASK, stream=True))
    seen: list[Any] = []
    with pytest.raises(anthropic.APIStatusError) as caught:
        await gather(stream, seen)
    assert seen[-1].delta.text == "one"
    assert caught.value.type in ("api_error", "overloaded_error")
    assert ("out of luck" in str(caught.value.api_message)) == (broken == "error event")


async def gather(stream: Any, into: list[Any], most: int = 1000) -> None:
    """Add a stream's items of either flavour to a list, until there are so many."""
    while len(into) < most:
        if hasattr(stream, "__aiter__"):
            into.append(await anext(stream))
        else:
            into.append(next(stream))


@BOTH
async def test_a_stream_left_early_ends_at_the_provider_too(
    sdk: Any, claude: UpstreamThread, gpt: UpstreamThread, gateway: Gateway, model: str
) -> None:
    ended: list[str] = []
    word = {"type": "text_delta", "text": " word"}

    async def never_ends(exchange: Exchange) -> None:
        await exchange.start_stream()
        try:
            if model == "claude":
                text = {"type": "text", "text": ""}
                await send_events(exchange, *list(events(text, reason=""))[:2])
            while True:
                if model == "claude":
                    block = {"type": "content_block_delta", "index": 0, "delta": word}
                    await send_events(exchange, block)
                else:
                    await exchange.event(delta(" word"))
        finally:
            ended.append("provider")

    behave(model, claude, gpt, never_ends)
    stream = await done(sdk.messages.create(model=model, **ASK, stream=True))
    seen: list[Any] = []
    await gather(stream, seen, 3)
    assert seen[-1].delta.text == " word"
    await done(stream.close())
    async with asyncio.timeout(5):
        while not ended:
            await asyncio.sleep(0.02)
    record = await recorded(gateway, id=stream.response.headers["request-id"])
    assert record["outcome"] == "disconnected"
    assert record["usage"]["completion_tokens"] > 0
