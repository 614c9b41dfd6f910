"""Models that providers list themselves, and spans at a collector."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from gateway.config.schema import Tracing
from gateway.core.record import RequestRecord
from gateway.core.usage import Usage
from gateway.observe import traces
from gateway.observe.traces import TraceExporter
from tests.integration.conftest import unused_port
from tests.support.config import bearer, chat, config
from tests.support.gateway import running
from tests.support.upstream import Exchange, Upstream

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def listed(url: str) -> dict[str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(url + "/v1/models", headers=bearer()) as response,
    ):
        return {m["id"]: m["owned_by"] for m in (await response.json())["data"]}


async def ask(url: str, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            url + "/v1/chat/completions", json=chat(), headers=bearer() | headers
        ) as response,
    ):
        await response.read()
        return response.status


async def test_models_that_the_configuration_does_not_name_are_listed(upstream: Upstream) -> None:
    with running(config(upstream.url)) as gateway:
        first, again = await listed(gateway.url), await listed(gateway.url)
    # The kind claims gpt-*, so the bare name is clear; the other needs its provider's.
    assert first == {"m": "p0", "gpt-4o-mini": "p0", "p0/house-model": "p0"}
    assert again == first
    (question,) = upstream.received
    assert (question.method, question.path) == ("GET", "/v1/models")
    assert question.headers["authorization"] == "Bearer sk-upstream-0"


async def test_a_provider_that_lists_nothing_hides_no_other_model(upstream: Upstream) -> None:
    async def broken(exchange: Exchange) -> None:
        await exchange.reply({"error": "no"}, status=500)

    async with Upstream(behaviour=broken) as other:
        with running(config(other.url, upstream.url)) as gateway:
            found = await listed(gateway.url)
    assert found == {"m": "p0", "p1/gpt-4o-mini": "p1", "p1/house-model": "p1"}


async def test_a_long_allowlist_shows_what_it_covers_of_many_models() -> None:
    async def lists(exchange: Exchange) -> None:
        await exchange.reply({"data": [{"id": f"house-{n}"} for n in range(900)]})

    async with Upstream(behaviour=lists) as provider:
        text = json.loads(config(provider.url))
        patterns = [*[f"none-{n}*" for n in range(150)], "p0/house-1?", "m"]
        text["auth"]["keys"][0]["models"] = patterns
        with running(json.dumps(text)) as gateway:
            found = await listed(gateway.url)
    assert set(found) == {"m", *[f"p0/house-1{n}" for n in range(10)]}


class Collector:
    """Takes OTLP posts; refuses the first `failures` of them with 503."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.posts: list[Any] = []
        self.headers: dict[str, str] = {}

    @property
    def spans(self) -> list[dict[str, Any]]:
        """Every span so far."""
        scopes = [s for p in self.posts for r in p["resourceSpans"] for s in r["scopeSpans"]]
        return [span for scope in scopes for span in scope["spans"]]

    async def __call__(self, exchange: Exchange) -> None:
        if self.failures:
            self.failures -= 1
            await exchange.reply({}, status=503)
            return
        assert exchange.request.path == "/v1/traces"
        self.headers = exchange.request.headers
        self.posts.append(exchange.request.json)
        await exchange.reply({})

    async def wait(self, spans: int) -> None:
        """Wait for so many."""
        async with asyncio.timeout(15):
            while len(self.spans) < spans:
                await asyncio.sleep(0.05)


def values(span: dict[str, Any]) -> dict[str, str]:
    return {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}


def traced(collector: Upstream) -> dict[str, str]:
    return {
        "ENABLE_TRACING": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-token=a%20b",
    }


async def test_a_request_is_a_span_in_its_clients_trace(upstream: Upstream) -> None:
    collector = Collector()
    async with Upstream(behaviour=collector) as server:
        with running(config(upstream.url), environ=traced(server)) as gateway:
            assert await ask(gateway.url, traceparent=f"00-{TRACE}-{SPAN}-01") == 200
            assert await ask(gateway.url, traceparent=f"00-{TRACE}-{SPAN}-00") == 200  # unsampled
            assert await ask(gateway.url, Authorization="Bearer wrong") == 401
            await collector.wait(2)
    served, refused = sorted(collector.spans, key=lambda span: values(span)["sluice.outcome"])
    assert (served["traceId"], served["parentSpanId"]) == (TRACE, SPAN)
    said = values(served)
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.response.model"] == "gpt-4o-mini"
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == ("7", "5")
    assert int(served["endTimeUnixNano"]) > int(served["startTimeUnixNano"])
    assert refused["status"]["message"] == values(refused)["error.type"] == "invalid_api_key"
    assert "parentSpanId" not in refused
    assert collector.headers["x-token"] == "a b"


async def test_spans_wait_for_a_collector_that_is_away(upstream: Upstream) -> None:
    collector = Collector(failures=1)
    async with Upstream(behaviour=collector) as server:
        with running(config(upstream.url), environ=traced(server)) as gateway:
            assert await ask(gateway.url) == 200
            await collector.wait(1)


async def test_no_span_goes_where_a_collector_points(upstream: Upstream) -> None:
    elsewhere = Collector()

    async with Upstream(behaviour=elsewhere) as other:

        async def points(exchange: Exchange) -> None:
            place = f"http://127.0.0.1:{other.port}/v1/traces"
            await exchange.reply({}, status=307, headers={"Location": place})

        async with Upstream(behaviour=points) as server:
            with running(config(upstream.url), environ=traced(server)) as gateway:
                assert await ask(gateway.url) == 200
                async with asyncio.timeout(15):
                    while not server.received:
                        await asyncio.sleep(0.05)
                await asyncio.to_thread(gateway.stop)
                assert "refused 1 spans: 307" in gateway.log_file.read_text()
        assert other.received == []


def record(model: str) -> RequestRecord:
    return RequestRecord(
        *("req_1", 0.0, "acme", "k", "chat", model, "p0", "m", 200, "ok", "", False),
        *(Usage(), "none", 0, "", 1, 1, 1, 1),
    )


async def test_spans_that_cannot_be_written_are_counted_and_gone() -> None:
    exporter = TraceExporter(Tracing())
    exporter.start()
    exporter.emit(record("half a \ud800"))
    await exporter.aclose()
    assert exporter.dropped == 1


async def test_whole_batches_do_not_wait_for_a_collector_that_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traces, "PAUSE_SECONDS", 3600.0)
    collector = Collector()
    async with Upstream(behaviour=collector) as server:
        exporter = TraceExporter(Tracing(endpoint=f"http://127.0.0.1:{server.port}"))
        exporter.start()
        for _ in range(4):  # more than the queue holds
            for _ in range(3 * traces.MAX_BATCH):
                exporter.emit(record("m"))
            async with asyncio.timeout(30):
                while len(exporter._queue) >= traces.MAX_BATCH:
                    await asyncio.sleep(0.01)
        exporter.emit(record("m"))
        await exporter.aclose()
    assert (len(collector.spans), exporter.dropped) == (12 * traces.MAX_BATCH + 1, 0)
    assert len(collector.posts) == 13


@pytest.mark.parametrize("status", [400, 503])
async def test_a_collector_that_takes_nothing_has_its_pause(status: int) -> None:
    async def refuses(exchange: Exchange) -> None:
        await exchange.reply({}, status=status)

    async with Upstream(behaviour=refuses) as server:
        exporter = TraceExporter(Tracing(endpoint=f"http://127.0.0.1:{server.port}"))
        exporter.start()
        for _ in range(4 * traces.MAX_BATCH):
            exporter.emit(record("m"))
        async with asyncio.timeout(30):
            while not server.received:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # in which there is time for many
        assert len(server.received) == 1
        exporter._queue.clear()
        await exporter.aclose()


async def test_a_collectors_password_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    port = unused_port()
    exporter = TraceExporter(Tracing(endpoint=f"http://user:hidden@127.0.0.1:{port}/hidden"))
    exporter.start()
    exporter.emit(record("m"))
    await exporter.aclose()
    assert f"traces cannot be exported to 127.0.0.1:{port}: Client" in caplog.text
    assert "hidden" not in caplog.text


async def test_the_last_spans_are_sent_before_a_worker_ends(upstream: Upstream) -> None:
    collector = Collector()
    async with Upstream(behaviour=collector) as server:
        with running(config(upstream.url), environ=traced(server)) as gateway:
            assert await ask(gateway.url) == 200
            await asyncio.to_thread(gateway.stop)
        await collector.wait(1)
