"""Hot path: one attempt at one target: the request out, the reply or the stream in."""

import asyncio
import contextlib
import zlib
from collections.abc import Callable
from functools import partial
from time import monotonic, time
from typing import Any

import msgspec
from msgspec import Raw

from gateway.core.errors import INVALID, ApiError, Failure, UpstreamError
from gateway.core.hints import NO_HINTS
from gateway.core.operations import ANTHROPIC, Operation
from gateway.core.raw import NOTHING
from gateway.core.request import Request
from gateway.core.target import Deadlines
from gateway.formats import Meta
from gateway.formats.opening import only_opens
from gateway.pipeline.answer import served_headers
from gateway.pipeline.call import Call, Deliver
from gateway.pipeline.lanes import Answer, HubLane, Lane
from gateway.pipeline.retold import retold
from gateway.pipeline.served import Route
from gateway.pipeline.services import Services
from gateway.pipeline.settle import measure
from gateway.pipeline.targets import Headers
from gateway.pipeline.translation import Translation
from gateway.policy.header_secrets import MIN_CHARS, header_secrets
from gateway.policy.refusal import request_fault
from gateway.policy.retry import retry_after
from gateway.policy.spelled import spelled
from gateway.policy.tokens import count_tokens
from gateway.timer import LazyTimer
from gateway.upstream.exchange import MAX_BODY_BYTES, Reply
from gateway.upstream.relay import Relay

MAX_SHOWN_CHARS = 300
# What a reply has in the client's dialect; those that are translated are looked at there.
_REPLIES = {
    Operation.CHAT: "choices",
    Operation.COMPLETIONS: "choices",
    Operation.MESSAGES: "content",
    Operation.RESPONSES: "output",
    Operation.EMBEDDINGS: "data",
    Operation.COUNT_TOKENS: "input_tokens",
}
_decode_kind: dict[Operation, Callable[[bytes], Any]] = {
    operation: msgspec.json.Decoder(
        msgspec.defstruct("Kind", [("found", Raw, NOTHING)], rename={"found": name}, gc=False)
    ).decode
    for operation, name in _REPLIES.items()
}
# Beside figures by the names that these APIs alone have, the word is enough.
_KNOWN_BY = {
    Operation.CHAT: b'"choices"',
    Operation.COMPLETIONS: b'"choices"',
    Operation.EMBEDDINGS: b'"data"',
}
THREAD_BYTES = 256 * 1024  # larger replies are translated aside: embeddings of many texts
THREAD_TOKENS = 16_384  # longer prompts are translated aside: 10 ms and more, for many short turns
NO_META = Meta("", "", 0)  # replies in the client's own dialect need none


async def ask(services: Services, call: Call, route: Route, until: float) -> Deliver:
    """Make one attempt."""
    request, target, way = call.request, route.target, route.ways[call.operation]
    assert request is not None
    lane = way.stream_lane if request.stream else way.lane
    try:
        if request.prompt_estimate > THREAD_TOKENS and not lane.native:
            built = await asyncio.to_thread(lane.build, request)
        else:
            built = lane.build(request)
    except RecursionError:  # decoded further up the stack it just fitted
        raise ApiError("invalid_json", "The request body is nested too deeply.") from None
    call.dropped = built.dropped
    body = built.body
    if way.passed_on or route.signer is not None or call.hints is not NO_HINTS or target.idempotent:
        data = await packed(call, route, body, until)
    else:
        head = way.stream_head if request.stream else way.head
        data = b"%b%d\r\n\r\n%b" % (head, len(body), body)
    meta = NO_META if lane.native else _meta(services, call, request, target.model)
    call.relay = relay = _relay(call, lane, request, meta) if request.stream else None
    watch = _Watch(services, relay, target.deadlines) if relay is not None else None
    try:
        reply = await services.transport.send(
            target.origin, data, relay, target.deadlines, until, call
        )
    except UpstreamError as error:
        raise _told(call, route, error) from None
    finally:
        if watch is not None:
            watch.close()
    call.reply_at = monotonic()
    if reply.status != 200:
        raise refusal(route, reply)
    if reply.streamed:
        assert relay is not None
        try:
            ending = relay.end()
        except UpstreamError as error:
            raise _told(call, route, error) from None
        call.status = 200
        call.finished = True
        measure(call)
        return partial(call.client.finish, ending)
    call.relay = None
    try:
        read = partial(_whole, lane, request, meta, reply)
        if len(reply.body) > THREAD_BYTES and not lane.native:
            answer = await _aside(call, read)
        else:
            answer = read()
        if request.stream and not answer.streamed:
            answer = retold(answer, request, _meta(services, call, request, target.model))
    except UpstreamError as error:
        raise _told(call, route, error) from None
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


async def _aside(call: Call, read: Callable[[], Answer]) -> Answer:
    """Read a whole reply in a thread. What it came to is known also where its client leaves.

    Raises UpstreamError.
    """
    reading = asyncio.create_task(asyncio.to_thread(read))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        with contextlib.suppress(UpstreamError):
            answer = await reading
            call.finished = True
            measure(call, answer)
        raise


def _whole(lane: Lane, request: Request, meta: Meta, reply: Reply) -> Answer:
    """Read a whole reply. Raises UpstreamError."""
    content = _decompressed(reply)
    if not content.lstrip().startswith(b"{"):
        # A login page, or whatever stands in front of a provider: no answer of its API.
        raise UpstreamError(Failure.PROTOCOL, "the reply is no JSON object")
    if not content.isascii():
        _check_text(content)
    answer = lane.read(content, request, meta)
    if answer.usage is None and _error(content) is not None:  # some servers answer so with 200
        raise UpstreamError(Failure.STREAM_ERROR, content.decode(errors="replace"))
    if lane.native:
        known = _KNOWN_BY.get(request.operation)
        if answer.usage is None or known is None or known not in content:
            _check_kind(request.operation, content)
    return answer


async def packed(call: Call, route: Route, body: bytes, until: float) -> bytes:
    """Return a whole request with its head. Raises UpstreamError where no token is to be had."""
    request, way = call.request, route.ways[call.operation]
    assert request is not None
    head = way.stream_head if request.stream else way.head
    key = call.hints.idempotency_key or (call.id if route.target.idempotent else "")
    path = way.stream_path if request.stream else way.path
    try:
        async with asyncio.timeout(max(0.0, until - monotonic())):
            extra = await _more_headers(call, route, way.passed_on, path, body)
    except TimeoutError:
        message = "no access token came in time"
        raise UpstreamError(Failure.TOTAL_TIMEOUT, message) from None
    if key:  # what is asked to go on with a stream is another request
        named = f"{key}-{call.continued}" if call.continued else key
        extra += f"Idempotency-Key: {named}\r\n".encode()
    return b"%b%d\r\n%b\r\n%b" % (head, len(body), extra, body)


async def ask_rest(services: Services, call: Call, route: Route, until: float) -> Deliver:
    """Ask a target to go on with the stream that another one has left. Raises UpstreamError."""
    request, relay, lane = call.request, call.relay, route.ways[call.operation].stream_lane
    assert request is not None
    assert relay is not None
    assert isinstance(lane, HubLane)
    translation = relay.decoder
    assert isinstance(translation, Translation)
    data = await packed(call, route, lane.build_rest(request, translation.said or "").body, until)
    translation.go_on(lane.rest_decoder())
    reply = await services.transport.send(
        route.target.origin, data, relay, route.target.deadlines, until, call
    )
    call.reply_at = monotonic()
    if reply.status != 200:
        raise refusal(route, reply)
    if not reply.streamed:
        raise UpstreamError(Failure.PROTOCOL, "the reply is no stream")
    ending = relay.end()
    call.status, call.finished = 200, True
    measure(call)
    return partial(call.client.finish, ending)


class _Watch:
    """Looks after a stream that has shown nothing yet: comments for the client, and a deadline."""

    __slots__ = ("_every", "_patience", "_ping_at", "_relay", "_timer", "_until")

    def __init__(self, services: Services, relay: Relay, deadlines: Deadlines) -> None:
        self._relay, self._every = relay, services.config.server.stream_ping
        now, self._patience = monotonic(), deadlines.first_token
        self._until, self._ping_at = now + self._patience, now + self._every
        self._timer = LazyTimer(services.loop, self._look)
        self._timer.set(min(self._until, self._ping_at))

    def close(self) -> None:
        """Look no more. Idempotent."""
        self._timer.clear()

    def _look(self) -> None:
        if self._relay.started:
            return
        now = monotonic()
        if now >= self._until:
            message = "nothing came behind the reply's head in time"
            if self._relay.give_up(UpstreamError(Failure.FIRST_TOKEN_TIMEOUT, message)):
                return
            # There is no head yet: that has a deadline of its own, and this is what follows it.
            self._until = now + self._patience
        if now >= self._ping_at:
            self._relay.ping()
            self._ping_at = now + self._every
        self._timer.set(min(self._until, self._ping_at))


async def _more_headers(
    call: Call, route: Route, passed_on: Headers, path: str, body: bytes
) -> bytes:
    """Return the header lines that only the moment of sending knows."""
    given = dict(call.passed_on)
    found = [(name, given.get(name) or default) for name, default in passed_on]
    lines = b"".join([f"{n}: {value}\r\n".encode("latin-1") for n, value in found if value])
    if route.signer is not None:
        lines += await route.signer.headers("POST", route.target.origin.authority, path, body)
    return lines


def _check_kind(operation: Operation, content: bytes) -> None:
    """Raise UpstreamError where a reply is none of the client's dialect: it came from elsewhere."""
    try:
        if _decode_kind[operation](content).found:
            return
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    raise UpstreamError(Failure.PROTOCOL, "the reply is none of its API")


def _check_text(content: bytes) -> None:
    """Raise UpstreamError where a reply is no UTF-8: msgspec does not look into all of it."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        message = f"the reply is no UTF-8 (byte {error.start})"
        raise UpstreamError(Failure.PROTOCOL, message) from None


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


def _relay(call: Call, lane: Lane, request: Request, meta: Meta) -> Relay:
    return Relay(
        lane.decoder(request, meta),
        call.client,
        partial(served_headers, call, with_cost=False),
        count_tokens,
        monotonic,
        partial(only_opens, call.operation),
        call.allowance,
    )


def refusal(route: Route, reply: Reply) -> UpstreamError:
    """Turn a reply that is not 200 into an error; its text never quotes the target's key."""
    body = _decompressed(reply)
    message = route.adapter.parse_error(body)
    return UpstreamError(
        Failure.STATUS,
        redacted(message or f"answered {reply.status}", route)[:MAX_SHOWN_CHARS],
        status=reply.status,
        body=_redacted_bytes(body, route) if isinstance(_error(body), dict) else b"",
        content_type=reply.headers.get(b"content-type", b"").decode("latin-1"),
        retry_after=retry_after(reply.headers, time()),
    )


def _told(call: Call, route: Route, error: UpstreamError) -> UpstreamError:
    """Return the error that a stream tells, in its own words only.

    Before there is any content a fault of the request is as good as refused with a status.
    """
    if error.failure is not Failure.STREAM_ERROR:
        return error
    event = error.message.encode(errors="replace")
    said = redacted(route.adapter.parse_error(event) or error.message, route)[:MAX_SHOWN_CHARS]
    fault = request_fault(event)
    if fault is None or (call.relay is not None and call.relay.started):
        return UpstreamError(Failure.STREAM_ERROR, said)
    status, found = fault
    named = [found.get(name) for name in ("type", "code")]
    kind, code = [one[:MAX_SHOWN_CHARS] if isinstance(one, str) else None for one in named]
    told: dict[str, Any] = {"error": {"message": said, "type": kind or INVALID}}
    if call.operation in ANTHROPIC:
        told["type"] = "error"
    else:
        told["error"] |= {"param": None, "code": code}
    body = _redacted_bytes(msgspec.json.encode(told), route)
    return UpstreamError(Failure.STATUS, said, status=status, body=body)


def _decompressed(reply: Reply) -> bytes:
    """Undo a compression that was not asked for, within the cap of a body."""
    if b"content-encoding" not in reply.headers:
        return reply.body
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


def redacted(text: str, route: Route) -> str:
    """Take the gateway's own credentials out of what a provider says: some quote them in errors."""
    data = text.encode(errors="surrogatepass")
    return _redacted_bytes(data, route).decode(errors="surrogatepass")


def _redacted_bytes(body: bytes, route: Route) -> bytes:
    for secret in spelled(secrets_of(route)):
        body = secret.replaced(body, _named)
    return body


def _named(_: bytes) -> bytes:
    return b"[key]"


def secrets_of(route: Route) -> tuple[str, ...]:
    """Return what a target's provider is asked with, the longest first: one may hold another.

    Not what is given where none is needed (`x`, `EMPTY`, `ollama`): it is a word like any other.
    """
    key = route.target.api_key or ""
    found = {*header_secrets(route.target.headers), *((key,) if len(key) >= MIN_CHARS else ())}
    if route.signer is not None:
        found.update(route.signer.secrets)
    return tuple(sorted(found, key=len, reverse=True))
