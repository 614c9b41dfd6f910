"""Requests that a provider refuses inside a stream, or a reply, whose status is 200."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.config import PRICED_MODEL, chat, config
from tests.support.gateway import Gateway, running
from tests.support.upstream import Behaviour, Exchange, Upstream, like_openai
from tests.support.wire import CHAT_PATH, Reply, ask, post

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
SAID = [{"role": "user", "content": "hello"}]
ASKED: dict[str, dict[str, Any]] = {
    CHAT_PATH: chat(stream=True),
    MESSAGES: {"model": "m", "max_tokens": 9, "messages": SAID, "stream": True},
    RESPONSES: {"model": "m", "input": "hello", "stream": True},
}
TOO_LONG = "Your input exceeds the context window of this model."
BEGUN = {"id": "resp_1", "model": PRICED_MODEL, "object": "response", "output": []}


def failed(code: str, message: str, **more: Any) -> Behaviour:
    """Answer a stream as OpenAI does that fails before there is any content."""
    error = {"code": code, "message": message, **more}

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        if not exchange.request.path.endswith("/responses"):
            await exchange.event({"error": error})
            await exchange.end_stream()
            return
        told = [
            {"type": "response.created", "response": {**BEGUN, "status": "in_progress"}},
            {"type": "response.failed", "response": {**BEGUN, "status": "failed", "error": error}},
        ]
        for number, event in enumerate(told):
            line = json.dumps({**event, "sequence_number": number})
            await exchange.chunk(f"event: {event['type']}\ndata: {line}\n\n".encode())
        await exchange.end_stream()

    return behave


def tells(error: Any) -> Behaviour:
    """Answer with an error and 200, in a stream or whole."""

    async def behave(exchange: Exchange) -> None:
        if not exchange.request.json.get("stream"):
            await exchange.reply(error)
            return
        await exchange.start_stream()
        await exchange.event(error)
        await exchange.end_stream()

    return behave


@contextlib.asynccontextmanager
async def serving(
    behaviour: Behaviour, kind: str = "openai", **model: Any
) -> AsyncIterator[tuple[Gateway, list[Upstream]]]:
    """A gateway whose model `m` fails at two targets, beside `big`, which serves."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [
            await stack.enter_async_context(Upstream(behaviour=one))
            for one in (behaviour, behaviour, like_openai)
        ]
        providers = {
            name: {"kind": kind, "api_key": "sk-upstream", "base_url": one.url}
            for name, one in zip(("a", "b", "big"), upstreams, strict=True)
        }
        providers["big"]["kind"] = "openai-compatible"
        targets = [
            {"provider": name, "model": PRICED_MODEL, "priority": number}
            for number, name in enumerate("ab", 1)
        ]
        text = config(
            providers=providers,
            models={"m": {"targets": targets, **model}},
            breaker={"failures": 2},
        )
        yield stack.enter_context(running(text)), upstreams


def counts(upstreams: list[Upstream]) -> list[int]:
    return [len(one.received) for one in upstreams]


def left_alone(gateway: Gateway) -> dict[str, str]:
    with contextlib.closing(gateway.store) as store:
        found: dict[str, str] = store.hgetall("sluice:targets")
    return found


async def told(gateway: Gateway, path: str, **more: Any) -> Reply:
    return await ask(gateway.port, post({**ASKED[path], **more}, path=path))


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("pads", [0, 3000])
async def test_a_prompt_that_is_too_long_is_the_requests_fault(path: str, pads: int) -> None:
    message = TOO_LONG + "x" * pads
    async with serving(failed("context_length_exceeded", message)) as (gateway, upstreams):
        for _ in range(4):
            reply = await told(gateway, path)
            assert reply.status == 400, reply
            error = reply.json["error"]
            assert TOO_LONG in error["message"]
            assert len(reply.body) < 600
            assert reply.headers["content-type"] == "application/json"
        assert counts(upstreams) == [4, 0, 0]
        assert left_alone(gateway) == {}
        assert [one["failure"] for one in gateway.records(4)[-1]["tries"]] == ["status"]


@pytest.mark.parametrize("code", ["context_length_exceeded", "invalid_prompt"])
async def test_another_model_is_asked_that_may_take_it(code: str) -> None:
    said = {"context_length_exceeded": "Too much.", "invalid_prompt": "Against our usage policy."}
    others = {"context_window": ["big/any"], "content_policy": ["big/any"]}
    async with serving(failed(code, said[code]), fallbacks=others) as (gateway, upstreams):
        for number in range(4):
            reply = await told(gateway, RESPONSES)
            assert reply.status == 200, reply
            assert reply.headers["x-sluice-provider"] == "big"
            assert counts(upstreams) == [number + 1, 0, number + 1]
        assert left_alone(gateway) == {}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_is_told_in_the_providers_words_and_shape(stream: bool) -> None:
    error = {"type": "invalid_request_error", "message": "messages: no (sk-upstream)"}
    behave = tells({"type": "error", "error": error})
    async with serving(behave, "anthropic") as (gateway, upstreams):
        reply = await told(gateway, MESSAGES, stream=stream)
        assert reply.status == 400, reply
        assert reply.json["type"] == "error"
        assert reply.json["error"] == {**error, "message": "messages: no ([key])"}
        assert counts(upstreams) == [1, 0, 0]


@pytest.mark.parametrize("code", ["insufficient_quota", "rate_limit_exceeded", "server_error"])
async def test_trouble_of_the_providers_own_is_handed_over_and_counted(code: str) -> None:
    padding = {"padding": "P" * 3000}
    async with serving(failed(code, "Not now.", **padding)) as (gateway, upstreams):
        for _ in range(2):
            reply = await told(gateway, RESPONSES)
            assert (reply.status, reply.json["error"]["code"]) == (502, "upstream_failed")
            assert reply.json["error"]["message"] == "b: Not now."
        assert counts(upstreams) == [2, 2, 0]
        assert set(left_alone(gateway)) == {f"{name}/{PRICED_MODEL}" for name in "ab"}
