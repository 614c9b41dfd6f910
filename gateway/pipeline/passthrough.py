"""Requests that go to a provider's own API as they are: who may, what it reserves, what it came to.

The gateway understands nothing of them but the model's name and the usage, where it can see them.
"""

import asyncio
from itertools import pairwise

import msgspec

from gateway.core import record
from gateway.core.errors import ApiError
from gateway.core.ids import request_id
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.formats.body import estimate_prompt
from gateway.pipeline.call import Call
from gateway.pipeline.lanes import Answer
from gateway.pipeline.serve import admit, authenticate
from gateway.pipeline.services import Services
from gateway.pipeline.settle import measure, settle
from gateway.policy.access import may_use
from gateway.providers.foreign_usage import ForeignUsage
from gateway.upstream.exchange import Flow

NO_MODEL = "*"


class Elsewhere:
    """The client of a call whose answer is written by somebody else."""

    connected = True
    chunked = False
    begun = False

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Do nothing."""

    def start(self, headers: bytes) -> None:
        """Do nothing."""

    def write(self, data: bytes) -> None:
        """Do nothing."""

    def write_frame(self, frame: bytes) -> None:
        """Do nothing."""

    def finish(self, data: bytes) -> None:
        """Do nothing."""

    def follow(self, flow: Flow | None) -> None:
        """Do nothing."""

    def expect(self) -> None:
        """Do nothing."""


class Asked(msgspec.Struct):
    """What a JSON body says that matters."""

    model: str = ""
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None


class Passage:
    """One request on its way through. Begun by `begin`, ended by `end`, always."""

    def __init__(self, services: Services, call: Call) -> None:
        self._services, self._call = services, call
        self._usage = ForeignUsage()
        self._broken = False

    @property
    def call(self) -> Call:
        """Return the request's state."""
        return self._call

    @property
    def target(self) -> Target:
        """Return where it goes."""
        assert self._call.route is not None
        return self._call.route.target

    def see(self, data: bytes) -> None:
        """Look at a part of the answer."""
        self._usage.feed(data)

    def break_off(self) -> None:
        """Know that the answer did not come to its end."""
        self._broken = True

    def end(self, status: int, outcome: str, error: str = "") -> None:
        """Settle what it came to."""
        call = self._call
        if self._broken:
            outcome, error = record.ERROR, "stream_interrupted"
        call.status, call.outcome, call.error = status, outcome, error
        call.finished = outcome == record.OK
        usage = self._usage.result()
        if usage is not None and status < 400:
            measure(call, Answer(b"", usage, str))
        settle(self._services, call)


async def begin(
    services: Services,
    secret: str | None,
    provider: str,
    path: str,
    body: bytes | None,
    trace: str,
    method: str,
) -> Passage:
    """Admit a request; `body` is its JSON, None where it has none. Raises ApiError, StoreError."""
    now = asyncio.get_running_loop().time()
    operation = Operation.PASSTHROUGH
    call = Call(request_id(), operation, b"", secret, Elsewhere(), now, trace)
    try:
        await authenticate(services, call)
        asked = _read(body)
        model = asked.model or _model_in(path)
        served = services.catalogue.passage(provider, model or NO_MODEL)
        assert call.principal is not None
        if served is None:
            raise ApiError("not_found", f"No provider named '{provider}' is passed through.")
        names = (model, f"{provider}/{model}") if model else ()
        if not (any(may_use(call.principal, n) for n in names) or "*" in call.principal.models):
            message = f"This key may not use '{provider}/{model or NO_MODEL}'."
            raise ApiError("model_not_allowed", message)
        call.model, call.route = served, served.routes[0]
        call.request = _request(asked, f"{provider}/{model or NO_MODEL}", body, method)
        await admit(services, call)
    except BaseException as error:
        call.status = error.status if isinstance(error, ApiError) else 503
        call.error = error.code if isinstance(error, ApiError) else "store_unavailable"
        call.outcome = record.REFUSED
        settle(services, call)
        raise
    call.attempts, call.sent_at = 1, now
    return Passage(services, call)


def _read(body: bytes | None) -> Asked:
    try:
        return msgspec.json.decode(body or b"{}", type=Asked)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Asked()  # the provider's to judge


def _model_in(path: str) -> str:
    """Return the model that a path names, as Google's, Bedrock's and Azure's do."""
    parts = path.partition("?")[0].split("/")
    for before, name in pairwise(parts):
        if before in ("models", "model", "deployments") and name:
            return name.partition(":")[0]
    return ""


def _request(asked: Asked, model: str, body: bytes | None, method: str) -> Request:
    most = asked.max_completion_tokens or asked.max_output_tokens or asked.max_tokens
    generates = bool(asked.model) and method == "POST"
    return Request(
        Operation.PASSTHROUGH,
        model,
        False,  # no stream of ours, whatever it is
        True,
        most if most is not None else (None if generates else 0),
        1,
        estimate_prompt(body) if body and generates else 0,
        {},
    )
