"""Deadlines of a request and of a stream's beginning, and what clients see while they wait."""

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from tests.support.config import KEY, chat, config
from tests.support.gateway import running
from tests.support.load import Ask, Client, once
from tests.support.upstream import Exchange, Upstream, completion, delta, like_openai, usage


def text_of(body: bytes) -> str:
    """What a client reads of a stream."""
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: {")]
    choices = [choice for e in events for choice in json.loads(e).get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def tell(exchange: Exchange) -> None:
    await exchange.event(delta("fine"))
    await exchange.event(delta(None, "stop"))
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def streams(exchange: Exchange) -> None:
    await exchange.start_stream()
    await tell(exchange)


async def silent_after_the_head(exchange: Exchange) -> None:
    await exchange.start_stream()
    await exchange.chunk(b": thinking\n\n")
    await exchange.gone()


async def slow(exchange: Exchange) -> None:
    await asyncio.sleep(0.5)
    await streams(exchange)


@pytest.fixture
def timeouts() -> dict[str, Any]:
    return {"connect": 1, "first_byte": 5, "first_token": 0.4, "idle": 5, "total": 10}


async def test_a_stream_that_does_not_begin_goes_to_the_next_target(
    timeouts: dict[str, Any],
) -> None:
    async with Upstream(behaviour=silent_after_the_head) as first, Upstream(streams) as second:
        text = config(first.url, second.url, server={"timeouts": timeouts})
        with running(text) as gateway:
            outcome = await once(gateway.port, Ask(chat(stream=True)))
            assert (outcome.status, text_of(outcome.body)) == (200, "fine")
            (record,) = gateway.records(1)
            assert [t["failure"] for t in record["tries"]] == ["first_token_timeout", ""]


async def test_a_stream_whose_head_is_late_has_to_begin_all_the_same(
    timeouts: dict[str, Any],
) -> None:
    async def late_and_then_only_comments(exchange: Exchange) -> None:
        await asyncio.sleep(2 * timeouts["first_token"])
        await exchange.start_stream()
        for _ in range(1000):
            await exchange.chunk(b": thinking\n\n")
            await asyncio.sleep(0.01)

    async with Upstream(behaviour=late_and_then_only_comments) as only:
        with running(config(only.url, server={"timeouts": timeouts})) as gateway:
            outcome = await once(gateway.port, Ask(chat(stream=True)))
            assert outcome.status == 504
            (record,) = gateway.records(1)
            assert [t["failure"] for t in record["tries"]] == ["first_token_timeout"]


async def test_without_another_target_it_is_a_deadline(timeouts: dict[str, Any]) -> None:
    async with Upstream(behaviour=silent_after_the_head) as only:
        with running(config(only.url, server={"timeouts": timeouts})) as gateway:
            outcome = await once(gateway.port, Ask(chat(stream=True)))
            assert outcome.status == 504
            assert outcome.json["error"]["code"] == "deadline_exceeded"
            (record,) = gateway.records(1)
            assert [t["failure"] for t in record["tries"]] == ["first_token_timeout"]


async def test_a_client_that_waits_is_sent_comments() -> None:
    async def very_slow(exchange: Exchange) -> None:
        await asyncio.sleep(1.5)
        await streams(exchange)

    async with Upstream(behaviour=very_slow) as upstream:
        text = config(upstream.url, server={"stream_ping": 0.1})
        with running(text) as gateway:
            outcome = await once(gateway.port, Ask(chat(stream=True)))
            assert 2 <= outcome.body.count(b": still here\n\n") <= 16
            assert outcome.body.startswith(b": still here\n\n")
            assert text_of(outcome.body) == "fine"
            assert outcome.body.endswith(b"data: [DONE]\n\n")


async def test_after_comments_a_failure_still_goes_to_the_next_target() -> None:
    async def fails_late(exchange: Exchange) -> None:
        await asyncio.sleep(0.8)
        await exchange.reply({"error": {"message": "no"}}, 503)

    async with Upstream(behaviour=fails_late) as first, Upstream(behaviour=slow) as second:
        text = config(first.url, second.url, server={"stream_ping": 0.1})
        with running(text) as gateway:
            outcome = await once(gateway.port, Ask(chat(stream=True)))
            assert (outcome.status, text_of(outcome.body)) == (200, "fine")
            assert outcome.body.count(b"HTTP/1.1") == 0


@pytest.mark.parametrize("status", [400, 503])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_after_comments_an_error_is_an_event(status: int, path: str) -> None:
    async def fails_late(exchange: Exchange) -> None:
        await asyncio.sleep(0.8)
        await exchange.reply({"error": {"message": "it cannot"}}, status)

    async with Upstream(behaviour=fails_late) as upstream:
        text = json.loads(config(upstream.url, server={"stream_ping": 0.1}))
        text["providers"]["p0"]["kind"] = "openai-compatible"
        with running(json.dumps(text)) as gateway:
            body = chat(stream=True, max_tokens=5)
            if path == "/v1/responses":
                body = {"model": "m", "input": "hi", "stream": True}
            outcome = await once(gateway.port, Ask(body, path=path))
            assert outcome.status == 200
            last = [line for line in outcome.body.decode().splitlines() if "data: " in line][-1]
            assert "it cannot" in outcome.body.decode()
            assert "error" in last or "failed" in last
            assert b"[DONE]" not in outcome.body
            (record,) = gateway.records(1)
            assert record["outcome"] == "error"


@pytest.mark.parametrize(
    ("asked", "status", "most"), [("0.3", 504, 2.0), ("1e9", 200, 5.0), ("5", 200, 5.0)]
)
async def test_a_client_may_ask_for_less_time(asked: str, status: int, most: float) -> None:
    async def late(exchange: Exchange) -> None:
        await asyncio.sleep(0.8)
        await exchange.reply({"id": "x", "choices": [], "usage": None})

    async with Upstream(behaviour=late) as upstream:
        with running(config(upstream.url)) as gateway:
            outcome = await with_timeout(gateway.port, asked)
            assert outcome[0] == status
            assert outcome[1] < most


@pytest.mark.parametrize("asked", ["0", "-1", "soon", "nan", "inf", "1,5"])
async def test_a_bad_timeout_is_named(upstream: Upstream, asked: str) -> None:
    with running(config(upstream.url)) as gateway:
        status, _, body = await with_timeout(gateway.port, asked)
        assert status == 400
        assert json.loads(body)["error"]["param"] == "x-sluice-timeout"
    assert upstream.received == []


async def with_timeout(port: int, seconds: str) -> tuple[int, float, bytes]:
    """A request with the header; its status, how long it took, and its body."""
    data = json.dumps(chat()).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"x-sluice-timeout: {seconds}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    began = asyncio.get_running_loop().time()
    async with Client(port) as client:
        await client.connect()
        assert client.writer is not None
        client.writer.write(head.encode() + data)
        raw = await client._reader.read()
    took = asyncio.get_running_loop().time() - began
    top, _, body = raw.partition(b"\r\n\r\n")
    return int(top.split()[1]), took, body


async def hangs(exchange: Exchange) -> None:
    await exchange.gone()


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_a_models_deadlines_go_above_its_providers(*, stream: bool) -> None:
    async with Upstream(behaviour=hangs) as upstream:
        row = {"kind": "openai", "api_key": "x", "base_url": upstream.url}
        targets = [{"provider": "p0", "model": "gpt-4o-mini"}]
        models = {
            "patient": {"targets": targets, "timeouts": {"first_byte": 30, "total": 1}},
            "hasty": {"targets": targets, "timeouts": {"first_byte": 0.3}},
        }
        providers = {"p0": {**row, "timeouts": {"first_byte": 20}}}
        with running(config(providers=providers, models=models)) as gateway:
            for i, (model, fired) in enumerate((("patient", "total"), ("hasty", "first_byte"))):
                outcome = await once(gateway.port, Ask(chat(model=model, stream=stream)))
                assert (outcome.status, outcome.json["error"]["code"]) == (504, "deadline_exceeded")
                (tried,) = gateway.records(i + 1)[-1]["tries"]
                assert tried["failure"] == f"{fired}_timeout"


async def test_a_client_never_gets_more_than_its_models_total() -> None:
    async with Upstream(behaviour=hangs) as upstream:
        models = {
            "m": {
                "targets": [{"provider": "p0", "model": "gpt-4o-mini"}],
                "timeouts": {"total": 0.5},
            }
        }
        with running(config(upstream.url, models=models)) as gateway:
            status, took, _ = await with_timeout(gateway.port, "1e9")
            assert status == 504
            assert took < 20


async def test_a_providers_own_total_hands_over() -> None:
    async with Upstream(behaviour=hangs) as slow, Upstream() as fast:
        providers = {
            "p0": {"kind": "openai", "api_key": "x", "base_url": slow.url},
            "p1": {"kind": "openai", "api_key": "x", "base_url": fast.url},
        }
        providers["p0"]["timeouts"] = {"total": 0.4}  # type: ignore[assignment]
        targets = [
            {"provider": f"p{i}", "model": "gpt-4o-mini", "priority": i + 1} for i in range(2)
        ]
        models = {"m": {"targets": targets}}
        with running(config(providers=providers, models=models)) as gateway:
            outcome = await once(gateway.port, Ask(chat()))
            assert outcome.headers["x-sluice-provider"] == "p1"


async def test_who_waits_for_a_connection_until_its_time_is_up_is_told_that() -> None:
    async def slow_once(exchange: Exchange) -> None:
        await held.wait()
        await like_openai(exchange)

    held = asyncio.Event()
    async with Upstream(behaviour=slow_once) as full, Upstream() as other:
        text = json.loads(config(full.url, other.url))
        text["providers"]["p0"]["max_connections"] = 1
        text["models"]["other"] = {"targets": [{"provider": "p1", "model": "gpt-4o-mini"}]}
        with running(json.dumps(text)) as gateway:
            await once(gateway.port, Ask(chat("other")))  # whose connection is idle then
            first = asyncio.create_task(once(gateway.port, Ask(chat())))
            while not full.received:
                await asyncio.sleep(0.01)
            hasty = Ask(chat(), headers={"x-sluice-timeout": "0.3"})
            assert (await once(gateway.port, hasty)).status == 504
            held.set()
            assert (await first).status == 200
            assert len(other.received) == 1, "its client had given up"


async def test_who_waits_for_a_connection_for_too_long_is_told_that() -> None:
    async def slow_once(exchange: Exchange) -> None:
        if len(upstream.received) > 1:
            await exchange.gone()
        await asyncio.sleep(0.6)
        await like_openai(exchange)

    async with Upstream(behaviour=slow_once) as upstream:
        text = json.loads(config(upstream.url))
        text["providers"]["p0"] |= {"max_connections": 1, "timeouts": {"total": 1.5}}
        with running(json.dumps(text)) as gateway:
            first = asyncio.create_task(once(gateway.port, Ask()))
            while not upstream.received:
                await asyncio.sleep(0.01)
            second = await once(gateway.port, Ask())
            assert (await first).status == 200
            assert (second.status, second.json["error"]["code"]) == (503, "overloaded")
            assert "1.5 s went by without a free connection" in second.json["error"]["message"]


def bounded(first: Upstream, second: Upstream, seconds: float) -> str:
    """Two targets, of which the first has so much time, and may fail once."""
    text = json.loads(config(first.url, second.url, breaker={"failures": 1, "ejection": 60}))
    text["providers"]["p0"]["timeouts"] = {"total": seconds}
    return json.dumps(text)


async def test_who_takes_longer_than_it_may_is_left_alone() -> None:
    async with Upstream(behaviour=hangs) as slow, Upstream() as fast:
        with running(bounded(slow, fast, 0.3)) as gateway:
            for _ in range(3):
                assert (await once(gateway.port, Ask(chat()))).status == 200
            record, *_ = await asyncio.to_thread(gateway.records, 3)
            assert [one["failure"] for one in record["tries"]] == ["attempt_timeout", ""]
            assert len(slow.received) == 1


@pytest.mark.parametrize("own", [False, True])
async def test_a_total_has_the_same_name_on_every_way(upstream: Upstream, *, own: bool) -> None:
    async def drips(exchange: Exchange) -> None:
        await exchange.start_stream()
        while True:
            await exchange.event(delta("word "))
            await asyncio.sleep(0.05)

    text = json.loads(config(upstream.url))
    (text["providers"]["p0"] if own else text.setdefault("server", {}))["timeouts"] = {"total": 0.5}
    passed_on = "/providers/p0/chat/completions"
    with running(json.dumps(text)) as gateway:
        upstream.behaviour = hangs
        assert (await once(gateway.port, Ask(chat()))).status == 504
        assert (await once(gateway.port, Ask(chat(), passed_on))).status == 504
        upstream.behaviour = drips
        for path in ("/v1/chat/completions", passed_on):
            await once(gateway.port, Ask(chat(stream=True), path))
        records = await asyncio.to_thread(gateway.records, 4)
        failures = [one["tries"][0]["failure"] for one in records]
        assert failures == ["attempt_timeout" if own else "total_timeout"] * 4


async def test_a_client_that_takes_nothing_is_not_its_targets_fault() -> None:
    async def torrent(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(4000):
            await exchange.event(delta("x" * 16_000))

    async with Upstream(behaviour=torrent) as first, Upstream() as second:
        with running(bounded(first, second, 1.5)) as gateway:
            async with Client(gateway.port, limit=65536) as client:
                await client.send(Ask(chat(stream=True)))
                (record,) = await asyncio.to_thread(gateway.records, 1)
            assert record["error"] == "deadline_exceeded"
            assert [one["failure"] for one in record["tries"]] == ["stalled"]
            first.behaviour = like_openai
            outcome = await once(gateway.port, Ask(chat()))
            assert outcome.headers["x-sluice-provider"] == "p0"


@pytest.mark.parametrize("at", ["first_byte", "first_token", "idle", "total"])
async def test_a_worker_that_was_held_up_reads_what_came_before_it_gives_up(at: str) -> None:
    pids: list[int] = []

    async def answers_meanwhile(exchange: Exchange) -> None:
        """Answer a worker that gets no CPU until all of its deadlines have passed."""
        if at in ("first_token", "idle"):
            await exchange.start_stream()
        if at == "idle":
            await exchange.event(delta("so far "))
        await asyncio.sleep(0.1)  # it has read this much
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            if at in ("first_token", "idle"):
                await tell(exchange)
            else:
                await exchange.reply(completion("fine", usage(7, 1)))
            await asyncio.sleep(1.0)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    timeouts = {"connect": 1, "first_byte": 5, "first_token": 5, "idle": 5, "total": 10, at: 0.6}
    async with Upstream(behaviour=answers_meanwhile) as upstream:
        text = config(upstream.url, server={"timeouts": timeouts})
        with running(text) as gateway:
            pids += gateway.worker_pids
            stream = at in ("first_token", "idle")
            outcome = await once(gateway.port, Ask(chat(stream=stream)))
            assert outcome.status == 200
            assert b"fine" in outcome.body
            assert b"error" not in outcome.body
            (record,) = gateway.records(1)
            assert [t["failure"] for t in record["tries"]] == [""]
