"""What a request has held is free at its end: workers let the collector look for circles rarely."""

import asyncio
import contextlib
import gc
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.http.client import ClientWriter
from gateway.http.protocol import GatewayProtocol
from gateway.pipeline import serve
from gateway.pipeline.allowance import Allowance
from gateway.pipeline.attempt import _Course
from gateway.pipeline.call import Call
from gateway.pipeline.flight import Flight, Reader
from gateway.upstream.relay import Relay
from tests.integration.conftest import unused_port
from tests.support.config import KEY, PRICED_MODEL, chat, config, digest
from tests.support.upstream import (
    Behaviour,
    Exchange,
    Upstream,
    completion,
    delta,
    like_openai,
    usage,
)
from tests.support.wire import Wire, chunked, connected, head_of, post
from tests.support.worker import working

KINDS = (Call, ClientWriter, Relay, Allowance, Flight, Reader, _Course, GatewayProtocol)
POOR = "sk-test-poor"
BILLS = ("leader", "split", "each")
TIMES, WAIT_SECONDS = 3, 5.0


def living() -> Counter[str]:
    """How many there are of what makes a request."""
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, KINDS))


async def back_to(before: Counter[str]) -> None:
    """Wait until there is no more than before: what is under way may take a turn or two."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT_SECONDS):
            while not living() <= before:
                await asyncio.sleep(0.01)
    assert living() <= before


async def readers(count: int) -> None:
    """Wait until so many requests wait for an answer that is shared."""
    async with asyncio.timeout(WAIT_SECONDS):
        while living()["Reader"] != count:
            await asyncio.sleep(0.01)


@dataclass
class Worker:
    """A gateway in this process. Models: `one` (first), `m` (first, then second), `nobody`.

    `copied` is `one` with a copy to the second; those named as who pays share their answers.
    """

    runner: asyncio.Runner
    first: Upstream
    second: Upstream
    port: int

    def run(self, test: Coroutine[Any, Any, None]) -> None:
        """Run a test in the gateway's own loop, with the collector switched off."""
        gc.collect()
        gc.disable()
        try:
            self.runner.run(test)
        finally:
            gc.enable()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """The gateway, in the loop that workers have."""
    stack = AsyncExitStack()

    async def start(directory: Path) -> tuple[Upstream, Upstream, int]:
        first, second = [await stack.enter_async_context(Upstream()) for _ in range(2)]
        urls = {"p0": first.url, "p1": second.url, "dead": f"http://127.0.0.1:{unused_port()}/v1"}
        providers: dict[str, dict[str, Any]] = {
            name: {"kind": "openai", "api_key": "sk-upstream", "base_url": url}
            for name, url in urls.items()
        }
        providers |= {"silent": {**providers["p0"], "timeouts": {"first_byte": 0.1}}}
        providers |= {"drains": {**providers["p0"], "on_disconnect": "drain"}}
        tried = {"one": ["p0"], "m": ["p0", "p1"], "nobody": ["dead"], "silent": ["silent"]}
        models: dict[str, dict[str, Any]] = {
            name: {
                "targets": [
                    {"provider": one, "model": PRICED_MODEL, "priority": i + 1}
                    for i, one in enumerate(names)
                ]
            }
            for name, names in {**tried, "drains": ["drains"]}.items()
        }
        shadow = {"provider": "p1", "model": PRICED_MODEL, "percent": 100, "concurrency": 8}
        models["copied"] = {**models["one"], "shadow": shadow}
        shared = {"enabled": True, "requests": "all", "coalesce": "all"}
        models |= {bill: {**models["one"], "cache": {**shared, "bill": bill}} for bill in BILLS}
        budget = {"usd": 99}
        keys = [
            {"name": "k", "tenant": "acme", "sha256": digest(KEY), "budget": budget},
            {"name": "poor", "tenant": "poor", "sha256": digest(POOR), "rpm": 1, "budget": budget},
        ]
        text = config(providers=providers, models=models, auth={"keys": keys})
        return first, second, await stack.enter_async_context(working(directory, text))

    with (
        tempfile.TemporaryDirectory(prefix="sluice-") as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        try:
            started = Worker(runner, *runner.run(start(Path(directory))))
            gc.collect()
            gc.freeze()  # what is there by now need not be looked through each time
            yield started
        finally:
            gc.unfreeze()
            runner.run(stack.aclose())


def refuses(status: int) -> Behaviour:
    """Answer with an error."""

    async def behave(exchange: Exchange) -> None:
        await exchange.reply({"error": {"message": "no", "type": "x", "code": None}}, status)

    return behave


def cut_after(words: int) -> Behaviour:
    """Break a stream off."""

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(words):
            await exchange.event(delta("word"))
        exchange.keep_alive = False

    return behave


async def whole(exchange: Exchange) -> None:
    """Answer a stream with a whole reply."""
    await exchange.reply(completion("one two", usage(7, 5)))


async def at_length(exchange: Exchange) -> None:
    """Stream several slices of a budget at once."""
    await exchange.start_stream()
    for _ in range(20):
        await exchange.event(delta("word " * 400))
    await exchange.event(delta(None, "stop"))
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def fails_in_the_stream(exchange: Exchange) -> None:
    """Say what is wrong as the stream's first event."""
    await exchange.start_stream()
    await exchange.event({"error": {"message": "no", "type": "x", "code": "content_filter"}})
    await exchange.end_stream()


async def silent(exchange: Exchange) -> None:
    """Answer nothing."""
    await exchange.gone()
    exchange.keep_alive = False


async def begins(exchange: Exchange) -> None:
    """Begin a stream, and say nothing more."""
    await exchange.start_stream()
    await exchange.event(delta("word"))
    await silent(exchange)


def direct(body: Any, key: str = KEY) -> bytes:
    """A request as most clients send it."""
    return post(body, key=key)


def parsed(body: Any, key: str = KEY) -> bytes:
    """A request that aiohttp parses."""
    data = post(body)
    return head_of("Transfer-Encoding: chunked", key=key) + chunked(data[data.index(b"{") :])


LANES = pytest.mark.parametrize("lane", [direct, parsed], ids=["direct", "aiohttp"])
Lane = Callable[..., bytes]

ANSWERED: dict[str, tuple[Behaviour, dict[str, Any], int]] = {
    "whole": (like_openai, chat("one"), 200),
    "stream": (like_openai, chat("one", stream=True), 200),
    "refused by the provider": (refuses(400), chat("one"), 400),
    "failed": (refuses(500), chat("one"), 502),
    "not reached": (like_openai, chat("nobody"), 502),
    "timed out": (silent, chat("silent"), 504),
    "told whole": (whole, chat("one", stream=True), 200),
    "of several slices": (at_length, chat("one", stream=True), 200),
    "copied": (like_openai, chat("copied"), 200),
    "copied stream": (like_openai, chat("copied", stream=True), 200),
    "another target": (refuses(500), chat("m"), 200),
    "another target's stream": (cut_after(0), chat("m", stream=True), 200),
    "cut before its beginning": (cut_after(0), chat("one", stream=True), 502),
    "cut": (cut_after(2), chat("one", stream=True), 200),
    "failed in the stream": (fails_in_the_stream, chat("one", stream=True), 400),
    "no such model": (like_openai, chat("nosuch"), 404),
    "invalid": (like_openai, chat("one", stream=7), 400),
}
SHARED = {"ok": like_openai, "failed": refuses(400)}


async def asked_again(worker: Worker, data: bytes, status: int) -> None:
    """A connection that is idle again keeps nothing; one that is closed leaves nothing."""
    before = living()
    async with connected(worker.port) as wire:
        while living() == before:
            await asyncio.sleep(0.01)
        idle = living()
        for _ in range(TIMES):
            await wire.send(data)
            assert (await wire.reply()).status == status
        await back_to(idle)
    await back_to(before)


@LANES
@pytest.mark.parametrize("case", ANSWERED)
def test_a_request_that_is_answered(worker: Worker, case: str, lane: Lane) -> None:
    worker.first.behaviour, body, status = ANSWERED[case]
    worker.run(asked_again(worker, lane(body), status))


@LANES
def test_a_request_from_a_stranger(worker: Worker, lane: Lane) -> None:
    async def test() -> None:
        before = living()
        for _ in range(TIMES):
            async with connected(worker.port) as wire:
                await wire.send(lane(chat("one"), key="wrong"))
                assert (await wire.reply()).status == 401
        await back_to(before)

    worker.run(test())


@LANES
@pytest.mark.parametrize("model", ["one", "split"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_request_over_a_limit(worker: Worker, stream: bool, model: str, lane: Lane) -> None:
    worker.first.behaviour = like_openai

    async def test() -> None:
        before = living()
        async with connected(worker.port) as wire:
            await wire.send(direct(chat("one"), key=POOR))
            await wire.reply()
        await back_to(before)
        await asked_again(worker, lane(chat(model, stream=stream), key=POOR), 429)

    worker.run(test())


@LANES
@pytest.mark.parametrize("model", ["one", "drains"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_request_whose_client_leaves(
    worker: Worker, stream: bool, model: str, lane: Lane
) -> None:
    async def test() -> None:
        opened = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await opened.wait()
            await like_openai(exchange)

        leaves = begins if stream else silent
        worker.first.behaviour = slow if model == "drains" else leaves
        worker.first.received = []
        before = living()
        for number in range(TIMES):
            wire = Wire(*await asyncio.open_connection("127.0.0.1", worker.port))
            await wire.send(lane(chat(model, stream=stream)))
            if stream and model == "one":
                await wire.reader.readuntil(b"word")
            while len(worker.first.received) == number:
                await asyncio.sleep(0.01)
            await wire.aclose()
        opened.set()
        await back_to(before)

    worker.run(test())


@pytest.mark.parametrize("bill", BILLS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("leaves", [None, 0, 1], ids=["nobody", "the first", "the last"])
@pytest.mark.parametrize("how", SHARED)
def test_requests_that_share_a_call(
    worker: Worker, how: str, leaves: int | None, stream: bool, bill: str
) -> None:
    async def test() -> None:
        going = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await going.wait()
            await SHARED[how](exchange)

        worker.first.behaviour = slow
        before = living()
        for number in range(TIMES):
            going.clear()
            body = chat(bill, stream=stream)
            body["messages"][0]["content"] = f"{how} {leaves} {stream} {number}"
            async with connected(worker.port) as one, connected(worker.port) as other:
                await one.send(direct(body))
                await readers(1)
                await other.send(parsed(body))
                await readers(2)
                wires = [one, other]
                if leaves is not None:
                    await wires.pop(leaves).aclose()
                    await readers(1)
                going.set()
                for wire in wires:
                    await wire.reply()
        await back_to(before)

    worker.run(test())


def test_a_failure_of_our_own_is_logged_whole(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise LookupError("nobody thought of this")

    monkeypatch.setattr(serve, "attempt", fails)

    async def test() -> None:
        async with connected(worker.port) as wire:
            await wire.send(direct(chat("one")))
            assert (await wire.reply()).error["code"] == "internal_error"

    worker.run(test())
    assert "in _answer" in caplog.text
    assert "LookupError: nobody thought of this" in caplog.text
