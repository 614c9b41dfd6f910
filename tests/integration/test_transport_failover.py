"""Which failures hand a request to the next target, and what the client hears when none is left."""

import asyncio
import time
from typing import Any

import pytest

from tests.integration.conftest import Wired
from tests.support.config import chat
from tests.support.load import Ask, Outcome, once
from tests.support.upstream import Behaviour, Exchange, delta

ONE, TWO = Ask(chat("one")), Ask(chat("m"))
ONE_STREAM, TWO_STREAM = Ask(chat("one", stream=True)), Ask(chat("m", stream=True))


def answers(status: int, **headers: str) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        body = {"error": {"message": f"told {status}", "type": "x", "param": "n", "code": "mine"}}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await exchange.reply(body, status, named)

    return behave


async def silent(exchange: Exchange) -> None:
    await exchange.gone()
    exchange.keep_alive = False


async def error_event(exchange: Exchange) -> None:
    await exchange.start_stream()
    await exchange.event({"error": {"message": "overloaded", "type": "server_error"}})
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def cut_before_content(exchange: Exchange) -> None:
    await exchange.start_stream()
    exchange.abort()


def assert_from_second(outcome: Outcome, attempts: str = "2") -> None:
    assert (outcome.status, outcome.failure) == (200, ""), outcome
    assert outcome.headers["x-sluice-provider"] == "p1"
    assert outcome.headers["x-sluice-attempts"] == attempts


def assert_error(outcome: Outcome, status: int, code: str, kind: str = "server_error") -> None:
    assert (outcome.status, outcome.failure) == (status, ""), outcome
    error = outcome.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, kind)
    assert outcome.headers["content-type"] == "application/json"
    assert outcome.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 502, 503, 504, 529])
async def test_a_targets_own_trouble_goes_to_the_next(
    wired: Wired, status: int, stream: bool
) -> None:
    wired.behave(answers(status))
    assert_from_second(await once(wired.port, TWO_STREAM if stream else TWO))
    assert wired.asked() == (1, 1)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_a_refused_connection_goes_to_the_next(wired: Wired, stream: bool) -> None:
    assert_from_second(await once(wired.port, Ask(chat("refused", stream=stream))))


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_a_silent_target_goes_to_the_next(wired: Wired, stream: bool) -> None:
    wired.behave(silent)
    started = time.monotonic()
    assert_from_second(await once(wired.port, TWO_STREAM if stream else TWO))
    assert time.monotonic() - started >= 0.55
    assert wired.asked() == (1, 1)


@pytest.mark.parametrize("behaviour", [error_event, cut_before_content])
async def test_a_stream_that_fails_before_its_content_goes_to_the_next(
    wired: Wired, behaviour: Behaviour
) -> None:
    wired.behave(behaviour)
    outcome = await once(wired.port, TWO_STREAM)
    assert_from_second(outcome)
    assert outcome.events[-1] == "[DONE]"
    assert "overloaded" not in outcome.body.decode()
    outcome = await once(wired.port, ONE_STREAM)
    assert_error(outcome, 502, "upstream_failed")


async def test_headers_alone_are_not_content(wired: Wired) -> None:
    async def stall(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.gone()

    wired.behave(stall)
    assert_from_second(await once(wired.port, TWO_STREAM))


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_the_clients_own_fault_is_passed_on_as_it_is(
    wired: Wired, status: int, stream: bool
) -> None:
    wired.behave(answers(status))
    outcome = await once(wired.port, TWO_STREAM if stream else TWO)
    assert outcome.status == status
    assert outcome.json["error"] == {
        "message": f"told {status}",
        "type": "x",
        "param": "n",
        "code": "mine",
    }
    assert outcome.headers["x-sluice-attempts"] == "1"
    assert wired.asked() == (1, 0)
    record = wired.record(outcome.headers["x-request-id"])
    assert (record["outcome"], record["error"]) == ("error", f"upstream_{status}")


async def test_all_targets_failed(wired: Wired) -> None:
    wired.behave(answers(500), answers(503))
    outcome = await once(wired.port, TWO)
    assert_error(outcome, 502, "upstream_failed")
    assert outcome.headers["x-sluice-attempts"] == "2"
    record = wired.record(outcome.headers["x-request-id"])
    assert (record["attempts"], record["outcome"], record["status"]) == (2, "error", 502)
    assert record["usage"]["prompt_tokens"] == record["cost_microusd"] == 0

    assert_error(await once(wired.port, Ask(chat("nobody"))), 502, "upstream_failed")


async def test_all_targets_silent(wired: Wired) -> None:
    wired.behave(silent, silent)
    assert_error(await once(wired.port, TWO), 504, "deadline_exceeded")
    assert wired.asked() == (1, 1)


async def test_all_targets_limit(wired: Wired) -> None:
    wired.behave(answers(429), answers(429, Retry_After="17"))
    outcome = await once(wired.port, TWO)
    assert_error(outcome, 429, "rate_limit_exceeded", "rate_limit_error")
    assert outcome.headers["retry-after"] == "17"


async def test_the_gateways_own_credential_is_never_shown(wired: Wired) -> None:
    async def quote(exchange: Exchange) -> None:
        key = exchange.request.headers["authorization"].removeprefix("Bearer ")
        await exchange.reply({"error": {"message": f"bad key {key}"}}, 401)

    wired.behave(quote, quote)
    outcome = await once(wired.port, TWO)
    assert_error(outcome, 502, "upstream_failed")
    assert b"sk-upstream" not in outcome.body


@pytest.mark.parametrize(
    "body", [b"", b"<html>busy</html>", b"[]", b'{"error": "text"}', b"{" * 5000, b"\xff\xfe"]
)
async def test_an_error_reply_of_any_shape(wired: Wired, body: bytes) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.reply(body, 400, {"Content-Type": "text/html"})

    wired.behave(behave)
    outcome = await once(wired.port, TWO)
    assert outcome.status == 400
    assert isinstance(outcome.json["error"]["message"], str)
    assert wired.asked() == (1, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_login_page_is_no_answer(wired: Wired, stream: bool) -> None:
    async def page(exchange: Exchange) -> None:
        await exchange.reply(b"<html>login</html>", 200, {"Content-Type": "text/html"})

    wired.behave(page)
    outcome = await once(wired.port, Ask({**ONE.body, "stream": stream}))
    assert_error(outcome, 502, "upstream_failed")


async def test_a_reply_that_stops_halfway_goes_to_the_next(wired: Wired) -> None:
    async def halt(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        await exchange.gone()

    wired.behave(halt)
    assert_from_second(await once(wired.port, TWO))
    assert_error(await once(wired.port, ONE), 504, "deadline_exceeded")


async def test_concurrent_failures_stay_apart(wired: Wired) -> None:
    async def by_name(exchange: Exchange) -> None:
        name = int(exchange.request.json["user"])
        if name % 3 == 0:
            await answers(500)(exchange)
        elif name % 3 == 1:
            exchange.abort()
        else:
            await exchange.start_stream()
            await exchange.event(delta(f"{name}", "stop"))
            await exchange.event("[DONE]")
            await exchange.end_stream()

    wired.behave(by_name)
    asks = [Ask(chat("m", stream=True, user=f"{n}")) for n in range(60)]
    outcomes = await asyncio.gather(*(once(wired.port, ask) for ask in asks))
    for n, outcome in enumerate(outcomes):
        assert (outcome.status, outcome.failure) == (200, "")
        assert outcome.headers["x-sluice-attempts"] == ("1" if n % 3 == 2 else "2")
        assert (f'"content":"{n}"' in outcome.body.decode().replace(" ", "")) == (n % 3 == 2)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_json_of_another_api_is_no_answer(wired: Wired, stream: bool, path: str) -> None:
    """A wrong base_url finds a server that answers all with something."""

    async def elsewhere(exchange: Exchange) -> None:
        await exchange.reply({"path": exchange.request.path, "status": "up"})

    wired.behave(elsewhere)
    said = [{"role": "user", "content": "hello"}]
    asked: dict[str, Any] = {"input": said} if path.endswith("responses") else {"messages": said}
    ask = Ask({"model": "one", "stream": stream, "max_tokens": 9, **asked}, path=path)
    if path.endswith("responses"):
        del ask.body["max_tokens"]
    outcome = await once(wired.port, ask)
    assert outcome.status == 502
    assert b"upstream_failed" in outcome.body or b"api_error" in outcome.body
    if path.endswith("completions"):
        ask.body["model"] = "m"
        assert (await once(wired.port, ask)).status == 200
        assert wired.asked()[1] == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_look_for(
    wired: Wired, path: str
) -> None:
    async def too_long(exchange: Exchange) -> None:
        told = {"message": "maximum context length is 10 tokens", "code": "x"}
        await exchange.reply({"error": told}, status=400)

    wired.behave(too_long)
    said = [{"role": "user", "content": "hello"}]
    outcome = await once(
        wired.port, Ask({"model": "one", "max_tokens": 9, "messages": said}, path=path)
    )
    assert outcome.status == 400
    told = outcome.json["error"]["message"]
    if path.endswith("messages"):
        assert told == "prompt is too long: maximum context length is 10 tokens"
    else:
        assert told == "maximum context length is 10 tokens"  # as its provider has it
