"""Hot path: asks a model's targets in turn until one answers.

The only place that tries again, and only while the client has had nothing. What to do after a
failure is `policy.retry`'s to say.
"""

import asyncio
import zlib
from functools import partial
from time import monotonic

from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.record import AttemptRecord
from gateway.core.request import Request
from gateway.formats import openai
from gateway.pipeline.answer import common_headers, served_headers
from gateway.pipeline.call import Call, Deliver
from gateway.pipeline.catalogue import Route
from gateway.pipeline.services import Services
from gateway.pipeline.settle import measure
from gateway.policy.retry import Next, client_error, decide, is_clients_fault
from gateway.policy.routing import plan
from gateway.policy.tokens import count_tokens
from gateway.upstream.connection import MAX_BODY_BYTES, Reply
from gateway.upstream.relay import Relay

MAX_SHOWN_CHARS = 300
MICROSECONDS = 1_000_000


async def attempt(services: Services, call: Call) -> Deliver:
    """Return what delivers the answer. Raises UpstreamError or ApiError when all targets failed."""
    assert call.request is not None
    assert call.model is not None
    until = call.started_at + services.config.server.timeouts.total
    failure: UpstreamError | None = None
    for route in plan(call.model.routes):
        if call.operation not in route.adapter.operations:
            continue
        call.attempts += 1
        call.route = route
        call.sent_at, call.reply_at, call.connect_s = monotonic(), 0.0, 0.0
        try:
            deliver = await _ask(services, call, call.request, route, until)
        except UpstreamError as error:
            failure = error
            call.tries.append(_tried(call, route, error.failure.value, error.status))
            if error.failure is Failure.STREAM_ERROR:
                error.message = _redacted(error.message, route)
            if call.relay is not None and call.relay.started:
                measure(call)
                raise _interrupted(call, error, route) from None
            if decide(error) is Next.GIVE_UP:
                break
        except asyncio.CancelledError:
            call.tries.append(_tried(call, route, "cancelled", 0))
            raise
        else:
            call.tries.append(_tried(call, route, "", 200))
            return deliver
    if failure is None:
        failure = UpstreamError(Failure.CONNECT, "no target")
    if is_clients_fault(failure):
        return _pass_on(call, failure)
    raise failure


async def _ask(
    services: Services, call: Call, request: Request, route: Route, until: float
) -> Deliver:
    """Make one attempt."""
    target = route.target
    body = route.adapter.build(request, target)
    data = b"%b%d\r\n\r\n%b" % (route.heads[request.operation], len(body), body)
    call.relay = relay = _relay(services, call, route) if request.stream else None
    reply = await services.transport.send(target.origin, data, relay, target.deadlines, until)
    call.reply_at, call.connect_s = monotonic(), reply.connect_seconds
    if reply.status != 200:
        raise _refusal(route, reply)
    if reply.streamed:
        assert relay is not None
        ending = relay.end()
        call.status = 200
        call.finished = True
        measure(call)
        return partial(call.client.finish, ending)
    call.relay = None
    content = _decompressed(reply)
    call.status = 200
    call.finished = True
    measure(call, content)
    content_type = reply.headers.get(b"content-type", b"application/json").decode("latin-1")
    headers = served_headers(call, with_cost=True)
    return partial(call.client.reply, 200, content_type, headers, content)


def _tried(call: Call, route: Route, failure: str, status: int) -> AttemptRecord:
    first = call.reply_at
    if call.relay is not None and call.relay.started:
        first = call.relay.first_event_at
    return AttemptRecord(
        provider=route.target.provider,
        model=route.target.model,
        status=status,
        failure=failure,
        connect_us=int(call.connect_s * MICROSECONDS),
        first_byte_us=int((first - call.sent_at) * MICROSECONDS) if first else 0,
        duration_us=int((monotonic() - call.sent_at) * MICROSECONDS),
    )


def _relay(services: Services, call: Call, route: Route) -> Relay:
    assert call.request is not None
    return Relay(
        route.adapter.decoder(call.request),
        call.client,
        partial(served_headers, call, with_cost=False),
        count_tokens,
        monotonic,
        call.allowance,
    )


def _refusal(route: Route, reply: Reply) -> UpstreamError:
    """Turn a reply that is not 200 into an error; its text never quotes the target's key."""
    body = _decompressed(reply)
    message = route.adapter.parse_error(body)
    return UpstreamError(
        Failure.STATUS,
        _redacted(message or f"answered {reply.status}", route)[:MAX_SHOWN_CHARS],
        status=reply.status,
        body=_redacted_bytes(body, route) if message is not None else b"",
        content_type=reply.headers.get(b"content-type", b"").decode("latin-1"),
        retry_after=_retry_after(reply.headers),
    )


def _pass_on(call: Call, error: UpstreamError) -> Deliver:
    """Give the client the provider's own refusal of its request, in the provider's words."""
    told = ApiError("invalid_value", error.message)
    call.status, call.error, call.outcome = error.status, f"upstream_{error.status}", "error"
    body = error.body or openai.error_body(told)
    headers = served_headers(call, with_cost=False) if call.route else common_headers(call)
    return partial(call.client.reply, error.status, "application/json", headers, body)


def _interrupted(call: Call, error: UpstreamError, route: Route) -> ApiError:
    """Say on an open stream why it ends here."""
    if error.failure is Failure.STREAM_ERROR:
        said = route.adapter.parse_error(error.message.encode()) or error.message
        said = _redacted(said, route)[:MAX_SHOWN_CHARS]
        message = f"{route.target.provider} reported an error: {said}"
        return ApiError("stream_interrupted", message)
    if error.failure is Failure.SPENT:
        assert call.allowance is not None
        assert call.allowance.spent is not None
        return call.allowance.spent
    told = client_error(error, route.target.provider)
    if told.code == "upstream_failed":
        return ApiError("stream_interrupted", told.message)
    return told


def _redacted(text: str, route: Route) -> str:
    """Take the gateway's own key out of what a provider says: some quote it in errors."""
    key = route.target.api_key
    return text.replace(key, "[key]") if key else text


def _redacted_bytes(body: bytes, route: Route) -> bytes:
    key = route.target.api_key
    return body.replace(key.encode(), b"[key]") if key else body


def _retry_after(headers: dict[bytes, bytes]) -> float | None:
    value = headers.get(b"retry-after", b"").strip()
    return float(value) if value.isdigit() and len(value) < 7 else None


def _decompressed(reply: Reply) -> bytes:
    """Undo a compression that was not asked for, within the cap of a body."""
    encoding = reply.headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding == b"identity":
        return reply.body
    if encoding not in (b"gzip", b"deflate"):
        raise UpstreamError(Failure.PROTOCOL, "the reply's content encoding is unknown")
    machine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        content = machine.decompress(reply.body, MAX_BODY_BYTES)
    except zlib.error:
        raise UpstreamError(Failure.PROTOCOL, "the reply's compression is damaged") from None
    if not machine.eof:
        raise UpstreamError(Failure.PROTOCOL, "the reply is cut or too large")
    return content
