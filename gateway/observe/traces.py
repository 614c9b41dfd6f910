"""Exports each finished request as an OpenTelemetry span, by OTLP over HTTP.

Names follow the GenAI semantic conventions. A collector that is away costs no request anything:
spans wait in a bounded queue, and what does not fit is dropped and counted.
"""

import asyncio
import contextlib
import logging
import os
import re
from collections import deque
from urllib.parse import urlsplit

import aiohttp
import msgspec

from gateway import __version__
from gateway.config.schema import Tracing
from gateway.core.record import RequestRecord

logger = logging.getLogger("sluice.traces")

MAX_QUEUED = 4096
MAX_BATCH = 512
PAUSE_SECONDS = 1.0  # between two posts, unless a whole batch waits: one is what came meanwhile
LAST_BACKOFF_SECONDS = 60.0
TIMEOUT = aiohttp.ClientTimeout(total=5)

SERVER, ERROR = 2, 2  # enum values of opentelemetry.proto.trace.v1.Span.SpanKind and Status

_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_encode = msgspec.json.Encoder().encode

Json = dict[str, object]


class TraceExporter:
    """The worker's queue of finished requests and the task that posts them."""

    def __init__(self, tracing: Tracing) -> None:
        self._url = f"{tracing.endpoint.rstrip('/')}/v1/traces"
        # What may be logged of it: the rest may hold a password.
        self._collector = urlsplit(self._url).netloc.rpartition("@")[2]
        self._headers = {"Content-Type": "application/json", **tracing.headers}
        self._resource = {"attributes": _attributes({"service.name": tracing.service_name})}
        self._queue: deque[RequestRecord] = deque()
        self._task: asyncio.Task[None] | None = None
        self._arrived, self._batch_waits = asyncio.Event(), asyncio.Event()
        self._takes = True  # as far as the last post has shown
        self.dropped = 0

    def start(self) -> None:
        """Begin to export."""
        self._task = asyncio.create_task(self._run(), name="traces")

    def emit(self, record: RequestRecord) -> None:
        """Take a finished request, unless its trace is not sampled."""
        parent = _PARENT.fullmatch(record.trace) if record.trace else None
        if parent and not int(parent[3], 16) & 1:
            return
        waiting = len(self._queue)
        if waiting >= MAX_QUEUED:
            self.dropped += 1
            return
        self._queue.append(record)
        self._arrived.set()
        if waiting + 1 >= MAX_BATCH:
            self._batch_waits.set()

    async def aclose(self) -> None:
        """Post what is left, once. Idempotent."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            while self._queue and await self._post(session):
                pass

    async def _run(self) -> None:
        backoff = PAUSE_SECONDS
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            while True:
                await self._arrived.wait()
                await self._pause(backoff)
                done = await self._post(session)
                backoff = PAUSE_SECONDS if done else min(backoff * 2, LAST_BACKOFF_SECONDS)
                if not self._queue:
                    self._arrived.clear()
                if len(self._queue) < MAX_BATCH:
                    self._batch_waits.clear()

    async def _pause(self, seconds: float) -> None:
        """Let spans gather; a collector that takes them gets a whole batch at once."""
        if not self._takes:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._batch_waits.wait()

    async def _post(self, session: aiohttp.ClientSession) -> bool:
        """Send one batch; False if the collector did not take it and it should be sent again."""
        self._takes = False
        batch = [self._queue[i] for i in range(min(len(self._queue), MAX_BATCH))]
        try:
            body = _encode(self._document(batch))
            async with session.post(
                self._url, data=body, headers=self._headers, allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            name = type(error).__name__
            logger.warning("traces cannot be exported to %s: %s", self._collector, name)
            return False
        except Exception:  # what cannot be written or sent now never can
            logger.exception("%d spans cannot be exported", len(batch))
            self.dropped += len(batch)
        else:
            if status in (429, 502, 503, 504):  # the ones OTLP calls retryable
                return False
            if status >= 300:
                logger.warning("the trace collector refused %d spans: %d", len(batch), status)
                self.dropped += len(batch)
            else:
                self._takes = True
        for _ in batch:
            self._queue.popleft()
        return True

    def _document(self, batch: list[RequestRecord]) -> Json:
        scope = {"name": "sluice", "version": __version__}
        spans = [span(record) for record in batch]
        return {
            "resourceSpans": [
                {"resource": self._resource, "scopeSpans": [{"scope": scope, "spans": spans}]}
            ]
        }


def span(record: RequestRecord) -> Json:
    """Return a request's span, a child of the client's where it sent a `traceparent`."""
    parent = _PARENT.fullmatch(record.trace)
    end_ns = int(record.time * 1e9)
    found: Json = {
        "traceId": parent[1] if parent else os.urandom(16).hex(),
        "spanId": os.urandom(8).hex(),
        "name": f"{record.operation} {record.model}",
        "kind": SERVER,
        "startTimeUnixNano": str(end_ns - record.duration_us * 1000),
        "endTimeUnixNano": str(end_ns),
        "attributes": _attributes(
            {
                "gen_ai.operation.name": record.operation,
                "gen_ai.provider.name": record.provider,
                "gen_ai.request.model": record.model,
                "gen_ai.response.model": record.served_model,
                "gen_ai.usage.input_tokens": record.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": record.usage.completion_tokens,
                "http.response.status_code": record.status,
                "error.type": record.error,
                "sluice.request_id": record.id,
                "sluice.tenant": record.tenant,
                "sluice.key": record.key,
                "sluice.outcome": record.outcome,
                "sluice.attempts": record.attempts,
                "sluice.cost_microusd": record.cost_microusd,
                "sluice.first_byte_us": record.first_byte_us,
                "sluice.upstream_us": record.upstream_us,
            }
        ),
    }
    if parent:
        found["parentSpanId"] = parent[2]
    if record.error:
        found["status"] = {"code": ERROR, "message": record.error}
    return found


def _attributes(values: dict[str, str | int]) -> list[Json]:
    """Encode as OTLP's JSON does: 64-bit integers are strings; empty values are left out."""
    return [
        {
            "key": name,
            "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value},
        }
        for name, value in values.items()
        if value != ""
    ]
