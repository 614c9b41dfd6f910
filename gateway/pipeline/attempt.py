"""Hot path: asks a model's targets in turn until one answers.

The only place that tries again, and only while the client has had nothing. What to do after a
failure is `policy.retry`'s to say.
"""

import asyncio
import zlib
from collections.abc import Iterator
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.operations import Operation
from gateway.core.record import AttemptRecord
from gateway.core.request import Request
from gateway.formats import FORMATS, Meta
from gateway.pipeline.answer import common_headers, served_headers
from gateway.pipeline.call import Call, Deliver
from gateway.pipeline.catalogue import Headers, Route
from gateway.pipeline.lanes import Lane
from gateway.pipeline.services import Services
from gateway.pipeline.settle import count_prompt, measure
from gateway.policy.retry import Next, client_error, decide, is_clients_fault
from gateway.policy.rotation import resting_seconds
from gateway.policy.routing import plan
from gateway.policy.tokens import count_tokens
from gateway.upstream.connection import MAX_BODY_BYTES, Reply
from gateway.upstream.relay import Relay

MAX_SHOWN_CHARS = 300
NO_META = Meta("", "", 0)  # replies in the client's own dialect need none
MICROSECONDS = 1_000_000


async def attempt(services: Services, call: Call) -> Deliver:
    """Return what delivers the answer. Raises UpstreamError or ApiError when all targets failed."""
    assert call.model is not None
    until = call.started_at + services.config.server.timeouts.total
    failure: UpstreamError | None = None
    misfit: ApiError | None = None
    for route in _routes(call):
        call.attempts += 1
        call.route = route
        call.sent_at, call.reply_at, call.connect_s = monotonic(), 0.0, 0.0
        try:
            deliver = await _ask(services, call, route, until)
        except ApiError as error:
            # What one target cannot do another may: nothing was sent.
            call.attempts -= 1
            if error.code != "unsupported_parameter":
                raise
            misfit = misfit or error
        except UpstreamError as error:
            failure = error
            call.tries.append(_tried(call, route, error.failure.value, error.status))
            if error.failure is Failure.STREAM_ERROR:
                error.message = _redacted(error.message, route)
            if call.relay is not None and call.relay.started:
                measure(call)
                raise _interrupted(call, error, route) from None
            if not _rests(route, error) and decide(error) is Next.GIVE_UP:
                break
        except asyncio.CancelledError:
            call.tries.append(_tried(call, route, "cancelled", 0))
            raise
        else:
            call.tries.append(_tried(call, route, "", 200))
            return deliver
    if failure is None:
        if misfit is not None:
            raise misfit
        if call.operation is Operation.COUNT_TOKENS:
            return _count(call)
        failure = UpstreamError(Failure.CONNECT, "no target")
    if is_clients_fault(failure):
        return _pass_on(call, failure)
    raise failure


def _routes(call: Call) -> Iterator[Route]:
    """Return the routes to try, of a provider with several keys one after the other."""
    assert call.model is not None
    for route in plan(call.model.routes):
        if call.operation not in route.ways:
            continue
        if route.rotation is None:
            yield route
        else:
            yield from [route.others[i] for i in route.rotation.order(monotonic())]


def _rests(route: Route, error: UpstreamError) -> bool:
    """Let a key rest that was refused; tell whether another may do better."""
    seconds = resting_seconds(error.status, error.retry_after)
    if seconds is None or route.rotation is None:
        return False
    route.rotation.rest(route.number, monotonic(), seconds)
    return True


async def _ask(services: Services, call: Call, route: Route, until: float) -> Deliver:
    """Make one attempt."""
    request, target, way = call.request, route.target, route.ways[call.operation]
    assert request is not None
    built = way.lane.build(request)
    call.dropped = built.dropped
    body = built.body
    head = way.stream_head if request.stream else way.head
    if way.passed_on or route.signer is not None:
        path = way.stream_path if request.stream else way.path
        extra = await _more_headers(call, route, way.passed_on, path, body)
        data = b"%b%d\r\n%b\r\n%b" % (head, len(body), extra, body)
    else:
        data = b"%b%d\r\n\r\n%b" % (head, len(body), body)
    native = way.lane.native
    meta = NO_META if native else _meta(services, call, request, target.model)
    call.relay = relay = _relay(call, way.lane, request, meta) if request.stream else None
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
    answer = way.lane.read(content, request, meta)
    if request.stream and answer.usage is None and _error(content) is not None:
        # Some servers answer so with status 200.
        raise UpstreamError(Failure.STREAM_ERROR, content.decode(errors="replace"))
    call.status = 200
    call.finished = True
    measure(call, answer)
    if answer.streamed:
        call.client.start(served_headers(call, with_cost=True))
        return partial(call.client.finish, answer.body)
    content_type = answer.content_type
    if not content_type:
        content_type = reply.headers.get(b"content-type", b"application/json").decode("latin-1")
    headers = served_headers(call, with_cost=True)
    return partial(call.client.reply, 200, content_type, headers, answer.body)


async def _more_headers(
    call: Call, route: Route, passed_on: Headers, path: str, body: bytes
) -> bytes:
    """Return the header lines that only the moment of sending knows."""
    given = dict(call.passed_on)
    found = [(name, given.get(name) or default) for name, default in passed_on]
    lines = b"".join([f"{n}: {value}\r\n".encode("latin-1") for n, value in found if value])
    if route.signer is not None:
        lines += await route.signer.headers(route.target.origin.authority, path, body)
    return lines


def _meta(services: Services, call: Call, request: Request, model: str) -> Meta:
    return Meta(
        id=call.id,
        model=model,
        created=int(services.admission.now()),
        wants_usage=request.wants_usage,
        prompt_tokens=request.prompt_estimate,
        echo=request.fields,
    )


def _error(content: bytes) -> Any:
    """Return what stands under `error`, where SDKs look for it."""
    try:
        return msgspec.json.decode(content, type=_WithError).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _WithError(msgspec.Struct):
    error: Any = None


def _count(call: Call) -> Deliver:
    """Count a prompt's tokens here: no target does it."""
    tokens = count_prompt(call)
    call.status, call.finished = 200, True
    body = b'{"input_tokens":%d}' % tokens
    return partial(call.client.reply, 200, "application/json", common_headers(call), body)


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


def _relay(call: Call, lane: Lane, request: Request, meta: Meta) -> Relay:
    return Relay(
        lane.decoder(request, meta),
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
        body=_redacted_bytes(body, route) if isinstance(_error(body), dict) else b"",
        content_type=reply.headers.get(b"content-type", b"").decode("latin-1"),
        retry_after=_retry_after(reply.headers),
    )


def _pass_on(call: Call, error: UpstreamError) -> Deliver:
    """Give the client the provider's own refusal of its request, in the provider's words."""
    told = ApiError("invalid_value", error.message)
    call.status, call.error, call.outcome = error.status, f"upstream_{error.status}", "error"
    native = call.route is not None and call.route.ways[call.operation].lane.native
    told.status = error.status
    body = error.body if native else b""
    body = body or FORMATS[call.operation].error_body(told, call.id)
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
