"""Requests that go to a provider's own API as they are: who may, what it reserves, what it came to.

The gateway understands nothing of them but the models they name and the usage, where it sees them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from time import time
from urllib.parse import parse_qsl

import msgspec

from gateway.core import record
from gateway.core.aws_events import framed
from gateway.core.errors import ApiError, StoreError
from gateway.core.operations import Operation
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.formats.responses_reply import error_event  # every SDK raises it
from gateway.pipeline.admit import admit, output_of
from gateway.pipeline.allowance import Allowance, allowance_for
from gateway.pipeline.ask import secrets_of
from gateway.pipeline.call import Call, Headers
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.elsewhere import Elsewhere
from gateway.pipeline.foreign_request import SOUND, SPEECH, Asked, asked_in, request_of
from gateway.pipeline.lanes import Answer
from gateway.pipeline.named_models import (
    MAX_SHOWN_CHARS,
    NO_MODEL,
    READING,
    authorize,
    in_path,
    is_counting,
    is_plain,
    names_of,
    own_models,
    plain_name,
    segments_of,
)
from gateway.pipeline.serve import authenticate
from gateway.pipeline.served import Route, Served
from gateway.pipeline.services import Services
from gateway.pipeline.settle import measure, settle
from gateway.pipeline.targets import with_operators
from gateway.pipeline.tries import tried
from gateway.policy.access import Principal
from gateway.policy.limits import MONEY, may_refuse_money
from gateway.policy.pricing import Price
from gateway.policy.retry import retry_after
from gateway.policy.rotation import resting_seconds
from gateway.policy.tokens import count_tokens
from gateway.providers.foreign_usage import EVENTS, LINES, MESSAGES, ForeignUsage
from gateway.upstream.credentials import Signer

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_EXCEPTION = {
    ":message-type": "exception",
    ":exception-type": "throttlingException",
    ":content-type": "application/json",
}
_LATER = frozenset(("batch", "batches", "fine_tuning", "fine-tuning"))
_NOTHING = Price.from_rates(0, 0)

Read = Callable[[], Awaitable[bytes | None]]


class Passage:
    """One request on its way through. Begun by `begin`, ended by `end`, always."""

    def __init__(self, services: Services, call: Call, *, counts: bool, paid: bool) -> None:
        self._services, self._call, self._counts = services, call, counts
        self._paid = paid
        self._usage = ForeignUsage()
        self._status = 0  # of the provider's answer
        self._allowance: Allowance | None = None
        if paid and call.request is not None and any(g.limit.unit == MONEY for g in call.grants):
            self._allowance = allowance_for(services, call, call.request)
        self._ended = False

    @property
    def call(self) -> Call:
        """Return the request's state."""
        return self._call

    @property
    def target(self) -> Target:
        """Return where it goes."""
        assert self._call.route is not None
        return self._call.route.target

    @property
    def authorization(self) -> Headers:
        """Return the headers with which its provider is asked."""
        route = self._call.route
        assert route is not None
        assert route.adapter.conversation is not None
        headers = route.adapter.conversation.endpoint(route.target, stream=False).headers
        found = with_operators(headers, route.target)
        return tuple([(n, value) for n, value in found if n.lower() != "content-type"])

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return what the provider may quote, and the client should not see."""
        assert self._call.route is not None
        return secrets_of(self._call.route)

    @property
    def signer(self) -> Signer | None:
        """Return what signs its requests, where its key is not all."""
        assert self._call.route is not None
        return self._call.route.signer

    def answered(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Know how the provider has answered: a key that it refuses rests, if there are others."""
        self._status = status
        if self._counts:
            self._usage.head(headers)
        route = self._call.route
        assert route is not None
        seconds = resting_seconds(status, retry_after(headers, time()))
        if route.rotation is not None and seconds is not None:
            route.rotation.rest(route.number, self._services.loop.time(), seconds)

    def see(self, data: bytes) -> None:
        """Look at a part of the answer."""
        if self._counts:
            self._usage.feed(data)

    @property
    def framed(self) -> bool:
        """Tell whether the answer is a stream whose events are looked at."""
        return bool(self._usage.framing)

    @property
    def told_at_end(self) -> bool:
        """Tell whether the end of an answer is worth reading though its client has left.

        What a whole answer came to stands there; a stream has said so as it went.
        """
        drains = self.target.drains
        return self._counts and self._status < 400 and (drains or not self._usage.framing)

    @property
    def careful(self) -> bool:
        """Tell whether a budget may end the answer early."""
        return self._allowance is not None

    @property
    def outgrown(self) -> bool:
        """Tell whether more has been written than the reservation covers."""
        allowance = self._allowance
        return allowance is not None and self._usage.text_bytes > allowance.text_bytes

    async def pay_on(self) -> ApiError | None:
        """Reserve what an answer needs that has outgrown its reservation; return what refuses."""
        while self.outgrown:
            assert self._allowance is not None
            refusal = await self._allowance.more()
            if refusal is not None:
                return refusal
        return None

    def cut_off(self, part: bytes, error: ApiError) -> bytes:
        """Return a part up to its last whole event, and one that says why there are no more.

        Nothing, where the answer's framing has no place for that.
        """
        if self._usage.framing == EVENTS:
            ends = [part.rfind(end) + len(end) for end in _EVENT_ENDS if end in part]
            return part[: max(ends, default=0)] + b"\n\n" + error_event(error)
        unfinished = self._usage.unfinished()
        if unfinished > len(part):
            return b""
        whole = part[: len(part) - unfinished]
        if self._usage.framing == MESSAGES:
            payload = msgspec.json.encode({"message": error.message})
            return whole + framed(_EXCEPTION, payload)
        if self._usage.framing == LINES:
            return whole + msgspec.json.encode({"error": error.message}) + b"\n"
        return b""

    def end(self, status: int, outcome: str, error: str = "", failure: str = "") -> None:
        """Settle what it came to; `failure`: of the attempt. Idempotent: the first word counts."""
        if self._ended:
            return
        self._ended = True
        call = self._call
        call.status, call.outcome, call.error = status, outcome, error
        call.finished = outcome == record.OK
        assert call.route is not None
        call.tries.append(tried(call, call.route, failure, status if call.reply_at else 0))
        if call.reply_at:  # which is when the head came
            call.asked_s = self._services.loop.time() - call.reply_at
        if self._status >= 400 or not self._paid:
            call.written = False  # it costs nothing, also where its client left
        if self._status < 400 and (status < 400 or error == "overloaded"):
            self._measure()
        settle(self._services, call)

    def _measure(self) -> None:
        """Count what the provider has told, or what was seen of a stream."""
        call, usage = self._call, self._usage.result()
        # What a whole answer says is a model's only where one was asked.
        text = self._usage.text() if self._usage.framing or self._paid else ""
        outdated = self._usage.outdated
        if usage is not None and (outdated or not call.finished):  # it may tell of the beginning
            told, written = usage.completion_tokens, count_tokens(text)
            outdated = outdated or told < written
            usage = msgspec.structs.replace(usage, completion_tokens=max(told, written))
        guessed = usage is None and self._usage.opaque and self._paid
        if guessed:  # sound, or a picture: nothing in it tells
            usage = self._reserved()
        if usage is None and not text and not (self._paid and call.finished):
            return  # one that broke off is estimated
        measure(call, Answer(b"", usage, lambda: text))
        if guessed:
            call.usage_source = "estimated"
        elif usage is not None and outdated:
            call.usage_source = "partial"
        call.finished = True  # or it would be estimated again, without any of that

    def _reserved(self) -> Usage:
        """Return what was reserved, as what an answer came to that does not say."""
        call = self._call
        assert call.request is not None
        assert call.model is not None
        made = output_of(call.request, call.model)
        return Usage(
            call.request.prompt_estimate,
            completion_tokens=made,
            audio_completion_tokens=made if SOUND in call.request.fields else 0,
        )

    async def settled(self) -> None:
        """Wait until the settlement is out of this process: then the client may see the end."""
        future: asyncio.Future[None] = self._services.loop.create_future()
        self._services.admission.after_settled(partial(_wake, future))
        await future


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def new_call(call_id: str, secret: str | None, trace: str) -> Call:
    """Return the state of a request that begins now."""
    began = asyncio.get_running_loop().time()
    return Call(call_id, Operation.PASSTHROUGH, b"", secret, Elsewhere(), began, trace)


async def begin(
    services: Services,
    call: Call,
    provider: str,
    path: str,
    read: Read,
    method: str,
    waits: Callable[[], bool],
) -> Passage:
    """Admit a request; `read` returns its JSON, None where it has none, and is asked last.

    `waits` tells whether the client is there yet: else it has left where this is cancelled. Raises
    ApiError, StoreError.
    """
    try:
        await authenticate(services, call)
        assert call.principal is not None
        segments = segments_of(path)
        if services.catalogue.passage(provider, NO_MODEL) is None:
            message = f"No provider named {provider[:MAX_SHOWN_CHARS]!a} is passed through."
            raise ApiError("not_found", message)
        body, named = await read(), in_path(segments)
        if {NO_MODEL, f"{provider}/{NO_MODEL}"}.isdisjoint(call.principal.models):
            await authorize(services.catalogue, call.principal, provider, method, path, body)
        asked = asked_in(body, method)
        # A provider that has the name in the path acts on that, whatever the body says.
        model = named[0] if named else plain_name(asked.model)
        served = services.catalogue.passage(provider, model or NO_MODEL)
        if served is None:
            raise ApiError("invalid_value", "That is no model's name.", param="model")
        call.model, call.route = _turn(served, services.loop.time(), free=method in READING)
        generates = bool(model and method == "POST")
        speaks = generates and segments[-1] == SPEECH
        call.request = request_of(asked, served.name, body, generates=generates, speaks=speaks)
        if call.principal.by_model:
            models = named or await own_models(body)
            surely = method in READING or bool(model and models and is_plain(segments))
            call.principal = _limited(
                services.catalogue, call.principal, provider, models, surely=surely
            )
        if may_refuse_money(call.principal.limits):
            _check_payable(asked, segments, path, method)
        try:
            await admit(services, call)
        except ApiError as error:
            raise _unnamed() if error.code == "price_unknown" and not model else error from None
    except BaseException as error:
        cut = isinstance(error, asyncio.CancelledError) and waits()
        told = shutting_down() if cut else error
        _note(call, told)
        settle(services, call)
        if told is not error:
            raise told from None
        raise
    call.attempts, call.sent_at = 1, services.loop.time()
    # Other methods show again what was counted when it was made.
    counts = method == "POST"
    paid = counts and bool(model) and not is_counting(segments, named)
    return Passage(services, call, counts=counts, paid=paid)


def _check_payable(asked: Asked, segments: list[str], path: str, method: str) -> None:
    """Refuse under a budget what tells nobody what it came to. Raises ApiError."""
    last = segments[-1].lower()
    later = ":batch" in last or "longrunning" in last or not _LATER.isdisjoint(segments)
    if asked.background or (later and method not in READING):
        message = "Nothing is made in the background under a budget: nobody would pay for it."
        raise ApiError("unsupported_parameter", message, param="background")
    if "callback" in dict(parse_qsl(path.partition("?")[2], keep_blank_values=True)):
        message = "An answer that is no JSON tells nobody what it came to."
        raise ApiError("unsupported_parameter", message, param="callback")


def _unnamed() -> ApiError:
    message = (
        "Nobody knows which model is asked for, so it cannot be charged: that is read from the "
        "path, or from a body that is sent with Content-Type: application/json."
    )
    return ApiError("price_unknown", message, param="model")


def _turn(served: Served, now: float, *, free: bool) -> tuple[Served, Route]:
    """Return the model and the route to it by the key whose turn it is; reading costs nothing."""
    route = served.routes[0]
    if route.rotation is not None:
        route = route.others[route.rotation.order(now)[0]]
    if free:
        route = msgspec.structs.replace(route, price=_NOTHING)
    return msgspec.structs.replace(served, routes=(route,)), route


def shutting_down() -> ApiError:
    """Return what a client is told whom the gateway's end has cut."""
    return ApiError("overloaded", "The gateway is shutting down.", retry_after=1)


def _note(call: Call, error: BaseException) -> None:
    """Note why a request was not admitted."""
    call.outcome = record.REFUSED
    if isinstance(error, ApiError):
        call.status, call.error = error.status, error.code
    elif isinstance(error, StoreError):
        call.status, call.error = 503, "store_unavailable"
        call.unsure = True  # the lease may have been taken
    elif isinstance(error, asyncio.CancelledError):
        call.outcome = record.DISCONNECTED
    else:
        call.status, call.error = 500, "internal_error"


def _limited(
    catalogue: Catalogue, principal: Principal, provider: str, models: list[str], *, surely: bool
) -> Principal:
    """Return a key's holder with the limits of all names that models have; unless surely, of all.

    Nobody knows then which model it is.
    """
    limits = dict.fromkeys(principal.limits)
    for name in [one for model in models for one in names_of(catalogue, provider, model)]:
        limits |= dict.fromkeys(principal.limits_for(name))
    if not models:
        limits |= dict.fromkeys(principal.limits_for(f"{provider}/{NO_MODEL}"))
    if not surely:
        limits |= dict.fromkeys(one for _, some, _ in principal.by_model for one in some)
    return principal.limited_to(tuple(limits))
