"""Keys restricted to models, on the routes that serve them: no field gets another model."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.config import KEY, PRICED_MODEL, chat, config, digest
from tests.support.gateway import Gateway, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, like_openai
from tests.support.wire import CHAT_PATH, ask, post

NARROW, LIMITED = "sk-narrow-key", "sk-limited-key"
HAIKU = "claude-haiku-4-5"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"


@pytest.fixture(scope="module")
def served(provider: UpstreamThread) -> Iterator[Gateway]:
    """A gateway that all tests share, with a key that may use a model of each provider."""
    rows = {
        "openai": {"kind": "openai"},
        "anthropic": {"kind": "anthropic"},
        "openrouter": {"kind": "openrouter"},
    }
    allowed = [PRICED_MODEL, HAIKU, "openrouter/cheap/*"]
    keys = [
        {"name": "k", "sha256": digest(KEY)},
        {"name": "narrow", "sha256": digest(NARROW), "models": allowed},
        {"name": "l", "sha256": digest(LIMITED), "per_model": {"openrouter/dear/*": {"rpm": 2}}},
    ]
    providers = {
        name: {**row, "api_key": "sk-upstream", "base_url": provider.url}
        for name, row in rows.items()
    }
    with untroubled(config(auth={"keys": keys}, providers=providers, models={})) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def answering(provider: UpstreamThread) -> None:
    """The provider speaks each of its APIs."""

    async def behave(exchange: Exchange) -> None:
        if exchange.request.path.endswith("/messages"):
            content = [{"type": "text", "text": "hi"}]
            message = {"id": "msg_1", "type": "message", "role": "assistant", "content": content}
            figures = {"input_tokens": 1, "output_tokens": 1}
            await exchange.reply(
                {**message, "model": HAIKU, "stop_reason": "end_turn", "usage": figures}
            )
        elif exchange.request.path.endswith("/responses"):
            item = {"type": "output_text", "text": "hi", "annotations": []}
            said = {"type": "message", "id": "m", "role": "assistant", "content": [item]}
            reply = {"id": "r", "object": "response", "status": "completed", "output": [said]}
            await exchange.reply({**reply, "model": PRICED_MODEL})
        else:
            await like_openai(exchange)

    provider.reset(behave)


SAID = [{"role": "user", "content": "hello"}]
ASKED: dict[str, dict[str, Any]] = {
    CHAT_PATH: chat("openrouter/cheap/model"),
    MESSAGES: {"model": HAIKU, "max_tokens": 5, "messages": SAID},
    RESPONSES: {"model": PRICED_MODEL, "input": "hello"},
}
ADVISOR = {"type": "advisor_20260301", "name": "advisor"}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    (CHAT_PATH, {"models": ["dear/model"]}),
    (CHAT_PATH, {"models": ["cheap/other", "dear/model"]}),
    (CHAT_PATH, {"Models": ["dear/model"]}),
    (CHAT_PATH, {"model_id": "dear/model"}),
    (CHAT_PATH, {"plugins": [{"id": "x", "model": "dear/model"}]}),
    (MESSAGES, {"fallbacks": [{"model": "claude-opus-4-5"}]}),
    (MESSAGES, {"fallbacks": ["claude-opus-4-5"]}),
    (MESSAGES, {"tools": [{**ADVISOR, "model": "claude-opus-4-6"}]}),
    (MESSAGES, {"tools": [{**ADVISOR, "MODEL": "claude-opus-4-6"}]}),
    (RESPONSES, {"tools": [{"type": "image_generation", "model": "gpt-image-1"}]}),
    # So large that it is read in a thread.
    (CHAT_PATH, {"plugins": [*(["model"] * 20_000), [{"id": "x", "model": "dear/model"}]]}),
]
SCHEMA = {
    "type": "object",
    "properties": {"model": {"type": "string", "enum": ["T"]}, "models": {"default": ["T"]}},
    "examples": [{"model": "T"}],
}
FUNCTION = {"name": "order", "description": "Orders a model", "parameters": SCHEMA}
NAMED_IN_TEXT = [{"role": "user", "content": [{"type": "text", "text": '{"model": "T"}'}]}]
SERVED: list[tuple[str, dict[str, Any]]] = [
    (CHAT_PATH, {"models": ["cheap/model", "cheap/other"]}),
    (CHAT_PATH, {"tools": [{"type": "function", "function": FUNCTION}]}),
    (CHAT_PATH, {"metadata": {"model": "T"}, "user": "model", "stop": ["model", "\ud83d\ude00"]}),
    (CHAT_PATH, {"messages": NAMED_IN_TEXT, "models": None}),
    (CHAT_PATH, {"plugins": [*(["model"] * 20_000), {"id": "x", "model": "cheap/model"}]}),
    (MESSAGES, {"fallbacks": [{"model": HAIKU}]}),
    (MESSAGES, {"tools": [{"name": "order", "input_schema": SCHEMA}]}),
    (
        MESSAGES,
        {"tools": [{"name": "o", "input_schema": SCHEMA, "input_examples": [{"model": "T"}]}]},
    ),
    (RESPONSES, {"tools": [{"type": "function", **FUNCTION}]}),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "m", "schema": SCHEMA}}}),
]


@pytest.mark.parametrize(("path", "fields"), REFUSED, ids=lambda one: str(one)[:60])
async def test_no_field_gets_a_restricted_key_another_model(
    served: Gateway, provider: UpstreamThread, path: str, fields: dict[str, Any]
) -> None:
    asked = {**ASKED[path], **fields}
    reply = await ask(served.port, post(asked, path=path, key=NARROW))
    assert reply.status == 403, reply
    assert "This key may not use '" in reply.json["error"]["message"]
    assert provider.received == []
    assert (await ask(served.port, post(asked, path=path))).status == 200


async def test_every_model_that_is_named_is_limited(served: Gateway) -> None:
    beside = {**ASKED[CHAT_PATH], "models": ["cheap/other", "dear/model"]}
    dear = chat("openrouter/dear/model")
    asked = [beside, ASKED[CHAT_PATH], dear, beside, dear, ASKED[CHAT_PATH]]
    statuses = [(await ask(served.port, post(one, key=LIMITED))).status for one in asked]
    assert statuses == [200, 200, 200, 429, 429, 200]


@pytest.mark.parametrize("body", ['"tools": [{"type": "x", %s}]', "%s", '"fallbacks": [{%s}]'])
@pytest.mark.parametrize("name", ["mod\\u0065ls", "\\u004dodels"])
async def test_no_spelling_of_a_name_does(
    served: Gateway, provider: UpstreamThread, name: str, body: str
) -> None:
    asked = json.dumps(ASKED[CHAT_PATH])[:-1].encode()
    twice = f'"{name}": ["dear/model"], "{name}": ["dear/model"]'
    data = asked + b", " + (body % twice).encode() + b"}"
    assert (await ask(served.port, post(data, key=NARROW))).status == 403
    assert provider.received == []


@pytest.mark.parametrize("inner", ['"model": "dear/model", "model": "cheap/model"'])
async def test_no_repetition_of_a_name_does(
    served: Gateway, provider: UpstreamThread, inner: str
) -> None:
    asked = json.dumps(ASKED[CHAT_PATH])[:-1].encode()
    data = asked + f', "tools": [{{"type": "x", {inner}}}]}}'.encode()
    assert (await ask(served.port, post(data, key=NARROW))).status == 403
    assert provider.received == []


@pytest.mark.parametrize(("path", "fields"), SERVED, ids=lambda one: str(one)[:60])
async def test_what_names_an_allowed_model_or_none_is_served(
    served: Gateway, provider: UpstreamThread, path: str, fields: dict[str, Any]
) -> None:
    reply = await ask(served.port, post({**ASKED[path], **fields}, path=path, key=NARROW))
    assert reply.status == 200, reply
    assert len(provider.received) == 1
