"""Streams that break after their first content: an error event, never a clean-looking end."""

import asyncio
import json
import time

import pytest

from tests.integration.conftest import Wired
from tests.support.config import chat
from tests.support.load import Ask, Client, Outcome, once
from tests.support.upstream import Behaviour, Exchange, delta, usage

STREAM, TWO_STREAM = Ask(chat("one", stream=True)), Ask(chat("m", stream=True))


def event(content: object) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


async def begin(exchange: Exchange) -> None:
    await exchange.start_stream()
    await exchange.event(delta("one"))
    await exchange.event(delta(" two"))
    await asyncio.sleep(0.05)


async def stalls(exchange: Exchange) -> None:
    await begin(exchange)
    await exchange.gone()


async def is_cut_between_events(exchange: Exchange) -> None:
    await begin(exchange)
    exchange.abort()


async def is_cut_in_an_event(exchange: Exchange) -> None:
    await begin(exchange)
    await exchange.chunk(event(delta(" three"))[:20])
    await asyncio.sleep(0.05)
    exchange.abort()


async def is_cut_in_a_chunk(exchange: Exchange) -> None:
    await begin(exchange)
    await exchange.send(b"ff\r\ndata: {")
    await asyncio.sleep(0.05)
    exchange.abort()


async def ends_without_a_finish(exchange: Exchange) -> None:
    await begin(exchange)
    await exchange.end_stream()


async def ends_in_an_event(exchange: Exchange) -> None:
    await begin(exchange)
    await exchange.chunk(event(delta(" three"))[:20])
    await exchange.end_stream()


async def reports_an_error(exchange: Exchange) -> None:
    await begin(exchange)
    await exchange.event({"error": {"message": "engine overheated", "type": "server_error"}})
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def breaks_the_framing(exchange: Exchange) -> None:
    await begin(exchange)
    await exchange.send(b"not a chunk size\r\n")
    await exchange.gone()


BROKEN = [
    stalls,
    is_cut_between_events,
    is_cut_in_an_event,
    is_cut_in_a_chunk,
    ends_without_a_finish,
    ends_in_an_event,
    reports_an_error,
    breaks_the_framing,
]


def assert_broken_off(outcome: Outcome) -> None:
    assert (outcome.status, outcome.failure) == (200, ""), outcome
    *content, last = outcome.events
    assert [json.loads(e)["choices"][0]["delta"]["content"] for e in content] == ["one", " two"]
    error = json.loads(last)["error"]
    assert error["message"]
    assert error["type"] == "server_error"
    assert error["code"] in ("stream_interrupted", "deadline_exceeded")
    assert b"[DONE]" not in outcome.body


@pytest.mark.parametrize("behaviour", BROKEN)
async def test_a_broken_stream_ends_in_an_error_event(wired: Wired, behaviour: Behaviour) -> None:
    wired.behave(behaviour)
    outcome = await once(wired.port, TWO_STREAM)
    assert_broken_off(outcome)
    assert wired.asked() == (1, 0), "tried again after content"
    record = wired.record(outcome.headers["x-request-id"])
    assert record["outcome"] == "error"
    assert record["usage"]["completion_tokens"] == 2
    assert record["usage_source"] == "partial"
    assert record["cost_microusd"] > 0


async def test_the_connection_to_the_client_survives_a_broken_stream(wired: Wired) -> None:
    wired.behave(is_cut_between_events)
    async with Client(wired.port) as client:
        assert_broken_off(await client.ask(STREAM))
        port = client.local_port
        wired.behave()
        outcome = await client.ask(STREAM)
        assert outcome.events[-1] == "[DONE]"
        assert outcome.local_port == port


async def test_an_error_of_the_provider_is_told_in_its_words(wired: Wired) -> None:
    wired.behave(reports_an_error)
    outcome = await once(wired.port, STREAM)
    assert "engine overheated" in outcome.events[-1]


FINISHED = event(delta("one")) + event(delta(None, "stop"))
USAGE = event({**delta(None), "choices": [], "usage": usage(7, 1)})
DONE = b"data: [DONE]\n\n"


def sends(data: bytes, pieces: int, close_framed: bool) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        kind = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        framing = (
            b"Connection: close\r\n\r\n" if close_framed else b"Transfer-Encoding: chunked\r\n\r\n"
        )
        await exchange.send(kind + framing)
        for i in range(0, len(data), pieces):
            part = data[i : i + pieces]
            await (exchange.send(part) if close_framed else exchange.chunk(part))
            await asyncio.sleep(0)
        if not close_framed:
            await exchange.end_stream()
        exchange.keep_alive = not close_framed

    return behave


@pytest.mark.parametrize("close_framed", [False, True], ids=["chunked", "close"])
@pytest.mark.parametrize("pieces", [1, 7, 100_000])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
async def test_a_whole_stream_however_it_is_split(
    wired: Wired, pieces: int, line_end: str, close_framed: bool
) -> None:
    data = (FINISHED + USAGE + DONE).replace(b"\n", line_end.encode())
    wired.behave(sends(data, pieces, close_framed))
    outcome = await once(wired.port, STREAM)
    assert (outcome.status, outcome.failure) == (200, "")
    assert outcome.events[-1] == "[DONE]"
    assert [json.loads(e)["choices"][0]["finish_reason"] for e in outcome.events[:-1]] == [
        None,
        "stop",
    ]
    record = wired.record(outcome.headers["x-request-id"])
    assert (record["outcome"], record["usage_source"]) == ("ok", "provider")
    assert record["usage"]["completion_tokens"] == 1


async def test_usage_that_the_client_asked_for_is_its_own(wired: Wired) -> None:
    ask = Ask(chat("one", stream=True, stream_options={"include_usage": True}))
    wired.behave(sends(FINISHED + USAGE + DONE, 100_000, False))
    outcome = await once(wired.port, ask)
    assert json.loads(outcome.events[-2])["usage"]["completion_tokens"] == 1


async def test_a_stream_that_nobody_streams(wired: Wired) -> None:
    async def unary(exchange: Exchange) -> None:
        await exchange.reply({"choices": [], "usage": usage(7, 5)})

    wired.behave(unary)
    outcome = await once(wired.port, STREAM)
    assert outcome.headers["content-type"].startswith("text/event-stream")
    assert outcome.events[-1] == "[DONE]"
    assert wired.record(outcome.headers["x-request-id"])["usage"]["completion_tokens"] == 5


async def test_chunks_arrive_as_they_are_written(wired: Wired) -> None:
    gate = asyncio.Event()

    async def step(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("one"))
        while not gate.is_set():
            await asyncio.sleep(0.01)
        await exchange.event(delta(" two", "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()

    wired.behave(step)
    async with Client(wired.port) as client:
        await client.send(STREAM)
        await client.read_head()
        first = await client.read_chunk()
        assert b'"one"' in first.replace(b" ", b"")
        gate.set()
        started = time.monotonic()
        await client.read_body()
        assert client.arrived.endswith(DONE)
        assert time.monotonic() - started < 30
